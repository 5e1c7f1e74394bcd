"""The index of a feature store: every small column, where each image's features lie, and what they hash to.

    index.arrow     64 bytes (magic, the manifest's xxh3-128, the payload's xxh3-128), then an Arrow stream of one batch

It is derived from the parts and read through a memory map that all processes of a machine share, so that opening a
store of any size reads two files, be it on a disk or in an object store. One that is damaged or of an older manifest
is made anew; making it reads every byte of the store, which is when each part is held against the manifest's hash.
From then on each image's features are held against the index's hash of them (`FeatureStore`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from visualbert_core.corpus.string_column import StringColumn
from visualbert_core.errors import StoreError
from visualbert_core.io import storage
from visualbert_core.io.locations import Location
from visualbert_core.schema import REGIONS_SCHEMA, Regions

PREFIX = 4  # bytes; PLAIN writes a binary value as its length and then its bytes

_MAGIC = b"vbindex3"
_HEADER = 64
_SMALL = [name for name in REGIONS_SCHEMA.names if name != "features"]
_ROWS = pa.schema(
    [
        # large_binary: an offset of 32 bits would end at four million images
        *(
            pa.field(f.name, pa.large_binary() if f.type == pa.binary() else f.type, f.nullable)
            for f in map(REGIONS_SCHEMA.field, _SMALL)
        ),
        pa.field("part", pa.int32(), False),  # position in the manifest
        pa.field("start", pa.int64(), False),  # bytes
        pa.field("hash", pa.uint64(), False),  # xxh3-64 of the bytes of the features
    ]
)
# By which a row is found: xxh3-64 of the ids, ascending, and the rows that they are of.
_SCHEMA = _ROWS.append(pa.field("id_hash", pa.uint64(), False)).append(pa.field("id_row", pa.uint32(), False))


def build(paths: Sequence[Location], footer: Mapping[str, str], feature_size: int) -> pa.Table:
    """The index of these parts, ids ascending. Raises StoreError for a part of another recipe."""
    tables = [_of_part(path, number, footer, feature_size) for number, path in enumerate(paths)]
    table = pa.concat_tables([_ROWS.empty_table(), *tables])
    table = table.take(pc.sort_indices(table["image_id"])).combine_chunks()
    hashes = np.array([_id_hash(image_id) for image_id in table["image_id"].to_pylist()], np.uint64)
    order = np.argsort(hashes).astype(np.uint32)
    return pa.table([*table.columns, hashes[order], order], _SCHEMA)


def dump(table: pa.Table, manifest: bytes) -> bytes:
    """The file. `manifest` are the bytes of the manifest that it belongs to."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _SCHEMA) as writer:
        writer.write_table(table)
    payload = sink.getvalue()
    return _header(memoryview(payload), manifest) + bytes(payload)


def load(path: Location, manifest: bytes) -> pa.Table | None:
    """The index as it stands, without a copy; None where it is absent, damaged or another manifest's."""
    try:
        data = storage.view(path)
    except FileNotFoundError:
        return None
    payload = data[_HEADER:]
    if data[:_HEADER].tobytes() != _header(payload.data, manifest):
        return None
    return pa.ipc.open_stream(pa.py_buffer(payload)).read_all()


def _header(payload: memoryview, manifest: bytes) -> bytes:
    digests = xxhash.xxh3_128_digest(manifest) + xxhash.xxh3_128_digest(payload)
    return (_MAGIC + digests).ljust(_HEADER, b"\0")


def _of_part(path: Location, number: int, footer: Mapping[str, str], feature_size: int) -> pa.Table:
    data = storage.view(path)
    with pq.ParquetFile(pa.BufferReader(pa.py_buffer(data)), page_checksum_verification=True) as file:
        found = file.schema_arrow.metadata or {}
        if any(found.get(key.encode()) != value.encode() for key, value in footer.items()):
            raise StoreError(f"{path} is not of this store (its footer names another recipe): delete the folder")
        # Arrow's threads may hold Python's bytes until the interpreter is gone, and then abort the process.
        table = file.read(_SMALL, use_threads=False)
        lengths = table["num_regions"].to_numpy().astype(np.int64) * feature_size * 2
        starts = _starts(file.metadata, lengths)
    spans = list(zip(starts.tolist(), lengths.tolist(), strict=True))
    if any(int.from_bytes(data[start - PREFIX : start].tobytes(), "little") != length for start, length in spans):
        raise StoreError(f"{path} is not laid out as this store's parts are: delete the folder")
    hashes = [xxhash.xxh3_64_intdigest(data[start : start + length].data) for start, length in spans]
    columns = [*table.columns, pa.array([number] * len(starts), pa.int32()), starts, pa.array(hashes, pa.uint64())]
    return pa.table(columns, names=_ROWS.names).cast(_ROWS)


def _id_hash(image_id: str) -> int:
    return xxhash.xxh3_64_intdigest(image_id.encode(errors="surrogatepass"))


