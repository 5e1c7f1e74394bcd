"""Git LFS pointers: the three lines of text that a clone without `git lfs pull` holds in place of a large file.

Every reader of a file meets them (weights, images, annotations, stores), so what recognises one and what to say of it
stand here. Format: the specification of Git LFS, docs/spec.md of github.com/git-lfs/git-lfs.
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
    """Whether a file with these bytes, or that begins with them, is a pointer."""
    return data.startswith(_FIRST_LINE)


def is_pointer_file(path: Path | UPath) -> bool:
    """Whether the file is a pointer; False for one that cannot be read, or is none."""
    try:
        if not path.is_file():  # a pipe would wait for its writer
            return False
        with path.open("rb", buffering=len(_FIRST_LINE)) as file:  # an object store is asked for no more
            return is_pointer(file.read(len(_FIRST_LINE)))
    except OSError:
        return False
