"""The index of a feature store: all small columns, and the place and hash of every image's features.

Owns the file `index.arrow`, which is derived from the parts:

    64 bytes        magic, xxh3-128 of the manifest, xxh3-128 of the payload, padding
    the payload     an Arrow stream of one batch

All processes of a machine read it through a shared memory map. So opening a store of any size reads two files, on a
disk or in an object store. An index that is damaged or of an older manifest is made again. Making it reads every byte
of the store, and at that time `FeatureStore` checks each part against its hash in the manifest. From then on,
`FeatureStore` checks the features of an image against their hash in the index.
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

PREFIX = 4  # bytes; Parquet's PLAIN encoding writes the length of a binary value before its bytes

_MAGIC = b"vbindex3"
_HEADER = 64
_SMALL = [name for name in REGIONS_SCHEMA.names if name != "features"]
_ROWS = pa.schema(
    [
        # 32-bit offsets would suffice for four million images only, so the columns are large_binary.
        *(
            pa.field(f.name, pa.large_binary() if f.type == pa.binary() else f.type, f.nullable)
            for f in map(REGIONS_SCHEMA.field, _SMALL)
        ),
        pa.field("part", pa.int32(), False),  # position of the part in the manifest
        pa.field("start", pa.int64(), False),  # first byte of the features in the part
        pa.field("hash", pa.uint64(), False),  # xxh3-64 of the bytes of the features
    ]
)
# For the search by id: the xxh3-64 of every id, ascending, and the row of that id.
_SCHEMA = _ROWS.append(pa.field("id_hash", pa.uint64(), False)).append(pa.field("id_row", pa.uint32(), False))


def build(paths: Sequence[Location], footer: Mapping[str, str], feature_size: int) -> pa.Table:
    """Make the index of these parts, with ids ascending.

    Raise StoreError where the footer of a part is not `footer`, or its features do not lie where they should.
    """
    tables = [_of_part(path, number, footer, feature_size) for number, path in enumerate(paths)]
    table = pa.concat_tables([_ROWS.empty_table(), *tables])
    table = table.take(pc.sort_indices(table["image_id"])).combine_chunks()
    hashes = np.array([_id_hash(image_id) for image_id in table["image_id"].to_pylist()], np.uint64)
    order = np.argsort(hashes).astype(np.uint32)
    return pa.table([*table.columns, hashes[order], order], _SCHEMA)


def dump(table: pa.Table, manifest: bytes) -> bytes:
    """Return the bytes of the file. `manifest` are the bytes of the manifest that the index belongs to."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _SCHEMA) as writer:
        writer.write_table(table)
    payload = sink.getvalue()
    return _header(memoryview(payload), manifest) + bytes(payload)


def load(path: Location, manifest: bytes) -> pa.Table | None:
    """Read the index without a copy. Return None where it is absent, damaged or of a different manifest."""
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
    """Return the index rows of one part, the `number`th of the manifest. Raise StoreError as `build` does."""
    data = storage.view(path)
    with pq.ParquetFile(pa.BufferReader(pa.py_buffer(data)), page_checksum_verification=True) as file:
        found = file.schema_arrow.metadata or {}
        if any(found.get(key.encode()) != value.encode() for key, value in footer.items()):
            raise StoreError(f"{path} is not of this store (its footer names another recipe): delete the folder")
        # Arrow's threads may hold Python's bytes until the interpreter has ended, and then abort the process.
        table = file.read(_SMALL, use_threads=False)
        lengths = table["num_regions"].to_numpy().astype(np.int64) * feature_size * 2
        starts = _starts(file.metadata, lengths)
    spans = list(zip(starts.tolist(), lengths.tolist(), strict=True))
    if any(int.from_bytes(data[start - PREFIX : start].tobytes(), "little") != length for start, length in spans):
        raise StoreError(f"{path} does not have the layout of this store's parts: delete the folder")
    hashes = [xxhash.xxh3_64_intdigest(data[start : start + length].data) for start, length in spans]
    columns = [*table.columns, pa.array([number] * len(starts), pa.int32()), starts, pa.array(hashes, pa.uint64())]
    return pa.table(columns, names=_ROWS.names).cast(_ROWS)


def _id_hash(image_id: str) -> int:
    """Return the xxh3-64 of an id; an id with a lone surrogate is simply not found."""
    return xxhash.xxh3_64_intdigest(image_id.encode(errors="surrogatepass"))


def _starts(footer: pq.FileMetaData, lengths: np.ndarray) -> np.ndarray:
    """Return the first byte of each row's features in the part, int64 [N]; `lengths` are their sizes in bytes.

    A row group has one page, so its values end where its column chunk ends. The size of the page's header is unknown,
    so the places are counted back from that end.
    """
    starts = np.zeros(len(lengths), np.int64)
    first = 0
    for group in (footer.row_group(number) for number in range(footer.num_row_groups)):
        column = group.column(footer.num_columns - 1)  # the features are the last column
        rows = slice(first, first + group.num_rows)
        before_each = np.cumsum(lengths[rows] + PREFIX) - lengths[rows]
        total = int(lengths[rows].sum()) + group.num_rows * PREFIX
        starts[rows] = column.data_page_offset + column.total_compressed_size - total + before_each
        first = rows.stop
    return starts


class Span(NamedTuple):
    """Bytes [start, stop) of a part, which is given by its position in the manifest."""

    part: int
    start: int
    stop: int


