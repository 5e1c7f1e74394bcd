"""The feature store: reads the regions of all images in order, or of some images by their ids.

    <root>/<corpus>/<fingerprint>/   a shards.ShardFolder, with fingerprint.json, names.json (see label_names.py) and
                                     index.arrow (derived); parts.py owns their layout

The fingerprint names everything that changes a feature, so two recipes never share a folder. All processes of a machine
read the index through a shared memory map, so opening a store of any size reads two files, on a disk or in an object
store.

What is checked, and when:

    every opening                             the hash of the manifest, the size of every file, the hash of the index
    the first opening, which makes the index  the hash of every file, at the speed of the disk
    an image's first reading in a process     the hash of its features (7 µs for 36 × 2048)
    the first use of a name in a process      the hash of the names
    `open(folder, verify=True)`               every byte of every file
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from visualbert_core.corpus.string_column import StringColumn
from visualbert_core.engine.shards import Manifest, Marker, ShardFolder
from visualbert_core.errors import CoverageError, StoreError
from visualbert_core.features import label_names as names
from visualbert_core.features.parts import ROW_GROUP, id_hash, make_index, open_index
from visualbert_core.io import storage
from visualbert_core.io.locations import Location, location
from visualbert_core.provenance import digest_json
from visualbert_core.schema import Failure, LabelNames, Regions

_OPEN_FILES = 256
_WINDOW = 512  # images, 75 MB; a scan of a remote store requests so many at once
_COMMONEST = 10  # labels


def store_folder(root: str | Location, corpus: str, fingerprint: Mapping[str, Any]) -> Location:
    """Return the folder for the features of `corpus` with this fingerprint."""
    return location(root) / corpus / digest_json(fingerprint)[:12]


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
        return cls(shards.root, manifest, open_index(shards, manifest, verify))

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
        return cls(shards.root, manifest, make_index(shards, manifest))

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
        # Arrow's threads may outlive the interpreter and crash the process (see `parts._of_part`).
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
        return self._read([self._find(image_id) for image_id in image_ids])

    def boxes(self, image_id: str) -> np.ndarray:
        """Return the boxes of one image, float32 [R, 4], without reading its features.

        Raise StoreError, which says why, where the image has no row.
        """
        return self._index.boxes(self._find(image_id))

    def same(self, image_id: str, other: FeatureStore) -> bool:
        """Return whether both stores have the same row of an image that is in both. Read no features."""
        row, there = self._index.find(image_id), other._index.find(image_id)
        return row is not None and there is not None and self._index.content(row) == other._index.content(there)

    def row_groups(self, image_ids: Sequence[str]) -> np.ndarray:
        """Return the number of the row group in which each image lies: int64 [N]. All images are in the store."""
        return self._index.row_groups(ROW_GROUP)[np.array([self._find(i) for i in image_ids], np.int64)]

    def manifest_digest(self) -> str:
        """Return the xxh3-128 of manifest.json. It identifies the bytes of all parts, whose hashes the manifest has."""
        return xxhash.xxh3_128_hexdigest(ShardFolder(self.folder).manifest_path.read_bytes())

    def _find(self, image_id: str) -> int:
        row = self._index.find(image_id)
        if row is not None:
            return row
        for failure in self.failures():
            if failure.item_id == image_id:
                reason = f"is quarantined in {self.folder}: {failure.stage}: {failure.message}"
                raise StoreError(f"image {image_id!r} {reason}")
        raise StoreError(f"image {image_id!r} is not in {self.folder}: extract the features of its corpus")

    def _read(self, rows: Sequence[int], copy: bool = True) -> list[Regions]:
        spans = [self._index.span(row) for row in rows]
        pieces: Iterable[np.ndarray] = map(self._local, spans)
        if self._remote:
            paths = [self.part_paths[span.part] for span in spans]
            pieces = storage.ranges(paths, [span.start for span in spans], [span.stop for span in spans])
        return [self._row(row, piece, copy) for row, piece in zip(rows, pieces, strict=True)]

    def _scan_ahead(self, windows: Sequence[Sequence[int]], copy: bool) -> Iterator[Regions]:
        """Yield the rows of the windows, and read the next window while the caller works on this one."""
        with ThreadPoolExecutor(1) as thread:
            coming = deque[Future[list[Regions]]]()
            for window in windows:
                coming.append(thread.submit(self._read, window, copy))
                if len(coming) > 1:
                    yield from coming.popleft().result()
            for last in coming:
                yield from last.result()

    def _local(self, span: Span) -> np.ndarray:
        """Return the bytes of a span of a file on a disk, uint8, as a view into its memory map."""
        return self._map(self.part_paths[span.part])[span.start : span.stop]

    def _row(self, row: int, piece: np.ndarray, copy: bool) -> Regions:
        """Return a row whose features are the bytes `piece`. Raise StoreError where their hash is wrong."""
        if not self._index.intact(row, piece):
            path = self.part_paths[self._index.span(row).part]
            image_id = self._index.image_ids[row]
            raise StoreError(f"{path} is damaged at {image_id!r}: delete it and run the line again that wrote it")
        # A view needs an even address for float16. torch also needs memory that it may write to, hence `copy`.
        return self._index.regions(row, piece.copy() if copy or piece.ctypes.data % 2 else piece)


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
        key = id_hash(image_id)
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
        return self._boxes[self._slice(row)].copy()

    def content(self, row: int) -> tuple[int | bytes, ...]:
        """Return what two equal rows have in common: size, boxes, labels, scores, and the hash of the features."""
        some = self._slice(row)
        numbers = (column.item(row) for column in (self._widths, self._heights, self._hashes))
        return *numbers, *(column[some].tobytes() for column in (self._boxes, self._labels, self._scores))

    def regions(self, row: int, features: np.ndarray) -> Regions:
        """Return a row whose features are these bytes, without a copy. The other arrays are copies."""
        some = self._slice(row)
        return Regions(
            self.image_ids[row],
            self._widths.item(row),
            self._heights.item(row),
            self._boxes[some].copy(),
            self._labels[some].copy(),
            self._scores[some].copy(),
            features.view("<f2").reshape(some.stop - some.start, self._feature_size),
            self._digests[row],
            self._attributes.copy(row),
            self._attribute_scores.copy(row),
        )

    def _slice(self, row: int) -> slice:
        """Return where the regions of a row lie among those of all images."""
        return slice(self._regions.item(row), self._regions.item(row + 1))


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
