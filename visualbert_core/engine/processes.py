"""Helper processes on this machine, outside the pool of workers, and folders that are being written.

Owns what a killed process would leave behind. A child process would go on without its parent, so a helper ends with its
parent. A folder would stay half written, so `DraftFolder` marks it, and the next run removes it.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Self

from visualbert_core.engine.stopping import SIGNALS, Stop
from visualbert_core.errors import ClusterError, UnfinishedError

LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # the file system has no locks


@contextmanager
def helpers() -> Iterator[ProcessPoolExecutor]:
    """Give a pool of helper processes, one for each CPU.

    No helper outlives this process, however this process ends. Helpers ignore signals: this process handles them.
    Raise ClusterError where something else ends a helper.
    """
    pool = ProcessPoolExecutor(os.cpu_count(), initializer=_follow_parent)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise ClusterError(
            "a helper process was ended from outside, perhaps because memory was short: run the same line again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Prepare a helper: ignore signals, and end when the parent ends."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    # The sentinel is ready when the parent is gone, on every system. A sibling that was forked later holds the sentinel
    # open. No process holds the sentinel of the last sibling, so the siblings end one after the other.
    wait([parent.sentinel])
    os._exit(1)


def stopping(what: str) -> Stop:
    """Return a context that raises UnfinishedError in the main thread at SIGTERM or SIGINT.

    `what` completes the message "stopped (SIGTERM) …".
    """

    def end(name: str) -> None:
        raise UnfinishedError(f"stopped ({name}) {what}; run the same line again to restart it")

    return Stop(heard=end)


class DraftFolder:
    """A folder beside `target` that becomes `target` when it is published. Otherwise it is removed.

    Its writer holds a POSIX lock (fcntl(2)), which ends with the process and which children do not inherit. So `clear`
    removes only drafts of processes that have ended.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.lock: int | None = None

    def __enter__(self) -> Self:
        while True:
            self.place = Path(tempfile.mkdtemp(prefix=_prefix(self.target), dir=self.target.parent))
            try:
                self.lock = _lock(self.place)
                break
            except (BlockingIOError, FileNotFoundError):  # another process cleared the folder before it was locked
                continue
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                break  # without locks no process clears drafts either
        self.folder = self.place / self.target.name
        self.folder.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        if self.lock is not None:
            os.close(self.lock)

    def publish(self) -> None:
        """Rename the draft to the target, which must not exist."""
        self.folder.rename(self.target)

    @staticmethod
    def clear(target: Path) -> None:
        """Remove the drafts of `target` whose writers have ended."""
        for place in target.parent.glob(f"{glob.escape(_prefix(target))}*"):
            with suppress(OSError):
                lock = _lock(place)
                try:
                    _remove(place)
                finally:
                    os.close(lock)


def _prefix(target: Path) -> str:
    return f".{target.name}.draft-"


def _lock(place: Path) -> int:
    """Lock a draft and return the open lock file.

    Raise BlockingIOError where another process holds the lock, and FileNotFoundError where another process has removed
    the draft.
    """
    lock = os.open(place / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The lock may be on a file that another process removed between open and lockf.
        if not os.path.samestat(os.fstat(lock), (place / LOCK).stat()):
            raise FileNotFoundError(place / LOCK)
    except OSError:
        os.close(lock)
        raise
    return lock


def _remove(place: Path, tries: int = 50) -> None:
    """Remove a draft. Try for five seconds, because children of a killed writer write until they notice its end."""
    for _ in range(tries):
        shutil.rmtree(place, ignore_errors=True)
        if not place.exists():
            return
        time.sleep(0.1)
