"""Any process may be killed at any moment, and the result equals an undisturbed run's, byte for byte.

Real driver processes run on a Ray cluster of several simulated nodes with fake GPUs. They use the library's extraction
and evaluation with the small detector and model of standins.py.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import SmallNight
from standins import PAUSE, SHARD, Job, RealJob, drive, load_pixels, new_job, write_world

from visualbert_core.config import PoolConfig
from visualbert_core.corpus.listing import list_images
from visualbert_core.engine import pool as cluster
from visualbert_core.engine import scheduler
from visualbert_core.engine.hardware import SIMULATED
from visualbert_core.engine.pool import Pool
from visualbert_core.engine.ray_session import LOCAL_ENVIRONMENT
from visualbert_core.engine.shards import Marker, Part, Shard, ShardFolder, plan
from visualbert_core.errors import StoreError, VisualBertCoreError
from visualbert_core.features.store import FeatureStore
from visualbert_core.features.worker import FeatureWorker, full_fingerprint, plan_images
from visualbert_core.io import locations, storage
from visualbert_core.io.locations import location

pytestmark = pytest.mark.slow
KINDS = ["actor"] * 4 + ["driver"] * 3 + ["node"]
"""What dies in a stage, one in each round."""
IMAGES = 48
PATIENCE = 900  # seconds; an idle machine needs some tenths of a second
DRIVERS = multiprocessing.get_context("forkserver")
# with these imported beforehand, a driver starts fast
PRELOADED = ["ray", "standins", "visualbert_core.models.visualbert.predictor"]


class Driver:
    """A process that does jobs with one pool. When it is killed, a new process with another number of workers goes
    on."""

    def __init__(self, *jobs: Job, workers: int = 1) -> None:
        self.jobs, self.workers = jobs, workers
        self.start()

    def start(self) -> None:
        pool = PoolConfig(workers=self.workers, gpus_per_worker=1)
        self.process = DRIVERS.Process(target=drive, args=(self.jobs, pool))
        self.process.start()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        # The number of workers alternates between 1 and 2.
        self.workers = 3 - self.workers
        self.start()

    def finish(self, code: int = 0) -> str:
        """Wait until the process ends with this exit code, and return what it printed."""
        self.process.join(PATIENCE)
        said = "".join(path.read_text() for job in self.jobs for path in job.out.glob("stderr"))
        assert self.process.exitcode == code, said[-3000:]
        return said


class Nodes:
    """A head that does no work, and two nodes of four fake GPUs each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        # Ray accepts no object store below 75 MB. Port 0 lets every node's agent take a free port.
        self.options = {"object_store_memory": 80 << 20, "dashboard_agent_listen_port": 0}
        self.cluster = Cluster(
            initialize_head=True, head_node_args=self.options | {"num_cpus": 0, "include_dashboard": False}
        )
        self.nodes = [self.add(), self.add()]
        self.cluster.wait_for_nodes()

    def add(self) -> Any:
        return self.cluster.add_node(wait=False, num_cpus=0, num_gpus=4, **self.options)

    def replace(self, number: int) -> None:
        """Kill a node by SIGKILL and add a new one."""
        self.cluster.remove_node(self.nodes[number], allow_graceful=False)
        self.nodes[number] = self.add()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in LOCAL_ENVIRONMENT.items():
            if name not in os.environ:
                patch.setenv(name, value)
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        patch.setenv(SIMULATED, "1")
        nodes = Nodes()
        patch.setenv("RAY_ADDRESS", nodes.cluster.address)
        DRIVERS.set_forkserver_preload(PRELOADED)
        yield nodes
        nodes.cluster.shutdown()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("chaos"), IMAGES)


@pytest.fixture(scope="module")
def undisturbed(world: Path) -> dict[str, bytes]:
    job = new_job(world, "undisturbed")
    job.alone()
    assert job.census() == (0, 0)
    return job.tree()


# Deaths of actors, drivers and nodes.


@dataclass(frozen=True)
class Event:
    """What is killed in a stage, and after how many of its shards."""

    stage: str
    kind: str
    after: int
    delay: float

    def __str__(self) -> str:
        return f"{self.kind} after {self.after} shards"


