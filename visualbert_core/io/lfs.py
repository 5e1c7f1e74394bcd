"""Git LFS pointers: the three lines of text that a clone without `git lfs pull` holds in place of a large file.

Owns how a pointer is recognised and what an error says about it. Every reader of files needs this: of weights, images,
annotations and stores. The format is specified in docs/spec.md of github.com/git-lfs/git-lfs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from upath import UPath

INGREDIENT = None

REASON = "a Git LFS pointer, not the file itself: run git lfs pull"

_FIRST_LINE = b"version https://git-lfs.github.com/spec/v1"


def is_pointer(data: bytes) -> bool:
    """Return whether a file that begins with `data` is a pointer."""
    return data.startswith(_FIRST_LINE)


def is_pointer_file(path: Path | UPath) -> bool:
    """Return whether the file is a pointer. Return False where it cannot be read."""
    try:
        if not path.is_file():  # opening a pipe would wait for its writer
            return False
        with path.open("rb", buffering=len(_FIRST_LINE)) as file:  # so that an object store sends only these bytes
            return is_pointer(file.read(len(_FIRST_LINE)))
    except OSError:
        return False
