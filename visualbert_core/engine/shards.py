"""Plan → part → marker → manifest: how items are cut into shards, and when a shard counts as done.

Owns the exactly-once protocol of both GPU stages, without Ray and without torch. The name of a shard is a hash of its
content, so any worker of any run writes the same bytes under the same name. Retries, zombies and overlapping runs are
harmless, and no lease is needed. A part is built in memory and published in one step. Its marker is written after it
and means "done". The manifest is written when every shard has its marker. Readers open only what the manifest names.

    <root>/parts/<shard>.parquet   failures/<shard>.parquet   shards/<shard>.json   manifest.json
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import xxhash

from visualbert_core.errors import InputError, ShardError, StoreError
from visualbert_core.io import storage
from visualbert_core.io.locations import Location, location
from visualbert_core.schema import Failure

LOST = "every worker process that had it alone died or hung"  # is stored in failure rows
ABANDONED = 3600.0  # seconds without a write, after which a draft is removed
_CHUNK = 1 << 24  # bytes
_AGAIN = "delete it and run the line again that wrote it"

# plan -----------------------------------------------------------------------------------------------------------------

T = TypeVar("T")


class LazyTuple(Sequence[T]):
    """A tuple that is made at every access, so that a plan of millions of items holds no items itself. It equals that
    tuple and is pickled as that tuple."""

    def __init__(self, length: int, make: Callable[[], tuple[T, ...]]) -> None:
        self._length, self._make = length, make

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...
    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        return self._make()[index]

    def __iter__(self) -> Iterator[T]:
        return iter(self._make())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LazyTuple | tuple) and self._make() == tuple(other)

    def __hash__(self) -> int:
        return hash(self._make())

    def __repr__(self) -> str:
        return repr(self._make())

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (self._make(),)


@dataclass(frozen=True)
class Shard:
    """The items that one call of a worker computes. A subclass adds what its worker needs besides."""

    shard_id: str
    items: Sequence[str]
    """A tuple or a `LazyTuple`."""
    quarantined: tuple[str, ...] = field(default=(), kw_only=True)
    """Items that no worker may touch, since they end its process; in the order of `items`. `lost` gives their rows."""
    trial: bool = field(default=False, kw_only=True)
    """Whether this only shows if the process survives. `ShardFolder.commit` then publishes nothing."""

    @property
    def touched(self) -> tuple[str, ...]:
        """Return the items to compute: those that are not quarantined."""
        lost = set(self.quarantined)
        return tuple(item for item in self.items if item not in lost)

    def lost(self) -> dict[str, Failure]:
        """Return item → failure row for each quarantined item. The row does not say why the process died or how often,
        so that it is the same in every run."""
        return {item: Failure(item, "worker", "WorkerLost", LOST) for item in self.quarantined}


AnyShard = TypeVar("AnyShard", bound=Shard)


def plan(items: Mapping[str, str] | Iterable[str], salt: str, target: int) -> list[Shard]:
    """Cut `items` into shards of about `target` keys, never more than 1.5 × target.

    A mapping gives item → key (example → image). Items of one key share a shard. Inside a shard items ascend by
    (key, item). The hash of a key alone chooses its shard. So a new item changes or splits the shard that it falls
    into, and moves no other item. With two plans over the same keys, the shards of the finer plan lie inside the shards
    of the coarser one, whatever the salts. The id of a shard is the hash of `salt` and its items.

    A plan over a sequence holds four bytes an item and the sequence itself, from which a shard takes its items when
    they are accessed. Raise InputError naming an item that comes twice.
    """
    by_key: dict[str, list[str]] = {}
    if isinstance(items, Mapping):
        for item, key in items.items():
            by_key.setdefault(key, []).append(item)
    keys = list(by_key) if by_key else items if isinstance(items, Sequence) else list(items)
    shards = []
    for bucket in _buckets(keys, max(1, target * 3 // 2)):
        chosen = [item for key, _ in bucket for item in (sorted(by_key[key]) if by_key else [key])]
        places = np.array([place for _, place in bucket], np.uint32)
        later = tuple(chosen) if by_key else LazyTuple(len(chosen), partial(_take, keys, places))
        shards.append(Shard(xxhash.xxh3_128_hexdigest(_json([salt, chosen]))[:16], later))
    return shards


def _take(keys: Sequence[str], places: np.ndarray) -> tuple[str, ...]:
    return tuple(keys[place] for place in places.tolist())


def _buckets(keys: Sequence[str], cap: int) -> Iterator[list[tuple[str, int]]]:
    """Yield for each bucket its keys, ascending, with their places in `keys`.

    Each bucket is halved by the next bit of the keys' hashes until it has at most `cap` keys, as in extendible hashing
    (Fagin et al. 1979). Cuts of the sorted ids, by position or at hashed points, would not do: one more id could shift
    every cut behind it.
    """
    hashes = np.fromiter((xxhash.xxh3_64_intdigest(key.encode()) for key in keys), np.uint64, len(keys))
    order = np.argsort(hashes).astype(np.uint32)
    hashes.sort()
    stack = [(0, len(keys), 0, 63)]  # [start, stop) in `order`, the hash's bits above `bit`, and the next one
    while stack:
        start, stop, prefix, bit = stack.pop()
        if stop - start > cap and bit >= 0:
            half = prefix | 1 << bit
            cut = start + int(np.searchsorted(hashes[start:stop], np.uint64(half)))
            stack += [(cut, stop, half, bit - 1), (start, cut, prefix, bit - 1)]
        elif stop > start:
            bucket = sorted((keys[place], place) for place in order[start:stop].tolist())
            for (first, _), (second, _) in pairwise(bucket):
                if first == second:
                    raise InputError(f"{first!r} is listed twice: remove one of them")
            yield bucket


# part → marker → manifest ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A finished shard in memory: a Parquet file of `rows` rows, and one of `failed` rows where items failed."""

    data: bytes
    rows: int
    failures: bytes | None
    failed: int


