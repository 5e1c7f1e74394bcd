"""Compare the feature store with other containers of region features: bytes, write, scan and fetch, in one run.

    python benchmarks/feature_store.py                       # 1,000 images of 36 × 2048, 150 MB a container
    python benchmarks/feature_store.py --images 8 --rounds 1     # a smoke test

Every container holds the same boxes and float16 features: the comparison is about containers and not about precision.
(The published TSVs are float32, twice as large.) Every reader copies the features into one page-aligned buffer, as for
a GPU. Without this copy, a memory map would read nothing.

MB/s and µs count features and the CPU time of this process. All containers take turns in each round, with readers that
stay open, and the median counts. "first" is the scan before these rounds, in which our store hashes every image. "cold"
is the wall time of one fetch by a new reader, after the page cache was told to drop the files. It depends on the disk
as much as on the container. The last lines name containers whose library is missing.
"""

from __future__ import annotations

import argparse
import base64
import csv
import importlib
import mmap
import os
import pickle
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from visualbert_core.engine.shards import Part, ShardFolder, plan
from visualbert_core.features.parts import encode
from visualbert_core.features.store import FeatureStore
from visualbert_core.schema import Regions

R, D = 36, 2048
GROUP = 64  # images in a row group or record batch
IMAGE = R * D * 2  # bytes
LONGEST = 1.0  # seconds of fetches in a round, at most

Pair = tuple[np.ndarray, np.ndarray]
"""boxes float32 [R, 4], features float16 [R, D]"""


class Container:
    """One way to keep features. `__init__` opens a container, and keeps open whatever makes it fast."""

    name: str
    needs: str | None = None

    @staticmethod
    def write(rows: Sequence[Regions], folder: Path) -> None:
        raise NotImplementedError

    def __init__(self, folder: Path, ids: Sequence[str]) -> None:
        raise NotImplementedError

    def scan(self) -> Iterator[Pair]:
        """Yield every image, in the order of the files."""
        raise NotImplementedError

    def fetch(self, image_id: str) -> Pair:
        raise NotImplementedError

    def close(self) -> None:
        """Close the files: some libraries do not open a file twice."""


class Ours(Container):
    name = "visualbert_core store"

    @staticmethod
    def write(rows: Sequence[Regions], folder: Path) -> None:
        by_id = {row.image_id: row for row in rows}
        fingerprint = {"space": "benchmark", "feature_size": D}
        shards, out = plan(list(by_id), "", 1024), ShardFolder(folder)
        for shard in shards:
            part = encode([by_id[item] for item in shard.items], fingerprint)
            out.commit(shard, Part(part, len(shard.items), None, 0))
        out.finish(shards, {"fingerprint": fingerprint})
        FeatureStore.open(folder)  # the first opening hashes every part and makes the index

    def __init__(self, folder: Path, ids: Sequence[str]) -> None:
        self.store = FeatureStore.open(folder)

    def scan(self) -> Iterator[Pair]:
        return ((row.boxes, row.features) for row in self.store.scan(copy=False))

    def fetch(self, image_id: str) -> Pair:
        row = self.store.fetch(image_id)
        return row.boxes, row.features


class ParquetLists(Container):
    """Nested lists with pyarrow's defaults, but row groups of 64: with its default a fetch would read the file."""

    name = "Parquet lists (pyarrow defaults)"

    @staticmethod
    def write(rows: Sequence[Regions], folder: Path) -> None:
        kinds = {"boxes": pa.float32(), "features": pa.float16()}
        with pq.ParquetWriter(folder / "all.parquet", pa.schema({k: pa.list_(t) for k, t in kinds.items()})) as writer:
            for start in range(0, len(rows), GROUP):
                batch = rows[start : start + GROUP]
                columns = {name: [getattr(row, name).reshape(-1) for row in batch] for name in kinds}
                writer.write_table(pa.table({k: pa.array(v, pa.list_(kinds[k])) for k, v in columns.items()}))

    def __init__(self, folder: Path, ids: Sequence[str]) -> None:
        self.file = pq.ParquetFile(folder / "all.parquet")
        self.row_of = {image_id: row for row, image_id in enumerate(ids)}

    def scan(self) -> Iterator[Pair]:
        for group in range(self.file.num_row_groups):
            table = self.file.read_row_group(group)
            yield from (self._pair(table, row) for row in range(len(table)))

    def fetch(self, image_id: str) -> Pair:
        group, row = divmod(self.row_of[image_id], GROUP)
        return self._pair(self.file.read_row_group(group), row)

    @staticmethod
    def _pair(table: pa.Table, row: int) -> Pair:
        boxes, features = (table[name].chunk(0)[row].values.to_numpy() for name in ("boxes", "features"))
        return boxes.reshape(-1, 4), features.reshape(-1, D)


