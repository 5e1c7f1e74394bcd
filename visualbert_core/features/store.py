"""The feature store: `schema.Regions` as Parquet parts, and the reader that scans them or fetches one image by id.

Owns the file layout. The features column is stored so that it never has to be decoded: binary, uncompressed, PLAIN,
one page per row group. A row's bytes then lie at an offset that follows from the footer, so a fetch is one copy out of
a memory map, while pandas, DuckDB, Spark and Ray read the same file as ordinary Parquet.

    <root>/<corpus>/<fingerprint>/   a shards.ShardFolder + fingerprint.json

The fingerprint names everything that changes a feature: two recipes cannot end up in one folder.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from visualbert_core.errors import StoreError
from visualbert_core.provenance import digest_json
from visualbert_core.schema import FAILURE_SCHEMA, REGIONS_SCHEMA, SCHEMA_VERSION, Failure, Regions
from visualbert_core.shards import Manifest, ShardFolder

ROW_GROUP = 64  # images; 9 MB of 36 × 2048 features
_SMALL = [name for name in REGIONS_SCHEMA.names if name != "features"]
_PREFIX = 4  # bytes; PLAIN writes a binary value as its length and then its bytes
_OPEN_FILES = 256


def store_folder(root: str | Path, corpus: str, fingerprint: Mapping[str, Any]) -> Path:
    """Where the features of `corpus` with this fingerprint live."""
    return Path(root, corpus, digest_json(fingerprint)[:12])


# ---------------------------------------------------------------------------------------------------------------------
# write


def encode(rows: Sequence[Regions], fingerprint: Mapping[str, Any]) -> bytes:
    """A part: `rows` as one Parquet file, the same bytes for the same rows.

    `fingerprint` has at least `space` and `feature_size` (D). Raises ValueError where an array has another shape.
    """
    columns = {
        "image_id": [row.image_id for row in rows],
        "width": [row.width for row in rows],
        "height": [row.height for row in rows],
        "num_regions": [row.num_regions for row in rows],
        "boxes": [_bytes(row, "boxes", "<f4", 4) for row in rows],
        "labels": [_bytes(row, "labels", "<i2") for row in rows],
        "scores": [_bytes(row, "scores", "<f4") for row in rows],
        "image_digest": [row.image_digest for row in rows],
        "features": [_bytes(row, "features", "<f2", fingerprint["feature_size"]) for row in rows],
    }
    schema = REGIONS_SCHEMA.with_metadata(_footer(fingerprint))
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table(columns, schema),
        sink,
        row_group_size=ROW_GROUP,
        data_page_size=2**30,  # one page per row group
        use_dictionary=False,
        compression={name: "none" if name == "features" else "zstd" for name in REGIONS_SCHEMA.names},
        write_statistics=["image_id"],
        write_page_checksum=True,
    )
    return bytes(sink.getvalue())


def _footer(fingerprint: Mapping[str, Any]) -> dict[str, str]:
    return {
        "schema_version": str(SCHEMA_VERSION),
        "feature_dtype": "float16",
        "feature_size": str(fingerprint["feature_size"]),
        "fingerprint": json.dumps(fingerprint, sort_keys=True),
    }


def _bytes(row: Regions, name: str, dtype: str, *width: int) -> bytes:
    array: np.ndarray = getattr(row, name)
    if array.shape != (row.num_regions, *width):
        raise ValueError(f"{row.image_id}: {name} have shape {array.shape}, not {(row.num_regions, *width)}")
    return array.astype(dtype, copy=False).tobytes()


def encode_failures(failures: Sequence[Failure]) -> bytes | None:
    """Failures as one Parquet file; None where there are none."""
    if not failures:
        return None
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([vars(failure) for failure in failures], FAILURE_SCHEMA), sink)
    return bytes(sink.getvalue())


# ---------------------------------------------------------------------------------------------------------------------
# read


class FeatureStore:
    """A finished store, opened for reading. Cheap to open again elsewhere: pass its folder, not the object.

    Holds every column but the features in memory (about 1 kB an image).
    """

    def __init__(self, folder: ShardFolder, manifest: Manifest) -> None:
        if "fingerprint" not in manifest.about:
            raise StoreError(f"{folder.root} is not a feature store: its manifest has no fingerprint")
        self.folder = folder.root
        self.fingerprint: dict[str, Any] = manifest.about["fingerprint"]
        self.feature_size: int = self.fingerprint["feature_size"]
        self.space: str = self.fingerprint["space"]
        self._failure_paths = [folder.failures_path(shard.shard_id) for shard in manifest.shards if shard.failures]
        paths = [folder.part_path(shard.shard_id) for shard in manifest.shards]
        self._map = lru_cache(_OPEN_FILES)(_map)  # bounded: every map holds a file descriptor
        parts = [self._index(path) for path in paths]
        # Plain lists: an Arrow scalar costs more to take out than a row of features.
        self._rows = {name: [value for table, _ in parts for value in table[name].to_pylist()] for name in _SMALL}
        self._place = [(path, at) for path, (_, starts) in zip(paths, parts, strict=True) for at in starts.tolist()]
        self._row_of = {image_id: row for row, image_id in enumerate(self._rows["image_id"])}

    @classmethod
    def open(cls, folder: str | Path, verify: bool = False) -> FeatureStore:
        """Open `<root>/<corpus>/<fingerprint>/`, checking the size and, with `verify`, the hash of every file.

        Raises StoreError where it is unfinished or damaged.
        """
        shards = ShardFolder(folder)
        return cls(shards, shards.read_manifest(verify))

    @property
    def image_ids(self) -> list[str]:
        """Every image with features, in the order of `scan`."""
        return list(self._row_of)

    def __len__(self) -> int:
        return len(self._row_of)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._row_of

    def failures(self) -> list[Failure]:
        """Every image without features, and why."""
        return [Failure(**row) for path in self._failure_paths for row in pq.read_table(path).to_pylist()]

    def scan(self) -> Iterator[Regions]:
        """Every row, part by part."""
        return map(self._read, range(len(self)))

    def fetch(self, image_id: str) -> Regions:
        """The row of one image. Raises StoreError where there is none, saying why."""
        row = self._row_of.get(image_id)
        if row is None:
            raise StoreError(self._why_not(image_id))
        return self._read(row)

    def fetch_many(self, image_ids: Iterable[str]) -> list[Regions]:
        """The rows of several images, in the order asked for."""
        return [self.fetch(image_id) for image_id in image_ids]

    def _why_not(self, image_id: str) -> str:
        for failure in self.failures():
            if failure.item_id == image_id:
                return f"image {image_id!r} is quarantined in {self.folder}: {failure.stage}: {failure.message}"
        return f"image {image_id!r} is not in {self.folder}: extract the features of its corpus"

    def _index(self, path: Path) -> tuple[pa.Table, np.ndarray]:
        """The small columns of a part, and where in the file each row's features lie, int64 [rows]."""
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            expected, found = _footer(self.fingerprint), file.schema_arrow.metadata or {}
            if any(found.get(key.encode()) != value.encode() for key, value in expected.items()):
                raise StoreError(f"{path} is not of this store (its footer names another recipe): delete the folder")
            table = file.read(_SMALL).combine_chunks()
            lengths = table["num_regions"].to_numpy().astype(np.int64) * self.feature_size * 2
            return table, _offsets(file.metadata, lengths)

    def _read(self, row: int) -> Regions:
        columns = {name: values[row] for name, values in self._rows.items()}
        path, start = self._place[row]
        count, size = columns.pop("num_regions"), self.feature_size * 2
        window = self._map(path)[start - _PREFIX : start + count * size]
        if int.from_bytes(window[:_PREFIX].tobytes(), "little") != count * size:
            raise StoreError(f"{path} is damaged at {columns['image_id']!r}: delete it and run the same line again")
        columns["boxes"] = _array(columns["boxes"], "<f4").reshape(count, 4)
        columns["labels"] = _array(columns["labels"], "<i2")
        columns["scores"] = _array(columns["scores"], "<f4")
        return Regions(**columns, features=_array(window[_PREFIX:], "<f2").reshape(count, self.feature_size))


def _offsets(footer: pq.FileMetaData, lengths: np.ndarray) -> np.ndarray:
    """With one page per row group, its values end where its column chunk ends."""
    offsets = np.zeros(len(lengths), np.int64)
    first = 0
    for group in (footer.row_group(number) for number in range(footer.num_row_groups)):
        column = group.column(footer.num_columns - 1)
        rows = slice(first, first + group.num_rows)
        before_each = np.cumsum(lengths[rows] + _PREFIX) - lengths[rows]
        total = int(lengths[rows].sum()) + group.num_rows * _PREFIX
        offsets[rows] = column.data_page_offset + column.total_compressed_size - total + before_each
        first = rows.stop
    return offsets


def _map(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def _array(data: bytes | np.ndarray, dtype: str) -> np.ndarray:
    # A copy: offsets in the file may be odd, and torch wants memory that it may write to.
    return np.frombuffer(data, dtype).copy()
