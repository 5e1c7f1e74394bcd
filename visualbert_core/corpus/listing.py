"""List the images of a corpus by their ids. `sources` finds the images.

Owns the id of an image: the file name without the last suffix, as the benchmarks name their images
(`COCO_val2014_000000000042`, `dev-850-0-img0`, `1000092795`). A table may have the ids in a column (see
`parquet_images`). An id must be unique in the corpus, because readers find a row of the feature store by it. Only rows
of tables may repeat an id, as in tables with one row per question, and all rows of that id must hold the same image.
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

from visualbert_core.corpus.images import address
from visualbert_core.corpus.parquet_images import digests
from visualbert_core.corpus.sources import LEADS_NOWHERE, SUFFIXES, TAR, images_of
from visualbert_core.corpus.string_column import StringColumn
from visualbert_core.errors import InputError
from visualbert_core.io.locations import Location, absolute, is_address
from visualbert_core.schema import Image

_BLOCK = 1 << 20  # ids that are compared with their neighbours at a time, to bound the memory
_A_ROW = -1  # in place of a size: the first number is a row of a table, not a byte of a file


def list_images(source: str | Location, boxes: Literal["none", "beside"] = "none") -> Corpus:
    """List every image of a corpus.

    `source` is one of these:
    - a folder, with images at any depth; without images, its Parquet files, or what `Dataset.save_to_disk` wrote there
    - a .txt or .lst file with one path per line, relative to the folder of the list
    - a .tar file, whose members are read in place, or a .parquet file
    - a pattern with * or ?, which may match several images, tars and tables
    - an `s3://…` address of a folder or of a Parquet file

    A file that is not an image is skipped, except in a list, where it is an error. With boxes "beside", the boxes of an
    image are in the JSON file of the same name (VCR's layout); a missing JSON file becomes a failure of its image
    later. Rows of tables that repeat an id are read, to check that they hold the same image.

    Raise InputError where there is no image, a tar is damaged or compressed, a table has no images or ids, a file of a
    numbered set of tars or tables is missing, or two different images have one id.
    """
    corpus = Corpus(images_of(absolute(source)), boxes)
    if not corpus:
        raise InputError(f"{source} has no images ({' '.join(sorted(SUFFIXES))}): name the folder that holds them")
    if corpus.is_lost:
        raise InputError(f"{source}: all {len(corpus):,} images are links to nothing: is a disk not mounted?")
    return corpus


class Corpus(Mapping[str, Image]):
    """A mapping from image id to image, in ascending order of the ids.

    The columns take about fifty bytes per image, and an `Image` is made when a caller asks for it, because one driver
    plans corpora of tens of millions of images. Raise InputError where two different images have one id, or where an
    image cannot have a JSON file with boxes beside it.
    """

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
        """The ids, ascending. They are a sequence, as `shards.plan` needs."""

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
        """Return whether every image is a link to nothing."""
        return all(place.where.trouble == LEADS_NOWHERE for place in self._places)

    def with_boxes(self) -> Self:
        """Return the same images with the paths of the JSON files beside them.

        Raise InputError where an image is not a file on a disk.
        """
        boxed = copy(self)
        boxed._boxes = "beside"
        for place in self._places:
            _with_boxes(boxed._image("", place.first))
        return boxed

    def first(self, count: int | None) -> Self:
        """Return a corpus of the first `count` images, or of all images for None."""
        some = copy(self)
        some._order, some.ids = self._order[:count], self.ids[:count]
        return some

    def _add(self, image: Image, known: dict[_Where, int]) -> None:
        if self._boxes == "beside":
            _with_boxes(image)  # raises InputError now rather than when the image is asked for
        where = _Where.of(image)
        # The images of one place in a tar or a table must have consecutive numbers: `_Place.numbers_of` counts from the
        # place's first image.
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
            raise InputError(f"{name} is not UTF-8, so it cannot be an image id; rename it") from None
        self._starts.append(len(self._letters))

    def _image(self, image_id: str, number: int) -> Image:
        """Make the image of this id; `number` counts the images in the order in which they were added."""
        place = self._places[self._place_of[number]]
        path, suffix, column, trouble = place.where
        if suffix is not None:
            image = Image(image_id, path + image_id + suffix, trouble=trouble)
            return _with_boxes(image) if self._boxes == "beside" else image
        first, second = place.numbers_of(number)
        image = Image(image_id, path, column=column, trouble=trouble)
        return replace(image, row=first) if second == _A_ROW else replace(image, start=first, size=second)

    def _sorted(self) -> np.ndarray:
        """Return the numbers of the images in ascending order of their ids, uint32, with one number per id."""
        # The arrays serve as the buffers of an Arrow array without a copy.
        buffers = pa.py_buffer(self._starts), pa.py_buffer(self._letters)
        ids = pa.LargeStringArray.from_buffers(len(self._place_of), *buffers)
        order: np.ndarray = pc.sort_indices(ids).to_numpy().astype(np.uint32)
        again = np.zeros(len(order), bool)  # whether an image has the same id as the image before it in `order`
        for start in range(0, len(order), _BLOCK):
            block = ids.take(pa.array(order[start : start + _BLOCK + 1]))
            equal = pc.equal(block[1:], block[:-1]).to_numpy(zero_copy_only=False)
            again[start + 1 : start + 1 + len(equal)] = equal
        if again.any():
            order = self._once(order, again, ids)
        pa.default_memory_pool().release_unused()  # Arrow would keep the memory of the sort for later arrays
        return order

    def _once(self, order: np.ndarray, again: np.ndarray, ids: pa.LargeStringArray) -> np.ndarray:
        """Return `order` with one number per id: the first row of the id that holds an image."""
        # `mine` marks all images that share an id, with the first of each id.
        mine = again | np.append(again[1:], False)
        numbers, ids_of = order[mine], (np.cumsum(~again) - 1)[mine]
        numbers = numbers[np.lexsort((numbers, ids_of))]  # by id, then in the order of the rows
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
        """Return the digests of the images in these rows, S16 [N]. `which` numbers the ids that the rows share."""
        found = np.zeros(len(numbers), "S16")
        places = np.frombuffer(self._place_of, np.uint32)[numbers]
        for number in np.unique(places).tolist():
            place, at = self._places[number], np.flatnonzero(places == number)
            if place.where.suffix is not None or place.where.path.lower().endswith(TAR):  # not rows of a table
                same = np.flatnonzero(which == which[at[0]])
                self._refuse(ids, *numbers[same[:2]])
            pairs = np.array([place.numbers_of(row) for row in numbers[at].tolist()], np.int64)
            found[at] = digests(place.where.path, place.where.column, pairs)
        return found

    def _refuse(self, ids: pa.LargeStringArray, *pair: np.integer) -> NoReturn:
        """Raise the InputError that names two images of one id."""
        image_id = ids[int(pair[0])].as_py()
        first, second = (address(self._image(image_id, int(number))) for number in pair)
        if first == second:
            raise InputError(f"{first} is in the corpus twice; remove it once")
        raise InputError(f"two images have the id {image_id!r}: {first} and {second}; rename one")


class _Where(NamedTuple):
    """What many images have in common, so that it is stored once.

    For files, `path` and `suffix` are the text before and after the id in the path. For members of a tar and rows of a
    table, `path` is the tar or the table, `suffix` is None, and `column` is the column of the table. `trouble` is why
    the images cannot be read.
    """

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


@dataclass(frozen=True)
class _Place:
    """Images with one `where`; the first one has the number `first` in the corpus.

    `numbers` has two integers per image: start and size in bytes in a tar or a saved dataset, or the row of a table and
    `_A_ROW`. It is empty for files.
    """

    where: _Where
    first: int
    numbers: array[int] = field(default_factory=lambda: array("q"))

    def numbers_of(self, number: int) -> tuple[int, int]:
        at = 2 * (number - self.first)
        return self.numbers[at], self.numbers[at + 1]


def corpus_name(source: str | Location) -> str:
    """Return the default name of a corpus: the folder's name, or a list's, tar's or table's name without the suffix."""
    path = absolute(source)
    while has_magic(path.name):
        path = path.parent
    return path.name if path.is_dir() else path.stem


def _with_boxes(image: Image) -> Image:
    """Return the image with the path of its boxes. Raise InputError where the image is not a file on a disk."""
    if image.size is not None or image.row is not None or is_address(image.path):
        raise InputError(f"{image.path}: boxes beside images are read only from a folder on a disk; unpack it there")
    return replace(image, boxes_path=str(Path(image.path).with_suffix(".json")))