@dataclass(frozen=True)
class FileDigest:
    """A published file: its size in bytes and its xxh3-128 in hex."""

    size: int
    xxh3_128: str

    @classmethod
    def of(cls, data: bytes) -> FileDigest:
        return cls(len(data), xxhash.xxh3_128_hexdigest(data))


@dataclass(frozen=True)
class Marker:
    """The record of a committed shard: its numbers of rows and failures, and the digests of its files."""

    shard_id: str
    rows: int
    failed: int
    part: FileDigest
    failures: FileDigest | None

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Marker:
        """Invert `dataclasses.asdict`. Raise KeyError or TypeError where the record is not one of a marker."""
        failures = record["failures"] and FileDigest(**record["failures"])
        return cls(record["shard_id"], record["rows"], record["failed"], FileDigest(**record["part"]), failures)


@dataclass(frozen=True)
class Manifest:
    """The record of a finished folder: a description in `about`, and the markers of its shards in plan order."""

    about: dict[str, Any]
    shards: tuple[Marker, ...]

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def failed(self) -> int:
        return sum(shard.failed for shard in self.shards)


class ShardFolder:
    """The parts, markers and manifest below one folder, in an object store or on a disk with an atomic rename."""

    def __init__(self, root: str | Location) -> None:
        self.root = location(root)
        self.manifest_path = self.root / "manifest.json"

    def part_path(self, shard_id: str) -> Location:
        return self.root / "parts" / f"{shard_id}.parquet"

    def failures_path(self, shard_id: str) -> Location:
        return self.root / "failures" / f"{shard_id}.parquet"

    def marker_path(self, shard_id: str) -> Location:
        return self.root / "shards" / f"{shard_id}.json"

    def pending(self, shards: Sequence[AnyShard]) -> list[AnyShard]:
        """Return the shards that are not done, in plan order: no marker, or files of another size than it says."""
        return [shard for shard, marker in zip(shards, self._markers(shards), strict=True) if marker is None]

    def committed(self, shards: Sequence[Shard]) -> list[Marker]:
        """Return the markers of the shards that are done, in the order of `shards`."""
        return [marker for marker in self._markers(shards) if marker is not None]

    def commit(self, shard: Shard, part: Part) -> Marker:
        """Publish `part`, then its marker, and return the marker. Publish nothing for a trial. Idempotent.

        Raise ShardError unless rows + failures equals the number of items.
        """
        if part.rows + part.failed != len(shard.items):
            raise ShardError(
                f"shard {shard.shard_id}: {part.rows} rows + {part.failed} failures for {len(shard.items)} items"
            )
        failures = None if part.failures is None else FileDigest.of(part.failures)
        marker = Marker(shard.shard_id, part.rows, part.failed, FileDigest.of(part.data), failures)
        if shard.trial:
            return marker
        publish(self.part_path(shard.shard_id), part.data)
        if part.failures is not None:
            publish(self.failures_path(shard.shard_id), part.failures)
        publish(self.marker_path(shard.shard_id), _json(asdict(marker)))
        return marker

    def finish(self, shards: Sequence[Shard], about: Mapping[str, Any]) -> Manifest:
        """Write the manifest over exactly these shards. Writing the same manifest again changes nothing.

        Remove the drafts of killed writers that are more than an hour old. A younger draft may belong to a running job.
        Raise ShardError where a shard is not done.
        """
        markers = self._markers(shards)
        done = tuple(marker for marker in markers if marker is not None)
        if len(done) < len(shards):
            missing = next(shard for shard, marker in zip(shards, markers, strict=True) if marker is None)
            raise ShardError(
                f"{self.root}: {len(shards) - len(done)} of {len(shards)} shards are not done, "
                f"the first is {missing.shard_id}; run the same line again"
            )
        manifest = Manifest(dict(about), done)
        record = {**asdict(manifest), "rows": manifest.rows, "failed": manifest.failed}
        data = _signed(record)
        if storage.size(self.manifest_path) is None or self.manifest_path.read_bytes() != data:
            publish(self.manifest_path, data)
        self._sweep()
        return manifest

    def read_manifest(self, verify: bool = False) -> Manifest:
        """Return the manifest, after checking its hash, the size of every file that it names and, with `verify`, the
        hash of every file. Raise StoreError where the folder is unfinished, or naming the first file that differs."""
        try:
            data = self.manifest_path.read_bytes()
        except FileNotFoundError as error:
            raise StoreError(self._why_no_manifest()) from error
        try:
            record = json.loads(data)
            manifest = Manifest(record["about"], tuple(map(Marker.from_record, record["shards"])))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StoreError(f"{self.manifest_path} is not a manifest: {_AGAIN}") from error
        if data != _signed(record):
            raise StoreError(f"{self.manifest_path} is damaged (its content does not have its hash): {_AGAIN}")
        self._check_sizes(manifest)
        if verify:
            self.verify(manifest)
        return manifest

    def _why_no_manifest(self) -> str:
        if not self.root.exists():
            return f"{self.root} is not there: correct its name"
        if inside := sorted(path.parent.name for path in self.root.glob("*/manifest.json")):
            return f"{self.root} is the folder of {', '.join(inside[:3])}: name one of them"
        if not any((self.root / name).exists() for name in ("parts", "shards", "failures")):
            return f"{self.root} holds no shards: name the folder that has manifest.json"
        return f"{self.root} is unfinished (it has no manifest.json): run the line again that writes it"

    def verify(self, manifest: Manifest) -> None:
        """Read every file that the manifest names. Raise StoreError naming the first that is not as it was written."""
        for marker in manifest.shards:
            path = self.marker_path(marker.shard_id)
            try:
                data = path.read_bytes()
            except FileNotFoundError as error:
                raise StoreError(f"{path} is missing: run the same line again") from error
            if data != _json(asdict(marker)):
                raise StoreError(f"{path} is damaged (its content is not what the manifest says): {_AGAIN}")
        for path, blob in self._files(manifest.shards):
            state = xxhash.xxh3_128()
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    state.update(chunk)
            if state.hexdigest() != blob.xxh3_128:
                raise StoreError(f"{path} is damaged (its hash is not the one in the manifest): {_AGAIN}")

    def _sweep(self) -> None:
        if not isinstance(self.root, Path):
            return  # an object store has no drafts
        for folder in ("", "parts", "failures", "shards"):
            for draft in (self.root / folder).glob(".*.*." + "?" * 32):  # the names that `publish` gives to drafts
                with suppress(FileNotFoundError):
                    if time.time() - draft.stat().st_mtime > ABANDONED:
                        draft.unlink()

    def _check_sizes(self, manifest: Manifest) -> None:
        files = list(self._files(manifest.shards))
        for (path, blob), size in zip(files, self._each(storage.size, [path for path, _ in files]), strict=True):
            if size is None:
                raise StoreError(f"{path} is missing: run the same line again")
            if size != blob.size:
                raise StoreError(f"{path} has {size} bytes instead of {blob.size}: {_AGAIN}")

    def _markers(self, shards: Sequence[Shard]) -> list[Marker | None]:
        return self._each(self._done, shards)

    def _each(self, function: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
        """Apply `function` to each item: in threads for an object store, in a loop for a disk, where that is faster."""
        return list(map(function, items)) if isinstance(self.root, Path) else storage.gather(function, items)

    def _done(self, shard: Shard) -> Marker | None:
        try:
            marker = Marker.from_record(json.loads(self.marker_path(shard.shard_id).read_bytes()))
            intact = all(storage.size(path) == blob.size for path, blob in self._files([marker]))
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            return None  # a damaged marker counts as missing: the shard runs again and writes the same bytes
        return marker if intact and marker.rows + marker.failed == len(shard.items) else None

    def _files(self, markers: Iterable[Marker]) -> Iterator[tuple[Location, FileDigest]]:
        for marker in markers:
            yield self.part_path(marker.shard_id), marker.part
            if marker.failures is not None:
                yield self.failures_path(marker.shard_id), marker.failures


def publish(path: Location, data: bytes) -> None:
    """Write a file whole or not at all. Raise OSError naming the file.

    On a disk: write a temporary file in its folder, fsync it, rename it, fsync the folder. In an object store: one PUT.
    """
    with storage.naming(path):
        if not isinstance(path, Path):
            path.write_bytes(data)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            with draft.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _signed(record: Mapping[str, Any]) -> bytes:
    """Return the bytes of a manifest. Its field xxh3_128 is the hash of its other fields."""
    rest = {name: value for name, value in record.items() if name != "xxh3_128"}
    signed = {**rest, "xxh3_128": xxhash.xxh3_128_hexdigest(_json(rest))}
    return json.dumps(signed, indent=1, sort_keys=True, ensure_ascii=False).encode()


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False).encode()
