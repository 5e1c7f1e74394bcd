"""Measure what the pool costs: beside a plain loop over the same shards, with many workers, and before the first shard.

    python benchmarks/engine_overhead.py                        # takes some minutes; 32 workers need 4 GB
    python benchmarks/engine_overhead.py --shards 4 --seconds 0.1 --workers --images 2000 --markers 2     # a smoke test

In the first two tables, the worker of a shard holds a lock and sleeps for `--seconds`, as if a GPU computed. Then it
writes a part of 1 MB, with fsync. The plain loop does the same in one process. "first" is the time until the first part
is committed. It includes the start of Ray and of one worker. "steady" is the time of a later stage, whose workers are
already there. Efficiency is the sum of all sleeps / (workers × steady).

The third table is the work of a driver before it gives out the first shard. It lists made-up files in a thousand
folders, plans the shards, and reads the markers of a run that is resumed. A separate process does this, and reports its
own peak of memory.
"""

from __future__ import annotations

import argparse
import os
import pickle
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from visualbert_core.config import PoolConfig
from visualbert_core.corpus.listing import Corpus
from visualbert_core.engine.pool import Pool
from visualbert_core.engine.shards import Marker, Part, Shard, ShardFolder
from visualbert_core.features.worker import plan_images
from visualbert_core.schema import Image

PART = b"x" * (1 << 20)
SHARD = 1024  # images in a shard of the plan
SENT = 20  # shards that are pickled


@dataclass
class Sleeper:
    """A worker that takes `seconds` for a shard, and one shard at a time."""

    root: Path
    seconds: float
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, shard: Shard) -> Marker:
        with self.lock:
            time.sleep(self.seconds)
        return ShardFolder(self.root).commit(shard, Part(PART, len(shard.items), None, 0))


@dataclass
class Assembly:
    """A worker that waits until all `workers` are there."""

    root: Path
    workers: int

    def run(self, shard: Shard) -> Marker:
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / f"worker{os.getpid()}").touch()
        while len(list(self.root.glob("worker*"))) < self.workers:
            time.sleep(0.1)
        return ShardFolder(self.root).commit(shard, Part(b"", 1, None, 0))


def stage(count: int) -> list[Shard]:
    return [Shard(f"{number:016x}", (str(number),)) for number in range(count)]


def loop(root: Path, shards: list[Shard], seconds: float) -> float:
    began = time.monotonic()
    worker = Sleeper(root, seconds)
    for shard in shards:
        worker.run(shard)
    return time.monotonic() - began


def pooled(root: Path, shards: list[Shard], seconds: float, workers: int) -> tuple[float, float]:
    """Return (seconds until the first part is committed, seconds of a stage whose workers are all there)."""
    began = time.monotonic()
    with Pool(PoolConfig(workers=workers, gpus_per_worker=0)) as pool:
        pool.run(partial(Sleeper, root / "first", 0.0), stage(1), "first")
        first = time.monotonic() - began
        pool.run(partial(Assembly, root / "all", workers), stage(2 * workers), "all")
        began = time.monotonic()
        pool.run(partial(Sleeper, root / "steady", seconds), shards, "steady")
        return first, time.monotonic() - began


def against_a_loop(root: Path, count: int, seconds: float) -> None:
    shards = stage(count)
    plain = loop(root / "loop", shards, seconds)
    first, steady = pooled(root / "pool", shards, seconds, 1)
    print(f"\n{count} shards of {seconds:g} s on one worker")
    print(f"{'':<24}{'first s':>9}{'all s':>9}{'per shard ms':>14}{'overhead':>10}")
    print(f"{'plain loop':<24}{'':>9}{plain:>9.2f}{1000 * plain / count:>14.1f}{'':>10}")
    print(f"{'pool, 1 worker':<24}{first:>9.2f}{steady:>9.2f}{1000 * steady / count:>14.1f}{steady / plain - 1:>10.1%}")


def scaling(root: Path, workers: list[int], count: int, seconds: float) -> None:
    print(f"\n{count} shards of {seconds:g} s for each worker")
    print(f"{'workers':>7}{'first s':>9}{'steady s':>10}{'efficiency':>12}")
    for number in workers:
        first, steady = pooled(root / f"scale{number}", stage(count * number), seconds, number)
        print(f"{number:>7}{first:>9.2f}{steady:>10.2f}{count * seconds / steady:>12.1%}", flush=True)


def planning(images: int, markers: int) -> None:
    """Measure the work before the first shard. Call it in a new process, because it prints the peak of memory."""
    base, began = peak(), time.monotonic()
    files = (f"COCO_train2017_{number:012d}" for number in range(images))
    corpus = Corpus(Image(name, f"/data/{name[-3:]}/{name}.jpg") for name in files)
    listed, listing = peak(), time.monotonic() - began
    began = time.monotonic()
    shards = plan_images(corpus, corpus.ids, "salt", SHARD)
    planned = time.monotonic() - began
    with tempfile.TemporaryDirectory() as name:
        folder = ShardFolder(name)
        for shard in shards[:markers]:
            folder.commit(shard, Part(b"x", len(shard.items), None, 0))
        began = time.monotonic()
        assert not folder.pending(shards[:markers])
        reading = (time.monotonic() - began) / min(markers, len(shards))
    began = time.monotonic()
    sent = sum(len(pickle.dumps(shard)) for shard in shards[:SENT]) / min(SENT, len(shards))
    sending = (time.monotonic() - began) / min(SENT, len(shards))
    print(f"\n{images:,} images, {len(shards):,} shards of about {SHARD}")
    print(f"{'libraries':<44}{base:>10.0f} MB")
    print(f"{'the corpus: sorted, duplicates looked for':<44}{listing:>10.1f} s {listed - base:>10.0f} MB")
    print(f"{'the plan':<44}{planned:>10.1f} s")
    print(f"{'peak of the process':<44}{peak():>10.0f} MB")
    print(f"{'one shard made and pickled':<44}{1e3 * sending:>10.1f} ms {sent / 1e3:>9.0f} kB")
    print(f"{'reading one shard’s marker on this disk':<44}{1e6 * reading:>10.0f} µs")
    print(f"{'reading all':<44}{reading * len(shards):>10.1f} s")
    factor = 1e9 / images
    print(
        f"By arithmetic, 10^9 images: {len(shards) * factor:,.0f} shards, {(listing + planned) * factor / 60:.0f} min, "
        f"their markers {reading * len(shards) * factor / 60:.0f} min, {(peak() - base) * factor / 1000:.0f} GB"
    )


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def main() -> None:
    args = parse()
    if args.plan_only:
        planning(args.images, args.markers)
        return
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).parent))  # workers import Sleeper from this folder
    import engine_overhead as here  # a worker cannot unpickle classes of the driver's __main__

    print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as name:
        here.against_a_loop(Path(name), args.shards, args.seconds)
        here.scaling(Path(name), args.workers, args.shards, args.seconds)
    sizes = ["--images", str(args.images), "--markers", str(args.markers)]
    sys.stdout.flush()
    subprocess.run([sys.executable, __file__, "--plan-only", *sizes], check=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=20, help="shards for each worker")
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds for each shard")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--images", type=int, default=10_000_000, help="images of the plan")
    parser.add_argument("--markers", type=int, default=2_000, help="markers to write and read")
    parser.add_argument("--plan-only", action="store_true", help="print the third table only")
    return parser.parse_args()


if __name__ == "__main__":
    main()
