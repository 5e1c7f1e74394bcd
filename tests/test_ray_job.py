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
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, SmallNight
from PIL import Image as Pillow

BIN = Path(sys.executable).parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a one-node cluster of our own, ended with everything that it started."""
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
            yield address
        finally:
            # Asked to end, Ray takes half a minute; nothing here is worth it.
            for process in (*_below(head.pid), head.pid):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            head.wait()


def test_a_submitted_job_gives_the_same_scores(cluster: str, small_night: SmallNight, tmp_path: Path) -> None:
    """The README's line on a cluster: exit code 0, the table in its log, and the same scores.json in all eight runs."""
    matrix = yaml.safe_load(small_night.matrix.read_text()) | {"pool": {"workers": 2}}
    path = tmp_path / "matrix.yaml"
    path.write_text(yaml.safe_dump(matrix))
    submit = [BIN / "ray", "job", "submit", "--address", cluster, "--working-dir", "."]
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


def test_a_stopped_job_drains(cluster: str, tmp_path: Path) -> None:
    """`ray job stop` in the middle: what runs is committed, the log says what is left, and the same line ends with
    the bytes of an undisturbed run."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(200):
        Pillow.new("RGB", (224, 224), (number, 90, 30)).save(pictures / f"image{number:03}.png")
    detector = ROOT / "visualbert_core" / "world" / "weights" / "detector"

    def line(out: Path) -> list[str]:
        flags = ["--images", pictures, "--detector", detector, "--out", out, "--shard-size", 4, "--workers", 2]
        return ["python", "jobs/extract_features.py", *map(str, flags)]

    grace = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}})
    options = ["--address", cluster, "--submission-id", "stopped", "--no-wait", "--runtime-env-json", grace]
    _ray("job", "submit", *options, "--working-dir", ".", "--", *line(tmp_path / "out"))
    _until(lambda: len(list((tmp_path / "out").glob("pictures/*/shards/*.json"))) > 2)
    assert "was stopped" in _ray("job", "stop", "stopped", "--address", cluster)  # returns when the job has ended
    log = _ray("job", "logs", "stopped", "--address", cluster)
    left = re.search(r"stopped \(SIGTERM\): (\d+) of (\d+) shards are left", log)
    assert left, log
    assert 0 < int(left[1]) < int(left[2]) - 2
    (store,) = (tmp_path / "out").glob("pictures/*")
    assert not (store / "manifest.json").exists()
    assert {path.stem for path in (store / "parts").iterdir()} == {path.stem for path in (store / "shards").iterdir()}
    for out in ("out", "undisturbed"):
        _ray("job", "submit", "--address", cluster, "--working-dir", ".", "--", *line(tmp_path / out))
    (undisturbed,) = (tmp_path / "undisturbed").glob("pictures/*")
    assert _tree(store) == _tree(undisturbed)


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _ray(*arguments: str) -> str:
    done = subprocess.run(
        [BIN / "ray", *arguments], cwd=ROOT, env=_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def _until(true: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


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
