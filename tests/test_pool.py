"""The pool and its scheduler: how a job goes on after a worker raises, dies or never starts."""

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
from visualbert_core.engine.hardware import SIMULATED, halving_on_memory_error
from visualbert_core.engine.pool import Pool, WorkerProcess
from visualbert_core.engine.shards import Marker, Part, Shard, ShardFolder, plan
from visualbert_core.errors import CheckpointError, ShardError, UnfinishedError

pytestmark = pytest.mark.usefixtures("ray_session", "no_waiting")
INLINE, ONE, TWO = PoolConfig(inline=True), PoolConfig(workers=1), PoolConfig(workers=2)


@dataclass
class Clerk:
    """Commit the names of the items, and write one file per call."""

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
        """Do nothing; subclasses crash, hang or raise here."""


class DiesOnce(Clerk):
    """Kill the process on item 7, the first time only."""

    def accident(self, shard: Shard) -> None:
        if "7" in shard.touched and len(list(self.calls.glob(f"{shard.shard_id}-*"))) == 1:
            os._exit(1)


class AlwaysDies(Clerk):
    """Kill the process whenever item 7 comes."""

    def accident(self, shard: Shard) -> None:
        if "7" in shard.touched:
            os._exit(1)


class Hangs(Clerk):
    """Never return from item 7."""

    def accident(self, shard: Shard) -> None:
        if "7" in shard.touched:
            time.sleep(1000)


class OutOfMemoryError(RuntimeError):
    """An error with the name of torch's class, by which the worker recognises it."""


class TooLarge(Clerk):
    """Run out of GPU memory on item 7."""

    def accident(self, shard: Shard) -> None:
        if "7" in shard.touched:
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


class Mountless(Clerk):
    """Fail to read any item."""

    def accident(self, shard: Shard) -> None:
        raise PermissionError(13, "Permission denied", "/mnt/images")


class Signals(Clerk):
    """Send SIGTERM to the driver on item 7."""

    def accident(self, shard: Shard) -> None:
        if "7" in shard.touched:
            os.kill(int((self.calls.parent / "driver").read_text()), signal.SIGTERM)
            time.sleep(1)


class Raises(Clerk):
    """Raise on item 7, every time."""

    def accident(self, shard: Shard) -> None:
        if "7" in shard.touched:
            raise PermissionError(13, "the mount is gone", "/mnt/7.jpg")


class RaisesOnce(Clerk):
    """Raise on item 7, the first time only."""

    def accident(self, shard: Shard) -> None:
        if "7" in shard.touched and len(list(self.calls.glob(f"{shard.shard_id}-*"))) == 1:
            raise TimeoutError("a moment of weakness")


class DeadGpu(Clerk):
    """Raise the error that torch raises once the device is unusable."""

    def accident(self, shard: Shard) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nand more lines")


class Refuses(Clerk):
    """Raise a CheckpointError in `run`, as for weights of another feature space."""

    def accident(self, shard: Shard) -> None:
        raise CheckpointError("weights of another space")


def slow_to_load(root: Path, calls: Path) -> Clerk:
    time.sleep(6)  # longer than the test's start_timeout of 2 s
    return Clerk(root, calls)


def no_worker() -> Clerk:
    raise CheckpointError("config.json is missing")


