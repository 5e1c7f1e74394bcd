"""Which images a corpus has and where their bytes lie: a folder, a pattern, a list of files, tar shards, or tables.

Owns the id of an image: its file name without the last suffix, which is how the benchmarks name theirs
(`COCO_val2014_000000000042`, `dev-850-0-img0`, `1000092795`); a table may say it itself (see `tables`). An id must be
unique in the corpus, since a row of the feature store is found by it.
"""

from __future__ import annotations

import os
import tarfile
from array import array
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field
from glob import glob, has_magic
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from visualbert_core import storage
from visualbert_core.columns import Strings
from visualbert_core.errors import InputError
from visualbert_core.schema import Image
from visualbert_core.tables import list_parquet, list_saved

INGREDIENT = "features"

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
LISTS = frozenset({".txt", ".lst"})
TABLE = ".parquet"
APPLE = "._"  # begins files that a Mac leaves beside others and in tars; they hold no picture

_BLOCK = 1 << 20  # ids that are held against each other at a time
_A_ROW = -1


def list_images(source: str | Path, boxes: Literal["none", "beside"] = "none") -> Corpus:
    """Every image of a corpus.

    `source` is a folder (files at any depth), a pattern with * or ?, a .txt or .lst file with a path a line (relative
    to the list's folder), a .tar or a .parquet file; a pattern may name several of these. A folder without images is
    its Parquet files, or what `Dataset.save_to_disk` left in it. An `s3://…` address is a folder or a Parquet file.
    Tar members are read where they lie. Other files than images are passed over, except in a list, where they are an
    error. With boxes "beside", each image has its boxes in the JSON of the same name (VCR's layout); one that is
    missing is that image's failure later.

    Raises InputError where there is nothing to read, for a damaged or compressed tar, a table without images or ids, or
    naming two images of one id.
    """
    corpus = Corpus(_images(storage.absolute(source)), boxes)
    if not corpus:
        raise InputError(f"{source} has no images ({' '.join(sorted(SUFFIXES))}): name what holds them")
    return corpus


class Corpus(Mapping[str, Image]):
    """Image id → image, ids ascending.

    Kept in columns of about fifty bytes an image, from which an `Image` is made when it is asked for: a driver plans
    corpora of tens of millions. Raises InputError naming two images of one id, or one that cannot have its boxes beside
    it."""

    def __init__(self, images: Iterable[Image], boxes: Literal["none", "beside"] = "none") -> None:
        self._boxes = boxes
        self._letters, self._starts = bytearray(), array("q", [0])
        self._places: list[_Place] = []
        self._place_of = array("I")
        known: dict[_Where, int] = {}
        for image in images:
            self._add(image, known)
        self._order = self._sorted()
        self.ids = Strings(self._letters, self._starts, self._order)
        """The keys; a sequence, for `shards.plan`."""

    def __getitem__(self, image_id: str) -> Image:
        index = self.ids.find(image_id)
        if index is None:
            raise KeyError(image_id)
        return self._image(image_id, self._order.item(index))

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def first(self, count: int | None) -> Self:
        """The first `count` images; None for all."""
        some = copy(self)
        some._order, some.ids = self._order[:count], self.ids[:count]
        return some

    def _add(self, image: Image, known: dict[_Where, int]) -> None:
        if self._boxes == "beside":
            _with_boxes(image)  # raises for what cannot have a file beside it
        where = _Where.of(image)
        # Of a tar or a table the images of a place follow each other, so that `first` finds their numbers.
        if where not in known or (where.suffix is None and self._place_of[-1] != known[where]):
            known[where] = len(self._places)
            self._places.append(_Place(where, len(self._place_of)))
        self._place_of.append(known[where])
        if where.suffix is None:
            numbers = (image.start, image.size or 0) if image.row is None else (image.row, _A_ROW)
            self._places[-1].numbers.extend(numbers)
        try:
            self._letters += image.image_id.encode()
        except UnicodeEncodeError:
            raise InputError(f"{image.path!r}: its name is not UTF-8, and so no image id; rename it") from None
        self._starts.append(len(self._letters))

    def _image(self, image_id: str, number: int) -> Image:
        """The image of this id, which was the `number`th to be added."""
        place = self._places[self._place_of[number]]
        (path, suffix), at = place.where, 2 * (number - place.first)
        if suffix is not None:
            image = Image(image_id, path + image_id + suffix)
            return _with_boxes(image) if self._boxes == "beside" else image
        first, second = place.numbers[at : at + 2]
        return Image(image_id, path, row=first) if second == _A_ROW else Image(image_id, path, start=first, size=second)

    def _sorted(self) -> np.ndarray:
        """The numbers of the images in the order of their ids."""
        buffers = pa.py_buffer(self._starts), pa.py_buffer(self._letters)
        ids = pa.LargeStringArray.from_buffers(len(self._place_of), *buffers)
        order: np.ndarray = pc.sort_indices(ids).to_numpy().astype(np.uint32)
        for start in range(0, len(order), _BLOCK):
            block = ids.take(pa.array(order[start : start + _BLOCK + 1]))
            twice = pc.index(pc.equal(block[1:], block[:-1]), True).as_py()
            if twice >= 0:
                image_id = block[twice].as_py()
                pair = (self._image(image_id, number) for number in order[start + twice :][:2].tolist())
                first, second = map(_address, pair)
                raise InputError(f"two images are called {image_id!r}: {first} and {second}; rename one")
        pa.default_memory_pool().release_unused()
        return order