class Lmdb(Container):
    name = "LMDB, pickled (MMF)"
    needs = "lmdb"

    @staticmethod
    def write(rows: Sequence[Regions], folder: Path) -> None:
        import lmdb

        with lmdb.open(str(folder), map_size=1 << 40) as environment, environment.begin(write=True) as transaction:
            for row in rows:
                record = {"features": row.features, "bbox": row.boxes, "num_boxes": R, "image_width": 640}
                transaction.put(row.image_id.encode(), pickle.dumps(record))

    def __init__(self, folder: Path, ids: Sequence[str]) -> None:
        import lmdb

        # MMF opens its LMDB with these arguments.
        self.environment = lmdb.open(str(folder), readonly=True, lock=False, readahead=False, meminit=False)

    def close(self) -> None:
        self.environment.close()

    def scan(self) -> Iterator[Pair]:
        with self.environment.begin(buffers=True) as transaction:
            for value in transaction.cursor().iternext(keys=False):
                record = pickle.loads(value)
                yield record["bbox"], record["features"]

    def fetch(self, image_id: str) -> Pair:
        with self.environment.begin(buffers=True) as transaction:
            record = pickle.loads(transaction.get(image_id.encode()))
        return record["bbox"], record["features"]


class Npy(Container):
    name = "npy + info npy per image (MMF)"

    @staticmethod
    def write(rows: Sequence[Regions], folder: Path) -> None:
        for row in rows:
            np.save(folder / f"{row.image_id}.npy", row.features)
            info: Any = {"bbox": row.boxes, "num_boxes": R, "image_width": 640}
            np.save(folder / f"{row.image_id}_info.npy", info)

    def __init__(self, folder: Path, ids: Sequence[str]) -> None:
        self.folder, self.ids = str(folder), ids

    def scan(self) -> Iterator[Pair]:
        return map(self.fetch, self.ids)

    def fetch(self, image_id: str) -> Pair:
        info = np.load(f"{self.folder}/{image_id}_info.npy", allow_pickle=True).item()
        return info["bbox"], np.load(f"{self.folder}/{image_id}.npy")


class Hdf5(Container):
    name = "HDF5, contiguous"
    needs = "h5py"

    @staticmethod
    def write(rows: Sequence[Regions], folder: Path) -> None:
        import h5py

        with h5py.File(folder / "all.h5", "w") as file:
            features = file.create_dataset("features", (len(rows), R, D), np.float16)
            boxes = file.create_dataset("boxes", (len(rows), R, 4), np.float32)
            for number, row in enumerate(rows):
                features[number], boxes[number] = row.features, row.boxes

    def __init__(self, folder: Path, ids: Sequence[str]) -> None:
        import h5py

        self.file = h5py.File(folder / "all.h5")
        self.features, self.boxes = self.file["features"], self.file["boxes"]
        self.row_of = {image_id: row for row, image_id in enumerate(ids)}

    def close(self) -> None:
        self.file.close()

    def scan(self) -> Iterator[Pair]:
        for start in range(0, len(self.row_of), GROUP):
            yield from zip(self.boxes[start : start + GROUP], self.features[start : start + GROUP], strict=True)

    def fetch(self, image_id: str) -> Pair:
        row = self.row_of[image_id]
        return self.boxes[row], self.features[row]