def broken_worker() -> Clerk:
    raise RuntimeError("no driver for this device")


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry shards and replace dead workers without waiting."""
    monkeypatch.setattr(scheduler, "RETRY_WAITS", (0.0, 0.0))
    monkeypatch.setattr(scheduler, "START_WAIT", 0.0)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


class Job:
    """Run twenty items in shards of about two."""

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
        """Map each shard to its failure rows."""
        return {path.stem: path.read_text() for path in self.folder.root.glob("failures/*")}

    def all_calls(self) -> int:
        return len(list(self.calls.iterdir()))


@pytest.mark.parametrize("pool", [INLINE, ONE, PoolConfig(workers=3)])
def test_every_shard_runs_exactly_once(job: Job, pool: PoolConfig) -> None:
    """Each shard is computed once with any number of workers, and a second run computes nothing."""
    job.run(Clerk, pool)
    job.run(Clerk, pool)
    assert job.folder.pending(job.shards) == []
    assert job.all_calls() == len(job.shards)


def test_a_dead_actor_is_replaced(job: Job) -> None:
    """A worker process that exits once costs at most the shards that it had, and the run is complete."""
    job.run(DiesOnce, ONE)
    assert job.folder.pending(job.shards) == []
    assert job.called(job.guilty) == 2
    assert job.all_calls() <= len(job.shards) + 2


def test_a_deadly_item_is_quarantined_and_all_others_are_kept(job: Job) -> None:
    """An item that ends every process becomes one failure row, and all other items of its shard are kept."""
    job.run(AlwaysDies, TWO)
    assert job.folder.pending(job.shards) == []
    assert job.quarantined() == {job.guilty.shard_id: "7"}
    assert job.folder.part_path(job.guilty.shard_id).read_text().split() == [i for i in job.guilty.items if i != "7"]
    # a killed writer leaves a draft, whose name starts with a dot
    parts = {path.stem for path in job.folder.root.glob("parts/[!.]*")}
    assert parts == {shard.shard_id for shard in job.shards}


def test_an_item_that_hangs_is_quarantined(job: Job) -> None:
    """A worker that hangs is replaced, and its item is found like a deadly item."""
    # Other items take a millisecond, so only a machine that stands still this long could fail one of them.
    job.run(Hangs, PoolConfig(workers=2, shard_timeout=3))
    assert job.folder.pending(job.shards) == []
    assert job.quarantined() == {job.guilty.shard_id: "7"}


@pytest.mark.parametrize("pool", [INLINE, ONE])
def test_an_item_larger_than_the_gpu_is_quarantined(job: Job, pool: PoolConfig) -> None:
    """An item that does not fit into the memory of a fresh process, alone, becomes a failure row."""
    job.run(TooLarge, pool)
    assert job.folder.pending(job.shards) == []
    assert job.quarantined() == {job.guilty.shard_id: "7"}


@pytest.mark.parametrize("pool", [INLINE, TWO])
def test_a_broken_mount_stops_the_run(job: Job, pool: PoolConfig) -> None:
    """When one shard after another raises on every attempt, the run stops early with one line that says why."""
    reason = r"3 shard\(s\) failed.*PermissionError: .*Permission denied: '/mnt/images'.*the run was stopped"
    with pytest.raises(ShardError, match=reason) as raised:
        job.run(Mountless, pool)
    assert "\n" not in str(raised.value)
    assert job.folder.pending(job.shards) == job.shards
    assert not job.folder.root.exists()


@pytest.mark.parametrize("pool", [INLINE, TWO])
def test_a_signal_lets_running_shards_finish(job: Job, pool: PoolConfig) -> None:
    """After SIGTERM no new shard starts, running shards are committed, one line says how much is left, the exit code is
    6, and the next run does the rest."""
    job.shards = plan([str(number) for number in range(60)], "test", 1)
    handler = signal.getsignal(signal.SIGTERM)
    reason = r"stopped \(SIGTERM\): \d+ of \d+ shards are left; run the same"
    with pytest.raises(UnfinishedError, match=reason) as raised:
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
    """While images are listed or scores computed, a signal ends the job at once with the same error, also where Ray has
    installed its own handlers."""
    handler = signal.getsignal(signal.SIGTERM)

    def stages() -> None:
        with Pool(pool) as workers:
            workers.run(partial(Clerk, job.folder.root, job.calls), job.shards, "test")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)  # the signal must end this sleep

    with pytest.raises(UnfinishedError, match=r"stopped \(SIGTERM\); run the same line again"):
        stages()
    assert signal.getsignal(signal.SIGTERM) == handler
    assert job.folder.pending(job.shards) == []


def test_what_runs_at_the_end_of_the_hours_is_committed(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of the allowed hours running shards are committed, as after a signal, and the next run does only the
    rest."""
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
    """A job whose hours are over starts no shard, says so and ends with the same exit code."""
    with pytest.raises(UnfinishedError, match=r"stopped \(0 hours are over\)"):
        job.run(Clerk, PoolConfig(inline=True, max_hours=0))
    assert job.all_calls() == 0


def test_a_gpu_that_no_node_has_is_not_waited_for(job: Job) -> None:
    """Workers that no node can place end the job after a while, with a line that says what they need."""
    with pytest.raises(
        ShardError, match=r"no worker has started in \d+ s: each needs 2 GPU, .* room for 0 such workers"
    ):
        job.run(Clerk, PoolConfig(gpus_per_worker=2, start_timeout=1))


