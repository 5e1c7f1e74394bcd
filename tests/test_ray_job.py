"""`ray job submit` on a running cluster gives the scores of the local run, byte for byte, and `ray job stop` drains."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, SmallNight
from PIL import Image as Pillow

from visualbert_core.cluster import Pool
from visualbert_core.config import ExtractConfig, PoolConfig
from visualbert_core.features.extract import extract

BIN = Path(sys.executable).parent
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Cluster:
    """Where it answers, its first process, and where it writes its logs."""

    address: str
    head: int
    folder: Path

    def log(self, submission: str) -> str:
        """What a job has said so far."""
        path = self.folder / "session_latest" / "logs" / f"job-driver-{submission}.log"
        return path.read_text() if path.exists() else ""

    @contextmanager
    def paused_workers(self) -> Iterator[None]:
        """Our actors get no further meanwhile."""
        actors = [
            pid for pid in _below(self.head) if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::Host")
        ]
        assert len(actors) == 2
        for pid in actors:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in actors:
                os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A one-node cluster of our own, ended with everything that it started."""
    port, dashboard = _free_port(), _free_port()
    address = f"http://127.0.0.1:{dashboard}"
    ports = ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--dashboard-agent-listen-port=0"]
    ports.append(f"--port={port}")
    # Ray's sockets need a short path, which pytest's own folders are not.
    with tempfile.TemporaryDirectory(prefix="vbray", ignore_cleanup_errors=True) as folder:
        head = subprocess.Popen(
            [BIN / "ray", "start", "--head", "--block", *ports, "--disable-usage-stats", f"--temp-dir={folder}"],
            env=_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            _wait_for(f"{address}/api/version", head)
            yield Cluster(address, head.pid, Path(folder))
        finally:
            # Asked to end, Ray takes half a minute; nothing here is worth it.
            for process in (*_below(head.pid), head.pid):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            head.wait()


def test_a_submitted_job_gives_the_same_scores(cluster: Cluster, small_night: SmallNight, tmp_path: Path) -> None:
    """The README's line on a cluster: exit code 0, the table in its log, and the same scores.json in all eight runs."""
    matrix = yaml.safe_load(small_night.matrix.read_text()) | {"pool": {"workers": 2}}
    path = tmp_path / "matrix.yaml"
    path.write_text(yaml.safe_dump(matrix))
    submit = [BIN / "ray", "job", "submit", "--address", cluster.address, "--working-dir", "."]
    job = ["python", "jobs/nightly.py", path, "--out", tmp_path / "out"]
    done = subprocess.run(
        [*submit, "--", *map(str, job)], cwd=ROOT, env=_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(tmp_path / "out" / "report.html") in done.stdout
    scores = sorted(small_night.out.glob("runs/demo/*/scores.json"))
    assert len(scores) == 8
    for mine in scores:
        theirs = tmp_path / "out" / mine.relative_to(small_night.out)
        assert theirs.read_bytes() == mine.read_bytes(), mine.parent.name


def test_a_stopped_job_drains(cluster: Cluster, tmp_path: Path) -> None:
    """`ray job stop` in the middle: what runs is committed, the log says what is left, and the same line ends with
    the bytes of an undisturbed run."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(120):
        Pillow.new("RGB", (224, 224), (number, 90, 30)).save(pictures / f"image{number:03}.png")
    detector = ROOT / "visualbert_core" / "world" / "weights" / "detector"
    paths = ["--images", pictures, "--detector", detector, "--out", tmp_path / "out"]
    line = ["--", "python", "jobs/extract_features.py", *map(str, paths), "--shard-size", "4", "--workers", "2"]
    submit = ["job", "submit", "--address", cluster.address, "--working-dir", "."]

    grace = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}})
    submitted = _ray_process(*submit, "--submission-id", "stopped", "--no-wait", "--runtime-env-json", grace, *line)
    _until(lambda: len(list((tmp_path / "out").glob("pictures/*/shards/*.json"))) > 2)
    with cluster.paused_workers():  # or they are through before the command has started
        stop = _ray_process("job", "stop", "stopped", "--address", cluster.address)
        _until(lambda: "stopping (SIGTERM)" in cluster.log("stopped"))
    assert "was stopped" in _said(stop)  # it ends when the job has ended
    assert "Next steps" in _said(submitted)
    log = cluster.log("stopped")
    left = re.search(r"stopped \(SIGTERM\): (\d+) of (\d+) shards are left", log)
    assert left, log
    assert 0 < int(left[1]) < int(left[2]) - 2
    assert "the cluster has no GPU now, so CPUs compute" in log
    (store,) = (tmp_path / "out").glob("pictures/*")
    assert not (store / "manifest.json").exists()
    assert {path.stem for path in (store / "parts").iterdir()} == {path.stem for path in (store / "shards").iterdir()}
    _ray(*submit, *line)
    with Pool(PoolConfig(inline=True)) as pool:
        alone = {"images": pictures, "detector": detector, "out": tmp_path / "undisturbed"}
        undisturbed = extract(ExtractConfig(**alone, shard_size=4), pool).folder
    assert _tree(store) == _tree(undisturbed)


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _ray(*arguments: str) -> str:
    return _said(_ray_process(*arguments))


def _ray_process(*arguments: str) -> subprocess.Popen[str]:
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([BIN / "ray", *arguments], cwd=ROOT, env=_environment(), text=True, **both)


def _said(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return said


def _until(true: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def _below(pid: int) -> Iterator[int]:
    """Every process that this one started, and theirs."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from _below(int(child))
            yield int(child)


def _environment() -> dict[str, str]:
    """`python` in a job is the one that this test runs with; no other cluster's address or token leaks in."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return environment | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(url: str, process: subprocess.Popen[bytes], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"{url} did not come up (ray start exit code: {process.poll()})")