class Tsv(Container):
    name = "base64 TSV (bottom-up attention)"
    fields = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")

    @classmethod
    def write(cls, rows: Sequence[Regions], folder: Path) -> None:  # type: ignore[override]
        with (folder / "all.tsv").open("w", newline="") as file:
            writer = csv.writer(file, delimiter="\t")
            for row in rows:
                arrays = [base64.b64encode(array.tobytes()).decode() for array in (row.boxes, row.features)]
                writer.writerow([row.image_id, 640, 480, R, *arrays])

    def __init__(self, folder: Path, ids: Sequence[str]) -> None:
        self.file = (folder / "all.tsv").open("rb")
        self.start_of, at = {}, 0
        for image_id, line in zip(ids, self.file, strict=True):
            self.start_of[image_id] = at
            at += len(line)

    def close(self) -> None:
        self.file.close()

    def scan(self) -> Iterator[Pair]:
        csv.field_size_limit(sys.maxsize)
        with open(self.file.name, newline="") as file:  # noqa: PTH123
            for record in csv.DictReader(file, self.fields, delimiter="\t"):
                yield self._pair(record["boxes"], record["features"])

    def fetch(self, image_id: str) -> Pair:
        self.file.seek(self.start_of[image_id])
        return self._pair(*self.file.readline().split(b"\t")[4:])

    @staticmethod
    def _pair(boxes: bytes | str, features: bytes | str) -> Pair:
        first = np.frombuffer(base64.b64decode(boxes), np.float32)
        return first.reshape(-1, 4), np.frombuffer(base64.b64decode(features), np.float16).reshape(-1, D)


class HuggingFace(Container):
    name = "datasets, Array2D float16"
    needs = "datasets"

    @staticmethod
    def write(rows: Sequence[Regions], folder: Path) -> None:
        import datasets

        columns = {"boxes": datasets.Array2D((R, 4), "float32"), "features": datasets.Array2D((R, D), "float16")}
        made = [
            datasets.Dataset.from_dict(
                {name: [getattr(row, name) for row in rows[start : start + GROUP]] for name in columns},
                features=datasets.Features(columns),
            )
            for start in range(0, len(rows), GROUP)
        ]
        datasets.disable_progress_bars()
        datasets.concatenate_datasets(made).save_to_disk(str(folder / "dataset"))

    def __init__(self, folder: Path, ids: Sequence[str]) -> None:
        import datasets

        self.dataset = datasets.load_from_disk(str(folder / "dataset"))
        self.features = self.dataset.with_format("numpy", dtype=np.float16)
        self.row_of = {image_id: row for row, image_id in enumerate(ids)}

    def scan(self) -> Iterator[Pair]:
        for batch in self.features.iter(GROUP):
            yield from zip(batch["boxes"], batch["features"], strict=True)

    def fetch(self, image_id: str) -> Pair:
        record = self.features[self.row_of[image_id]]
        return record["boxes"], record["features"]


CONTAINERS: tuple[type[Container], ...] = (Ours, ParquetLists, Lmdb, Npy, Hdf5, Tsv, HuggingFace)


@dataclass
class Figures:
    """Figures of one container: seconds for all images (write, first, scan) or one image (fetch, cold), by round."""

    write: float
    bytes: float
    first: float = 0.0
    scan: list[float] = field(default_factory=list)
    fetch: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)


def main() -> None:
    flags = parse()
    rows = images(flags.images)
    ids = [row.image_id for row in rows]
    missing = [container for container in CONTAINERS if not installed(container)]
    contestants = [container for container in CONTAINERS if container not in missing]
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, pyarrow {pa.__version__}; ",
        end="",
    )
    print(f"{len(rows)} images of {R} × {D} float16, {flags.rounds} rounds")
    with tempfile.TemporaryDirectory(dir=flags.folder) as root:
        folders = {container: Path(root, str(number)) for number, container in enumerate(contestants)}
        figures = {container: written(container, rows, folder) for container, folder in folders.items()}
        with ExitStack() as stack:
            readers = [stack.enter_context(opened(container, folder, ids)) for container, folder in folders.items()]
            check(readers, rows)
            for number in range(flags.rounds + 1):
                for reader in readers:
                    measure(reader, ids, figures[type(reader)], first=number == 0)
        for container, folder in folders.items():
            figures[container].cold = cold(container, folder, ids, flags.cold)
    report(figures, len(rows))
    for container in missing:
        print(f"{container.name:34} missing: pip install {container.needs}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold", type=int, default=50, help="cold fetches from each container")
    parser.add_argument("--folder", type=Path, help="a folder on the disk to measure (default: the temporary folder)")
    return parser.parse_args()


def images(count: int) -> list[Regions]:
    """Make rows with 40 % exact zeros, as in mean-pooled ReLU features."""
    rng = np.random.default_rng(0)
    none = np.zeros(R, np.int16), np.zeros(R, np.float32)
    return [
        Regions(
            f"COCO_val2014_{number:012d}",
            *(640, 480, rng.random((R, 4), np.float32) * 480, *none),
            (rng.standard_normal((R, D), np.float32) + 0.25).clip(0).astype(np.float16),
            "",
        )
        for number in range(count)
    ]