def test_a_worker_that_loads_is_starting(
    job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that still loads is called starting, not without room, in the log and in the error after the wait."""
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
    """While other workers have all CPUs, the line says that there is no room; when a CPU is free again, the run goes
    on."""
    import ray

    caplog.set_level(logging.INFO, "visualbert_core")
    monkeypatch.setattr(scheduler, "LOG_SECONDS", 2.0)
    others = ray.remote(num_cpus=ray.cluster_resources()["CPU"])(WorkerProcess).remote()
    ray.get(others.__ray_ready__.remote())
    reason = r"no worker has started in \d+ s: each needs 1 CPU, .* room for \d+ such workers, which other jobs use"
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
    """A corpus may have a name in any script. Ray takes only ASCII in a metric's tag, so the name is percent-encoded
    there."""
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
    # Ray takes seconds to publish the metrics
    while wanted not in (page := urllib.request.urlopen(url).read().decode()):
        assert time.monotonic() < end, page
        time.sleep(0.5)


def test_too_large_batches_are_halved() -> None:
    """A batch that does not fit into memory is computed in halves, in order, and any other error is raised at once."""
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
    """A shard that raises three times ends the run with one line that names it and the reason, and all others are
    committed."""
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
    """An input error of a worker reaches the caller with the same class and line, wherever it was raised."""
    with pytest.raises(CheckpointError, match=r"^weights of another space$"):
        job.run(Refuses, pool)
    with pytest.raises(CheckpointError, match=r"^config.json is missing$"), Pool(pool) as empty:
        empty.run(no_worker, job.shards, "test")
    assert job.all_calls() <= 2


@pytest.mark.parametrize("pool", [INLINE, ONE])
def test_workers_that_never_start_stop_the_job(job: Job, pool: PoolConfig) -> None:
    """Five failed starts in a row end the job, with the last worker's error."""
    reason = r"5 workers in a row finished nothing.*no driver for this device"
    with pytest.raises(ShardError, match=reason), Pool(pool) as broken:
        broken.run(broken_worker, job.shards, "test")


def test_a_cuda_error_ends_the_process(job: Job) -> None:
    """A CUDA error ends the worker's process, and the job stops when every new worker fails the same way."""
    job.shards = plan([str(number) for number in range(60)], "test", 2)
    with pytest.raises(ShardError, match=r"finished nothing, the last: CUDA error: an illegal memory access"):
        job.run(DeadGpu, ONE)


def test_a_worker_of_no_gpu_sees_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker without a GPU sees none. Ray hides GPUs only from workers that have some, so all the others would
    compute on the first GPU."""
    seen = []
    monkeypatch.setenv(SIMULATED, "1")  # without a GPU in this machine, boot would raise
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for gpus in (0.5, 0.0):
        WorkerProcess().boot(lambda: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]), 1, gpus)
    assert seen == ["0,1", ""]


def test_a_gpu_that_torch_cannot_use_is_no_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker with a GPU that torch cannot use raises an error, and does not compute on the CPU for days."""
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
    """A machine that finishes nothing quarantines no item, however few shards are left."""
    job.shards = plan([str(number) for number in range(items)], "test", 2)
    with pytest.raises(ShardError, match=r"CUDA error: an illegal memory access"):
        job.run(DeadGpu, INLINE)
    assert not job.folder.root.exists()


def test_progress_is_logged_and_not_printed(
    job: Job, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Progress is logged and not printed to stdout; without a terminal the last record counts finished and failed
    items."""
    with caplog.at_level(logging.INFO, "visualbert_core"):
        job.run(Clerk, ONE)
    assert capfd.readouterr().out == ""
    line = r"test: 20 of 20, [\d.]+/s, 0 failed; shards \d+ done, 0 running, 0 waiting; 1 workers"
    assert re.fullmatch(line, caplog.messages[-1])


def test_no_shards_need_no_workers() -> None:
    """An empty list of shards returns at once without starting a worker."""
    with Pool(ONE) as pool:
        assert pool.run(no_worker, [], "test") == []


def test_actors_serve_one_stage_after_the_other(tmp_path: Path) -> None:
    """A second stage runs in the processes of the first stage, which have already imported everything."""
    first, second = Job(tmp_path / "first"), Job(tmp_path / "second")
    with Pool(ONE) as pool:
        for job in (first, second):
            pool.run(partial(Clerk, job.folder.root, job.calls), job.shards, "test")
    processes = {path.name.split("-")[1] for job in (first, second) for path in job.calls.iterdir()}
    assert len(processes) == 1
