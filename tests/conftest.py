"""Fixtures for all tests. The main one is a small nightly run on the synthetic data with real weights. It runs once a
session and uses every part of the library."""

from __future__ import annotations

import io
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# This must be set before torch is imported. With more threads, the small processes of the tests wait for each other's
# cores, which costs minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests start hundreds of processes. Each would compile the package anew where compiled files may not be kept.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import hypothesis
import pytest
import yaml

from visualbert_core import errors
from visualbert_core.commands.nightly import run_night
from visualbert_core.engine.ray_session import start_ray
from visualbert_core.engine.shards import ShardFolder
from visualbert_core.nightly.matrix import load_matrix
from visualbert_core.nightly.night import Night
from visualbert_core.synthetic import DEMO

ROOT = Path(__file__).parents[1]
# The time that a Hypothesis example takes depends on the machine, so there is no deadline.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


LONGEST = (
    "test_ray_session.py",
    "test_training_workers.py",
    "test_chaos.py",
    "test_ray_job.py",
    "test_training_resume.py",
    "test_training.py",
    "test_workers.py",
    "test_jobs.py",
    "test_pool.py",
    "test_processes.py",
    "test_benchmarks.py",
)
"""Test files of half a minute and more, the longest first. They start first, so that no process is idle while another
one ends them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the tests of the longest files to the front. The order of all other tests stays, also within a file."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the tables that tests recorded. pytest-xdist loses what a test prints itself."""
    for report in terminalreporter.getreports("passed"):
        for name, text in report.user_properties:
            terminalreporter.section(name)
            terminalreporter.write_line(text)


def small_matrix(**changes: Any) -> dict[str, Any]:
    """Return the demo's matrix with few scenes, without Ray and without score floors."""
    matrix: dict[str, Any] = yaml.safe_load(DEMO.read_text())
    matrix["synthetic"] = {"seed": 5, "vqa_images": 12, "vcr_images": 10, "nlvr2_sets": 3, "flickr_images": 8}
    matrix["pool"] = {"inline": True}
    for corpus in matrix["corpora"].values():
        corpus["detector"] = str(DEMO.parent / corpus["detector"])
        corpus["shard_size"] = 5
    for cell in matrix["cells"]:
        cell["model"] = str(DEMO.parent / cell["model"])
        cell["shard_size"] = 5
        cell |= {"floors": {}, "wrong_image": {}}
    return matrix | changes


def run_here(script: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script in this process and return its output and exit code. A new process would import torch, which takes
    seconds. A test of imports, of signals or of a process's end still needs a new process."""
    words = [str(script), *map(str, arguments)]
    said, complained = io.StringIO(), io.StringIO()
    code = 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(complained):
        patch.setattr(sys, "argv", words)
        patch.chdir(ROOT)
        patch.syspath_prepend(script.parent)  # as Python does for a script
        # `leave` ends the process by os._exit, which would end pytest.
        patch.setattr(errors, "leave", sys.exit)
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as ended:
            code = int(ended.code or 0)
    return subprocess.CompletedProcess(words, code, said.getvalue(), complained.getvalue())


@dataclass(frozen=True)
class SmallNight:
    """The matrix file, the output folder and the result of the small night. Tests only read it, because they share
    it."""

    matrix: Path
    out: Path
    night: Night


@pytest.fixture(scope="session")
def small_night(tmp_path_factory: pytest.TempPathFactory) -> SmallNight:
    root = tmp_path_factory.mktemp("night")
    matrix = root / "matrix.yaml"
    matrix.write_text(yaml.safe_dump(small_matrix(out=str(root / "out"))))
    return SmallNight(matrix, root / "out", run_night(load_matrix(matrix, {})))


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """Limit every file that this process writes to `size` bytes. A longer write fails half-way, as on a full disk."""
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel sends SIGXFSZ, which ends a process by default. Ignored, the write fails with EFBIG.
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def memory() -> Iterator[Path]:
    """Return a folder for tests that write thousands of files. It lies in memory where the system has /dev/shm, because
    a disk would take most of the test's time."""
    place = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=place if place.is_dir() else None) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """Start one Ray for a test module, with workers that can import the module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        start_ray()  # sets the environment variables that Ray reads at import
        import ray

        yield
        ray.shutdown()


def markers_of(run: Path) -> list[Path]:
    """Return the markers of the shards of a finished run, in the order of its manifest."""
    shards = ShardFolder(run / "predictions")
    return [Path(str(shards.marker_path(marker.shard_id))) for marker in shards.read_manifest().shards]


def parts_of(run: Path) -> dict[str, bytes]:
    """Return the bytes of every part of a run, by its name."""
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*.parquet")}
