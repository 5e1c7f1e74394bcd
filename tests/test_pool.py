"""The pool and its scheduler: what survives a worker that raises, dies or never starts."""

from __future__ import annotations

import logging
import os
import re
import signal
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from visualbert_core.config import PoolConfig
from visualbert_core.engine import pool as cluster
from visualbert_core.engine import scheduler
from visualbert_core.engine.pool import Pool
from visualbert_core.engine.shards import Marker, Part, Shard, ShardFolder, plan
from visualbert_core.engine.worker_process import SIMULATED, WorkerProcess, halving_on_memory_error
from visualbert_core.errors import CheckpointError, ShardError, UnfinishedError

pytestmark = pytest.mark.usefixtures("ray_session", "no_waiting")
INLINE, ONE, TWO = PoolConfig(inline=True), PoolConfig(workers=1), PoolConfig(workers=2)


@dataclass
class Clerk:
    """A worker that commits the names of its items, and keeps one file for every call."""

    root: Path
    calls: Path

    def run(self, shard: Shard) -> Marker:
        self.note(shard)
        self.accident(shard)
        lost = " ".join(shard.lost()).encode() or None
        part = Part(" ".join(shard.touched).encode(), len(shard.touched), lost, len(shard.lost()))
        return ShardFolder(self.root).commit(shard, part)

    def note(self, shard: Shard) -> None:
        (self.calls / f"{shard.shard_id}-{os.getpid()}-{time.monotonic_ns()}").touch()

    def accident(self, shard: Shard) -> None:
        """Nothing, here."""


class DiesOnce(Clerk):
    """Takes its process along on item 7, the first time."""

    def accident(self, shard: Shard) -> None:
        if "7" in shard.touched and len(list(self.calls.glob(f"{shard.shard_id}-*"))) == 1:
            os._exit(1)


class AlwaysDies(Clerk):
    """Takes its process along whenever it sees item 7."""

    def accident(self, shard: Shard) -> None:
        if "7" in shard.touched:
            os._exit(1)


class Hangs(Clerk):
    """Does not come back from item 7."""

    def accident(self, shard: Shard) -> None:
        if "7" in shard.touched:
            time.sleep(1000)


class OutOfMemoryError(RuntimeError):
    """Called as torch's is."""


class TooLarge(Clerk):
    """Has a GPU into which item 7 does not fit."""

    def accident(self, shard: Shard) -> None:
        if "7" in shard.touched:
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


class Mountless(Clerk):
    """Cannot read anything."""

    def accident(self, shard: Shard) -> None:
        raise PermissionError(13, "Permission denied", "/mnt/images")


class Signals(Clerk):
    """Has the job stopped when it sees item 7."""

    def accident(self, shard: Shard) -> None:
        if "7" in shard.touched:
            os.kill(int((self.calls.parent / "driver").read_text()), signal.SIGTERM)
            time.sleep(1)


class Raises(Clerk):
    """Raises on item 7, every time."""

    def accident(self, shard: Shard) -> None:
        if "7" in shard.touched:
            raise PermissionError(13, "the mount is gone", "/mnt/7.jpg")


class RaisesOnce(Clerk):
    """Raises on item 7, the first time."""

    def accident(self, shard: Shard) -> None:
        if "7" in shard.touched and len(list(self.calls.glob(f"{shard.shard_id}-*"))) == 1:
            raise TimeoutError("a moment of weakness")


class DeadGpu(Clerk):
    """Raises what torch does once the device is unusable."""

    def accident(self, shard: Shard) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nand more lines")


class Refuses(Clerk):
    """Finds out in `run` that what it was given does not fit."""

    def accident(self, shard: Shard) -> None:
        raise CheckpointError("weights of another space")


def slow_to_load(root: Path, calls: Path) -> Clerk:
    time.sleep(6)
    return Clerk(root, calls)


def no_worker() -> Clerk:
    raise CheckpointError("config.json is missing")


