"""Find the images of a corpus: in a folder, a pattern, a list of files, tars, or tables (see `parquet_images`).

Owns which files count as images. An entry with an image's name that is not a file (a link to nothing, a device, a
folder) is listed all the same, and it becomes a failure when it is read. Otherwise a corpus would silently be smaller
than its folder. This file opens no pipe and no device, since reading one might never end.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Iterator
from glob import glob, has_magic
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from upath import UPath

from visualbert_core.corpus.parquet_images import TABLE, list_parquet, list_saved, require_file
from visualbert_core.errors import InputError
from visualbert_core.io import lfs, numbered, storage
from visualbert_core.io.locations import Location, location
from visualbert_core.schema import LARGEST_IMAGE, Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
LISTS = frozenset({".txt", ".lst"})
TAR = ".tar"
LEADS_NOWHERE = f"is {storage.NOWHERE}"
APPLE = "._"  # prefix of the metadata files that macOS writes beside files and into tars; they hold no picture

_SHOWN = 200  # characters of a line of a list that a message quotes
_TAIL = 1 << 20  # bytes after the last member of a tar that must all be zero


def images_of(source: Location) -> Iterator[Image]:
    """Yield the images of a source (see `listing.list_images`).

    Raise InputError where the source is not one, or is malformed, OSError where it cannot be read.
    """
    if not isinstance(source, Path):
        found = _objects(source)
    elif (source / "state.json").is_file() and (source / "dataset_info.json").is_file():
        yield from list_saved(source)
        return
    elif (source / "dataset_dict.json").is_file():
        raise InputError(f"{source} holds several splits of a dataset: name the folder of one split")
    elif source.is_dir():
        found = _images_or_tables(_below(source))
    elif source.suffix.lower() in LISTS and source.is_file():
        found = _listed(source)
    elif source.is_file():
        found = iter([_Found(str(source))])
    elif has_magic(str(source)):
        found = _matched(str(source))
    else:
        raise InputError(f"{source} is not a folder, pattern, list, table or tar: name one that holds images")
    gaps: dict[Location, dict[str, numbered.Gap]] = {}
    for place, trouble in found:
        name = _name(place)
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in SUFFIXES:
            yield Image(name[: -len(suffix)], place, trouble=trouble)
        elif suffix in (TAR, TABLE):
            path = location(place)
            _require_set(path, gaps, alone=path == source)
            yield from _members(Path(place)) if suffix == TAR else list_parquet(path)


class _Found(NamedTuple):
    """A path or an address, and why it cannot be read, where that is known without opening it."""

    place: str
    trouble: str | None = None


def _images_or_tables(every: Iterable[_Found]) -> Iterator[_Found]:
    # A table beside images is usually their metadata. A tar in a folder is never read: it is usually an archive of the
    # same images.
    tables, images = [], False
    for found in every:
        if _is_image(_name(found.place)):
            images = True
            yield found
        elif found.place.lower().endswith(TABLE):
            tables.append(found)
    if not images:
        yield from tables


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES and not name.startswith(APPLE)


def _name(place: str) -> str:
    """Return the last part of a path or an address. Making a Path would take as long as listing the entry."""
    return place.rpartition("/")[2]


def _objects(folder: UPath) -> Iterator[_Found]:
    if folder.suffix.lower() == TABLE:
        return iter([_Found(str(folder))])
    too_large = f"is larger than the {LARGEST_IMAGE:,} bytes that are read"
    sizes = storage.listed(folder)
    return _images_or_tables(_Found(address, too_large if size > LARGEST_IMAGE else None) for address, size in sizes)


def _below(root: Path) -> Iterator[_Found]:
    # A folder may have millions of files, so they are not held in memory.
    folders, seen = [root], set()
    while folders:
        folder = folders.pop()
        inode = folder.stat().st_dev, folder.stat().st_ino
        if inode in seen:
            continue  # a link leads to a folder that was listed already; it may even be a loop
        seen.add(inode)
        with os.scandir(folder) as entries:
            for entry in entries:
                # entry.is_dir() would raise OSError for a link that leads to itself.
                link = entry.is_symlink()
                kind = storage.kind(Path(entry.path)) if link else "a folder" if entry.is_dir() else None
                if kind == "a folder":
                    folders.append(Path(entry.path))
                yield from _candidate(entry.path, kind)


def _candidate(place: str, kind: str | None) -> Iterator[_Found]:
    """Yield a place that leads to `kind` (see `storage.kind`), unless that is a folder not meant to be an image."""
    if kind != "a folder" or _is_misnamed(place):
        # The listing must notice a link to nothing. A link that leads to nothing only later, when it is read, may mean
        # that a disk is gone. For the other kinds, the reading gives a better message.
        yield _Found(place, LEADS_NOWHERE if kind == storage.NOWHERE else None)


def _is_misnamed(folder: str) -> bool:
    """Return whether a folder has an image's name and holds no image: the user may have meant it to be one."""
    return _is_image(_name(folder)) and not any(_is_image(name) for _, _, names in os.walk(folder) for name in names)


