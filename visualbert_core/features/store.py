"""The feature store: `schema.Regions` as Parquet parts, and the reader that scans them or fetches images by id.

Owns the file layout. The features column is stored so that it never has to be decoded: binary, uncompressed, PLAIN,
one page per row group. A row's bytes then lie at an offset that follows from the footer, so a fetch is one copy out of
a memory map, while pandas, DuckDB, Spark and Ray read the same file as ordinary Parquet.

    <root>/<corpus>/<fingerprint>/   a shards.ShardFolder + fingerprint.json + names.json (see names.py) +
                                     index.arrow (derived, see index.py)

The fingerprint names everything that changes a feature: two recipes cannot end up in one folder.

What is checked when. Every opening: the manifest's own hash, the size of every file, the index's own hash. The first
opening, which makes the index: the hash of every file, at the speed of the disk. The first reading of an image in a
process: the hash of its features (7 µs for 36 × 2048); the first asking for a name: the names' own hash.
`open(folder, verify=True)`: every byte of every file again.
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
_WINDOW = 512  # images; 75 MB: what a scan of a remote store asks for at once
_COMMONEST = 10  # labels
_GAP = 1 << 18  # bytes; rather read these than ask twice. Two row groups lie 30 kB apart.


def store_folder(root: str | Location, corpus: str, fingerprint: Mapping[str, Any]) -> Location:
    """Where the features of `corpus` with this fingerprint live."""
    return location(root) / corpus / digest_json(fingerprint)[:12]


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
        data_page_size=2**30,  # one page per row group
        use_dictionary=False,
        compression={name: "none" if name == "features" else "zstd" for name in REGIONS_SCHEMA.names},
        write_statistics=["image_id"],
        write_page_checksum=True,
    )
    return bytes(sink.getvalue())


def to_half(features: np.ndarray) -> np.ndarray:
    """Finite features as float16; what is beyond its range becomes its largest value, never infinity."""
    largest = float(np.finfo(np.float16).max)
    return features.clip(-largest, largest).astype(np.float16)


def footer(fingerprint: Mapping[str, Any]) -> dict[str, str]:
    """What every part says of itself in its Parquet metadata."""
    return {
        "schema_version": str(SCHEMA_VERSION),
        "feature_dtype": "float16",
        "feature_size": str(fingerprint["feature_size"]),
        "fingerprint": json.dumps(fingerprint, sort_keys=True),
    }


def _bytes(row: Regions, name: str, dtype: str, *width: int) -> bytes | None:
    array: np.ndarray | None = getattr(row, name)
    if array is None:
        return None
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

    Images ascend by id. Every column but the features lies in one memory map that processes share.
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
        self._map = lru_cache(_OPEN_FILES)(storage.view)  # bounded: every map holds a file descriptor

    @classmethod
    def open(cls, folder: str | Location, verify: bool = False) -> FeatureStore:
        """Open `<root>/<corpus>/<fingerprint>/`, a folder or an `s3://…` address.

        Raises StoreError naming the file where it is unfinished or damaged; what is checked stands at the top of this
        file.
        """
        shards = ShardFolder(folder)
        manifest = shards.read_manifest(verify)
        if "fingerprint" not in manifest.about:
            raise StoreError(f"{shards.root} is not a feature store: its manifest has no fingerprint")
        return cls(shards.root, manifest, _table(shards, manifest, verify))

    @classmethod
    def open_made(cls, folder: Location) -> FeatureStore:
        """A store that was just written. Raises CoverageError where all that it holds is failures."""
        store = cls.open(folder)
        if not len(store) and (failures := store.failures()):
            first = f"{failures[0].item_id}: {failures[0].message}"
            raise CoverageError(
                f"{store.folder}: none of {len(failures):,} images has features; {first}; mend them, delete "
                "that folder and run the same line again"
            )
        return store

    @classmethod
    def of_committed(
        cls, shards: ShardFolder, markers: Sequence[Marker], fingerprint: Mapping[str, Any]
    ) -> FeatureStore:
        """The rows of some committed shards of a store that may be unfinished. Reads and hashes their files, and leaves
        no index. Raises StoreError naming a file that is damaged."""
        manifest = Manifest({"fingerprint": dict(fingerprint)}, tuple(markers))
        shards.verify(manifest)
        return cls(shards.root, manifest, _made(shards, manifest))

    @property
    def image_ids(self) -> list[str]:
        """Every image with features, ascending: the order of `scan`."""
        return list(self._index.image_ids)

    def __len__(self) -> int:
        return len(self._index.image_ids)

    def __contains__(self, image_id: object) -> bool:
        return isinstance(image_id, str) and self._index.find(image_id) is not None

    @property
    def label_names(self) -> tuple[str, ...]:
        """What the labels of `Regions` are called, by number; empty where the store has no names. Raises StoreError
        naming the file where they are damaged."""
        return self._names.labels

    @property
    def attribute_names(self) -> tuple[str, ...]:
        """The same of the attributes."""
        return self._names.attributes

    @cached_property
    def _names(self) -> LabelNames:
        return names.read(self.folder, self.fingerprint)

    def failures(self) -> list[Failure]:
        """Every image without features, and why."""
        files = (pq.ParquetFile(pa.BufferReader(path.read_bytes())) for path in self._failure_paths)
        # Without threads for the reason given in `index.py`.
        return [Failure(**row) for file in files for row in file.read(use_threads=False).to_pylist()]

    def sizes(self) -> Iterator[tuple[str, int, int, int]]:
        """(image id, width, height, regions) of every image, in the order of `scan`; reads no features."""
        return self._index.sizes()

    def info(self) -> dict[str, Any]:
        """What the store holds and what made it, as JSON."""
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
        """The rows [start, stop) in the order of `image_ids`; from an object store, one window ahead of the caller.

        With `copy` the arrays are the caller's own, and `torch.from_numpy` shares them. Without, `features` are a
        read-only view into the file where its alignment allows, about half of the row groups.
        """
        rows = range(len(self))[start:stop]
        if not self._remote:
            return (self._row(row, self._local(self._index.span(row)), copy) for row in rows)
        return self._scan_ahead([rows[at : at + _WINDOW] for at in range(0, len(rows), _WINDOW)], copy)

    def fetch(self, image_id: str) -> Regions:
        """The row of one image. Raises StoreError where there is none, saying why."""
        return self.fetch_many([image_id])[0]

    def fetch_many(self, image_ids: Iterable[str]) -> list[Regions]:
        """The rows of several images, in the order asked for; of an object store all at once. Raises StoreError."""
        rows = []
        for image_id in image_ids:
            row = self._index.find(image_id)
            if row is None:
                raise StoreError(self._why_not(image_id))
            rows.append(row)
        return self._read(rows)

    def manifest_digest(self) -> str:
        """xxh3-128 of manifest.json: all there is to say about which bytes were read."""
        return xxhash.xxh3_128_hexdigest(ShardFolder(self.folder).manifest_path.read_bytes())

    def _why_not(self, image_id: str) -> str:
        for failure in self.failures():
            if failure.item_id == image_id:
                return f"image {image_id!r} is quarantined in {self.folder}: {failure.stage}: {failure.message}"
        return f"image {image_id!r} is not in {self.folder}: extract the features of its corpus"

    def _read(self, rows: Sequence[int], copy: bool = True) -> list[Regions]:
        spans = [self._index.span(row) for row in rows]
        pieces = self._ranges(spans) if self._remote else map(self._local, spans)
        return [self._row(row, piece, copy) for row, piece in zip(rows, pieces, strict=True)]

    def _scan_ahead(self, windows: Sequence[Sequence[int]], copy: bool) -> Iterator[Regions]:
        with ThreadPoolExecutor(1) as thread:
            coming = [thread.submit(self._read, window, copy) for window in windows[:1]]
            for following in [*windows[1:], None]:
                ready = coming.pop().result() if coming else []
                if following is not None:
                    coming.append(thread.submit(self._read, following, copy))
                yield from ready

    def _local(self, span: Span) -> np.ndarray:
        return self._map(self.part_paths[span.part])[span.start : span.stop]

    def _ranges(self, spans: Sequence[Span]) -> list[np.ndarray]:
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
        if not self._index.intact(row, piece):
            path = self.part_paths[self._index.span(row).part]
            image_id = self._index.image_ids[row]
            raise StoreError(f"{path} is damaged at {image_id!r}: delete it and run the line again that wrote it")
        # torch wants aligned memory that it may write to.
        return self._index.regions(row, piece.copy() if copy or piece.ctypes.data % 2 else piece)


def _table(shards: ShardFolder, manifest: Manifest, verify: bool) -> pa.Table:
    """The index, made anew where there is none that fits; with `verify`, held against the parts."""
    path, data = shards.root / "index.arrow", shards.manifest_path.read_bytes()
    table = index.load(path, data)
    if table is not None and not verify:
        return table
    if not verify:
        shards.verify(manifest)
    names.read(shards.root, manifest.about["fingerprint"])  # every file once
    made = _made(shards, manifest)
    if verify and storage.size(path) is not None:
        if table is None or not table.equals(made):
            raise StoreError(f"{path} is damaged or of an older manifest: delete it, opening the store makes it anew")
        return table
    with suppress(OSError):  # a store that may only be read is read without it
        publish(path, index.dump(made, data))
    return made


def _made(shards: ShardFolder, manifest: Manifest) -> pa.Table:
    fingerprint = manifest.about["fingerprint"]
    paths = [shards.part_path(shard.shard_id) for shard in manifest.shards]
    return index.build(paths, footer(fingerprint), fingerprint["feature_size"])


def _neighbours(spans: Iterable[Span]) -> list[list[Span]]:
    """Groups of spans that lie close together in one part, each ascending."""
    groups: list[list[Span]] = []
    for span in sorted(set(spans)):
        last = groups[-1][-1] if groups else None
        if last and last.part == span.part and span.start - last.stop <= _GAP:
            groups[-1].append(span)
        else:
            groups.append([span])
    return groups