def broken_worker() -> Clerk:
    raise RuntimeError("no driver for this device")


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards that raise are tried again at once, and workers that died are replaced at once."""
    monkeypatch.setattr(scheduler, "RETRY_WAITS", (0.0, 0.0))
    monkeypatch.setattr(scheduler, "START_WAIT", 0.0)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


class Job:
    """Twenty items in shards of about two."""

    def __init__(self, root: Path) -> None:
        self.folder, self.calls = ShardFolder(root / "out"), root / "calls"
        self.calls.mkdir(parents=True)
        (root / "driver").write_text(str(os.getpid()))
        self.shards = plan([str(number) for number in range(20)], "test", 2)
        self.guilty = next(shard for shard in self.shards if "7" in shard.touched)

    def run(self, worker: type[Clerk], config: PoolConfig) -> None:
        with Pool(config) as pool:
            pool.run(partial(worker, self.folder.root, self.calls), self.folder.pending(self.shards), "test")

    def called(self, shard: Shard) -> int:
        return len(list(self.calls.glob(f"{shard.shard_id}-*")))

    def quarantined(self) -> dict[str, str]:
        """shard → its failure rows."""
        return {path.stem: path.read_text() for path in self.folder.root.glob("failures/*")}

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


@pytest.mark.parametrize("pool", [ONE, TWO])
def test_a_deadly_item_is_quarantined_and_all_others_are_kept(job: Job, pool: PoolConfig) -> None:
    """An item that ends every process costs one failure row; the rest of its shard is computed, and the run ends."""
    job.run(AlwaysDies, pool)
    assert job.folder.pending(job.shards) == []
    assert job.quarantined() == {job.guilty.shard_id: "7"}
    assert job.folder.part_path(job.guilty.shard_id).read_text().split() == [i for i in job.guilty.items if i != "7"]
    parts = {path.stem for path in job.folder.root.glob("parts/[!.]*")}  # a killed writer leaves a draft
    assert parts == {shard.shard_id for shard in job.shards}


def test_an_item_that_hangs_is_quarantined(job: Job) -> None:
    """A worker that does not come back is replaced, and the item behind it is found as a deadly one is."""
    # Others take a millisecond: only a machine that stands still for all of this time would take one of them for hung.
    job.run(Hangs, PoolConfig(workers=2, shard_timeout=3))
    assert job.folder.pending(job.shards) == []
    assert job.quarantined() == {job.guilty.shard_id: "7"}


@pytest.mark.parametrize("pool", [INLINE, ONE])
def test_an_item_larger_than_the_gpu_is_quarantined(job: Job, pool: PoolConfig) -> None:
    """What does not fit into the memory of a fresh process with nothing else in it is the item's failure."""
    job.run(TooLarge, pool)
    assert job.folder.pending(job.shards) == []
    assert job.quarantined() == {job.guilty.shard_id: "7"}


@pytest.mark.parametrize("pool", [INLINE, TWO])
def test_a_broken_mount_stops_the_run(job: Job, pool: PoolConfig) -> None:
    """When one shard after the other raises, on every attempt, the run ends early with one line that says why."""
    reason = r"3 shard\(s\) failed.*PermissionError: .*Permission denied: '/mnt/images'.*the run was stopped"
    with pytest.raises(ShardError, match=reason) as raised:
        job.run(Mountless, pool)
    assert "\n" not in str(raised.value)
    assert job.folder.pending(job.shards) == job.shards
    assert not job.folder.root.exists()


@pytest.mark.parametrize("pool", [INLINE, TWO])
def test_a_signal_lets_running_shards_finish(job: Job, pool: PoolConfig) -> None:
    """After SIGTERM nothing new is started, what ran is committed, one line says how much is left, the exit code is
    its own, and the next run does the rest."""
    job.shards = plan([str(number) for number in range(60)], "test", 1)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(UnfinishedError, match=r"stopped \(SIGTERM\): \d+ of \d+ shards are left; the same") as raised:
        job.run(Signals, pool)
    assert raised.value.exit_code == 6
    assert signal.getsignal(signal.SIGTERM) == handler
    left = job.folder.pending(job.shards)
    assert 0 < len(left) < len(job.shards)
    assert f": {len(left)} of {len(job.shards)} shards" in str(raised.value)
    assert not any("7" in shard.items for shard in left)
    job.run(Clerk, pool)
    assert job.all_calls() == len(job.shards)


