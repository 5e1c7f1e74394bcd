"""Which images a corpus has, by their ids; `sources` finds them.

Owns the id of an image: its file name without the last suffix, which is how the benchmarks name theirs
(`COCO_val2014_000000000042`, `dev-850-0-img0`, `1000092795`); a table may say it itself (see `tables`). An id must be
unique in the corpus, since a row of the feature store is found by it; only rows of tables may repeat an image, as those
with a row a question do, and then with the same bytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from glob import has_magic
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from visualbert_core.corpus.parquet_images import digests
from visualbert_core.corpus.sources import LEADS_NOWHERE, SUFFIXES, TAR, images_of
from visualbert_core.corpus.string_column import StringColumn
from visualbert_core.errors import InputError
from visualbert_core.io.locations import Location, absolute, is_address
from visualbert_core.schema import Image

_BLOCK = 1 << 20  # ids that are held against each other at a time
_A_ROW = -1


def list_images(source: str | Location, boxes: Literal["none", "beside"] = "none") -> Corpus:
    """Every image of a corpus.

    `source` is a folder (files at any depth), a pattern with * or ?, a .txt or .lst file with a path a line (relative
    to the list's folder), a .tar or a .parquet file; a pattern may name several of these. A folder without images is
    its Parquet files, or what `Dataset.save_to_disk` left in it. An `s3://…` address is a folder or a Parquet file.
    Tar members are read where they lie. Other files than images are passed over, except in a list, where they are an
    error. With boxes "beside", each image has its boxes in the JSON of the same name (VCR's layout); one that is
    missing is that image's failure later. Rows of tables that repeat an id are read, to tell whether their images are
    one.

    Raises InputError where there is nothing to read, for a damaged or compressed tar, a table without images or ids, a
    set of tars or tables that counts further than its files, or naming two images of one id.
    """
    corpus = Corpus(images_of(absolute(source)), boxes)
    if not corpus:
        raise InputError(f"{source} has no images ({' '.join(sorted(SUFFIXES))}): name what holds them")
    if corpus.is_lost:
        raise InputError(f"{source}: all {len(corpus):,} images are links to nothing: is a disk not mounted?")
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
        self.ids = StringColumn(self._letters, self._starts, self._order)
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

    @property
    def is_lost(self) -> bool:
        """Whether every image is a link that leads nowhere."""
        return all(place.where.trouble == LEADS_NOWHERE for place in self._places)

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
            name = f"{image.path!r}: its name" if where.suffix is not None else f"{image.path}: {image.image_id!r}"
            raise InputError(f"{name} is not UTF-8, and so no image id; rename it") from None
        self._starts.append(len(self._letters))

    def _image(self, image_id: str, number: int) -> Image:
        """The image of this id, which was the `number`th to be added."""
        place = self._places[self._place_of[number]]
        path, suffix, column, trouble = place.where
        if suffix is not None:
            image = Image(image_id, path + image_id + suffix, trouble=trouble)
            return _with_boxes(image) if self._boxes == "beside" else image
        first, second = place.numbers_of(number)
        image = Image(image_id, path, column=column, trouble=trouble)
        return replace(image, row=first) if second == _A_ROW else replace(image, start=first, size=second)

    def _sorted(self) -> np.ndarray:
        """The numbers of the images in the order of their ids."""
        buffers = pa.py_buffer(self._starts), pa.py_buffer(self._letters)
        ids = pa.LargeStringArray.from_buffers(len(self._place_of), *buffers)
        order: np.ndarray = pc.sort_indices(ids).to_numpy().astype(np.uint32)
        again = np.zeros(len(order), bool)  # of each whether it has the id of the one before it
        for start in range(0, len(order), _BLOCK):
            block = ids.take(pa.array(order[start : start + _BLOCK + 1]))
            equal = pc.equal(block[1:], block[:-1]).to_numpy(zero_copy_only=False)
            again[start + 1 : start + 1 + len(equal)] = equal
        if again.any():
            order = self._once(order, again, ids)
        pa.default_memory_pool().release_unused()
        return order

    def _once(self, order: np.ndarray, again: np.ndarray, ids: pa.LargeStringArray) -> np.ndarray:
        """`order` with one number an id: the first whose row holds an image. Raises InputError where not all rows of an
        id hold the same one, or it is not rows that share it."""
        mine = again | np.append(again[1:], False)
        numbers, ids_of = order[mine], (np.cumsum(~again) - 1)[mine]
        numbers = numbers[np.lexsort((numbers, ids_of))]
        shared, leader, which = np.unique(ids_of, return_index=True, return_inverse=True)
        seen = self._digests(numbers, which, ids)
        holds = seen != b""
        with_image, first = np.unique(which[holds], return_index=True)
        leader[with_image] = np.flatnonzero(holds)[first]
        if (differs := holds & (seen != seen[leader][which])).any():
            at = int(differs.argmax())
            self._refuse(ids, numbers[leader[which[at]]], numbers[at])
        once: np.ndarray = order[~again]
        once[shared] = numbers[leader]
        return once

    def _digests(self, numbers: np.ndarray, which: np.ndarray, ids: pa.LargeStringArray) -> np.ndarray:
        """What tells the images of these rows apart, see `tables.digests`; `which` numbers the ids that they share."""
        found = np.zeros(len(numbers), "S16")
        places = np.frombuffer(self._place_of, np.uint32)[numbers]
        for number in np.unique(places).tolist():
            place, at = self._places[number], np.flatnonzero(places == number)
            if not place.where.is_table:
                same = np.flatnonzero(which == which[at[0]])
                self._refuse(ids, *numbers[same[:2]])
            pairs = np.array([place.numbers_of(row) for row in numbers[at].tolist()], np.int64)
            found[at] = digests(place.where.path, place.where.column, pairs)
        return found

    def _refuse(self, ids: pa.LargeStringArray, *pair: np.integer) -> NoReturn:
        image_id = ids[int(pair[0])].as_py()
        first, second = (_address(self._image(image_id, int(number))) for number in pair)
        if first == second:
            raise InputError(f"{first} is in the corpus twice; remove it once")
        raise InputError(f"two images are called {image_id!r}: {first} and {second}; rename one")


class _Where(NamedTuple):
    """What images have in common: before and after its id in the name of a file, or the tar or table (no suffix), and a
    column of it; and why they cannot be read, of which there are few reasons."""

    path: str
    suffix: str | None
    column: str | None
    trouble: str | None

    @classmethod
    def of(cls, image: Image) -> _Where:
        if image.size is not None or image.row is not None:
            return cls(image.path, None, image.column, image.trouble)
        path, _, suffix = image.path.rpartition(image.image_id)
        return cls(path, suffix, None, image.trouble)

    @property
    def is_table(self) -> bool:
        return self.suffix is None and not self.path.lower().endswith(TAR)


@dataclass(frozen=True)
class _Place:
    """Images of one `where`; for each of a tar start and size, of a table these or row and `_A_ROW`."""

    where: _Where
    first: int
    numbers: array[int] = field(default_factory=lambda: array("q"))

    def numbers_of(self, number: int) -> tuple[int, int]:
        at = 2 * (number - self.first)
        return self.numbers[at], self.numbers[at + 1]


def corpus_name(source: str | Location) -> str:
    """What a corpus is called unless told otherwise: its folder, or the name without the suffix of a list, tar or
    table."""
    path = absolute(source)
    while has_magic(path.name):
        path = path.parent
    return path.name if path.is_dir() else path.stem


def _with_boxes(image: Image) -> Image:
    if image.size is not None or image.row is not None or is_address(image.path):
        raise InputError(f"{image.path}: boxes beside the images are read from folders on a disk only; unpack it there")
    return replace(image, boxes_path=str(Path(image.path).with_suffix(".json")))


def _address(image: Image) -> str:
    if image.row is not None:
        return f"{image.path} row {image.row}"
    return image.path if image.size is None else f"{image.path} at byte {image.start}"
