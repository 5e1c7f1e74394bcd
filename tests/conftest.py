"""A small night over the embedded world, run once: real scenes, real weights, every room of the house."""

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

# Before torch is imported: threads of several small processes that wait for each other's cores cost minutes here.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import yaml

from visualbert_core import errors
from visualbert_core.commands.nightly import run_night
from visualbert_core.engine.pool import start_ray
from visualbert_core.nightly.matrix import Night, load_matrix
from visualbert_core.synthetic import DEMO

ROOT = Path(__file__).parents[1]
# How long an example takes is the machine's business.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


LONGEST = ("test_ray_session.py", "test_chaos.py", "test_ray_job.py")
"""Files that take minutes. They begin first, or one process has nothing to do while the other ends the last of them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; the order of the others, and within a file, stays."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests recorded as a table to be looked at; what they print is lost where several processes run them."""
    for report in terminalreporter.getreports("passed"):
        for name, text in report.user_properties:
            terminalreporter.section(name)
            terminalreporter.write_line(text)


def small_matrix(**changes: Any) -> dict[str, Any]:
    """The demo's matrix with a handful of scenes, in this process, without floors."""
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
    """A script in this process: what it says and its exit code, without another process that imports torch for seconds.
    Where an import, a signal or the end of the process is what a test is about, it needs one."""
    words = [str(script), *map(str, arguments)]
    said, complained = io.StringIO(), io.StringIO()
    code = 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(complained):
        patch.setattr(sys, "argv", words)
        patch.chdir(ROOT)
        patch.setattr(errors, "leave", sys.exit)
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as ended:
            code = int(ended.code or 0)
    return subprocess.CompletedProcess(words, code, said.getvalue(), complained.getvalue())


@dataclass(frozen=True)
class SmallNight:
    """The matrix file and what came of it. Read only: every test sees the same one."""

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
    """No file of this process may grow beyond so many bytes: a write fails half-way, as on a full disk."""
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder for tests that write thousands of files: in memory where there is such a place, as most of their time
    would be the disk's."""
    place = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=place if place.is_dir() else None) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """One Ray for the module, whose workers can import it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        start_ray()  # sets what must be set before ray is imported
        import ray

        yield
        ray.shutdown()