@pytest.mark.parametrize("pool", [INLINE, ONE])
def test_a_signal_between_two_stages_ends_the_job(job: Job, pool: PoolConfig) -> None:
    """While images are listed or scores computed there is nothing to wait for: the same error, at once, also where Ray
    has installed handlers of its own."""
    handler = signal.getsignal(signal.SIGTERM)

    def stages() -> None:
        with Pool(pool) as workers:
            workers.run(partial(Clerk, job.folder.root, job.calls), job.shards, "test")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)

    with pytest.raises(UnfinishedError, match=r"stopped \(SIGTERM\); the same line again"):
        stages()
    assert signal.getsignal(signal.SIGTERM) == handler
    assert job.folder.pending(job.shards) == []


def test_what_runs_at_the_end_of_the_hours_is_committed(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a signal: the rest is left, and the next run does it, and nothing twice."""
    job.shards = plan([str(number) for number in range(60)], "test", 1)
    last = next(shard for shard in job.shards if "7" in shard.items)
    clock = time.monotonic
    monkeypatch.setattr(cluster.time, "monotonic", lambda: clock() + 7200 * job.called(last))  # item 7 takes two hours
    with pytest.raises(UnfinishedError, match=r"stopped \(1 hours are over\): \d+ of \d+ shards are left"):
        job.run(Clerk, PoolConfig(inline=True, max_hours=1))
    monkeypatch.undo()
    assert 0 < len(job.folder.pending(job.shards)) < len(job.shards)
    assert job.all_calls() == len(job.shards) - len(job.folder.pending(job.shards))
    job.run(Clerk, INLINE)
    assert job.all_calls() == len(job.shards)


def test_no_shard_is_started_after_the_last_hour(job: Job) -> None:
    """A job whose hours are over says so, with the same exit code, and computes nothing more."""
    with pytest.raises(UnfinishedError, match=r"stopped \(0 hours are over\)"):
        job.run(Clerk, PoolConfig(inline=True, max_hours=0))
    assert job.all_calls() == 0


def test_a_gpu_that_no_node_has_is_not_waited_for(job: Job) -> None:
    """Workers that find no place end the job after a while, and the line says what they need."""
    with pytest.raises(
        ShardError, match=r"no worker has started in \d+ s: each needs 2 GPU, .* room for 0 such workers"
    ):
        job.run(Clerk, PoolConfig(gpus_per_worker=2, start_timeout=1))


def test_a_worker_that_loads_is_starting(
    job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is waited for then is a process that has its place, not room: also where the wait is over."""
    caplog.set_level(logging.INFO, "visualbert_core")
    monkeypatch.setattr(scheduler, "LOG_SECONDS", 1.0)
    load = partial(slow_to_load, job.folder.root, job.calls)
    with Pool(ONE) as pool:
        pool.run(load, job.shards, "test")
    said = caplog.text
    assert "test: waiting for a worker: 1 starting (" in said
    assert "room" not in said
    reason = r"no worker has started in \d+ s: 1 starting \("
    with pytest.raises(ShardError, match=reason), Pool(PoolConfig(workers=1, start_timeout=2)) as pool:
        pool.run(load, job.shards, "test")


def test_a_worker_without_room_is_not_starting(
    job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While others have all CPUs, the line says that there is no room; when one is free again, the run goes on."""
    import ray

    caplog.set_level(logging.INFO, "visualbert_core")
    monkeypatch.setattr(scheduler, "LOG_SECONDS", 2.0)
    others = ray.remote(num_cpus=ray.cluster_resources()["CPU"])(WorkerProcess).remote()
    ray.get(others.__ray_ready__.remote())
    reason = r"no worker has started in \d+ s: each needs 1 CPU, .* room for \d+ such workers, which others take"
    with pytest.raises(ShardError, match=reason):
        job.run(Clerk, PoolConfig(workers=1, start_timeout=8))
    said = caplog.text
    assert "test: waiting for a worker: each needs 1 CPU, " in said
    assert "0 workers (1 without room)" in said
    ray.kill(others)
    job.run(Clerk, ONE)
    assert job.folder.pending(job.shards) == []


@pytest.mark.parametrize("pool", [INLINE, ONE])
def test_a_stage_has_any_name(job: Job, pool: PoolConfig) -> None:
    """Corpora are called in every script and with what file names hold; Ray takes ASCII alone in a metric's tag, and
    gets the rest as in a URL."""
    import ray

    label = "features of фото 写真 é 100% a\tb \udce9"
    with Pool(pool) as workers:
        workers.run(partial(Clerk, job.folder.root, job.calls), job.shards, label)
    assert job.folder.pending(job.shards) == []
    if pool.inline:
        return
    wanted = 'stage="features of %D1%84%D0%BE%D1%82%D0%BE %E5%86%99%E7%9C%9F %C3%A9 100%25 a%09b %ED%B3%A9"'
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    end = time.monotonic() + 120
    while wanted not in (page := urllib.request.urlopen(url).read().decode()):  # Ray takes seconds to bring them there
        assert time.monotonic() < end, page
        time.sleep(0.5)


def test_too_large_batches_are_halved() -> None:
    """A batch that does not fit into memory is computed in parts that do, in order; another error is not retried."""
    sizes = []

    def compute(batch: Sequence[int]) -> list[int]:
        sizes.append(len(batch))
        if len(batch) > 3:
            raise OutOfMemoryError
        return [2 * item for item in batch]

    assert halving_on_memory_error(compute, range(10)) == list(range(0, 20, 2))
    assert sizes == [10, 5, 2, 3, 5, 2, 3]
    with pytest.raises(ZeroDivisionError):
        halving_on_memory_error(lambda batch: [1 // 0], [1, 2])


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
    job.shards = plan([str(number) for number in range(60)], "test", 2)
    with pytest.raises(ShardError, match=r"finished nothing, the last: CUDA error: an illegal memory access"):
        job.run(DeadGpu, ONE)


def test_a_worker_of_no_gpu_sees_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray hides a node's GPUs only from workers that have some of them; the others would all compute on the first."""
    seen = []
    monkeypatch.setenv(SIMULATED, "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for gpus in (0.5, 0.0):
        WorkerProcess().boot(lambda: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]), 1, gpus)
    assert seen == ["0,1", ""]


def test_a_gpu_that_torch_cannot_use_is_no_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker with a GPU that has no driver, or one that torch does not fit, says so; it does not compute on the CPU
    for days."""
    torch = pytest.importorskip("torch")
    monkeypatch.delenv(SIMULATED, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(RuntimeError, match=r"this worker has a GPU, but torch .* cannot use it"):
        WorkerProcess().boot(lambda: None, 1, 1.0)
    WorkerProcess().boot(lambda: None, 1, 0.0)


@pytest.mark.parametrize("items", [1, 3, 20])
def test_a_dead_gpu_quarantines_nothing(job: Job, items: int) -> None:
    """However few shards are left to tell them apart, a machine that gets nothing done is not taken for bad items."""
    job.shards = plan([str(number) for number in range(items)], "test", 2)
    with pytest.raises(ShardError, match=r"CUDA error: an illegal memory access"):
        job.run(DeadGpu, INLINE)
    assert not job.folder.root.exists()


def test_progress_is_logged_and_not_printed(
    job: Job, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing reaches stdout; without a terminal the last record says how many items are done and failed."""
    with caplog.at_level(logging.INFO, "visualbert_core"):
        job.run(Clerk, ONE)
    assert capfd.readouterr().out == ""
    line = r"test: 20 of 20, [\d.]+/s, 0 failed; shards \d+ done, 0 running, 0 waiting; 1 workers"
    assert re.fullmatch(line, caplog.messages[-1])


def test_no_shards_need_no_workers() -> None:
    """An empty list returns at once, without making a worker."""
    with Pool(ONE) as pool:
        assert pool.run(no_worker, [], "test") == []


def test_actors_serve_one_stage_after_the_other(tmp_path: Path) -> None:
    """A second stage runs in the processes of the first, which have imported everything already."""
    first, second = Job(tmp_path / "first"), Job(tmp_path / "second")
    with Pool(ONE) as pool:
        for job in (first, second):
            pool.run(partial(Clerk, job.folder.root, job.calls), job.shards, "test")
    processes = {path.name.split("-")[1] for job in (first, second) for path in job.calls.iterdir()}
    assert len(processes) == 1
