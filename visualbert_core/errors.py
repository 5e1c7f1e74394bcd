"""The errors that end a job, and the exit code of each.

A message is one line: what is wrong, where (file, line, id), what to do. The failure of a single image or example is
not an exception. It is a row (`schema.Failure`), which is counted and reported. No score ignores it.

The exit codes of every job (`end` applies them):
0 ok · 1 crash · 2 bad configuration or input · 3 incomplete: examples without a prediction (then there is no score), no
image with features, or more failures than --max-failures · 4 regression · 5 cannot tell · 6 stopped in time, by a
signal or --max-hours.
"""

from __future__ import annotations

import atexit
import os
import select
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from visualbert_core.printable import guard, log_to_stderr, printable

INGREDIENT = None

LONGEST = 800
"""The number of characters of a message that `end` prints."""

_WRONG_PATH = (FileExistsError, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
"""What the system says of an --out that is a file, or lies where nobody or not this user may write, such as /proc."""


class VisualBertCoreError(Exception):
    """The root of the tree. A job that this error ends returns `exit_code`."""

    exit_code = 1


class InputError(VisualBertCoreError):
    """The user or the caller gave something that cannot be used."""

    exit_code = 2


class ConfigError(InputError):
    """A flag or YAML key is unknown, has the wrong type, or names something that does not exist."""


class AnnotationError(InputError):
    """An annotation file is missing, truncated or malformed. The message names the file and the record."""


class CheckpointError(InputError):
    """A checkpoint folder is incomplete or does not fit the class, the task or the features."""


class StoreError(InputError):
    """A feature store is unfinished or damaged, or does not hold what is asked for."""


class DriftError(InputError):
    """Images that were extracted again have other features than the store holds."""


class CoverageError(VisualBertCoreError):
    """Predictions do not cover the split; or an extraction has no features, or more failures than allowed."""

    exit_code = 3


class NotComparableError(VisualBertCoreError):
    """Two runs were asked or judged differently, so their difference says nothing about either run."""

    exit_code = 5


class TrackerError(VisualBertCoreError):
    """An experiment tracker did not accept a night. The night is complete on disk."""


class ClusterError(VisualBertCoreError):
    """Ray does not start, the cluster of RAY_ADDRESS does not answer or refuses, or a helper process was ended."""


class ShardError(VisualBertCoreError):
    """A shard failed on every attempt. The committed shards are kept."""


class TrainingError(VisualBertCoreError):
    """The loss or the gradient of a batch is not finite. The checkpoints so far are kept."""


class UnfinishedError(VisualBertCoreError):
    """A signal came, or `max_hours` is over. The running shards were committed; the next run computes the others."""

    exit_code = 6


def described(error: Exception) -> str:
    """Return an error in words. An error of the system is its file and what is wrong, without its number."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its class where it has no text."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def end(job: Callable[[], int]) -> NoReturn:
    """Run a job's main function and exit with its code.

    An error of this file becomes one line on stderr. An OSError does too, with exit code 1. A reader of stdout
    that leaves early, as `| head` does, causes no message. From here on output is guarded and the log is shown (see
    `printable.py`).
    """
    guard()
    log_to_stderr()
    leave(_code(job))


def leave(code: int) -> NoReturn:
    """End this process with `code`, after running the functions that `atexit` holds.

    The interpreter is not finalised. During finalisation, threads of Arrow, gRPC and others outlive what they use.
    They have crashed processes whose work was done (apache/arrow#39503 and #50428), so that a night that passed would
    end with exit code 139.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # `_code` has already reported a failure of stdout
            stream.flush()
    os._exit(code)


def _code(job: Callable[[], int]) -> int:
    try:
        code = job()
        sys.stdout.flush()  # here, where a failure can still change the exit code
    except VisualBertCoreError as error:
        message = printable(str(error))  # it may quote a value from a file, which may be of any length
        sys.stderr.write(f"error: {message if len(message) <= LONGEST else message[:LONGEST] + ' …'}\n")
        return error.exit_code
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _stdout_is_closed():
            return 1
        sys.stderr.write(f"error: {printable(described(error))}: correct this and run the same line again\n")
        return InputError.exit_code if isinstance(error, _WRONG_PATH) else 1
    return code


def _stdout_is_closed() -> bool:
    """Return whether stdout has lost its reader. If so, point stdout to /dev/null, so that a later flush succeeds."""
    stdout = select.poll()
    stdout.register(sys.stdout, 0)  # no events: poll(2) reports a pipe without a reader (POLLERR) in any case
    if left := bool(stdout.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return left
