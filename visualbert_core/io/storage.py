"""Reading and writing files, on a disk or in an object store (see `locations`), where the two differ by nature.

On a disk a name may lead to a pipe or a device, and a file is mapped into memory. In an object store every question
waits for a network: many are asked at once, and pieces of files in one call.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from upath import UPath

from visualbert_core.io.locations import Location

NOWHERE = "a link to nothing"

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_LEADS_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)

_REQUESTS = 16

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def size(path: Location) -> int | None:
    """Bytes of a file; None where there is none."""
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def kind(path: Path) -> str | None:
    """What a name on a disk leads to that is no file: "a device", "a link to nothing"; None for a file. Opens nothing.

    Raises OSError where there is no such name, or the system does not say."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "a link that leads to itself"
        if error.errno in _LEADS_NOWHERE and path.is_symlink():
            return NOWHERE
        raise
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no file")


def open_file(path: Path) -> BinaryIO:
    """A file on a disk, opened so that nothing waits for a writer, whatever has taken its place since `kind`."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY), "rb")


def gather(function: Callable[[Item], Answer], items: Iterable[Item]) -> list[Answer]:
    """What `function` says of each, all asked at once: for questions over a network."""
    with ThreadPoolExecutor(_REQUESTS) as threads:
        return list(threads.map(function, items))


def listed(folder: UPath) -> Iterator[tuple[str, int]]:
    """List the address of every file below `folder`, at any depth, and its size in bytes. There may be millions, so
    these are texts: making a UPath takes 40 µs."""
    for key, about in folder.fs.find(folder.path, detail=True).items():
        yield f"{folder.protocol}://{key}", int(about["size"] or 0)


def opened(path: Location) -> Any:
    """A file for Arrow, which reads pieces of it: the name of one on a disk, which it opens itself, else a file."""
    return str(path) if isinstance(path, Path) else path.open("rb")


def view(path: Location) -> np.ndarray:
    """All of a file as uint8, read-only: a memory map of a file on a disk, else a copy."""
    if not isinstance(path, Path):
        return np.frombuffer(path.read_bytes(), np.uint8)
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return np.empty(0, np.uint8)
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def ranges(paths: Sequence[Location], starts: Sequence[int], stops: Sequence[int]) -> list[bytes]:
    """Pieces of files of one object store, all asked for at once. Raises OSError."""
    remote = [path for path in paths if isinstance(path, UPath)]
    with naming(remote[0]):
        keys = [path.path for path in remote]
        pieces: list[bytes] = remote[0].fs.cat_ranges(keys, starts, stops, on_error="raise")
    return pieces


@contextmanager
def naming(path: Location) -> Iterator[None]:
    """An OSError from within names `path`: of a disk that is full the system does not say what was being written, and
    a draft is not what anybody looks for."""
    try:
        yield
    except OSError as error:
        if str(path) in str(error):
            raise
        if error.errno is None:  # of an object store
            error.args = (f"{path}: {error}",)
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
