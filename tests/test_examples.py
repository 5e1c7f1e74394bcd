"""The scripts in examples/ run as they are on the small synthetic data, and print what their first lines promise."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SmallNight
from own_tasks import open_questions

EXAMPLES = ROOT / "examples"
WEIGHTS = ROOT / "visualbert_core" / "synthetic" / "weights"


@pytest.fixture
def places(small_night: SmallNight, tmp_path: Path) -> dict[str, str]:
    """Return the paths that stand for the capital words of the scripts' command lines."""
    world, runs = small_night.out / "synthetic", small_night.out / "runs" / "demo"
    (store,) = (small_night.out / "features" / "vqa-val2014").iterdir()
    return {
        "IMAGES": str(world / "vqa" / "val2014"),
        "IMAGE": str(world / "vqa" / "val2014" / "COCO_val2014_000000000001.jpg"),
        "DETECTOR": str(WEIGHTS / "detector"),
        "STORE_ROOT": str(tmp_path / "features"),
        "STORE": str(store),
        "MODEL": str(WEIGHTS / "visualbert-vqa"),
        "ANNOTATIONS": str(world / "vqa"),
        "RUNS": str(tmp_path / "runs"),
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
    "own_task": "exact match ",
}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_runs_as_its_first_lines_say(
    path: Path, places: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line in the docstring runs, and the script has at most 50 lines, or 70 where it defines a
    benchmark."""
    text = path.read_text()
    assert len(text.splitlines()) <= (70 if path.stem == "own_task" else 50)
    (line,) = [line.strip() for line in text.splitlines() if line.strip().startswith("python examples/")]
    command, _, quoted = line.partition(' "')
    words = [places.get(word, word) for word in command.split()[2:]] + ([quoted.rstrip('"')] if quoted else [])
    assert command.split()[1] == f"examples/{path.name}"
    monkeypatch.setattr(sys, "argv", [path.name, *words])
    monkeypatch.syspath_prepend(EXAMPLES)  # as Python does for a script
    runpy.run_path(str(path), run_name="__main__")
    assert SAYS[path.stem] in capsys.readouterr().out