def _matched(pattern: str) -> Iterator[_Found]:
    for name in sorted(glob(pattern, recursive=True)):  # noqa: PTH207  (Path.glob takes no absolute pattern)
        yield from _candidate(str(Path(name)), storage.kind(Path(name)))


def _listed(path: Path) -> Iterator[_Found]:
    """Yield the images that a list names, one path per line."""
    if lfs.is_pointer_file(path):
        raise InputError(f"{path} is {lfs.REASON}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        found = path.parent / line.strip()
        if found.suffix.lower() not in SUFFIXES:
            raise InputError(f"{path} line {number}: {line.strip()[:_SHOWN]!r} has no suffix of an image; correct it")
        try:
            yield _Found(str(found), LEADS_NOWHERE if storage.kind(found) == storage.NOWHERE else None)
        except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
            if isinstance(error, PermissionError):
                raise
            raise InputError(f"{path} line {number}: {str(found)[-_SHOWN:]} is not there; correct the list") from None


def _require_set(path: Location, gaps: dict[Location, dict[str, numbered.Gap]], alone: bool) -> None:
    """Raise InputError where a file of a numbered set is missing beside this one, such as `1.tar` beside `0.tar` and
    `2.tar`. A user who names one file `alone` may mean only that file, unless its name says how many there are. `gaps`
    caches the gaps of each folder."""
    if not numbered.counts(path.name):
        return
    if path.parent not in gaps:
        found = numbered.gaps(sorted(beside.name for beside in path.parent.iterdir()))
        gaps[path.parent] = {name: gap for gap in found for name in gap.there}
    gap = gaps[path.parent].get(path.name)
    if gap and (gap.says_total or not alone):
        raise InputError(f"{path}: {gap.first} of the same set is not beside it; download it too")


def _members(path: Path) -> Iterator[Image]:
    """Yield the images of an uncompressed tar, each as a range of the tar's bytes."""
    require_file(path)
    if lfs.is_pointer_file(path):
        raise InputError(f"{path} is {lfs.REASON}")
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                if member.isdir() or not _is_image(name.name):
                    continue
                if member.isreg() and not member.issparse():
                    yield Image(name.stem, str(path), start=member.offset_data, size=member.size)
                else:
                    trouble = f"is {_kind(member)} in its tar; pack the files themselves"
                    yield Image(name.stem, str(path), start=member.offset, size=0, trouble=trouble)
            _require_end(path, tar.offset)
    except (tarfile.TarError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as an uncompressed tar ({error}); unpack it") from None


def _kind(member: tarfile.TarInfo) -> str:
    if member.islnk() or member.issym():
        return "a link"
    return "sparse" if member.issparse() else "a pipe" if member.isfifo() else "a device"


def _require_end(path: Path, end: int) -> None:
    # `tarfile` stops without an error at a damaged header, and after the first of several tars in one file.
    with path.open("rb") as file:
        file.seek(end)
        rest = file.read(_TAIL)
    if not rest:
        raise InputError(f"{path}: the tar has no end mark and may be cut short; download it again")
    if rest.strip(b"\0"):
        raise InputError(f"{path}: the tar is damaged at byte {end}, or holds several tars; unpack it")
