"""The feature store: `schema.Regions` in Parquet parts, and the reader that scans them or fetches images by id.

Owns the file layout. The column of features needs no decoding: binary, uncompressed, PLAIN, one page per row group. The
offset of a row's bytes follows from the footer, so a fetch is one copy out of a memory map. pandas, DuckDB, Spark and
Ray read the same file as ordinary Parquet.

    <root>/<corpus>/<fingerprint>/   a shards.ShardFolder, with fingerprint.json, names.json (see label_names.py) and
                                     index.arrow (derived, see index.py)

The fingerprint names everything that changes a feature, so two recipes never share a folder.

What is checked, and when:

    every opening                             the hash of the manifest, the size of every file, the hash of the index
    the first opening, which makes the index  the hash of every file, at the speed of the disk
    an image's first reading in a process     the hash of its features (7 µs for 36 × 2048)
    the first use of a name in a process      the hash of the names
    `open(folder, verify=True)`               every byte of every file
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from visualbert_core.engine.shards import Manifest, Marker, ShardFolder, publish
from visualbert_core.errors import CoverageError, StoreError
from visualbert_core.features import index
from visualbert_core.features import label_names as names
from visualbert_core.features.index import Index, Span
from visualbert_core.io import storage
from visualbert_core.io.locations import Location, location
from visualbert_core.provenance import digest_json
from visualbert_core.schema import FAILURE_SCHEMA, REGIONS_SCHEMA, SCHEMA_VERSION, Failure, LabelNames, Regions

ROW_GROUP = 64  # images; 9 MB of 36 × 2048 features
_OPEN_FILES = 256
_WINDOW = 512  # images, 75 MB; a scan of a remote store requests so many at once
_COMMONEST = 10  # labels
_GAP = 1 << 18  # bytes; reading so many unused bytes is faster than a second request. Row groups lie 30 kB apart.


def store_folder(root: str | Location, corpus: str, fingerprint: Mapping[str, Any]) -> Location:
    """Return the folder for the features of `corpus` with this fingerprint."""
    return location(root) / corpus / digest_json(fingerprint)[:12]


# ---------------------------------------------------------------------------------------------------------------------
# write


def encode(rows: Sequence[Regions], fingerprint: Mapping[str, Any]) -> bytes:
    """Encode `rows` as a part, which is one Parquet file. The same rows give the same bytes.

    `fingerprint` has at least `space` and `feature_size` (D). Raise ValueError where an array has another shape.
    """
    columns = {
        "image_id": [row.image_id for row in rows],
        "width": [row.width for row in rows],
        "height": [row.height for row in rows],
        "num_regions": [row.num_regions for row in rows],
        "boxes": [_bytes(row, "boxes", "<f4", 4) for row in rows],
        "labels": [_bytes(row, "labels", "<i2") for row in rows],
        "scores": [_bytes(row, "scores", "<f4") for row in rows],
        "attributes": [_bytes(row, "attributes", "<i2") for row in rows],
        "attribute_scores": [_bytes(row, "attribute_scores", "<f4") for row in rows],
        "image_digest": [row.image_digest for row in rows],
        "features": [_bytes(row, "features", "<f2", fingerprint["feature_size"]) for row in rows],
    }
    schema = REGIONS_SCHEMA.with_metadata(footer(fingerprint))
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table(columns, schema),
        sink,
        row_group_size=ROW_GROUP,
        data_page_size=2**30,  # one page per row group, as `index._starts` assumes
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


def _bytes(row: Regions, name: str, dtype: str, *width: int) -> bytes | None:
    """Return the bytes of an array of a row as `dtype`. Raise ValueError unless its shape is (R, *width)."""
    array: np.ndarray | None = getattr(row, name)
    if array is None:
        return None
    if array.shape != (row.num_regions, *width):
        raise ValueError(f"image {row.image_id}: {name} have shape {array.shape}, not {(row.num_regions, *width)}")
    return array.astype(dtype, copy=False).tobytes()


def encode_failures(failures: Sequence[Failure]) -> bytes | None:
    """Encode failures as one Parquet file. Return None where there are none."""
    if not failures:
        return None
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([vars(failure) for failure in failures], FAILURE_SCHEMA), sink)
    return bytes(sink.getvalue())


# ---------------------------------------------------------------------------------------------------------------------
# read


class FeatureStore:
    """A finished store, opened for reading.

    The images are in ascending order of their ids. All columns except the features lie in one memory map, which the
    processes of a machine share. To use a store in several processes, pass its folder and open it in each: that is
    cheap.
    """

    def __init__(self, folder: Location, manifest: Manifest, table: pa.Table) -> None:
        shards = ShardFolder(folder)
        self.folder = folder
        self.manifest = manifest
        self.fingerprint: dict[str, Any] = manifest.about["fingerprint"]
        self.feature_size: int = self.fingerprint["feature_size"]
        self.space: str = self.fingerprint["space"]
        self.part_paths = [shards.part_path(shard.shard_id) for shard in manifest.shards]
        self._failure_paths = [shards.failures_path(shard.shard_id) for shard in manifest.shards if shard.failures]
        self._index = Index(table, self.feature_size)
        self._remote = not isinstance(folder, Path)
        self._map = lru_cache(_OPEN_FILES)(storage.view)  # bounded, because every map holds a file descriptor

    @classmethod
    def open(cls, folder: str | Location, verify: bool = False) -> FeatureStore:
        """Open `<root>/<corpus>/<fingerprint>/`, a folder or an `s3://…` address.

        With `verify`, check every byte of every file. Raise StoreError where the store is unfinished or damaged; its
        message names the file.
        """
        shards = ShardFolder(folder)
        manifest = shards.read_manifest(verify)
        if "fingerprint" not in manifest.about:
            raise StoreError(f"{shards.root} is not a feature store: its manifest has no fingerprint; name a store")
        return cls(shards.root, manifest, _table(shards, manifest, verify))

    @classmethod
    def open_made(cls, folder: Location) -> FeatureStore:
        """Open a store that was just written. Raise CoverageError where it holds only failures."""
        store = cls.open(folder)
        if not len(store) and (failures := store.failures()):
            first = f"{failures[0].item_id}: {failures[0].message}"
            raise CoverageError(
                f"{store.folder}: none of {len(failures):,} images has features; {first}; mend the images, delete "
                "that folder and run the same line again"
            )
        return store

    @classmethod
    def of_committed(
        cls, shards: ShardFolder, markers: Sequence[Marker], fingerprint: Mapping[str, Any]
    ) -> FeatureStore:
        """Open the rows of some committed shards; the store itself may be unfinished.

        Read and hash the files of these shards, and write no index. Raise StoreError where a file is damaged; its
        message names the file.
        """
        manifest = Manifest({"fingerprint": dict(fingerprint)}, tuple(markers))
        shards.verify(manifest)
        return cls(shards.root, manifest, _made(shards, manifest))

    @property
    def image_ids(self) -> list[str]:
        """Return the ids of all images with features, in ascending order, which is the order of `scan`."""
        return list(self._index.image_ids)

    def __len__(self) -> int:
        return len(self._index.image_ids)

    def __contains__(self, image_id: object) -> bool:
        return isinstance(image_id, str) and self._index.find(image_id) is not None

    @property
    def label_names(self) -> tuple[str, ...]:
        """Return the names of the labels in `Regions`, by number; empty where the store has no names.

        Raise StoreError where the file with the names is damaged; the message names the file.
        """
        return self._names.labels

    @property
    def attribute_names(self) -> tuple[str, ...]:
        """Return the names of the attributes in `Regions`, by number; empty where the store has no names.

        Raise StoreError where the file with the names is damaged; the message names the file.
        """
        return self._names.attributes

    @cached_property
    def _names(self) -> LabelNames:
        return names.read(self.folder, self.fingerprint)

    def failures(self) -> list[Failure]:
        """Return a failure, with its reason, for every image without features."""
        files = (pq.ParquetFile(pa.BufferReader(path.read_bytes())) for path in self._failure_paths)
        # Arrow's threads may outlive the interpreter and crash the process (see `index._of_part`).
        return [Failure(**row) for file in files for row in file.read(use_threads=False).to_pylist()]

    def sizes(self) -> Iterator[tuple[str, int, int, int]]:
        """Yield (image id, width, height, number of regions) of every image, in the order of `scan`.

        Read no features.
        """
        return self._index.sizes()

    def info(self) -> dict[str, Any]:
        """Return a summary of the store as a JSON object: its images, regions, labels, files and fingerprint."""
        regions = [count for *_, count in self.sizes()]
        labels: Counter[str] = Counter()
        for label, count in self._index.label_counts():
            labels[names.label_name(label, self.label_names)] += count
        return {
            "folder": str(self.folder),
            "corpus": self.manifest.about.get("corpus"),
            "space": self.space,
            "feature_size": self.feature_size,
            "images": len(self),
            "failures": self.manifest.failed,
            "regions": {"total": sum(regions), "fewest": min(regions, default=0), "most": max(regions, default=0)},
            "named": {"labels": len(self.label_names), "attributes": len(self.attribute_names)},
            "commonest_labels": dict(labels.most_common(_COMMONEST)),
            "parts": len(self.part_paths),
            "bytes": sum(shard.part.size for shard in self.manifest.shards),
            "fingerprint": self.fingerprint,
        }

    def scan(self, start: int = 0, stop: int | None = None, copy: bool = True) -> Iterator[Regions]:
        """Yield the rows [start, stop) in the order of `image_ids`. In an object store, read one window ahead.

        With `copy`, the caller may change the arrays, and `torch.from_numpy` can share their memory. Without it,
        `features` are a read-only view into the file where the alignment allows it, which is in about half of the row
        groups.
        """
        rows = range(len(self))[start:stop]
        if not self._remote:
            return (self._row(row, self._local(self._index.span(row)), copy) for row in rows)
        return self._scan_ahead([rows[at : at + _WINDOW] for at in range(0, len(rows), _WINDOW)], copy)

    def fetch(self, image_id: str) -> Regions:
        """Return the row of one image. Raise StoreError, which says why, where the image has no row."""
        return self.fetch_many([image_id])[0]

    def fetch_many(self, image_ids: Iterable[str]) -> list[Regions]:
        """Return the rows of several images, in the order of `image_ids`. Request all at once from an object store.

        Raise StoreError, which says why, where an image has no row.
        """
        rows = []
        for image_id in image_ids:
            row = self._index.find(image_id)
            if row is None:
                raise StoreError(self._why_not(image_id))
            rows.append(row)
        return self._read(rows)

    def boxes(self, image_id: str) -> np.ndarray:
        """Return the boxes of one image, float32 [R, 4], without reading its features.

        Raise StoreError, which says why, where the image has no row.
        """
        row = self._index.find(image_id)
        if row is None:
            raise StoreError(self._why_not(image_id))
        return self._index.boxes(row)

    def same(self, image_id: str, other: FeatureStore) -> bool:
        """Return whether both stores have the same row of an image that is in both. Read no features."""
        row, there = self._index.find(image_id), other._index.find(image_id)
        return row is not None and there is not None and self._index.equals(row, other._index, there)

    def row_groups(self, image_ids: Sequence[str]) -> np.ndarray:
        """Return the number of the row group in which each image lies: int64 [N]. All images are in the store."""
        return self._index.row_groups(ROW_GROUP)[np.array([self._index.find(i) for i in image_ids], np.int64)]

    def manifest_digest(self) -> str:
        """Return the xxh3-128 of manifest.json. It identifies the bytes of all parts, whose hashes the manifest has."""
        return xxhash.xxh3_128_hexdigest(ShardFolder(self.folder).manifest_path.read_bytes())

    def _why_not(self, image_id: str) -> str:
        """Return the message that says why an image has no row."""
        for failure in self.failures():
            if failure.item_id == image_id:
                return f"image {image_id!r} is quarantined in {self.folder}: {failure.stage}: {failure.message}"
        return f"image {image_id!r} is not in {self.folder}: extract the features of its corpus"

    def _read(self, rows: Sequence[int], copy: bool = True) -> list[Regions]:
        spans = [self._index.span(row) for row in rows]
        pieces = self._ranges(spans) if self._remote else map(self._local, spans)
        return [self._row(row, piece, copy) for row, piece in zip(rows, pieces, strict=True)]

    def _scan_ahead(self, windows: Sequence[Sequence[int]], copy: bool) -> Iterator[Regions]:
        """Yield the rows of the windows, and read the next window while the caller works on this one."""
        with ThreadPoolExecutor(1) as thread:
            coming = [thread.submit(self._read, window, copy) for window in windows[:1]]
            for following in [*windows[1:], None]:
                ready = coming.pop().result() if coming else []
                if following is not None:
                    coming.append(thread.submit(self._read, following, copy))
                yield from ready

    def _local(self, span: Span) -> np.ndarray:
        """Return the bytes of a span of a file on a disk, uint8, as a view into its memory map."""
        return self._map(self.part_paths[span.part])[span.start : span.stop]

    def _ranges(self, spans: Sequence[Span]) -> list[np.ndarray]:
        """Return the bytes of spans in an object store, uint8. One request reads spans that lie close together."""
        groups = _neighbours(spans)
        wholes = [Span(group[0].part, group[0].start, max(span.stop for span in group)) for group in groups]
        paths = [self.part_paths[whole.part] for whole in wholes]
        pieces = storage.ranges(paths, [whole.start for whole in wholes], [whole.stop for whole in wholes])
        found = {}
        for group, whole, piece in zip(groups, wholes, pieces, strict=True):
            data = np.frombuffer(piece, np.uint8)
            found.update({span: data[span.start - whole.start : span.stop - whole.start] for span in group})
        return [found[span] for span in spans]

    def _row(self, row: int, piece: np.ndarray, copy: bool) -> Regions:
        """Return a row whose features are the bytes `piece`. Raise StoreError where their hash is wrong."""
        if not self._index.intact(row, piece):
            path = self.part_paths[self._index.span(row).part]
            image_id = self._index.image_ids[row]
            raise StoreError(f"{path} is damaged at {image_id!r}: delete it and run the line again that wrote it")
        # A view needs an even address for float16. torch also needs memory that it may write to, hence `copy`.
        return self._index.regions(row, piece.copy() if copy or piece.ctypes.data % 2 else piece)


def _table(shards: ShardFolder, manifest: Manifest, verify: bool) -> pa.Table:
    """Return the index of a store. Make it from the parts where it is absent, damaged or older than the manifest.

    With `verify`, make it from the parts in any case and compare. Raise StoreError where they differ.
    """
    path, data = shards.root / "index.arrow", shards.manifest_path.read_bytes()
    table = index.load(path, data)
    if table is not None and not verify:
        return table
    if not verify:
        shards.verify(manifest)
    names.read(shards.root, manifest.about["fingerprint"])  # the manifest has no hash of names.json, so check it here
    made = _made(shards, manifest)
    if verify and storage.size(path) is not None:
        if table is None or not table.equals(made):
            raise StoreError(f"{path} is damaged or of an older manifest: delete it; opening the store makes it anew")
        return table
    with suppress(OSError):  # a read-only folder: every opening makes the index again
        publish(path, index.dump(made, data))
    return made


def _made(shards: ShardFolder, manifest: Manifest) -> pa.Table:
    """Make the index from the parts that the manifest names."""
    fingerprint = manifest.about["fingerprint"]
    paths = [shards.part_path(shard.shard_id) for shard in manifest.shards]
    return index.build(paths, footer(fingerprint), fingerprint["feature_size"])


def _neighbours(spans: Iterable[Span]) -> list[list[Span]]:
    """Group spans that lie close together in one part; the spans of a group ascend."""
    groups: list[list[Span]] = []
    for span in sorted(set(spans)):
        last = groups[-1][-1] if groups else None
        if last and last.part == span.part and span.start - last.stop <= _GAP:
            groups[-1].append(span)
        else:
            groups.append([span])
    return groups
