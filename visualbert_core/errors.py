"""Every error a user can cause, and the exit code each ends the job with.

    VisualBertCoreError                 exit 1
    ├── InputError                      exit 2   bad configuration or bad input: fix it, run the same line again
    │   ├── ConfigError                          unknown key, wrong type, missing file named by the configuration
    │   ├── AnnotationError                      an annotation file that is missing, truncated or malformed
    │   ├── CheckpointError                      weights or config.json that do not fit
    │   ├── StoreError                           a feature store that is unfinished, damaged or of another space
    │   └── DriftError                           a detector that does not give a store's features (--canary)
    ├── CoverageError                   exit 3   examples without a prediction: no score; no image with features, or
    │                                            more failed ones than allowed
    ├── ClusterError                    exit 1   what computes is not there: Ray does not start, or a cluster does not
    │                                            answer or refuses; nothing was computed with it
    ├── ShardError                      exit 1   a shard that could not be computed; the finished ones are kept
    ├── TrackerError                    exit 1   a finished night that could not be sent to a tracker
    ├── NotComparableError              exit 5   two runs of different questions: their difference says nothing
    └── UnfinishedError                 exit 6   the job was told to stop before it was done; the same line resumes

A message is one line: what is wrong, where (file, line, id), what to do. Failures of a single image or example are not
exceptions but rows (`schema.Failure`): they are counted, reported, and never scored around.

Exit codes of every job (`end` applies them):
0 ok · 1 crash · 2 bad configuration or input · 3 incomplete: examples without a prediction (no score), no image with
features, or more failures than --max-failures · 4 regression · 5 cannot tell · 6 stopped in time, by a signal or
--max-hours.
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
"""Characters of a message that `end` prints."""


class VisualBertCoreError(Exception):
    """Root of the tree; `exit_code` is what a job returns when this error ends it."""

    exit_code = 1


class InputError(VisualBertCoreError):
    """The caller gave something that cannot be used."""

    exit_code = 2


class ConfigError(InputError):
    """A flag or YAML key is unknown, has the wrong type, or names something that does not exist."""


class AnnotationError(InputError):
    """An annotation file is missing, truncated or malformed; the message names file and record."""


class CheckpointError(InputError):
    """A checkpoint folder is incomplete or does not fit the class, the task or the features."""


class StoreError(InputError):
    """A feature store is unfinished, damaged, or lacks what is asked of it."""


class DriftError(InputError):
    """Images extracted anew do not have the features that a store holds of them."""


class CoverageError(VisualBertCoreError):
    """Predictions do not cover the split, or an extraction left nothing or more failures than allowed."""

    exit_code = 3


class NotComparableError(VisualBertCoreError):
    """Two runs were asked or judged differently, so their difference would say nothing about either."""

    exit_code = 5


class TrackerError(VisualBertCoreError):
    """An experiment tracker did not take a night, which is complete on disk."""


class ClusterError(VisualBertCoreError):
    """Ray does not start, the cluster of RAY_ADDRESS does not answer or refuses, or a process that helps was ended."""


class ShardError(VisualBertCoreError):
    """A shard failed on every attempt; everything committed before it is kept."""


class UnfinishedError(VisualBertCoreError):
    """A signal came, or the hours were over: running shards were committed, the others are left for the next run."""

    exit_code = 6


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, for a message of one line; its class where it has no text."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def end(job: Callable[[], int]) -> NoReturn:
    """Run a job's main function and exit with its code; an error of the tree above is one line on stderr, and so is a
    file that the system does not hand out or take (exit 1). Where whoever reads stdout leaves early, as `| head` does,
    nothing is said. What is printed from here on is guarded, and the log is shown (`printable.py`)."""
    guard()
    log_to_stderr()
    leave(_code(job))


def leave(code: int) -> NoReturn:
    """End this process with `code` and nothing else's.

    What asked to be run at the end is run. The interpreter is not taken down after it: there, threads of Arrow, gRPC
    and others outlive what they use and have crashed processes whose work was done (apache/arrow#39503 and #50428), so
    that a night that passed would end with exit code 139.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # of stdout `_code` has told
            stream.flush()
    os._exit(code)


def _code(job: Callable[[], int]) -> int:
    try:
        code = job()
        sys.stdout.flush()  # while its failure can still be answered
    except VisualBertCoreError as error:
        message = printable(str(error))  # it may quote a value of any length from a file
        sys.stderr.write(f"error: {message if len(message) <= LONGEST else message[:LONGEST] + ' …'}\n")
        return error.exit_code
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 1
        sys.stderr.write(f"error: {printable(str(error))}: mend it and run the same line again\n")
        return 1
    return code


def _nobody_reads() -> bool:
    """Whether stdout has lost its reader. It then leads nowhere from here on, or flushing it again would fail again."""
    stdout = select.poll()
    stdout.register(sys.stdout, 0)  # a pipe without a reader is said to be one whatever is asked
    if left := bool(stdout.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return left
