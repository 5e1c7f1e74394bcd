"""How the task files read a leaderboard's file, as text or as JSON; one that they cannot is one InputError line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from visualbert_core.errors import InputError
from visualbert_core.tasks.formats import HEAD, not_text


def submission_text(path: Path, keep_mark: bool = False) -> str:
    """A UTF-8 file as a whole, line ends as they are; a byte order mark, as spreadsheets write one, is dropped, unless
    it is to be kept."""
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
    """The JSON list that a file holds."""
    try:
        records = json.loads(submission_text(path))
    except json.JSONDecodeError as error:
        at = f"line {error.lineno} column {error.colno}"
        raise InputError(f"{path}: not JSON at {at} ({error.msg}); truncated? write the file again") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path}: a number of thousands of digits, or lists in lists without end") from None
    if not isinstance(records, list):
        raise InputError(
            f"{path}: {type(records).__name__}, not a list of records; this is not the leaderboard's format"
        )
    return records
