"""Images in the rows of a table: Parquet files, on a disk or in an object store, and folders that `datasets` saved.

Owns which columns count, and where a row's bytes lie. The images are the column `image`, or the only one that can be:
binary, or a struct of `bytes` and `path` as Hugging Face writes it. Their ids are the column `image_id`, `id` or
`__key__`, the first of these that there is, a number in decimals; else the stem of the struct's `path`. A row without
bytes has an empty file, which is that image's failure later.

What `Dataset.save_to_disk` writes is Arrow as it lies in memory, so a row is a range of a file's bytes. Parquet is not:
a row is named by its number, and `read_rows` decodes the row groups that hold the rows asked for, in one pass.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from visualbert_core import storage
from visualbert_core.errors import InputError
from visualbert_core.schema import Image

INGREDIENT = "features"

IDS = ("image_id", "id", "__key__")

_ROWS = 64  # decoded at a time
_BUFFER = 1 << 20  # bytes; a column chunk is streamed, however large its row group is


def list_parquet(path: Path) -> Iterator[Image]:
    """The images of a Parquet file; reads its ids and no image. Raises InputError."""
    address = storage.url(path) or str(path)
    with _open(path) as file:
        columns = _columns(file.schema_arrow, address)
        row = 0
        for batch in file.iter_batches(columns=[columns.id_leaf], use_threads=False):
            for image_id in _ids(batch.column(0), row, address):
                yield Image(image_id, address, row=row)
                row += 1


def read_rows(path: str, rows: Collection[int]) -> dict[int, bytes]:
    """The bytes of these rows of a Parquet file. Raises OSError."""
    found = {}
    with _open(Path(path)) as file:
        columns = _columns(file.schema_arrow, path)
        sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        ends = np.cumsum([0, *sizes])
        groups = np.unique(np.searchsorted(ends, sorted(rows), side="right") - 1).tolist()
        numbers = iter([row for group in groups for row in range(ends[group], ends[group + 1])])
        for batch in file.iter_batches(_ROWS, groups, [columns.bytes_leaf], use_threads=False):
            values = _bytes(batch.column(0))
            wanted = [(at, row) for at, row in zip(range(len(batch)), numbers, strict=False) if row in rows]
            found.update({row: values[at].as_py() or b"" for at, row in wanted})
    return found


def list_saved(folder: Path) -> Iterator[Image]:
    """The images of a folder that `Dataset.save_to_disk` wrote. Raises InputError."""
    try:
        names = [file["filename"] for file in json.loads((folder / "state.json").read_bytes())["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / 'state.json'} is not what datasets writes: {error!r}") from None
    for name in names:
        yield from _list_arrow(folder / name)


def _list_arrow(path: Path) -> Iterator[Image]:
    row = 0
    try:
        with pa.memory_map(str(path)) as source:
            file = source.read_buffer()
            for batch in pa.ipc.open_stream(file):
                columns = _columns(batch.schema, str(path))
                places = _places(_bytes(batch.column(columns.image)), file, path)
                for image_id, (start, size) in zip(_ids(batch.column(columns.id), row, str(path)), places, strict=True):
                    yield Image(image_id, str(path), start=start, size=size)
                row += len(batch)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: cannot be read as an Arrow stream ({error}); save the dataset again") from None


def _places(values: pa.Array, file: pa.Buffer, path: Path) -> Iterator[tuple[int, int]]:
    """(start, size) of every value in the file's bytes."""
    _, offsets, data = values.buffers()
    wide = np.int64 if pa.types.is_large_binary(values.type) else np.int32
    ends = np.frombuffer(offsets, wide)[values.offset : values.offset + len(values) + 1].astype(np.int64)
    start = 0 if data is None else data.address - file.address
    if data is not None and not 0 <= start <= start + data.size <= file.size:
        raise InputError(f"{path}: its buffers are compressed; save the dataset with datasets' own save_to_disk")
    sizes = np.where(values.is_valid().to_numpy(zero_copy_only=False), np.diff(ends), 0)
    return zip((start + ends[:-1]).tolist(), sizes.tolist(), strict=True)


# ---------------------------------------------------------------------------------------------------------------------
# columns


class _Columns(NamedTuple):
    """Names of columns, and of the leaves below them that are read of a Parquet file."""

    image: str
    bytes_leaf: str
    id: str
    id_leaf: str


def _columns(schema: pa.Schema, where: str) -> _Columns:
    """Raises InputError naming the columns that there are."""
    found = {field.name: field.type for field in schema}
    possible = [name for name, kind in found.items() if _is_image(kind)]
    image = "image" if "image" in possible else possible[0] if len(possible) == 1 else None
    if image is None:
        named = ", ".join(map(repr, possible or found))
        wrong = f"it could be each of {named}" if possible else f"there are {named}"
        raise InputError(f"{where}: no column 'image' of bytes, {wrong}: give one that name")
    struct = pa.types.is_struct(found[image])
    bytes_leaf = f"{image}.bytes" if struct else image
    if name := next((name for name in IDS if name in found), None):
        if not (_is_text(found[name]) or pa.types.is_integer(found[name])):
            raise InputError(f"{where}: ids are text or integers, column {name!r} is {found[name]}")
        return _Columns(image, bytes_leaf, name, name)
    if struct and "path" in [field.name for field in found[image]]:
        return _Columns(image, bytes_leaf, image, f"{image}.path")
    raise InputError(f"{where}: no column {', '.join(IDS)} and no paths in {image!r}: give every image an id")


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_image(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _bytes(column: pa.Array) -> pa.Array:
    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column


def _ids(column: pa.Array, first: int, where: str) -> Iterator[str]:
    struct = pa.types.is_struct(column.type)
    values = pc.struct_field(column, "path") if struct else column
    for row, value in enumerate(values.to_pylist(), first):
        image_id = PurePosixPath(value or "").stem if struct else str("" if value is None else value)
        if not image_id:
            raise InputError(f"{where} row {row}: the image has no id")
        yield image_id


@contextmanager
def _open(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        # pre_buffer would hold the whole file, at a quarter of the speed.
        file = pq.ParquetFile(storage.opened(path), buffer_size=_BUFFER, pre_buffer=False)
    except pa.ArrowInvalid as error:
        raise InputError(f"{storage.url(path) or path}: cannot be read as Parquet ({error})") from None
    with file:
        yield file
