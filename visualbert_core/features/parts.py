"""The files of a feature store: Parquet parts of `schema.Regions`, and the index of where each image lies in them.

Owns the layout of both. The column of features needs no decoding: binary, uncompressed, PLAIN, one page per row group.
The offset of a row's bytes follows from the footer, so a fetch is one copy out of a memory map. pandas, DuckDB, Spark
and Ray read the same file as ordinary Parquet. The index is derived from the parts. It holds all small columns, and the
place and hash of every image's features:

    index.arrow     64 bytes        magic, xxh3-128 of the manifest, xxh3-128 of the payload, padding
                    the payload     an Arrow stream of one batch

Making it reads every byte of the store, and at that time each part is checked against its hash in the manifest. An
index that is damaged or of an older manifest is made again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from visualbert_core.engine.shards import Manifest, Part, ShardFolder, publish
from visualbert_core.errors import StoreError
from visualbert_core.features import label_names as names
from visualbert_core.io import storage
from visualbert_core.io.locations import Location
from visualbert_core.schema import FAILURE_SCHEMA, REGIONS_SCHEMA, SCHEMA_VERSION, Failure, Regions

ARRAYS = {
    "boxes": "<f4",
    "labels": "<i2",
    "scores": "<f4",
    "attributes": "<i2",
    "attribute_scores": "<f4",
    "features": "<f2",
}
"""The types of the columns that hold arrays as bytes."""
Outcome = Regions | Failure
ROW_GROUP = 64  # images; 9 MB of 36 × 2048 features
_PREFIX = 4  # bytes; Parquet's PLAIN encoding writes the length of a binary value before its bytes

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


def encode(rows: Sequence[Regions], fingerprint: Mapping[str, Any]) -> bytes:
    """Encode `rows` as a part, which is one Parquet file. The same rows give the same bytes.

    `fingerprint` has at least `space` and `feature_size` (D). Raise ValueError where an array has another shape.
    """
    columns = {name: [getattr(row, name) for row in rows] for name in REGIONS_SCHEMA.names if name not in ARRAYS}
    widths = {"boxes": (4,), "features": (fingerprint["feature_size"],)}
    for name in ARRAYS:
        columns[name] = [_bytes(row, name, widths.get(name, ())) for row in rows]
    schema = REGIONS_SCHEMA.with_metadata(footer(fingerprint))
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table(columns, schema),
        sink,
        row_group_size=ROW_GROUP,
        data_page_size=2**30,  # one page per row group, as `_starts` assumes
        use_dictionary=False,  # so features are PLAIN
        compression={name: "none" if name == "features" else "zstd" for name in REGIONS_SCHEMA.names},
        write_statistics=["image_id"],
        write_page_checksum=True,
    )
    return bytes(sink.getvalue())


def to_half(features: np.ndarray) -> np.ndarray:
    """Return finite features as float16. A number beyond its range becomes its largest value, not infinity."""
    largest = float(np.finfo(np.float16).max)
    return features.clip(-largest, largest).astype(np.float16)


def footer(fingerprint: Mapping[str, Any]) -> dict[str, str]:
    """Return the Parquet metadata of every part of a store with this fingerprint."""
    return {
        "schema_version": str(SCHEMA_VERSION),
        "feature_dtype": "float16",
        "feature_size": str(fingerprint["feature_size"]),
        "fingerprint": json.dumps(fingerprint, sort_keys=True),
    }


def _bytes(row: Regions, name: str, width: tuple[int, ...]) -> bytes | None:
    array: np.ndarray | None = getattr(row, name)
    if array is None:
        return None
    if array.shape != (shape := (row.num_regions, *width)):
        raise ValueError(f"image {row.image_id}: {name} have shape {array.shape}, not {shape}")
    return array.astype(ARRAYS[name], copy=False).tobytes()


def encode_outcomes(outcomes: Sequence[Outcome], fingerprint: Mapping[str, Any]) -> Part:
    """Encode the rows and the failures of a shard, in the order of its items."""
    rows = [outcome for outcome in outcomes if isinstance(outcome, Regions)]
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    return Part(encode(rows, fingerprint), len(rows), encode_failures(failures), len(failures))


def encode_failures(failures: Sequence[Failure]) -> bytes | None:
    """Encode failures as one Parquet file. Return None where there are none."""
    if not failures:
        return None
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([vars(failure) for failure in failures], FAILURE_SCHEMA), sink)
    return bytes(sink.getvalue())


def open_index(shards: ShardFolder, manifest: Manifest, verify: bool) -> pa.Table:
    """Return the index of a store. Make it from the parts where it is absent, damaged or older than the manifest.

    With `verify`, make it from the parts in any case and compare. Raise StoreError where they differ.
    """
    path, data = shards.root / "index.arrow", shards.manifest_path.read_bytes()
    table = _load(path, data)
    if table is not None and not verify:
        return table
    if not verify:
        shards.verify(manifest)
    names.read(shards.root, manifest.about["fingerprint"])  # the manifest has no hash of names.json, so check it here
    made = make_index(shards, manifest)
    if verify and storage.size(path) is not None:
        if table is None or not table.equals(made):
            raise StoreError(f"{path} is damaged or of an older manifest: delete it; opening the store makes it anew")
        return table
    with suppress(OSError):  # a read-only folder: every opening makes the index again
        publish(path, _dump(made, data))
    return made


def make_index(shards: ShardFolder, manifest: Manifest) -> pa.Table:
    """Make the index, with ids ascending, from the parts that the manifest names.

    Raise StoreError where a part is not of this store.
    """
    fingerprint = manifest.about["fingerprint"]
    paths = [shards.part_path(shard.shard_id) for shard in manifest.shards]
    tables = [_of_part(path, number, fingerprint) for number, path in enumerate(paths)]
    table = pa.concat_tables([_ROWS.empty_table(), *tables])
    table = table.take(pc.sort_indices(table["image_id"])).combine_chunks()
    hashes = np.array([id_hash(image_id) for image_id in table["image_id"].to_pylist()], np.uint64)
    order = np.argsort(hashes).astype(np.uint32)
    return pa.table([*table.columns, hashes[order], order], _SCHEMA)


def id_hash(image_id: str) -> int:
    """Return the xxh3-64 of an id; an id with a lone surrogate is simply not found."""
    return xxhash.xxh3_64_intdigest(image_id.encode(errors="surrogatepass"))


def _dump(table: pa.Table, manifest: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _SCHEMA) as writer:
        writer.write_table(table)
    payload = sink.getvalue()
    return _header(memoryview(payload), manifest) + bytes(payload)


def _load(path: Location, manifest: bytes) -> pa.Table | None:
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


def _of_part(path: Location, number: int, fingerprint: Mapping[str, Any]) -> pa.Table:
    """Return the index rows of one part, the `number`th of the manifest."""
    data = storage.view(path)
    with pq.ParquetFile(pa.BufferReader(pa.py_buffer(data)), page_checksum_verification=True) as file:
        found = file.schema_arrow.metadata or {}
        if any(found.get(key.encode()) != value.encode() for key, value in footer(fingerprint).items()):
            raise StoreError(f"{path} is not of this store (its footer names another recipe): delete the folder")
        # Arrow's threads may hold Python's bytes until the interpreter has ended, and then abort the process.
        table = file.read(_SMALL, use_threads=False)
        lengths = table["num_regions"].to_numpy().astype(np.int64) * fingerprint["feature_size"] * 2
        starts = _starts(file.metadata, lengths)
    spans = list(zip(starts.tolist(), lengths.tolist(), strict=True))
    if any(int.from_bytes(data[start - _PREFIX : start].tobytes(), "little") != length for start, length in spans):
        raise StoreError(f"{path} does not have the layout of this store's parts: delete the folder")
    hashes = [xxhash.xxh3_64_intdigest(data[start : start + length].data) for start, length in spans]
    columns = [*table.columns, pa.array([number] * len(starts), pa.int32()), starts, pa.array(hashes, pa.uint64())]
    return pa.table(columns, names=_ROWS.names).cast(_ROWS)


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
        ends = np.cumsum(lengths[rows] + _PREFIX)
        starts[rows] = column.data_page_offset + column.total_compressed_size - ends[-1:] + ends - lengths[rows]
        first = rows.stop
    return starts
