"""Where the images of a corpus lie: a folder, a pattern, a list of files, tar shards, or tables (see `tables`).

What lies among images and is none (a link to nothing, a device, a folder of an image's name) is listed, and fails when
it is read, or a corpus would silently be smaller than its folder. Nothing is opened here that need not end.
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
APPLE = "._"  # begins files that a Mac leaves beside others and in tars; they hold no picture

_SHOWN = 200  # characters of a line that is no path
_TAIL = 1 << 20  # bytes behind the last member of a tar in which there must be nothing


def images_of(source: Location) -> Iterator[Image]:
    """The images of a source, see `corpus.list_images`. Raises InputError, and OSError for what cannot be read."""
    if not isinstance(source, Path):
        found = _objects(source)
    elif (source / "state.json").is_file() and (source / "dataset_info.json").is_file():
        yield from list_saved(source)
        return
    elif (source / "dataset_dict.json").is_file():
        raise InputError(f"{source} holds the splits of a dataset: name the folder of one of them")
    elif source.is_dir():
        found = _images_or_tables(_below(source))
    elif source.suffix.lower() in LISTS and source.is_file():
        found = _listed(source)
    elif source.is_file():
        found = iter([_Found(str(source))])
    elif has_magic(str(source)):
        found = _matched(str(source))
    else:
        raise InputError(f"{source} is no folder, pattern, list, table or tar of images: name what holds them")
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
    """A name that may be an image's, and why it cannot be read where that is known without opening it."""

    place: str
    trouble: str | None = None


def _images_or_tables(every: Iterable[_Found]) -> Iterator[_Found]:
    """What makes a folder a corpus: its images, or else its tables. A table or a tar among images is their metadata or
    an archive of the very same."""
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
    """The last part of a path or an address; making a path of each takes as long as listing them."""
    return place.rpartition("/")[2]


def _objects(folder: UPath) -> Iterator[_Found]:
    if folder.suffix.lower() == TABLE:
        return iter([_Found(str(folder))])
    too_large = f"is larger than the {LARGEST_IMAGE:,} bytes that are read"
    sizes = storage.listed(folder)
    return _images_or_tables(_Found(address, too_large if size > LARGEST_IMAGE else None) for address, size in sizes)


def _below(root: Path) -> Iterator[_Found]:
    """The files of a folder at any depth, one after the other, as there may be millions, and what else has an image's
    name. Raises OSError for a folder that cannot be read, or the corpus would silently be smaller."""
    folders, seen = [root], set()
    while folders:
        folder = folders.pop()
        inode = folder.stat().st_dev, folder.stat().st_ino
        if inode in seen:
            continue  # a link to a folder that is in the corpus already
        seen.add(inode)
        with os.scandir(folder) as entries:
            for entry in entries:
                # Whether a link leads to a folder raises where it leads to itself.
                link = entry.is_symlink()
                kind = storage.kind(Path(entry.path)) if link else "a folder" if entry.is_dir() else None
                if kind == "a folder":
                    folders.append(Path(entry.path))
                if kind != "a folder" or _is_misnamed(Path(entry.path)):
                    yield _Found(entry.path, _trouble(kind))


def _is_misnamed(folder: Path) -> bool:
    """Whether a folder has an image's name and holds no image: somebody may have meant one."""
    if not _is_image(folder.name):
        return False
    return not any(_is_image(name) for _, _, names in os.walk(folder) for name in names)


def _trouble(kind: str | None) -> str | None:
    """A link that leads nowhere now is no image. One that is found to do so later, when it is read, may be a disk that
    is gone, and of the rest reading tells better."""
    return LEADS_NOWHERE if kind == storage.NOWHERE else None


def _matched(pattern: str) -> Iterator[_Found]:
    for name in sorted(glob(pattern, recursive=True)):  # noqa: PTH207  (absolute patterns)
        path = Path(name)
        kind = storage.kind(path)
        if kind != "a folder" or _is_misnamed(path):
            yield _Found(str(path), _trouble(kind))


def _listed(path: Path) -> Iterator[_Found]:
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
            raise InputError(f"{path} line {number}: {line.strip()[:_SHOWN]!r} does not end like an image")
        try:
            yield _Found(str(found), _trouble(storage.kind(found)))
        except (OSError, ValueError) as error:  # ValueError: NUL, which no path has
            if isinstance(error, PermissionError):
                raise
            raise InputError(f"{path} line {number}: {str(found)[-_SHOWN:]} is not there; correct the list") from None


def _require_set(path: Location, gaps: dict[Location, dict[str, numbered.Gap]], alone: bool) -> None:
    """Of `train-00000-of-00002.parquet` the other one must lie beside it, and between two numbers every other; `gaps`
    are those of the folders that were looked at. Whoever names one file `alone` means it, but for names that say how
    many there are.

    Raises InputError naming the first that is missing."""
    if not numbered.counts(path.name):
        return
    if path.parent not in gaps:
        found = numbered.gaps(sorted(beside.name for beside in path.parent.iterdir()))
        gaps[path.parent] = {name: gap for gap in found for name in gap.there}
    gap = gaps[path.parent].get(path.name)
    if gap and (gap.says_total or not alone):
        raise InputError(f"{path}: {gap.first} of the same set is not beside it; download it, too")


def _members(path: Path) -> Iterator[Image]:
    """Images of an uncompressed tar, each as a range of the tar's bytes."""
    require_file(path)
    if lfs.is_pointer_file(path):
        raise InputError(f"{path} is {lfs.REASON}")
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                if member.isdir() or not _is_image(name.name):
                    continue
                image_id = name.name[: -len(name.suffix)]
                if member.isreg() and not member.issparse():
                    yield Image(image_id, str(path), start=member.offset_data, size=member.size)
                else:
                    trouble = f"is {_kind(member)} in its tar; pack the files themselves"
                    yield Image(image_id, str(path), start=member.offset, size=0, trouble=trouble)
            _require_end(path, tar.offset)
    except (tarfile.TarError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as an uncompressed tar ({error}); unpack it") from None


def _kind(member: tarfile.TarInfo) -> str:
    if member.islnk() or member.issym():
        return "a link"
    return "sparse" if member.issparse() else "a pipe" if member.isfifo() else "a device"


def _require_end(path: Path, end: int) -> None:
    """Where `tarfile` stops without a word, the tar must end: it does so at a damaged header, and after the first of
    several tars in one file, too. Raises InputError."""
    with path.open("rb") as file:
        file.seek(end)
        rest = file.read(_TAIL)
    if not rest:
        raise InputError(f"{path}: a tar without an end, cut short? download it again")
    if rest.strip(b"\0"):
        raise InputError(f"{path}: a tar that is damaged, or several in one file, at byte {end}; unpack it")
