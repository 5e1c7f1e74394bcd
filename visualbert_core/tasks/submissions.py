"""Reads a leaderboard's file for the tasks, as text or as JSON. A file that cannot be read gives a one-line InputError.

`reading` does the same for annotations, whose errors are AnnotationErrors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from visualbert_core.errors import InputError
from visualbert_core.tasks.formats import HEAD, not_text


def submission_text(path: Path, keep_mark: bool = False) -> str:
    """Return the text of a whole UTF-8 file; line ends stay as they are. Raises InputError.

    A byte order mark is dropped, because spreadsheets write one. With `keep_mark`, it stays.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name the file of predictions") from None
    if found := not_text(data[:HEAD]):
        raise InputError(f"{path}: {found}")
    try:
        return data.decode("utf-8" if keep_mark else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; write the file again") from None


def submission_records(path: Path) -> list[Any]:
    """Return the elements of the JSON list in a file. Raises InputError."""
    try:
        records = json.loads(submission_text(path))
    except json.JSONDecodeError as error:
        at = f"line {error.lineno} column {error.colno}"
        raise InputError(f"{path}: not JSON at {at} ({error.msg}); truncated? write the file again") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path}: a number is too long, or lists are too deep; write the file again") from None
    if not isinstance(records, list):
        raise InputError(f"{path}: {type(records).__name__}, not a list of records; write the leaderboard's format")
    return records
