"""The jobs as a user runs them: one command line goes in; exit codes and one-line errors come out.

Most tests call the job's main function in this process. Separate processes test what needs one: a night that fails, an
extraction that starts its own Ray, `--help` and configuration errors.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, SmallNight, run_here, small_matrix
from safetensors.torch import load_file, save_file

WEIGHTS = ROOT / "visualbert_core" / "synthetic" / "weights"


def job(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def job_here(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run_here(ROOT / "jobs" / f"{name}.py", *arguments)


def write_matrix(root: Path, matrix: dict[str, Any] | None = None, **changes: Any) -> Path:
    path = root / "matrix.yaml"
    path.write_text(yaml.safe_dump((matrix or small_matrix()) | {"out": str(root / "out")} | changes))
    return path


def only(task: str) -> dict[str, Any]:
    """Return the small matrix with only the cell and the corpus of one task."""
    matrix = small_matrix()
    (cell,) = (c for c in matrix["cells"] if c["task"] == task)
    return matrix | {"cells": [cell], "corpora": {cell["corpus"]: matrix["corpora"][cell["corpus"]]}}


def the_error(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one error line of the job."""
    assert "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert lines, done.stderr
    return lines[0]


@pytest.fixture
def world(small_night: SmallNight, tmp_path: Path) -> Path:
    """Copy the files of the small synthetic data, so that a test may damage them."""
    return shutil.copytree(small_night.out / "synthetic", tmp_path / "synthetic")


def test_nightly_prints_scores_and_what_to_open(small_night: SmallNight) -> None:
    """A repeated command line computes nothing, prints every task with its scores, and names the report."""
    done = job_here("nightly", small_night.matrix)
    assert done.returncode == 0, done.stderr
    report = str(small_night.out / "report.html")
    for word in ("accuracy", "Q → AR", "consistency", "recall@1", "flickr30k_entities val", report):
        assert word in done.stdout
    assert "features of" not in done.stderr  # no progress line: nothing was left to do


def test_a_score_under_its_floor_is_a_regression(small_night: SmallNight, tmp_path: Path) -> None:
    """A missed floor is exit code 4, with one line for the score under its floor and one for the baseline out of its
    range."""
    out = shutil.copytree(small_night.out, tmp_path / "out")
    matrix = yaml.safe_load(small_night.matrix.read_text()) | {"out": str(out)}
    model = shutil.copytree(WEIGHTS / "visualbert-nlvr2", tmp_path / "opposite")
    weights = load_file(model / "model.safetensors")
    turned = {key: -value if key.startswith("cls.") else value for key, value in weights.items()}
    save_file(turned, model / "model.safetensors")  # swaps the head's outputs, so that True becomes False
    bounds = {"floors": {"accuracy": 90}, "wrong_image": {"accuracy": [0, 0.5]}}
    matrix["cells"][2] |= {"model": str(model), **bounds}
    path = tmp_path / "matrix.yaml"
    path.write_text(yaml.safe_dump(matrix))
    done = job_here("nightly", path)
    assert done.returncode == 4
    assert "which is below 90" in the_error(done)
    assert re.search(r"nlvr2 dev \(wrong image\): accuracy is .* which is above 0.5", done.stderr)


def test_a_failing_cell_does_not_stop_the_others(tmp_path: Path, world: Path) -> None:
    """When the annotations of one task are gone, the other tasks are scored, and the report and the exit code name the
    fault."""
    (world / "nlvr2" / "dev.json").unlink()
    done = job_here("nightly", write_matrix(tmp_path, synthetic=None, data=str(world)))
    assert done.returncode == 2
    assert "dev.json" in the_error(done)
    assert len(list((tmp_path / "out").glob("runs/demo/*/scores.json"))) == 6
    assert "dev.json" in (tmp_path / "out" / "report.html").read_text()


def test_a_truncated_annotation_file_is_named(tmp_path: Path, world: Path) -> None:
    """Half a JSON file fails the cell with an error that names the file, not with a traceback."""
    path = world / "vqa" / "v2_mscoco_val2014_annotations.json"
    path.write_text(path.read_text()[:5000])
    done = job_here("nightly", write_matrix(tmp_path, only("vqa"), synthetic=None, data=str(world)))
    assert done.returncode == 2
    assert path.name in the_error(done)


def test_an_image_that_does_not_decode_is_quarantined_and_its_questions_are_missing(
    tmp_path: Path, world: Path
) -> None:
    """The other images are extracted, the task has no score, the exit code is 3, and the report names the image and the
    reason."""
    (world / "vqa" / "val2014" / "COCO_val2014_000000000004.jpg").write_bytes(b"\xff\xd8\xff\xe0 not really")
    done = job_here("nightly", write_matrix(tmp_path, only("vqa"), synthetic=None, data=str(world)))
    assert done.returncode == 3
    assert "44 predictions for 48 examples: 4 missing" in the_error(done)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "COCO_val2014_000000000004" in page
    assert not list((tmp_path / "out").glob("runs/demo/*/scores.json"))


