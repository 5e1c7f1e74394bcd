"""`ray job submit` on a running cluster gives the same bytes as a local run, and `ray job stop` lets running shards
finish.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, SmallNight
from heads import BIN, PATIENCE, Head, below, environment, head
from PIL import Image as Pillow
from test_training import steps

from visualbert_core.cli import main
from visualbert_core.config import ExtractConfig, PoolConfig
from visualbert_core.engine.pool import Pool, WorkerProcess
from visualbert_core.features.extract import extract

pytestmark = pytest.mark.slow


TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """Start a one-node cluster as the README does, with a token in its own home folder. Nothing else is written there.
    test_ray_session.py tests clusters without a token, and with a token in another place."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(TOKEN)
    with head(environment(home), TOKEN) as running:
        yield replace(running, environment=running.environment | {"RAY_AUTH_MODE": "token"})
    assert [path.name for path in home.rglob("*") if path.is_file()] == ["auth_token"]


def log_of(cluster: Head, submission: str) -> str:
    """Return the log of a job so far."""
    path = cluster.folder / "session_latest" / "logs" / f"job-driver-{submission}.log"
    return path.read_text() if path.exists() else ""


@contextmanager
def paused_workers(cluster: Head) -> Iterator[None]:
    """Pause our actors (SIGSTOP) inside the `with` block."""
    title = b"ray::" + WorkerProcess.__name__.encode()
    actors = [pid for pid in below(cluster.pid) if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(title)]
    assert len(actors) == 2
    for pid in actors:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in actors:
            os.kill(pid, signal.SIGCONT)


def test_a_submitted_job_gives_the_same_scores(cluster: Head, small_night: SmallNight, tmp_path: Path) -> None:
    """The README's command line on a cluster ends with exit code 0, the table in its log, and the same scores.json in
    all eight runs."""
    matrix = yaml.safe_load(small_night.matrix.read_text()) | {"pool": {"workers": 2}}
    path = tmp_path / "matrix.yaml"
    path.write_text(yaml.safe_dump(matrix))
    submit = [BIN / "ray", "job", "submit", "--address", cluster.dashboard, "--working-dir", "."]
    job = ["python", "jobs/nightly.py", path, "--out", tmp_path / "out"]
    done = subprocess.run(
        [*submit, "--", *map(str, job)], cwd=ROOT, env=cluster.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(tmp_path / "out" / "report.html") in done.stdout
    scores = sorted(small_night.out.glob("runs/demo/*/scores.json"))
    assert len(scores) == 8
    for mine in scores:
        theirs = tmp_path / "out" / mine.relative_to(small_night.out)
        assert theirs.read_bytes() == mine.read_bytes(), mine.parent.name


def test_a_submitted_training_has_the_losses_of_one_process(
    cluster: Head, small_night: SmallNight, tmp_path: Path
) -> None:
    """The line of docs/how-to/train.md ends with exit code 0. Fifty steps of its two workers, over batches that do not
    divide, give the losses of one worker, and its log."""
    (store,) = (small_night.out / "features" / "vqa-val2014").iterdir()
    recipe = {"task": "vqa", "split": "val", "annotations": small_night.out / "synthetic" / "vqa", "features": store}
    recipe |= {"model": ROOT / "visualbert_core" / "synthetic" / "weights" / "visualbert-vqa", "learning_rate": 1e-4}
    recipe = {name: str(value) if isinstance(value, Path) else value for name, value in recipe.items()}
    recipe |= {"steps": 50, "batch_size": 7, "tokens_per_pass": 100, "dropout": 0.0}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    line = ["--working-dir", ".", "--", "python", "jobs/train.py", path, "--out", tmp_path / "two", "--workers", "2"]
    said = _ray(cluster, "job", "submit", "--address", cluster.dashboard, *map(str, line))
    assert str(tmp_path / "two" / "training.html") in said
    assert main(["train", str(path), "--out", str(tmp_path / "one")]) == 0
    one, two = (steps(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) == 50
    for expected, found in zip(one, two, strict=True):
        for key, most in (("loss", 1e-5), ("norm", 1e-3)):
            assert found.pop(key) == pytest.approx(expected.pop(key), rel=most), (key, expected["step"])
        assert found.pop("terms") == pytest.approx(expected.pop("terms"), rel=1e-5)
        assert found == expected


def test_a_stopped_job_drains(cluster: Head, tmp_path: Path) -> None:
    """`ray job stop` in the middle commits the running shards, and the log says what is left. The same command line
    then ends with the bytes of an undisturbed run."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(80):
        Pillow.new("RGB", (224, 224), (number, 90, 30)).save(pictures / f"image{number:03}.png")
    detector = ROOT / "visualbert_core" / "synthetic" / "weights" / "detector"
    paths = ["--images", pictures, "--detector", detector, "--out", tmp_path / "out"]
    line = ["--", "python", "jobs/extract_features.py", *map(str, paths), "--shard-size", "4", "--workers", "2"]
    submit = ["job", "submit", "--address", cluster.dashboard, "--working-dir", "."]

    grace = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}})
    submitted = _ray_process(
        cluster, *submit, "--submission-id", "stopped", "--no-wait", "--runtime-env-json", grace, *line
    )
    _until(lambda: len(list((tmp_path / "out").glob("pictures/*/shards/*.json"))) > 2)
    with paused_workers(cluster):  # else the workers finish before the command has started
        stop = _ray_process(cluster, "job", "stop", "stopped", "--address", cluster.dashboard)
        _until(lambda: "stopping (SIGTERM)" in log_of(cluster, "stopped"))
    assert "was stopped" in _said(stop)  # the command returns once the job has ended
    assert "Next steps" in _said(submitted)
    log = log_of(cluster, "stopped")
    left = re.search(r"stopped \(SIGTERM\): (\d+) of (\d+) shards are left", log)
    assert left, log
    assert 0 < int(left[1]) < int(left[2]) - 2
    assert "the cluster has no GPU now, so CPUs compute" in log
    (store,) = (tmp_path / "out").glob("pictures/*")
    assert not (store / "manifest.json").exists()
    assert {path.stem for path in (store / "parts").iterdir()} == {path.stem for path in (store / "shards").iterdir()}
    _ray(cluster, *submit, *line)
    with Pool(PoolConfig(inline=True)) as pool:
        alone = {"images": pictures, "detector": detector, "out": tmp_path / "undisturbed"}
        undisturbed = extract(ExtractConfig(**alone, shard_size=4), pool).folder
    assert _tree(store) == _tree(undisturbed)


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _ray(cluster: Head, *arguments: str) -> str:
    return _said(_ray_process(cluster, *arguments))


def _ray_process(cluster: Head, *arguments: str) -> subprocess.Popen[str]:
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([BIN / "ray", *arguments], cwd=ROOT, env=cluster.environment, text=True, **both)


def _said(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return said


def _until(true: Callable[[], bool], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)
