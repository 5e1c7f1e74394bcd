"""Operations on files for which a disk and an object store differ (for both see `io.locations`).

On a disk a name may lead to a pipe or a device, and a file is mapped into memory. In an object store every request
waits for the network, so many requests are sent at once. The object stores are reached through fsspec
(filesystem-spec.readthedocs.io).
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

_REQUESTS = 16  # at once
_GAP = 1 << 18  # bytes; reading so many unused bytes is faster than a second request. Row groups lie 30 kB apart.

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def size(path: Location) -> int | None:
    """Return the size of a file in bytes, or None where there is no file."""
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def kind(path: Path) -> str | None:
    """Say what a name on a disk leads to, such as "a device" or "a link to nothing", or return None for a file.

    Open nothing, because opening a pipe waits. Raise OSError where there is no such name, or the system does not say.
    """
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
    """Open a file on a disk. O_NONBLOCK keeps the call from waiting where a pipe has replaced the file since `kind`."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY), "rb")


def gather(function: Callable[[Item], Answer], items: Iterable[Item]) -> list[Answer]:
    """Return `function(item)` for each item, computed in threads. Use it for requests over a network."""
    with ThreadPoolExecutor(_REQUESTS) as threads:
        return list(threads.map(function, items))


def listed(folder: UPath) -> Iterator[tuple[str, int]]:
    """Yield the address and the size in bytes of every file below `folder`, at any depth.

    An address is a text, because making a UPath takes 40 µs and there may be millions of files.
    """
    for key, about in folder.fs.find(folder.path, detail=True).items():
        yield f"{folder.protocol}://{key}", int(about["size"] or 0)


def opened(path: Location) -> Any:
    """Return a file for Arrow: the name of a file on a disk, which Arrow opens itself, or an open file."""
    return str(path) if isinstance(path, Path) else path.open("rb")


def view(path: Location) -> np.ndarray:
    """Return the bytes of a file as read-only uint8 [size]: a memory map of a file on a disk, otherwise a copy."""
    if not isinstance(path, Path):
        return np.frombuffer(path.read_bytes(), np.uint8)
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return np.empty(0, np.uint8)
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def ranges(paths: Sequence[Location], starts: Sequence[int], stops: Sequence[int]) -> list[np.ndarray]:
    """Return the bytes [start, stop) of each file as uint8, all requested at once. The files lie in one object store.

    One request reads ranges that lie close together. Raise OSError naming a file.
    """
    wanted = list(zip(paths, starts, stops, strict=True))
    groups = _neighbours(wanted)
    remote = [path for (path, *_), *_ in groups if isinstance(path, UPath)]
    firsts, lasts = [group[0][1] for group in groups], [max(stop for *_, stop in group) for group in groups]
    with naming(remote[0]):
        pieces = remote[0].fs.cat_ranges([path.path for path in remote], firsts, lasts, on_error="raise")
    found = {}
    for group, first, piece in zip(groups, firsts, pieces, strict=True):
        data = np.frombuffer(piece, np.uint8)
        found.update({each: data[each[1] - first : each[2] - first] for each in group})
    return [found[each] for each in wanted]


def _neighbours(wanted: Iterable[tuple[Location, int, int]]) -> list[list[tuple[Location, int, int]]]:
    """Group ranges (path, start, stop) that lie close together in one file; the ranges of a group ascend."""
    groups: list[list[tuple[Location, int, int]]] = []
    for path, start, stop in sorted(set(wanted), key=lambda each: (str(each[0]), *each[1:])):
        last = groups[-1][-1] if groups else None
        if last and last[0] == path and start - last[2] <= _GAP:
            groups[-1].append((path, start, stop))
        else:
            groups.append([(path, start, stop)])
    return groups


@contextmanager
def naming(path: Location) -> Iterator[None]:
    """Make an OSError from inside the context name `path`.

    The error of a full disk names no file, and the error of a draft names the draft, which the user does not know.
    """
    try:
        yield
    except OSError as error:
        if str(path) in str(error):
            raise
        if error.errno is None:  # an error of an object store, which has only a text
            error.args = (f"{path}: {error}",)
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