def test_an_unknown_task_or_key_ends_before_anything_runs(tmp_path: Path) -> None:
    """An unknown task or key is exit code 2 with the nearest name, and nothing is written."""
    matrix = small_matrix()
    matrix["cells"][0]["task"] = "vqa2"
    done = job_here("nightly", write_matrix(tmp_path, cells=matrix["cells"]))
    assert (done.returncode, "did you mean 'vqa'?" in the_error(done)) == (2, True)
    done = job_here("nightly", write_matrix(tmp_path, wrong_image_baselin=True))
    assert (done.returncode, "did you mean 'wrong_image_baseline'?" in the_error(done)) == (2, True)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_dimension_is_refused(small_night: SmallNight, tmp_path: Path) -> None:
    """A published checkpoint needs 2048 numbers per region, and a store with 256 is refused in one line."""
    model = shutil.copytree(WEIGHTS / "visualbert-vqa", tmp_path / "model")
    (model / "visualbert_core.json").unlink()
    (store,) = (small_night.out / "features" / "vqa-val2014").iterdir()
    annotations = small_night.out / "synthetic" / "vqa"
    arguments = ("--annotations", annotations, "--features", store, "--model", model, "--out", tmp_path / "runs")
    done = job_here("evaluate", "--task", "vqa", "--split", "val", *arguments)
    assert done.returncode == 2
    assert "needs 262-d region features" in the_error(done)
    assert "256-d" in the_error(done)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_extract_and_evaluate_by_hand_on_ray(small_night: SmallNight, tmp_path: Path) -> None:
    """The two single jobs, on Ray with two workers, write the same bytes as the matrix in one process. The first job
    starts its own Ray, and the second one joins a running Ray."""
    world = small_night.out / "synthetic"
    images = ("--images", world / "vqa" / "val2014", "--detector", WEIGHTS / "detector", "--corpus", "vqa-val2014")
    done = job("extract_features", *images, "--out", tmp_path, "--shard-size", 5, "--workers", 2, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    (store,) = (small_night.out / "features" / "vqa-val2014").iterdir()
    assert answer == {"store": str(tmp_path / "vqa-val2014" / store.name), "images": 12, "quarantined": 0}
    assert _bytes(Path(answer["store"])) == _bytes(store)
    arguments = ("--annotations", world / "vqa", "--features", answer["store"], "--model", WEIGHTS / "visualbert-vqa")
    sizes = ("--shard-size", 5, "--workers", 2)
    task = ("--task", "vqa", "--split", "val")
    done = job_here("evaluate", *task, *arguments, "--out", tmp_path / "runs", *sizes, "--json")
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)
    assert scores["scores"]["accuracy"] > 50
    (reference,) = (small_night.out / "runs" / "demo").glob("*__vqa__val")
    assert _bytes(Path(scores["run"])) == _bytes(reference)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_self_check_as_a_person_runs_it(small_night: SmallNight, tmp_path: Path) -> None:
    """The invariance check compares two workers on Ray with one worker: exit code 0, one line of verdict, no run
    folder."""
    (store,) = (small_night.out / "features" / "vqa-val2014").iterdir()
    arguments = ("--annotations", small_night.out / "synthetic" / "vqa", "--features", store)
    flags = ("--model", WEIGHTS / "visualbert-vqa", "--out", tmp_path, "--workers", 2, "--invariance-check")
    done = job_here("evaluate", "--task", "vqa", "--split", "val", *arguments, *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("48 examples, alone and in batches of 64: 0 answers changed\n")
    assert list(tmp_path.iterdir()) == []


def test_help_is_quick_and_shows_the_command_line() -> None:
    """`--help` loads neither torch nor Ray, and starts with the command line to type."""
    for name in ("nightly", "extract_features", "evaluate", "score", "compare", "import_annotations"):
        done = job(name, "--help")
        assert done.returncode == 0
        command = {"extract_features": "extract"}.get(name, name.replace("_", "-"))
        assert f"usage: visualbert {command}" in done.stdout
        assert f"    visualbert {command} " in done.stdout


def test_a_reader_who_leaves_early_hears_nothing(small_night: SmallNight) -> None:
    """`… | head` ends without an error line or a traceback, whether a line or only the last flush meets the closed
    pipe."""
    (store,) = (small_night.out / "features" / "vqa-val2014").iterdir()
    for arguments in (["-m", "visualbert_core", "store", "ls", str(store)], ["-u", *_MANY_LINES]):
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run([sys.executable, *arguments], stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        os.close(writing)
        assert (done.returncode, done.stderr) == (1, "")


_MANY_LINES = ("-c", "from visualbert_core.errors import end; end(lambda: [print(n) for n in range(99)] and 0)")


def test_the_exit_code_is_the_job_s_whatever_the_libraries_do_at_the_end() -> None:
    """Registered exit handlers run, and the exit code stays what the job returned even where a library's thread would
    crash after them."""
    crash = "import atexit, ctypes; library = ctypes.CDLL(None); library.__cxa_atexit(library.abort, None, None); "
    close = "atexit.register(print, 'closed'); from visualbert_core.errors import end; "
    for last, code in (("end(lambda: 4)", 4), ("raise SystemExit(4)", -signal.SIGABRT)):
        done = subprocess.run([sys.executable, "-c", crash + close + last], capture_output=True, text=True, cwd=ROOT)
        assert (done.returncode, done.stdout, done.stderr) == (code, "closed\n", "")


def test_a_full_disk_behind_stdout_is_one_line() -> None:
    """A full disk behind stdout is one error line and exit code 1, although the last flush fails as well."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, *_MANY_LINES], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "No space left on device" in done.stderr


def _bytes(folder: Path) -> dict[str, bytes]:
    return {os.path.relpath(p, folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
