"""Text from files, made safe to print: an id, an answer, a question type or a file name may hold any character.

A terminal obeys control characters. An escape sequence in an id can clear the screen, rename the window or hide a line,
and a newline in an id can forge a line (CWE-150). So there are three ways to print, each of which escapes them: `say`
prints results for people, `say_json` prints results for programs, and `log_to_stderr` prints the records of `logging`
(progress, warnings, failures). Libraries print warnings, logs and tracebacks of several lines. `guard` escapes the
control characters in these, and keeps their lines.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
from collections.abc import Iterable
from typing import Any, TextIO, cast

INGREDIENT = None

# C0 and C1 controls, marks that change the direction of writing, line separators, and surrogates
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# Text of a library keeps its newlines and tabs, and a carriage return at its start, with which a progress bar begins.
_OBEYED_IN_LINES = re.compile(rf"(?![\n\t]|\A\r){_OBEYED.pattern}")


def printable(text: str) -> str:
    """Return `text` as one line, in which each control character is written as an escape such as \\x1b."""
    return _OBEYED.sub(_escaped, text)


def say(*texts: object, sep: str = " ", to: TextIO | None = None) -> None:
    """Print `texts` as one line, with `sep` between them, to the stream `to` (default: stdout)."""
    print(*(printable(str(text)) for text in texts), sep=sep, file=to)


def say_json(value: Any, indent: int | None = None) -> None:
    """Print a JSON document in ASCII to stdout. Raise ValueError for NaN and infinity, which JSON does not have."""
    # json.dumps escapes every control character except DEL.
    text = json.dumps(value, allow_nan=False, indent=indent).replace("\x7f", "\\u007f")
    sys.stdout.write(text + "\n")


def logger(name: str) -> logging.Logger:
    """Return the logger of a module. Its records hold no control characters."""
    found = logging.getLogger(name)
    found.addFilter(_one_line)  # adding the same filter twice changes nothing
    return found


def _one_line(record: logging.LogRecord) -> bool:
    """Make a record one printable line before any handler gets it, since a user's handler may write to a terminal too,
    or send it where a lone surrogate is an error."""
    record.msg, record.args = printable(record.getMessage()), None
    return True


def say_result(as_json: bool, document: Any, lines: Iterable[object]) -> None:
    """Print the result of a command to stdout: for a program its JSON document, for people its lines."""
    if as_json:
        say_json(document)
    for line in () if as_json else lines:
        say(line)


class _StderrHandler(logging.Handler):
    """Writes a record to the current sys.stderr.

    The stream is looked up for each record, because a progress bar of rich replaces sys.stderr while the bar is drawn
    and then shows the line above the bar.
    """

    def emit(self, record: logging.LogRecord) -> None:
        say(_PREFIXES.get(record.levelno, "") + record.getMessage(), to=sys.stderr)
        sys.stderr.flush()


_PREFIXES = {logging.WARNING: "WARNING: ", logging.ERROR: "error: "}
_HANDLER = _StderrHandler()


def log_to_stderr() -> None:
    """Show this package's log, with progress, from now on. Only programs call this: a user of the library configures
    `logging`."""
    package = logging.getLogger("visualbert_core")
    package.setLevel(logging.INFO)
    package.addHandler(_HANDLER)  # adding the same handler twice changes nothing


def guard() -> None:
    """Escape the control characters, and the characters that the encoding lacks, in all later output of this
    process."""
    os.environ.setdefault("PYTHON_COLORS", "0")  # since 3.13 Python colours a traceback, with escape sequences
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = cast(TextIO, _Guarded(sys.stdout)), cast(TextIO, _Guarded(sys.stderr))


def unguarded(stream: TextIO) -> TextIO:
    """Return the stream behind the guard, for a writer that needs escape sequences, such as a progress bar."""
    return stream.stream if isinstance(stream, _Guarded) else stream


class _Guarded:
    """A stream that escapes what is written to it. Every other attribute is the one of the stream behind it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        return self.stream.write(_OBEYED_IN_LINES.sub(_escaped, text))

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