def rounds(seed: int) -> list[list[Event]]:
    """Return rounds of one event for each stage, at random moments and in random order."""
    chance = random.Random(seed)

    def drawn(stage: str) -> list[Event]:
        kinds = chance.sample(KINDS, len(KINDS))
        return [Event(stage, kind, chance.randrange(IMAGES // SHARD - 4), chance.random() * 0.2) for kind in kinds]

    return [list(events) for events in zip(drawn("features"), drawn("runs"), strict=True)]


def disturb(job: Job, nodes: Nodes, driver: Driver, event: Event) -> None:
    """Wait for the event's moment and kill what it names."""
    wait_until(lambda: job.done(event.stage) >= event.after, driver)
    time.sleep(event.delay)
    if event.kind == "actor":
        order = job.out.parent / "kill"
        order.touch()
        wait_until(lambda: not order.exists(), driver)
    elif event.kind == "node":
        nodes.replace(event.after % 2)
    else:
        driver.kill()


def wait_until(reached: Callable[[], bool], driver: Driver) -> None:
    while not reached():
        assert driver.process.is_alive(), driver.finish()
        time.sleep(0.01)


def test_whatever_dies_the_bytes_are_the_same(
    nodes: Nodes, world: Path, undisturbed: dict[str, bytes], record_property: Callable[[str, str], None]
) -> None:
    """In each round an actor, a node or the driver is killed once in each stage, and the same line again, with another
    number of workers, ends with nothing lost and nothing twice. Each kind of death comes in each stage."""
    table = [f"{'round':>5}  {'extraction':<24}{'evaluation':<24}{'seconds':>7}{'lost':>6}{'twice':>6}  bytes"]
    # The last job never starts, so the driver does not end before the test ends it.
    jobs = [new_job(world, f"round{number}") for number in range(len(KINDS) + 1)]
    driver = Driver(*jobs)
    for number, (job, events) in enumerate(zip(jobs, rounds(seed=1), strict=False)):
        began = time.monotonic()
        driver.jobs = tuple(jobs[number:])
        job.may_go()
        for event in events:
            disturb(job, nodes, driver, event)
        wait_until(job.ended, driver)
        (lost, twice), same = job.census(), job.tree() == undisturbed
        killed = "".join(f"{event!s:<24}" for event in events)
        seconds = time.monotonic() - began
        table.append(f"{number:>5}  {killed}{seconds:>7.1f}{lost:>6}{twice:>6}  {'equal' if same else 'DIFFERENT'}")
        assert (lost, twice, same) == (0, 0, True), "\n".join(table)
    driver.process.kill()
    record_property(f"{len(KINDS)} rounds in which something dies", "\n".join(table))


def test_with_real_models_too(nodes: Nodes, small_night: SmallNight, tmp_path: Path) -> None:
    """With the real detector and VisualBERT, a killed actor in extraction and a killed driver in evaluation still give
    the small night's features and predictions, byte for byte."""
    job = RealJob(small_night.out, tmp_path / "out").may_go()
    driver = Driver(job)
    disturb(job, nodes, driver, Event("features", "actor", 1, 0.0))
    disturb(job, nodes, driver, Event("runs", "driver", 1, 0.0))
    driver.finish()
    found = job.tree()
    assert len(found) > 10
    assert {name: (small_night.out / name).read_bytes() for name in found} == found


def test_two_deadly_images_among_sixty(nodes: Nodes, tmp_path: Path) -> None:
    """Two images that end the process become failure rows, the other 58 become features, and a question that ends the
    process is a failure, so there is no score."""
    deadly = (5, 43)
    job = new_job(write_world(tmp_path / "synthetic", 60, deadly, deadly_question=7001), "out").may_go()
    said = Driver(job, workers=4).finish(code=3)
    assert "60 of 60, " in said
    assert ", 2 failed" in said
    assert "115 predictions for 116 examples: 1 missing" in said
    (store,) = (job.out / "features" / "toy").iterdir()
    opened = FeatureStore.open(store, verify=True)
    assert {(f.item_id, f.stage, f.error) for f in opened.failures()} == {
        (f"COCO_val2014_{number:012d}", "worker", "WorkerLost") for number in deadly
    }
    assert len(opened) == 58
    assert job.census() == (0, 0)


def test_two_drivers_at_once_end_as_one(nodes: Nodes, world: Path, undisturbed: dict[str, bytes]) -> None:
    """Two drivers that run the same line at once both end well and write nothing twice."""
    job = new_job(world, "twice").may_go()
    for driver in [Driver(job), Driver(job, workers=2)]:
        driver.finish()
    assert job.census() == (0, 0)
    assert job.tree() == undisturbed


def test_sigterm_drains(nodes: Nodes, world: Path, undisturbed: dict[str, bytes]) -> None:
    """A job that receives SIGTERM commits its running shards, says what is left and exits with 6; the same line then
    completes it."""
    job = new_job(world, "stopped").may_go()
    pause = job.out / PAUSE
    pause.touch()
    driver = Driver(job)
    wait_until(lambda: job.done("features") > 0, driver)
    driver.process.terminate()
    wait_until(lambda: "stopping (SIGTERM): " in (job.out / "stderr").read_text(), driver)
    pause.unlink()
    said = driver.finish(code=6)
    assert f"error: stopped (SIGTERM): {17 - job.done('features')} of 17 shards are left" in said
    Driver(job, workers=2).finish()
    assert job.tree() == undisturbed


# ---------------------------------------------------------------------------------------------------------------------
# Which actor gets which GPU.


@dataclass
class Roll:
    """A worker that records which GPUs it sees, and waits until `expected` workers have done so."""

    root: Path
    expected: int

    def run(self, shard: Shard) -> Marker:
        import ray

        context = ray.get_runtime_context()
        seen = {"node": context.get_node_id(), "visible": os.environ["CUDA_VISIBLE_DEVICES"], "mine": ray.get_gpu_ids()}
        (self.root / f"{os.getpid()}.json").write_text(json.dumps(seen))
        until = time.monotonic() + PATIENCE
        while len(list(self.root.glob("*.json"))) < self.expected and time.monotonic() < until:
            time.sleep(0.05)
        return ShardFolder(self.root).commit(shard, Part(b"", len(shard.items), None, 0))


def call_the_roll(root: Path, expected: int, pool: PoolConfig) -> list[dict[str, Any]]:
    """Return what each of `expected` workers saw."""
    with Pool(pool) as workers:
        workers.run(partial(Roll, root, expected), plan(map(str, range(4 * expected)), "roll", 1), "roll")
    return [json.loads(path.read_text()) for path in root.glob("*.json")]


@pytest.mark.parametrize("gpus", [1, 0.5])
def test_every_actor_sees_the_one_gpu_that_is_its_own(nodes: Nodes, tmp_path: Path, gpus: float) -> None:
    """Each of four actors with one GPU sees a different one, and at most two actors with half a GPU see the same
    one."""
    seen = call_the_roll(tmp_path, 4, PoolConfig(workers=4, gpus_per_worker=gpus))
    assert len(seen) == 4
    assert all([str(device) for device in actor["mine"]] == actor["visible"].split(",") for actor in seen)
    places = [(actor["node"], actor["visible"]) for actor in seen]
    assert all("," not in visible for _, visible in places)
    assert max(places.count(place) for place in places) <= 1 / gpus


def test_the_pool_grows_with_the_cluster(nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a configured number, the pool has one worker for each GPU and adds one when a node joins."""
    monkeypatch.setattr(cluster, "NODES_SECONDS", 0.5)
    joined = nodes.add()
    try:
        seen = call_the_roll(tmp_path, 3, PoolConfig(gpus_per_worker=4))
    finally:
        nodes.cluster.remove_node(joined)
    assert len({actor["node"] for actor in seen}) == 3


# ---------------------------------------------------------------------------------------------------------------------
# Disks and object stores that fail.


def limited(job: Job, size: int) -> None:
    """Run a driver that may write at most `size` bytes to a file. A longer write fails half-way, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    scheduler.RETRY_WAITS = (0.0, 0.0)
    drive([job], PoolConfig(inline=True))


def test_a_write_that_fails_half_way(world: Path, undisturbed: dict[str, bytes]) -> None:
    """Where the kernel refuses the rest of a part, one line says so, neither a part nor a draft is left, and the same
    line resumes."""
    job = new_job(world, "limited").may_go()
    driver = DRIVERS.Process(target=limited, args=(job, 2000))
    driver.start()
    driver.join()
    said = (job.out / "stderr").read_text()
    assert driver.exitcode == 1, said
    assert "error: 3 shard(s) failed on every attempt" in said
    assert "OSError: [Errno 27] File too large" in said
    assert not [path for path in job.out.glob("features/*/*/parts/*") if path.is_file()]
    job.alone()
    assert job.tree() == undisturbed


# subprocess.DEVNULL is -3.
@pytest.mark.skipif(subprocess.call(["unshare", "-rm", "true"], stderr=-3) != 0, reason="no mounts of one's own here")
def test_a_full_disk_and_one_that_may_not_be_written(
    world: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """A full file system and a read-only one each end in one line and exit code 1; with more space the same line
    completes."""
    out, kept = tmp_path / "out", tmp_path / "kept"
    out.mkdir()
    run = f'{sys.executable} -c \'from standins import drive_here; drive_here("{world}", "{out}")\''
    mount = f"mount -t tmpfs -o size=64k tmpfs {out}"
    steps = [mount, f"{run}; test $? = 1", f"mount -o remount,ro {out}", f"{run}; test $? = 1"]
    steps += [f"mount -o remount,rw,size=16m {out}", run, f"cp -r {out} {kept}"]
    command = ["unshare", "-rm", "sh", "-c", " && ".join(f"{{ {step}; }}" for step in steps)]
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, check=False)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "Traceback" in line] == []
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert "No space left on device" in errors[0]
    assert "Read-only file system" in errors[1]
    assert Job(world, kept).tree() == undisturbed


class Faulty:
    """An S3 server on which a fifth of all requests fail: with an error, with half an answer, or with "slow down"."""

    def __init__(self, app: Any, seed: int) -> None:
        self.app, self.chance, self.rate, self.faults = app, random.Random(seed), 0.2, 0

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if self.chance.random() >= self.rate:
            return self.app(environ, start_response)
        self.faults += 1
        kind = self.chance.choice(["500 Internal Server Error", "503 Slow Down", "cut"])
        if kind != "cut":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            code = "InternalError" if kind[0:3] == "500" else "SlowDown"
            body = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
            start_response(kind, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [body]
        sent: list[Any] = []
        # the server did the work, but the client does not know
        whole = b"".join(self.app(environ, lambda *answer: sent.extend(answer[:2])))
        start_response(sent[0], sent[1])
        return [whole[: len(whole) // 2]]


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    pytest.importorskip("s3fs")
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    app = Faulty(DomainDispatcherApplication(create_backend_app), seed=1)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    locations._system.cache_clear()
    app.rate, rate = 0.0, app.rate
    locations._system("s3").mkdir("bucket")
    app.rate = rate
    yield app
    locations._system.cache_clear()
    server.shutdown()


def test_an_object_store_that_fails_every_fifth_request(
    faulty: Faulty, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt completes or ends in one line, no reader can open an unfinished store, and the final store equals
    the local one."""
    monkeypatch.setattr(scheduler, "RETRY_WAITS", (0.0, 0.0))
    images = list_images(world / "images").first(12)
    fingerprint = full_fingerprint(load_pixels(tmp_path, "cpu"), "none")
    shards = plan_images(images, images.ids, "s3", SHARD)

    def attempt(root: Path) -> FeatureStore:
        folder = ShardFolder(root)
        with Pool(PoolConfig(inline=True)) as pool:
            pool.run(partial(FeatureWorker, tmp_path, root, fingerprint, 8, load_pixels), folder.pending(shards), "s3")
        folder.finish(shards, {"corpus": "toy", "fingerprint": fingerprint})
        return FeatureStore.open(root)

    remote, local = location("s3://bucket/store"), attempt(tmp_path / "local").folder
    lines = []
    for _ in range(10):
        try:
            attempt(remote)
            break
        except (VisualBertCoreError, OSError) as error:
            lines.append(str(error))
        rate, faulty.rate = faulty.rate, 0.0
        if storage.size(remote / "manifest.json") is None:
            with pytest.raises(StoreError, match=r"is unfinished|is not there"):
                FeatureStore.open(remote)
        faulty.rate = rate
    assert faulty.faults > 5
    assert all(line and "\n" not in line for line in lines)
    faulty.rate = 0.0
    FeatureStore.open(remote, verify=True)
    for path in local.rglob("*.*"):
        assert (remote / path.relative_to(local)).read_bytes() == path.read_bytes()