def _starts(footer: pq.FileMetaData, lengths: np.ndarray) -> np.ndarray:
    """Where each row's features lie: with one page per row group, its values end where its column chunk ends."""
    starts = np.zeros(len(lengths), np.int64)
    first = 0
    for group in (footer.row_group(number) for number in range(footer.num_row_groups)):
        column = group.column(footer.num_columns - 1)
        rows = slice(first, first + group.num_rows)
        before_each = np.cumsum(lengths[rows] + PREFIX) - lengths[rows]
        total = int(lengths[rows].sum()) + group.num_rows * PREFIX
        starts[rows] = column.data_page_offset + column.total_compressed_size - total + before_each
        first = rows.stop
    return starts


class Span(NamedTuple):
    """Bytes [start, stop) of a part."""

    part: int
    start: int
    stop: int


class Index:
    """The table as arrays over the memory map: a row costs microseconds, and a store of millions of images takes hardly
    any memory of each process, be it a worker or a forked data loader."""

    def __init__(self, table: pa.Table, feature_size: int) -> None:
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        self.image_ids = StringColumn.of(columns["image_id"])
        self._digests = StringColumn.of(columns["image_digest"])
        # As memory views, whose items are Python's numbers: three times as fast as an array's, one at a time.
        self._id_hashes, self._id_rows = columns["id_hash"].to_numpy().data, columns["id_row"].to_numpy().data
        self._widths, self._heights = columns["width"].to_numpy(), columns["height"].to_numpy()
        self._hashes = columns["hash"].to_numpy()
        self._parts, self._starts = columns["part"].to_numpy(), columns["start"].to_numpy()
        counts = columns["num_regions"].to_numpy().astype(np.int64)
        self._stops = self._starts + counts * feature_size * 2
        self._regions = np.concatenate([[0], counts.cumsum()])  # of all images, one after the other
        self._boxes = _values(columns["boxes"], "<f4").reshape(-1, 4)
        self._labels, self._scores = _values(columns["labels"], "<i2"), _values(columns["scores"], "<f4")
        self._attributes = _Optional(columns["attributes"], "<i2")
        self._attribute_scores = _Optional(columns["attribute_scores"], "<f4")
        self._checked = bytearray(len(self.image_ids))
        self._feature_size = feature_size

    def find(self, image_id: str) -> int | None:
        """The row of an image; None where there is none."""
        key = _id_hash(image_id)
        place = bisect_left(self._id_hashes, key)
        while place < len(self._id_hashes) and self._id_hashes[place] == key:
            row: int = self._id_rows[place]
            if self.image_ids[row] == image_id:
                return row
            place += 1
        return None

    def span(self, row: int) -> Span:
        """Where the features of a row lie."""
        return Span(self._parts.item(row), self._starts.item(row), self._stops.item(row))

    def sizes(self) -> Iterator[tuple[str, int, int, int]]:
        """(image id, width, height, regions) of every row."""
        counts = np.diff(self._regions)
        return zip(self.image_ids, self._widths.tolist(), self._heights.tolist(), counts.tolist(), strict=True)

    def label_counts(self) -> Iterator[tuple[int, int]]:
        """(label, regions of it) of every label that occurs."""
        labels, counts = np.unique(self._labels, return_counts=True)
        return zip(labels.tolist(), counts.tolist(), strict=True)

    def intact(self, row: int, features: np.ndarray) -> bool:
        """Whether these bytes are the ones that were written; worked out once for a row in each process."""
        if not self._checked[row]:
            self._checked[row] = xxhash.xxh3_64_intdigest(features.data) == self._hashes.item(row)
        return bool(self._checked[row])

    def regions(self, row: int, features: np.ndarray) -> Regions:
        """A row with these bytes as its features; the other arrays are the caller's own."""
        first, stop = self._regions.item(row), self._regions.item(row + 1)
        return Regions(
            self.image_ids[row],
            self._widths.item(row),
            self._heights.item(row),
            self._boxes[first:stop].copy(),
            self._labels[first:stop].copy(),
            self._scores[first:stop].copy(),
            features.view("<f2").reshape(stop - first, self._feature_size),
            self._digests[row],
            self._attributes.copy(row),
            self._attribute_scores.copy(row),
        )


class _Optional:
    """A column that may be null, in all rows or in some."""

    def __init__(self, column: pa.LargeBinaryArray, dtype: str) -> None:
        self._known = column.is_valid().to_numpy(zero_copy_only=False) if column.null_count < len(column) else None
        self._values = _values(column, dtype)
        self._ends = np.concatenate([[0], pc.binary_length(column).fill_null(0).to_numpy().cumsum()])
        self._ends //= np.dtype(dtype).itemsize

    def copy(self, row: int) -> np.ndarray | None:
        """The values of a row, the caller's own."""
        if self._known is None or not self._known.item(row):
            return None
        return self._values[self._ends.item(row) : self._ends.item(row + 1)].copy()


def _values(column: pa.LargeBinaryArray, dtype: str) -> np.ndarray:
    data = column.buffers()[2]
    return np.empty(0, dtype) if data is None else np.frombuffer(data, dtype)
