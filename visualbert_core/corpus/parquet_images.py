"""Read images from the rows of a table: a Parquet file, or a folder that Hugging Face's `datasets` saved.

Owns which columns hold images and ids, and where the bytes of a row lie. The images are in the column `image`, or in
the only column of a fitting type: binary, or a struct of `bytes` and `path` as Hugging Face writes it. The ids are in
the first existing column of `image_id`, `id` and `__key__`; an integer becomes its decimal digits. Without such a
column, an id is the stem of the struct's `path`. A table of NLVR2 has a pair of images per row, `left_image` and
`right_image`, and their ids follow from the column `identifier`, as in the benchmark.

A row may hold the path of a file in place of bytes, or nothing; `read_rows` tells these cases apart.
`Dataset.save_to_disk` writes Arrow's memory layout, so an image is a range of bytes of the file. Parquet is compressed,
so an image is named by the number of its row, and `read_rows` decodes the row groups of the rows that a caller asks
for, in one pass.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from visualbert_core.errors import InputError
from visualbert_core.io import lfs, storage
from visualbert_core.io.locations import Location, location
from visualbert_core.schema import Image

TABLE = ".parquet"
IDS = ("image_id", "id", "__key__")

Cell = bytes | str | None
"""What a row holds for an image: its bytes, the path of its file, or nothing."""

_TEXT = (pa.string(), pa.large_string())
_BINARY = (pa.binary(), pa.large_binary())
_PAIR = {"left_image": "-img0", "right_image": "-img1"}
_PAIR_ID = "identifier"
# split-set-pair-sentence; sentences about one pair share its images, so an image id has no sentence number.
_IDENTIFIER = re.compile(r"(\w+-\d+-\d+)-\d+", re.ASCII)

_ROWS = 64  # rows that are decoded at a time
_BUFFER = 1 << 20  # bytes; Arrow streams a column chunk in such pieces, so a large row group takes little memory


def list_parquet(path: Location) -> Iterator[Image]:
    """Yield the images of a Parquet file. Read the ids, and the images only of rows without an id.

    Raise InputError where the file is not Parquet or has no images or ids, OSError where it cannot be read.
    """
    address = str(path)
    with _open(path, InputError) as file:
        for columns in _columns(file.schema_arrow, address):
            row, nameless = 0, set()
            for batch in file.iter_batches(columns=[columns.id_leaf], use_threads=False):
                for image_id in _ids(batch.column(0), columns, row, address):
                    if image_id:
                        yield Image(image_id, address, row=row, column=columns.named)
                    else:
                        nameless.add(row)
                    row += 1
            for row, cell in _cells(file, columns, nameless) if nameless else ():
                yield _nameless(address, row, columns, empty=cell is None)


def list_saved(folder: Path) -> Iterator[Image]:
    """Yield the images of a folder that `Dataset.save_to_disk` wrote. Raise InputError where it is malformed."""
    description = folder / "state.json"
    try:
        paths = [folder / file["filename"] for file in json.loads(description.read_bytes())["_data_files"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if lfs.is_pointer_file(description):
            raise InputError(f"{description} is {lfs.REASON}") from None
        raise InputError(f"{description} is not what datasets writes ({error!r}): save the dataset again") from None
    for path in paths:
        yield from _list_arrow(path)


def read_rows(path: str, rows: Collection[int], column: str | None = None) -> Iterator[tuple[int, Cell]]:
    """Yield (row, cell) of these rows of a table, ascending. `column` selects one where several columns have images.

    A few rows are in memory at a time. Raise OSError where the table cannot be read.
    """
    if not path.lower().endswith(TABLE):
        yield from _read_arrow(Path(path), rows, column)
        return
    with _open(location(path), OSError) as file:
        yield from _cells(file, _chosen(_columns(file.schema_arrow, path), column), rows)


def digests(path: str, column: str | None, places: np.ndarray) -> np.ndarray:
    """Return a digest (xxh3-128) per image of a table, S16 [N]; equal digests mean the same image.

    It is the digest of the image's bytes, or of the path in their place, or b"" where the row has neither. `places` are
    int64 [N, 2]: row and -1, or start and size in bytes of the file. A few rows are in memory at a time. Raise OSError
    where the table cannot be read.
    """
    found = np.zeros(len(places), "S16")
    is_row = places[:, 1] < 0
    if not is_row.all():
        with Path(path).open("rb") as file:
            for at in np.flatnonzero(~is_row).tolist():
                file.seek(places[at, 0])
                found[at] = xxhash.xxh3_128_digest(file.read(places[at, 1]))
    numbers = np.flatnonzero(is_row)
    numbers = numbers[np.argsort(places[numbers, 0])]
    rows = places[numbers, 0]
    for row, cell in read_rows(path, set(rows.tolist()), column) if len(rows) else ():
        if cell is not None:
            data = cell if isinstance(cell, bytes) else b"path\0" + cell.encode()  # a path is never taken for bytes
            found[numbers[np.searchsorted(rows, row)]] = xxhash.xxh3_128_digest(data)
    return found


def _cells(file: pq.ParquetFile, columns: _Columns, rows: Collection[int]) -> Iterator[tuple[int, Cell]]:
    """Decode only the row groups that hold one of the rows."""
    sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    ends = np.cumsum([0, *sizes])
    groups = np.unique(np.searchsorted(ends, sorted(rows), side="right") - 1).tolist()
    numbers = iter([row for group in groups for row in range(ends[group], ends[group + 1])])
    for batch in file.iter_batches(_ROWS, groups, columns.leaves, use_threads=False):
        for at, row in zip(range(len(batch)), numbers, strict=False):
            if row in rows:
                yield row, _cell(batch.column(0)[at])


def _cell(value: pa.Scalar) -> Cell:
    """Return what a value of an image column holds; an empty path counts as nothing."""
    held = value.as_py()
    if isinstance(held, dict):
        held = held.get("path") or None if held["bytes"] is None else held["bytes"]
    assert held is None or isinstance(held, bytes | str)
    return held


def _nameless(address: str, row: int, columns: _Columns, empty: bool) -> Image:
    # An empty row gets an id from its number. It becomes a failure when it is read, so that it is counted.
    if not empty:
        raise InputError(f"{address} row {row}: the image has no id; give every image an id")
    return Image(f"{PurePosixPath(address).stem} row {row}{columns.ending}", address, row=row, column=columns.named)


# ---------------------------------------------------------------------------------------------------------------------
# saved datasets


def _list_arrow(path: Path) -> Iterator[Image]:
    """Yield the images of one Arrow file of a saved dataset, as ranges of its bytes or, without bytes, as rows."""
    row, address = 0, str(path)
    with _stream(path, InputError) as (file, batches):
        for batch in batches:
            for columns in _columns(batch.schema, address):
                places = _places(_field(batch.column(columns.image), "bytes"), file, path)
                ids = _ids(batch.column(columns.id), columns, row, address)
                for number, (image_id, place) in enumerate(zip(ids, places, strict=True), row):
                    if not image_id:
                        yield _nameless(address, number, columns, empty=place is None)
                    elif place is None:
                        yield Image(image_id, address, row=number, column=columns.named)
                    else:
                        yield Image(image_id, address, start=place[0], size=place[1])
            row += len(batch)


def _read_arrow(path: Path, rows: Collection[int], column: str | None) -> Iterator[tuple[int, Cell]]:
    first = 0
    with _stream(path, OSError) as (_, batches):
        for batch in batches:
            held = batch.column(_chosen(_columns(batch.schema, str(path)), column).image)
            for row in sorted(set(rows).intersection(range(first, first + len(batch)))):
                yield row, _cell(held[row - first])
            first += len(batch)


@contextmanager
def _stream(path: Path, wrong: type[Exception]) -> Iterator[tuple[pa.Buffer, Iterator[pa.RecordBatch]]]:
    """Map the file into memory, and yield its bytes and the batches of its stream. Raise `wrong` where that fails."""
    try:
        require_file(path)
        with pa.memory_map(str(path)) as source:
            file = source.read_buffer()
            yield file, iter(pa.ipc.open_stream(file))
    except (pa.ArrowException, OSError) as error:
        raise _blamed(path, error, wrong, "cannot be read as an Arrow stream", "save the dataset again") from None


def _places(values: pa.Array, file: pa.Buffer, path: Path) -> Iterator[tuple[int, int] | None]:
    """Yield (start, size) in bytes of the file for every value, or None for a null.

    Arrow's buffers are views of the mapped file, so the addresses say where the bytes lie in it. A buffer lies outside
    where Arrow had to decompress it.
    """
    _, offsets, data = values.buffers()
    wide = np.int64 if pa.types.is_large_binary(values.type) else np.int32
    ends = np.frombuffer(offsets, wide)[values.offset : values.offset + len(values) + 1].astype(np.int64)
    start = data.address - file.address if data else 0  # an empty buffer has no address in the file
    if data and not 0 <= start <= start + data.size <= file.size:
        raise InputError(f"{path}: the buffers are compressed; save the dataset with Dataset.save_to_disk")
    valid = values.is_valid().to_numpy(zero_copy_only=False).tolist()
    places = zip((start + ends[:-1]).tolist(), np.diff(ends).tolist(), strict=True)
    return (place if there else None for place, there in zip(places, valid, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# columns


class _Columns(NamedTuple):
    """The column of images and the column of ids, and their leaf columns in a Parquet file that must be read."""

    image: str
    leaves: list[str]
    id: str
    id_leaf: str
    ending: str = ""
    """What is added to the name of an NLVR2 pair to make the id of the left or the right image."""

    @property
    def named(self) -> str | None:
        """Return the column of images where the table has several, else None."""
        return self.image if self.ending else None


def _columns(schema: pa.Schema, where: str) -> tuple[_Columns, ...]:
    """Choose the columns of the table `where`: one entry, or two for the pairs of NLVR2."""
    found = {field.name: field.type for field in schema}
    if len(found) < len(schema):
        twice = next(name for name in found if schema.names.count(name) > 1)
        raise InputError(f"{where}: two columns have the name {twice!r}; rename one")
    possible = [name for name, kind in found.items() if _is_image(kind)]
    if "image" not in possible and set(_PAIR) <= set(possible) and found.get(_PAIR_ID) in _TEXT:
        return tuple(_Columns(name, _leaves(name, found[name]), _PAIR_ID, _PAIR_ID, _PAIR[name]) for name in _PAIR)
    image = "image" if "image" in possible else possible[0] if len(possible) == 1 else None
    if image is None:
        named = ", ".join(map(repr, possible or found))
        wrong = f"any of {named} could hold the images" if possible else f"there are {named}"
        pair = f" (a pair needs the columns left_image, right_image and {_PAIR_ID})" if possible else ""
        raise InputError(f"{where}: no column 'image' of bytes, {wrong}: give one column that name{pair}")
    leaves = _leaves(image, found[image])
    if name := next((name for name in IDS if name in found), None):
        if found[name] not in _TEXT and not pa.types.is_integer(found[name]):
            raise InputError(f"{where}: ids must be text or integers, but column {name!r} is {found[name]}")
        return (_Columns(image, leaves, name, name),)
    if f"{image}.path" in leaves:
        return (_Columns(image, leaves, image, f"{image}.path"),)
    raise InputError(f"{where}: no column {', '.join(IDS)} and no paths in {image!r}: add a column of ids")


def _chosen(every: tuple[_Columns, ...], column: str | None) -> _Columns:
    """Return the entry whose images are in `column`, or the only entry for None."""
    return next(columns for columns in every if column in (None, columns.image))


def _leaves(name: str, kind: pa.DataType) -> list[str]:
    """Return the leaf columns of an image column: `bytes` and `path` of a struct, or the column itself."""
    if not pa.types.is_struct(kind):
        return [name]
    held = (field.name for field in kind if field.name == "bytes" or (field.name == "path" and field.type in _TEXT))
    return [f"{name}.{field}" for field in held]


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and field.type in _BINARY for field in kind)
    return kind in _BINARY


def _field(column: pa.Array, name: str) -> pa.Array:
    """Return a field of a struct, or the column itself where it is none."""
    return pc.struct_field(column, name) if pa.types.is_struct(column.type) else column


def _ids(column: pa.Array, columns: _Columns, first: int, where: str) -> Iterator[str]:
    """Yield the id of every row of a column, "" where there is none. `first` is the number of the first row."""
    struct = pa.types.is_struct(column.type)
    for row, value in enumerate(_field(column, "path").to_pylist(), first):
        if not columns.ending or value is None:
            yield PurePosixPath(value or "").stem if struct else str("" if value is None else value)
        elif pair := _IDENTIFIER.fullmatch(value):
            yield pair[1] + columns.ending
        else:
            raise InputError(f"{where} row {row}: {_PAIR_ID} {value!r} is not split-set-pair-sentence")


# ---------------------------------------------------------------------------------------------------------------------
# files


def require_file(path: Path) -> None:
    """Raise InputError where a path leads to a device, a pipe or nothing; opening one of these might wait for ever."""
    if found := storage.kind(path):
        raise InputError(f"{path} is {found}, not a file")


@contextmanager
def _open(path: Location, wrong: type[Exception]) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file. Raise InputError where it is not one, `wrong` where a part of it is damaged."""
    if isinstance(path, Path):
        require_file(path)
    with _blame(path, InputError, "cannot be read as Parquet"):
        # With pre_buffer, Arrow would keep the whole file in memory and read at a quarter of the speed.
        file = pq.ParquetFile(storage.opened(path), buffer_size=_BUFFER, pre_buffer=False)
    with file, _blame(path, wrong, "is damaged"):
        yield file


@contextmanager
def _blame(path: Location, wrong: type[Exception], what: str) -> Iterator[None]:
    """Raise `wrong` for an error about the content of a file; let an OSError of a disk or a network through."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        # Arrow raises OSError for both. Only the system's own has an errno; an object store's errors may have none.
        if isinstance(error, OSError) and (error.errno is not None or not isinstance(path, Path)):
            raise
        raise _blamed(path, error, wrong, what, "download it again") from None


def _blamed(path: Location, error: Exception, wrong: type[Exception], what: str, remedy: str) -> Exception:
    """Return the error to raise where the content of a file gives `error`."""
    if lfs.is_pointer_file(path):
        return InputError(f"{path} is {lfs.REASON}")
    return wrong(f"{path}: {what} ({' '.join(str(error).split())}); {remedy}")  # Arrow's text may have several lines