class Index:
    """The index as arrays over the memory map.

    Reading a row takes microseconds. A store of millions of images takes little memory in each process, whether that is
    a worker or a forked data loader.
    """

    def __init__(self, table: pa.Table, feature_size: int) -> None:
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        self.image_ids = StringColumn.of(columns["image_id"])
        self._digests = StringColumn.of(columns["image_digest"])
        # The items of a memory view are Python's numbers: reading one is three times as fast as from a NumPy array.
        self._id_hashes, self._id_rows = columns["id_hash"].to_numpy().data, columns["id_row"].to_numpy().data
        self._widths, self._heights = columns["width"].to_numpy(), columns["height"].to_numpy()
        self._hashes = columns["hash"].to_numpy()
        self._parts, self._starts = columns["part"].to_numpy(), columns["start"].to_numpy()
        counts = columns["num_regions"].to_numpy().astype(np.int64)
        self._stops = self._starts + counts * feature_size * 2
        self._regions = np.concatenate([[0], counts.cumsum()])  # a row's first region among those of all images
        self._boxes = _values(columns["boxes"], "<f4").reshape(-1, 4)
        self._labels, self._scores = _values(columns["labels"], "<i2"), _values(columns["scores"], "<f4")
        self._attributes = _Optional(columns["attributes"], "<i2")
        self._attribute_scores = _Optional(columns["attribute_scores"], "<f4")
        self._checked = bytearray(len(self.image_ids))  # 1 where `intact` has compared the hash in this process
        self._feature_size = feature_size

    def find(self, image_id: str) -> int | None:
        """Return the row of an image, or None where it has no row."""
        key = _id_hash(image_id)
        place = bisect_left(self._id_hashes, key)
        # Several ids may have one hash, so the ids themselves are compared.
        while place < len(self._id_hashes) and self._id_hashes[place] == key:
            row: int = self._id_rows[place]
            if self.image_ids[row] == image_id:
                return row
            place += 1
        return None

    def span(self, row: int) -> Span:
        """Return where the features of a row lie."""
        return Span(self._parts.item(row), self._starts.item(row), self._stops.item(row))

    def row_groups(self, size: int) -> np.ndarray:
        """Return the number of the row group of each row, where a part has `size` rows in each: int64 [N]."""
        order = np.lexsort((self._starts, self._parts))
        parts = self._parts[order].astype(np.int64)
        within = (np.arange(len(parts)) - np.searchsorted(parts, parts)) // size
        found = np.empty(len(parts), np.int64)
        _, found[order] = np.unique(parts * (len(parts) + 1) + within, return_inverse=True)
        return found

    def sizes(self) -> Iterator[tuple[str, int, int, int]]:
        """Yield (image id, width, height, number of regions) of every row."""
        counts = np.diff(self._regions)
        return zip(self.image_ids, self._widths.tolist(), self._heights.tolist(), counts.tolist(), strict=True)

    def label_counts(self) -> Iterator[tuple[int, int]]:
        """Yield (label, number of its regions) of every label that occurs."""
        labels, counts = np.unique(self._labels, return_counts=True)
        return zip(labels.tolist(), counts.tolist(), strict=True)

    def intact(self, row: int, features: np.ndarray) -> bool:
        """Return whether these bytes have the hash of the row's features.

        A row that was intact once is not checked again in the same process.
        """
        if not self._checked[row]:
            self._checked[row] = xxhash.xxh3_64_intdigest(features.data) == self._hashes.item(row)
        return bool(self._checked[row])

    def boxes(self, row: int) -> np.ndarray:
        """Return a copy of the boxes of a row: float32 [R, 4]."""
        return self._boxes[self._regions.item(row) : self._regions.item(row + 1)].copy()

    def equals(self, row: int, other: Index, there: int) -> bool:
        """Return whether a row equals a row of another index: size, boxes, labels, scores, and the hash of features."""
        mine, theirs = self._regions[row : row + 2], other._regions[there : there + 2]
        pairs = [(self._widths, other._widths), (self._heights, other._heights), (self._hashes, other._hashes)]
        columns = [(self._boxes, other._boxes), (self._labels, other._labels), (self._scores, other._scores)]
        return all(a.item(row) == b.item(there) for a, b in pairs) and all(
            np.array_equal(a[slice(*mine)], b[slice(*theirs)]) for a, b in columns
        )

    def regions(self, row: int, features: np.ndarray) -> Regions:
        """Return a row whose features are these bytes, without a copy. The other arrays are copies."""
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
    """A column that may be null, in all rows or in some rows."""

    def __init__(self, column: pa.LargeBinaryArray, dtype: str) -> None:
        self._known = column.is_valid().to_numpy(zero_copy_only=False) if column.null_count < len(column) else None
        self._values = _values(column, dtype)
        # Starts at 0, not at the column's own offsets, because the values of null rows take no space.
        self._ends = np.concatenate([[0], pc.binary_length(column).fill_null(0).to_numpy().cumsum()])
        self._ends //= np.dtype(dtype).itemsize

    def copy(self, row: int) -> np.ndarray | None:
        """Return a copy of the values of a row, or None where the row is null."""
        if self._known is None or not self._known.item(row):
            return None
        return self._values[self._ends.item(row) : self._ends.item(row + 1)].copy()


def _values(column: pa.LargeBinaryArray, dtype: str) -> np.ndarray:
    """Return the values of all rows of a column as one array, without a copy."""
    data = column.buffers()[2]
    return np.empty(0, dtype) if data is None else np.frombuffer(data, dtype)
