"""The scripts in examples/ run as they are on the small synthetic data, and print what their first lines promise."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

import pytest
import tiny_guide_models
from conftest import ROOT, SmallNight, run_here
from own_tasks import open_questions

EXAMPLES = ROOT / "examples"
WEIGHTS = ROOT / "visualbert_core" / "synthetic" / "weights"


@pytest.fixture(scope="module")
def of_the_guide(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the folders that the scripts of the guide read: two tiny checkpoints, and easy-VQA as official files."""
    root = tmp_path_factory.mktemp("guide")
    tiny_guide_models.write_vilt(root / "vilt")
    tiny_guide_models.write_blip2(root / "blip2")
    run_here(EXAMPLES / "easy_vqa_data.py", root / "easy-vqa")
    return {"CHECKPOINT": str(root / "vilt"), "BLIP2": str(root / "blip2"), "EASY_VQA": str(root / "easy-vqa")}


@pytest.fixture
def places(small_night: SmallNight, of_the_guide: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """Return the paths that stand for the capital words of the scripts' command lines."""
    world, runs = small_night.out / "synthetic", small_night.out / "runs" / "demo"
    (store,) = (small_night.out / "features" / "vqa-val2014").iterdir()
    return of_the_guide | {
        "OUT": str(tmp_path / "out"),
        "FOLDER": str(tmp_path / "folder"),
        "STEPS": "2",
        "IMAGES": str(world / "vqa" / "val2014"),
        "IMAGE": str(world / "vqa" / "val2014" / "COCO_val2014_000000000001.jpg"),
        "DETECTOR": str(WEIGHTS / "detector"),
        "STORE_ROOT": str(tmp_path / "features"),
        "STORE": str(store),
        "MODEL": str(WEIGHTS / "visualbert-vqa"),
        "ANNOTATIONS": str(world / "vqa"),
        "RUNS": str(tmp_path / "runs"),
        "TRAINING": str(tmp_path / "training"),
        "TASK": "vqa",
        "SPLIT": "val",
        "PREDICTIONS": str(runs / "visualbert-vqa__vqa__val" / "submission.json"),
        "QUESTIONS": str(open_questions(world / "vqa", tmp_path / "questions")),
        "RUN_A": str(runs / "visualbert-vqa__vqa__val__wrong-image"),
        "RUN_B": str(runs / "visualbert-vqa__vqa__val"),
    }


SAYS = {
    "extract": "12 images",
    "read_store": "regions of all images:",
    "ask": "% ",
    "evaluate": "accuracy ",
    "score_a_file": "VQA v2 official",
    "compare": "accuracy ",
    "own_model": "{'accuracy': ",
    "own_family": "{'accuracy': ",
    "own_task": "exact match ",
    "guide_vilt": "{'accuracy': ",
    "guide_blip2": "BLIP-2: ",
    "easy_vqa_data": "visualbert evaluate --task vqa",
    "easy_vqa_vilt": "checkpoint: ",
    "easy_vqa_start": "visualbert train examples/easy_vqa.yaml",
    "own_loop": "step 3, 48 examples, loss ",
    "train": "accuracy ",
    "recipe_to_report": "report.html",
    "captioner_make": "swin + gpt2: ",
    "captioner_train": "opens it, too: generate, greedy",
}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_runs_as_its_first_lines_say(
    path: Path, places: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line in the docstring runs, and the script has at most 50 lines, or some more where it
    defines a benchmark or does the whole job."""
    text = path.read_text()
    assert len(text.splitlines()) <= {"own_task": 70, "recipe_to_report": 60}.get(path.stem, 50)
    said = ast.get_docstring(ast.parse(text)) or ""
    (line,) = [line for line in said.splitlines() if line.startswith("python examples/")]
    command, _, quoted = line.partition(' "')
    words = [places.get(word, word) for word in command.split()[2:]] + ([quoted.rstrip('"')] if quoted else [])
    assert command.split()[1] == f"examples/{path.name}"
    monkeypatch.setattr(sys, "argv", [path.name, *words])
    monkeypatch.syspath_prepend(EXAMPLES)  # as Python does for a script
    runpy.run_path(str(path), run_name="__main__")
    assert SAYS[path.stem] in capsys.readouterr().out
