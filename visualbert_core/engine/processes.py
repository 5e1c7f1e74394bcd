"""Processes of this machine that help for a while, outside the pool of workers: they end when their parent does.

Owns what would be left behind otherwise. A child of a process that is killed goes on by itself, and so does a folder
that was being written: `DraftFolder` is one that the next run knows to be nobody's.
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
from typing import Any, Self

from visualbert_core.errors import ClusterError, UnfinishedError

LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # a file system without any
SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def helpers() -> Iterator[ProcessPoolExecutor]:
    """A process for each CPU. None outlives this one, however it ends; a signal to all of them is this one's alone.

    Raises ClusterError where one of them is ended by something else.
    """
    pool = ProcessPoolExecutor(os.cpu_count(), initializer=_follow_parent)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise ClusterError(
            "a process that helped was ended from outside, as where memory is short: run the same line again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """In a child: leave signals to the parent, and end with it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    # Ready as soon as the parent is gone, on every system. A sibling that was forked later holds it open, and the last
    # one is held by nobody: they end one after the other.
    wait([parent.sentinel])
    os._exit(1)


@contextmanager
def stopping(what: str) -> Iterator[None]:
    """SIGTERM and SIGINT raise UnfinishedError in the main thread; a second one acts as it would without this."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    owner = os.getpid()

    def stop(number: int, _: object) -> None:
        if os.getpid() != owner:  # a child that has just been forked
            return
        restore()
        raise UnfinishedError(f"stopped ({signal.Signals(number).name}) {what}; the same line again begins it anew")

    for number in SIGNALS:
        signal.signal(number, stop)
    try:
        yield
    finally:
        restore()


class DraftFolder:
    """A folder beside `target` that is to become it; gone afterwards unless it was published.

    Its writer holds a lock that ends with its process and that children do not inherit. So `clear` takes away what a
    process that is gone has left, and nothing else.
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
            except (BlockingIOError, FileNotFoundError):  # whoever clears was here in between
                continue
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                break  # nobody clears there either
        self.folder = self.place / self.target.name
        self.folder.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        if self.lock is not None:
            os.close(self.lock)

    def publish(self) -> None:
        """It becomes the target, which must not be there."""
        self.folder.rename(self.target)

    @staticmethod
    def clear(target: Path) -> None:
        """Remove the drafts of `target` whose writers are gone."""
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
    """The open lock of a draft. Raises BlockingIOError or FileNotFoundError where it is another process's."""
    lock = os.open(place / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(lock), (place / LOCK).stat()):
            raise FileNotFoundError(place / LOCK)
    except OSError:
        os.close(lock)
        raise
    return lock


def _remove(place: Path, tries: int = 50) -> None:
    """Children of a killed writer may need a moment to notice, and end what they were writing."""
    for _ in range(tries):
        shutil.rmtree(place, ignore_errors=True)
        if not place.exists():
            return
        time.sleep(0.1)
