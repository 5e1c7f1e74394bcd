"""The pool and its supervisor: what survives a worker that raises, dies or never starts."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from visualbert_core.cluster import Pool
from visualbert_core.config import PoolConfig
from visualbert_core.errors import CheckpointError, ShardError
from visualbert_core.shards import Marker, Part, Shard, ShardFolder, plan

pytestmark = pytest.mark.usefixtures("ray_session")
INLINE, ONE, TWO = PoolConfig(inline=True), PoolConfig(workers=1), PoolConfig(workers=2)


@dataclass
class Clerk:
    """A worker that commits the names of its items, and keeps one file for every call."""

    root: Path
    calls: Path

    def run(self, shard: Shard) -> Marker:
        self.note(shard)
        self.accident(shard)
        return ShardFolder(self.root).commit(shard, Part(" ".join(shard.items).encode(), len(shard.items), None, 0))

    def note(self, shard: Shard) -> None:
        (self.calls / f"{shard.shard_id}-{os.getpid()}-{time.monotonic_ns()}").touch()

    def accident(self, shard: Shard) -> None:
        """Nothing, here."""


class DiesOnce(Clerk):
    """Takes its process along on item 7, the first time."""

    def accident(self, shard: Shard) -> None:
        if "7" in shard.items and len(list(self.calls.glob(f"{shard.shard_id}-*"))) == 1:
            os._exit(1)


class AlwaysDies(Clerk):
    """Takes its process along whenever it sees item 7."""

    def accident(self, shard: Shard) -> None:
        if "7" in shard.items:
            os._exit(1)


class Raises(Clerk):
    """Raises on item 7, every time."""

    def accident(self, shard: Shard) -> None:
        if "7" in shard.items:
            raise PermissionError(13, "the mount is gone", "/mnt/7.jpg")


class RaisesOnce(Clerk):
    """Raises on item 7, the first time."""

    def accident(self, shard: Shard) -> None:
        if "7" in shard.items and len(list(self.calls.glob(f"{shard.shard_id}-*"))) == 1:
            raise TimeoutError("a moment of weakness")


class DeadGpu(Clerk):
    """Raises what torch does once the device is unusable."""

    def accident(self, shard: Shard) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nand more lines")


class Refuses(Clerk):
    """Finds out in `run` that what it was given does not fit."""

    def accident(self, shard: Shard) -> None:
        raise CheckpointError("weights of another space")


def no_worker() -> Clerk:
    raise CheckpointError("config.json is missing")


def broken_worker() -> Clerk:
    raise RuntimeError("no driver for this device")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


class Job:
    """Twenty items in shards of about two."""

    def __init__(self, root: Path) -> None:
        self.folder, self.calls = ShardFolder(root / "out"), root / "calls"
        self.calls.mkdir(parents=True)
        self.shards = plan([str(number) for number in range(20)], "test", 2)
        self.guilty = next(shard for shard in self.shards if "7" in shard.items)

    def run(self, worker: type[Clerk], config: PoolConfig) -> None:
        with Pool(config) as pool:
            pool.run(partial(worker, self.folder.root, self.calls), self.folder.pending(self.shards), "test")

    def called(self, shard: Shard) -> int:
        return len(list(self.calls.glob(f"{shard.shard_id}-*")))

    def all_calls(self) -> int:
        return len(list(self.calls.iterdir()))


@pytest.mark.parametrize("pool", [INLINE, ONE, PoolConfig(workers=3)])
def test_every_shard_runs_exactly_once(job: Job, pool: PoolConfig) -> None:
    """Without accidents each shard is computed once, with any number of workers, and a second run computes nothing."""
    job.run(Clerk, pool)
    job.run(Clerk, pool)
    assert job.folder.pending(job.shards) == []
    assert job.all_calls() == len(job.shards)


def test_a_dead_actor_is_replaced(job: Job) -> None:
    """A worker process that exits once costs at most the shards in its hands, and the run ends complete."""
    job.run(DiesOnce, ONE)
    assert job.folder.pending(job.shards) == []
    assert job.called(job.guilty) == 2
    assert job.all_calls() <= len(job.shards) + 2


def test_a_deadly_shard_is_named_and_the_others_are_kept(job: Job) -> None:
    """A shard that kills every worker ends the job with its name, after all others are committed."""
    with pytest.raises(ShardError, match=rf"1 shard.*{job.guilty.shard_id}.*finished shards are kept"):
        job.run(AlwaysDies, TWO)
    assert job.folder.pending(job.shards) == [job.guilty]


@pytest.mark.parametrize("pool", [INLINE, TWO])
def test_a_shard_that_always_raises_is_named_and_the_others_are_kept(job: Job, pool: PoolConfig) -> None:
    """An ordinary exception gets three tries, then one line says which shard and why, and the rest is committed."""
    with pytest.raises(ShardError, match=rf"{job.guilty.shard_id}.*PermissionError: .*the mount is gone") as caught:
        job.run(Raises, pool)
    assert isinstance(caught.value.__cause__, PermissionError)
    assert "\n" not in str(caught.value)
    assert job.called(job.guilty) == 3
    assert job.folder.pending(job.shards) == [job.guilty]


@pytest.mark.parametrize("pool", [INLINE, ONE])
def test_a_passing_error_is_retried(job: Job, pool: PoolConfig) -> None:
    """An exception that does not come back costs one retry and no error."""
    job.run(RaisesOnce, pool)
    assert job.folder.pending(job.shards) == []
    assert job.all_calls() == len(job.shards) + 1


@pytest.mark.parametrize("pool", [INLINE, ONE])
def test_input_errors_surface_as_themselves(job: Job, pool: PoolConfig) -> None:
    """What a worker says about bad input reaches the caller as the same class and line, wherever it was raised."""
    with pytest.raises(CheckpointError, match=r"^weights of another space$"):
        job.run(Refuses, pool)
    with pytest.raises(CheckpointError, match=r"^config.json is missing$"), Pool(pool) as empty:
        empty.run(no_worker, job.shards, "test")
    assert job.all_calls() <= 2


@pytest.mark.parametrize("pool", [INLINE, ONE])
def test_workers_that_never_start_stop_the_job(job: Job, pool: PoolConfig) -> None:
    """Five boots in a row without a result end the job, saying what the last one said."""
    reason = r"5 workers in a row finished nothing.*no driver for this device"
    with pytest.raises(ShardError, match=reason), Pool(pool) as broken:
        broken.run(broken_worker, job.shards, "test")


def test_a_cuda_error_ends_the_process(job: Job) -> None:
    """After a CUDA error the process is replaced rather than fed; when no worker gets past it the job stops."""
    with pytest.raises(ShardError, match=r"finished nothing, the last: CUDA error: an illegal memory access"):
        job.run(DeadGpu, ONE)


def test_progress_goes_to_stderr_only(job: Job, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing reaches stdout; without a terminal the last line of stderr says how many items are done and failed."""
    job.run(Clerk, ONE)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert re.search(r"^test: 20 of 20, [\d.]+/s, 0 failed$", captured.err, re.MULTILINE)


def test_no_shards_need_no_workers() -> None:
    """An empty list returns at once, without making a worker."""
    with Pool(ONE) as pool:
        pool.run(no_worker, [], "test")


def test_actors_serve_one_stage_after_the_other(tmp_path: Path) -> None:
    """A second stage runs in the processes of the first, which have imported everything already."""
    first, second = Job(tmp_path / "first"), Job(tmp_path / "second")
    with Pool(ONE) as pool:
        for job in (first, second):
            pool.run(partial(Clerk, job.folder.root, job.calls), job.shards, "test")
    processes = {path.name.split("-")[1] for job in (first, second) for path in job.calls.iterdir()}
    assert len(processes) == 1