class _Where(NamedTuple):
    """What images have in common: before and after its id in the name of a file, or the tar or table (no suffix)."""

    path: str
    suffix: str | None

    @classmethod
    def of(cls, image: Image) -> _Where:
        if image.size is not None or image.row is not None:
            return cls(image.path, None)
        path, _, suffix = image.path.rpartition(image.image_id)
        return cls(path, suffix)


@dataclass(frozen=True)
class _Place:
    """Images of one `where`; for each of a tar start and size, of a table row and `_A_ROW`."""

    where: _Where
    first: int
    numbers: array[int] = field(default_factory=lambda: array("q"))


def corpus_name(source: str | Path) -> str:
    """What a corpus is called unless told otherwise: its folder, or the name without the suffix of a list, tar or
    table."""
    path = storage.absolute(source)
    while has_magic(path.name):
        path = path.parent
    folder = path.suffix.lower() != TABLE if storage.url(path) else path.is_dir()
    return path.name if folder else path.stem


def _images(source: Path) -> Iterator[Image]:
    if storage.url(source):
        paths = iter([source]) if source.suffix.lower() == TABLE else _images_or_tables(storage.files(source))
    elif (source / "state.json").is_file() and (source / "dataset_info.json").is_file():
        yield from list_saved(source)
        return
    elif (source / "dataset_dict.json").is_file():
        raise InputError(f"{source} holds the splits of a dataset: name the folder of one of them")
    elif source.is_dir():
        paths = _images_or_tables(_below(source))
    elif source.suffix.lower() in LISTS and source.is_file():
        paths = _listed(source)
    elif source.is_file():
        paths = iter([source])
    elif has_magic(str(source)):
        paths = (Path(name) for name in sorted(glob(str(source), recursive=True)))  # noqa: PTH207  (absolute patterns)
    else:
        raise InputError(f"{source} is no folder, pattern, list, table or tar of images: name what holds them")
    for path in paths:
        if path.suffix.lower() == ".tar":
            yield from _members(path)
        elif path.suffix.lower() == TABLE:
            yield from list_parquet(path)
        elif path.suffix.lower() in SUFFIXES:
            yield Image(path.name[: -len(path.suffix)], storage.url(path) or str(path))


def _images_or_tables(paths: Iterable[Path]) -> Iterator[Path]:
    """What makes a folder a corpus: its images, or else its tables. A table or a tar among images is their metadata or
    an archive of the very same."""
    tables, images = [], False
    for path in paths:
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(APPLE):
            images = True
            yield path
        elif path.suffix.lower() == TABLE:
            tables.append(path)
    if not images:
        yield from tables


def _below(root: Path) -> Iterator[Path]:
    """The files of a folder at any depth, one after the other, as there may be millions. Raises OSError for a folder
    that cannot be read, or the corpus would silently be smaller."""
    folders, seen = [root], set()
    while folders:
        folder = folders.pop()
        inode = folder.stat().st_dev, folder.stat().st_ino
        if inode in seen:
            continue  # a link to a folder that is in the corpus already
        seen.add(inode)
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(Path(entry.path))
                elif entry.is_file() or entry.is_symlink():  # reading a pipe would never end
                    yield Path(entry.path)


def _listed(path: Path) -> Iterator[Path]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        found = path.parent / line.strip()
        if found.suffix.lower() not in SUFFIXES:
            raise InputError(f"{path} line {number}: {line.strip()!r} does not end like an image")
        if not found.is_file():
            raise InputError(f"{path} line {number}: {found} is not there; correct the list")
        yield found


def _members(path: Path) -> Iterator[Image]:
    """Images of an uncompressed tar, each as a range of the tar's bytes."""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                if member.isdir() or name.suffix.lower() not in SUFFIXES or name.name.startswith(APPLE):
                    continue
                if not member.isreg() or member.issparse():
                    kind = "sparse" if member.issparse() else "a link"
                    raise InputError(f"{path}: member {member.name!r} is {kind}; pack the files themselves")
                image_id = name.name[: -len(name.suffix)]
                yield Image(image_id, str(path), start=member.offset_data, size=member.size)
    except tarfile.TarError as error:
        raise InputError(f"{path}: cannot be read as an uncompressed tar ({error}); unpack it") from None


def _with_boxes(image: Image) -> Image:
    if image.size is not None or image.row is not None or storage.url(image.path):
        raise InputError(f"{image.path}: boxes beside the images are read from folders on a disk only; unpack it there")
    return Image(image.image_id, image.path, boxes_path=str(Path(image.path).with_suffix(".json")))


def _address(image: Image) -> str:
    if image.row is not None:
        return f"{image.path} row {image.row}"
    return image.path if image.size is None else f"{image.path} at byte {image.start}"