def installed(container: type[Container]) -> bool:
    try:
        importlib.import_module(container.needs or "numpy")
    except ImportError:
        return False
    return True


def written(container: type[Container], rows: Sequence[Regions], folder: Path) -> Figures:
    """Measure the second of two writes: in the first, the process pays for its first memory pages."""
    for _ in range(2):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        start = time.process_time()
        container.write(rows, folder)
        seconds = time.process_time() - start
    files = [path for path in folder.rglob("*") if path.is_file()]
    return Figures(seconds, sum(path.stat().st_blocks * 512 for path in files) / len(rows))


def check(readers: Sequence[Container], rows: Sequence[Regions]) -> None:
    """Assert that each container returns what was written."""
    for reader in readers:
        for row in rows[:: max(1, len(rows) // 10)]:
            boxes, features = reader.fetch(row.image_id)
            assert np.array_equal(features, row.features), reader.name
            assert np.allclose(boxes, row.boxes, rtol=1e-3), reader.name


def measure(reader: Container, ids: Sequence[str], figures: Figures, first: bool) -> None:
    """Measure one round of a reader that stays open."""
    stage = staging_buffer()
    count, seconds = timed(reader.scan, stage)
    assert count == len(ids), reader.name
    order = [ids[number] for number in np.random.default_rng(len(figures.fetch)).permutation(len(ids))]
    fetched, each = timed(lambda: map(reader.fetch, order), stage, LONGEST)
    if first:
        figures.first = seconds
    else:
        figures.scan.append(seconds)
        figures.fetch.append(each / fetched)


def timed(read: Callable[[], Iterator[Pair]], stage: np.ndarray, longest: float = np.inf) -> tuple[int, float]:
    """Return how many images were read, and the CPU seconds for them."""
    count, start = 0, time.process_time()
    for _, features in read():
        stage[: len(features)] = features
        count += 1
        if time.process_time() - start > longest:
            break
    return count, time.process_time() - start


def cold(container: type[Container], folder: Path, ids: Sequence[str], count: int) -> list[float]:
    """Return the wall seconds of fetches of different images. None is in the page cache."""
    os.sync()
    for path in (path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    stage, seconds = staging_buffer(), []
    with opened(container, folder, ids) as reader:
        for number in np.random.default_rng(0).permutation(len(ids))[:count]:
            start = time.perf_counter()
            _, features = reader.fetch(ids[number])
            stage[: len(features)] = features
            seconds.append(time.perf_counter() - start)
    return seconds


@contextmanager
def opened(container: type[Container], folder: Path, ids: Sequence[str]) -> Iterator[Container]:
    reader = container(folder, ids)
    try:
        yield reader
    finally:
        reader.close()


def staging_buffer() -> np.ndarray:
    """Return a page-aligned buffer, as pinned memory is.

    A copy between buffers whose addresses differ by a few bytes modulo 4096 can take ten times as long. With malloc,
    the address of a buffer is chance.
    """
    return np.frombuffer(mmap.mmap(-1, R * D * 2), np.float16).reshape(R, D)


def report(figures: dict[type[Container], Figures], count: int) -> None:
    mega = count * IMAGE / 1e6
    base = next(iter(figures))
    print(f"\n{'':34} {'B/image':>8} {'write':>7} {'first':>7} {'scan':>7} {'×':>6} {'fetch':>9} {'×':>7} {'cold':>8}")
    print(f"{'':34} {'':8} {'MB/s':>7} {'MB/s':>7} {'MB/s':>7} {'':6} {'µs':>9} {'':7} {'µs':>8}")
    for container, figure in figures.items():
        speeds = [mega / seconds for seconds in (figure.write, figure.first, median(figure.scan))]
        scan, fetch = (ratio(figure, figures[base], name) for name in ("scan", "fetch"))
        print(
            f"{container.name:34} {figure.bytes:8.0f}", *(f"{speed:7.0f}" for speed in speeds), f"{scan:6.2f}", end=" "
        )
        print(f"{median(figure.fetch) * 1e6:9.1f} {fetch:7.2f} {median(figure.cold) * 1e6:8.0f}")
    print(f"× is the time divided by the time of {base.name}, the median over the rounds: above 1 is slower.")


def ratio(one: Figures, base: Figures, name: str) -> float:
    return median(a / b for a, b in zip(getattr(one, name), getattr(base, name), strict=True))


if __name__ == "__main__":
    main()
