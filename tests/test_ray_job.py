"""`ray job submit` on a running cluster gives the scores of the local run, byte for byte."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, SmallNight

BIN = Path(sys.executable).parent
pytestmark = pytest.mark.slow


@pytest.fixture
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
            os.killpg(head.pid, signal.SIGTERM)
            try:
                head.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(head.pid, signal.SIGKILL)
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
