"""Text that others wrote, made safe to print: ids, answers, question types and file names are whatever a file holds.

A terminal obeys what it prints. An escape sequence in an id can clear the screen, rename the window or hide a line, and
a newline in it can forge one (CWE-150). So results for people are printed by `say`, results for programs by `say_json`,
and what is said on the way (progress, warnings, what failed) is a record of `logging`, of which `log_to_stderr` makes a
line. What libraries print (warnings, logging, a traceback) has lines of its own: `guard` takes the rest of it.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
from typing import Any, TextIO, cast

INGREDIENT = None

# C0 and C1 controls, what turns the direction of writing, line separators, and halves of characters
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# Of what a library prints, its lines and columns are its own; a bar begins its line anew.
_OBEYED_IN_LINES = re.compile(rf"(?![\n\t]|\A\r){_OBEYED.pattern}")


def printable(text: str) -> str:
    """`text` as one line in which each character that a terminal would obey is written as an escape, such as \\x1b."""
    return _OBEYED.sub(_escaped, text)


def say(*texts: object, sep: str = " ", to: TextIO | None = None) -> None:
    """Print one line, to stdout where `to` names no other stream; no text can leave its place between the `sep`."""
    print(*(printable(str(text)) for text in texts), sep=sep, file=to)


def say_json(value: Any, indent: int | None = None) -> None:
    """Print a JSON document in ASCII, to stdout. Raises ValueError for NaN and infinity, which JSON has not."""
    # json.dumps escapes every control character but DEL
    text = json.dumps(value, allow_nan=False, indent=indent).replace("\x7f", "\\u007f")
    sys.stdout.write(text + "\n")


class _OneLine(logging.Handler):
    """Writes a record as one line to what is stderr at that moment: a bar of rich's takes its place while it is drawn,
    and shows the line above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        say(_PREFIXES.get(record.levelno, "") + record.getMessage(), to=sys.stderr)
        sys.stderr.flush()


_PREFIXES = {logging.WARNING: "WARNING: ", logging.ERROR: "error: "}
_HANDLER = _OneLine()


def log_to_stderr() -> None:
    """Show this package's log from now on, progress too. For programs: who imports the package configures `logging`."""
    logger = logging.getLogger("visualbert_core")
    logger.setLevel(logging.INFO)
    logger.addHandler(_HANDLER)  # the same one again changes nothing


def guard() -> None:
    """From now on no escape sequence reaches this process's stdout and stderr, and no character ends it that their
    encoding lacks."""
    os.environ.setdefault("PYTHON_COLORS", "0")  # from 3.13 on Python colours a traceback on a terminal
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = cast(TextIO, _Guarded(sys.stdout)), cast(TextIO, _Guarded(sys.stderr))


def unguarded(stream: TextIO) -> TextIO:
    """The stream behind the guard, for what writes escape sequences of its own, as a progress bar does."""
    return stream.stream if isinstance(stream, _Guarded) else stream


class _Guarded:
    """A stream that escapes what is written to it; all else is the stream's."""

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
