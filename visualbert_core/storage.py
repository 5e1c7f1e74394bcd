"""Whole files by name, on a disk or in an object store: the only file that knows the difference.

A file is named by a `Path` everywhere. `Path("s3://bucket/key")` keeps one of its two slashes; the other is put back
here, so a URL may stand wherever a configuration asks for a folder. Object stores are reached through fsspec and its
plug-ins (`pip install s3fs` for s3://), which read credentials and endpoints from their own environment variables.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from visualbert_core.errors import ConfigError, VisualBertCoreError

# Only file systems in which a file appears whole, when its last byte has arrived.
OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory")

NOWHERE = "a link to nothing"

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_LEADS_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)

_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.DOTALL)  # two letters at least: C:/ is a disk
_CHUNK = 1 << 24
_REQUESTS = 16

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def url(path: str | Path) -> str | None:
    """The URL that `path` spells; None for a name on a disk."""
    found = _URL.fullmatch(str(path))
    return found and f"{found[1]}://{found[2]}"


def absolute(path: str | Path) -> Path:
    """`path` for whoever stands elsewhere, ~ being the home folder; a URL stays as it is."""
    return Path(path) if url(path) else Path(path).expanduser().absolute()


def size(path: Path) -> int | None:
    """Bytes of a file; None where there is none."""
    return sizes([path])[0]


def sizes(paths: Sequence[Path]) -> list[int | None]:
    """Bytes of several files, asked for at once where that is a question over a network."""
    if paths and url(paths[0]):
        return gather(_remote_size, paths)
    return [path.stat().st_size if path.exists() else None for path in paths]


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


def files(folder: Path) -> dict[Path, int]:
    """Every remote file below `folder`, at any depth, and its size in bytes."""
    system, key = _remote(folder)
    scheme = str(folder).partition(":")[0]
    found = system.find(key, detail=True)
    return {Path(f"{scheme}://{name}"): int(about["size"] or 0) for name, about in found.items()}


def opened(path: Path) -> Any:
    """A file for a library that reads pieces of it: the name of one on a disk, else a Python file."""
    if url(path) is None:
        return str(path)
    system, key = _remote(path)
    return system.open(key, "rb")


def read(path: Path) -> bytes:
    """All of a file. Raises FileNotFoundError."""
    if url(path) is None:
        return path.read_bytes()
    system, key = _remote(path)
    data: bytes = system.cat_file(key)
    return data


def chunks(path: Path) -> Iterator[bytes]:
    """All of a file, piece by piece."""
    if url(path) is None:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
        return
    system, key = _remote(path)
    total = system.size(key)
    for start in range(0, total, _CHUNK):
        yield system.cat_file(key, start=start, end=min(start + _CHUNK, total))


def view(path: Path) -> np.ndarray:
    """All of a file as uint8, read-only: a memory map of a file on a disk, else a copy."""
    if url(path) is not None:
        return np.frombuffer(read(path), np.uint8)
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return np.empty(0, np.uint8)
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def ranges(paths: Sequence[Path], starts: Sequence[int], stops: Sequence[int]) -> list[bytes]:
    """Pieces of remote files, all asked for at once. Raises OSError."""
    system, _ = _remote(paths[0])
    pieces: list[bytes] = system.cat_ranges([_remote(path)[1] for path in paths], starts, stops, on_error="raise")
    return pieces


@contextmanager
def naming(path: Path) -> Iterator[None]:
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


def put(path: Path, data: bytes) -> None:
    """Write a remote file whole or not at all: one PUT, or one multipart upload, which shows when it is complete."""
    system, key = _remote(path)
    system.pipe_file(key, data)


def _remote_size(path: Path) -> int | None:
    system, key = _remote(path)
    try:
        return int(system.info(key)["size"])
    except FileNotFoundError:
        return None


def _remote(path: Path) -> tuple[Any, str]:
    address = url(path)
    assert address is not None
    protocol, _, key = address.partition("://")
    return _system(protocol), key


class _System:
    """A file system all of whose troubles are OSErrors. botocore's are not: no credentials, no connection."""

    def __init__(self, system: Any, protocol: str) -> None:
        self._system, self._protocol = system, protocol

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._system, name)

        def ask(*args: Any, **options: Any) -> Any:
            try:
                return method(*args, **options)
            except OSError:
                raise
            except VisualBertCoreError:  # a signal's
                raise
            except Exception as error:  # the plug-ins' libraries have no common base
                key = args[0] if args and isinstance(args[0], str) else ""
                reason = " ".join(str(error).split()) or type(error).__name__
                raise OSError(f"{self._protocol}://{key}: {reason}") from error

        return ask


@lru_cache
def _system(protocol: str) -> _System:
    import fsspec

    if protocol not in OBJECT_STORES:
        raise ConfigError(f"{protocol}:// is none of {', '.join(OBJECT_STORES)}: use one of them, or a folder")
    try:
        # Another process may write what this one has just looked for.
        return _System(fsspec.filesystem(protocol, use_listings_cache=False, skip_instance_cache=True), protocol)
    except ImportError as error:
        raise ConfigError(f"{protocol}:// cannot be read here: {error}") from error
