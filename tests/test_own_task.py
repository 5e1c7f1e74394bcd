"""A benchmark from outside the package, named as module:Class, works wherever a benchmark of the package works."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, SmallNight
from own_tasks import open_questions
from test_jobs import job_here, the_error
from test_nightly import damage

from visualbert_core.cli import main
from visualbert_core.commands.nightly import run_night
from visualbert_core.config import EvaluateConfig, PoolConfig
from visualbert_core.engine.pool import Pool
from visualbert_core.errors import AnnotationError, ConfigError, InputError
from visualbert_core.evaluation.run import evaluate
from visualbert_core.nightly.matrix import load_matrix
from visualbert_core.nightly.night import Night
from visualbert_core.schema import Grounding, MultipleChoice, Prediction, Question, Statement
from visualbert_core.tasks import Task, find_task, judge, open_task, summarize
from visualbert_core.tasks.nlvr2 import Nlvr2Task

EXAMPLES = ROOT / "examples"
WEIGHTS = ROOT / "visualbert_core" / "synthetic" / "weights"
OWN = "own_task:OpenQuestions"
OTHERS = ("own_tasks:Choices", "own_tasks:Pairs", "own_tasks:References")


@pytest.fixture(autouse=True)
def _examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the folder of the example on Python's path, as Python does for a script in it."""
    monkeypatch.syspath_prepend(EXAMPLES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write two records of each benchmark, in one folder per benchmark."""
    lines = {
        "OpenQuestions": [{"id": str(i), "image": "a", "question": "What?", "answer": "Red"} for i in (1, 2)],
        "Choices": [{"id": str(i), "image": "a", "question": "?", "choices": ["x", "y"], "answer": i} for i in (0, 1)],
        "References": [{"id": str(i), "image": "a", "words": "the dog", "box": [1, 1, 9, 9]} for i in (1, 2)],
    }
    for name, records in lines.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "val.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "Pairs").mkdir()
    (tmp_path / "Pairs" / "val.csv").write_text("\ufeffid,left,right,sentence,true\n1,a,b,Yes.,true\n2,a,b,No.,false\n")
    return tmp_path


def opened(name: str, folder: Path) -> Task:
    return open_task(name, folder / name.partition(":")[2], "val")


def answers(task: Task, of: Any) -> list[Prediction]:
    return [Prediction(name, image, of(name), ()) for name, image in task.expected().items()]


# ---------------------------------------------------------------------------------------------------------------------
# the contract


def test_the_page_shows_the_example() -> None:
    """docs/how-to/task.md shows the example file unchanged, so the tested file is the documented one."""
    page = (ROOT / "docs" / "how-to" / "task.md").read_text()
    assert f"```python\n{(EXAMPLES / 'own_task.py').read_text()}```" in page


@pytest.mark.parametrize("name", [OWN, *OTHERS])
def test_the_defaults_fit_every_form(name: str, folder: Path, tmp_path: Path) -> None:
    """Gold is worth 100 % and the default `worst` 0 %, and the default submission reads back as it was written."""
    task = opened(name, folder)
    assert (task.name, task.subset, task.headline) == (name, None, task.metrics[0])
    assert all(path.is_file() for path in task.annotation_files())
    for of, worth in ((task.gold, 100.0), (task.best, 100.0), (task.worst, 0.0)):
        scores = judge(task, answers(task, of))
        assert {metric: found.value for metric, found in summarize(scores).metrics.items()} == {task.headline: worth}
        assert task.official(scores) == {task.headline: worth / 100}
    (tmp_path / "submission.json").write_bytes(task.submission({p.example_id: p for p in answers(task, task.gold)}))
    assert task.read_submission(tmp_path / "submission.json") == answers(task, task.gold)


@pytest.mark.parametrize(
    ("example", "answer", "scores", "sure"),
    [
        (Question("1", ("a",), "?"), "red", (0.7,), 0.7),
        (MultipleChoice("1", ("a",), (), (), (("x",), ("y",)), ()), 1, (0.2, 0.8), 0.8),
        (Statement("1", ("a", "b"), "."), "False", (0.6, 0.4), 0.6),
        (Statement("1", ("a", "b"), "."), "True", (), None),
    ],
)
def test_a_judged_answer_has_its_confidence(
    example: Any, answer: Any, scores: tuple[float, ...], sure: float | None, folder: Path
) -> None:
    """A judged answer of each form has the confidence of its score, and has none where the predictions have none."""
    judged = opened(OWN, folder).judged(example, Prediction("1", "a", answer, scores))
    assert (judged.answer, judged.confidence) == (answer, sure)


@pytest.mark.parametrize(
    ("example", "answer"),
    [
        (Question("1", ("a",), "?"), 3),
        (MultipleChoice("1", ("a",), (), (), (("x",), ("y",)), ()), 2),
        (MultipleChoice("1", ("a",), (), (), (("x",), ("y",)), ()), True),
        (Statement("1", ("a", "b"), "."), "yes"),
        (Grounding("1", ("a",), (), ()), []),
    ],
)
def test_an_answer_of_another_form_is_refused(example: Any, answer: Any, folder: Path) -> None:
    """An answer of another form is an error that names the example, not a wrong answer."""
    with pytest.raises(InputError, match=r"prediction of 1: .* is not an answer to a"):
        opened(OWN, folder).judged(example, Prediction("1", "a", answer, ()))


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "val.jsonl",
            '{"id": "1", "image": "a", "question": "?"}\n',
            r"line 1 \(id 1\): .*required field `answer`",
        ),
        ("val.jsonl", '{"id": "1", "image": "a", "question": "?", "answer": "b"}\n' * 2, "line 2: id 1 occurs twice"),
        ("val.jsonl", "\n", "no records"),
    ],
)
def test_a_bad_record_is_named(file: str, text: str, message: str, folder: Path) -> None:
    """A bad record is named by file, line and id, as in the benchmarks of the package."""
    (folder / "OpenQuestions" / file).write_text(text)
    with pytest.raises(AnnotationError, match=message):
        opened(OWN, folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,left,right,sentence\n1,a,b,Yes.\n", "line 2: Object missing required field `true`"),
        ("id,left,right,sentence,true\n1,a,b\n", "line 2: the row does not have 5 cells"),
        ("id,left,right,sentence,true\n1,a,b,Yes.,true,more\n", "line 2: the row does not have 5 cells"),
        ('id,left,right,sentence,true\n1,a,b,"Yes.,true\n', "line 2: not CSV"),
        ("id,left,right,sentence,true\n1,a,b,Yes.,perhaps\n", "line 2: Expected `bool`"),
    ],
)
def test_a_bad_row_is_named(text: str, message: str, folder: Path) -> None:
    """A bad row of a .csv file is named in the same way."""
    (folder / "Pairs" / "val.csv").write_text(text)
    with pytest.raises(AnnotationError, match=message):
        opened("own_tasks:Pairs", folder)


def test_a_submission_of_another_form_is_named(folder: Path, tmp_path: Path) -> None:
    """A submission of another form is refused with the record and the field that lacks."""
    (tmp_path / "p.json").write_text('[{"example_id": "1", "answer": "red"}, {"id": "2"}]')
    with pytest.raises(InputError, match=r"p\.json record 2: .*`example_id`; write the leader"):
        opened(OWN, folder).read_submission(tmp_path / "p.json")


# ---------------------------------------------------------------------------------------------------------------------
# finding the class


class NotWhole(Task):
    """A class that declares nothing and has no examples."""


class Derived(Nlvr2Task):
    """A benchmark of the package with one change and with its own name."""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gqa", "unknown task 'gqa'; did you mean 'vqa'? (or name one of your own as module:Class)"),
        ("no_such_module:Gqa", "module 'no_such_module' cannot be imported: No module named 'no_such_module'"),
        (":Gqa", "module '' cannot be imported"),
        ("own_task:Gqa", "own_task has no class 'Gqa' that derives from"),
        ("own_task:Record", "own_task has no class 'Record' that derives from"),
        ("visualbert_core.tasks.vqa:VqaTask", "the name of this class is vqa; use that name"),
        ("test_own_task:NotWhole", "the class lacks form, splits, metrics, protocols, examples, gold, read, score"),
    ],
)
def test_what_is_no_task_is_said(name: str, message: str) -> None:
    """A name that leads to no task is a one-line configuration error, before any file is read."""
    with pytest.raises(ConfigError) as caught:
        find_task(name)
    assert message in str(caught.value)


def test_a_derived_benchmark_is_another_one() -> None:
    """A derived benchmark has its own name, so its runs are not taken for runs of the original one."""
    assert find_task("test_own_task:Derived").name == "test_own_task:Derived"


def test_the_working_folder_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The installed program finds a benchmark's file in the working folder, where Python alone would not search."""
    (tmp_path / "here_only.py").write_text((EXAMPLES / "own_task.py").read_text())
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    assert find_task("here_only:OpenQuestions").name == "here_only:OpenQuestions"


# ---------------------------------------------------------------------------------------------------------------------
# evaluating on it


@dataclass(frozen=True)
class Place:
    """A copy of the small night's folders, with its synthetic VQA questions as a benchmark from outside the package."""

    root: Path
    store: Path

    def config(self, task: str = OWN, **changes: Any) -> EvaluateConfig:
        given: dict[str, Any] = {"task": task, "split": "val", "annotations": self.root / "questions"}
        given |= {"features": self.store, "model": WEIGHTS / "visualbert-vqa", "out": self.root / "runs"}
        return EvaluateConfig(**given | changes)


@pytest.fixture
def place(small_night: SmallNight, tmp_path: Path) -> Place:
    open_questions(small_night.out / "synthetic" / "vqa", tmp_path / "questions")
    (store,) = (small_night.out / "features" / "vqa-val2014").iterdir()
    return Place(tmp_path, store)


def run_once(config: EvaluateConfig) -> Any:
    with Pool(PoolConfig(inline=True)) as pool:
        return evaluate(config, pool)


def test_changed_code_is_another_ingredient(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished run is reused only while the task's code computes the same. A new comment keeps it valid. A new way to
    judge does not, or an old score would be shown for the new code."""
    monkeypatch.syspath_prepend(place.root)
    file = place.root / "changing_task.py"
    text = (EXAMPLES / "own_task.py").read_text()
    file.write_text(text)
    config = place.config("changing_task:OpenQuestions")
    first = run_once(config)
    assert first.folder.name == "visualbert-vqa__OpenQuestions__val"
    file.write_text(text + "\n# a comment\n")
    assert run_once(config) == first
    file.write_text(text.replace(".lower()", ""))
    with pytest.raises(InputError, match=r"a run of other ingredients \(code.task: "):
        run_once(config)


def test_a_run_is_scored_and_compared_again(place: Place) -> None:
    """`score` reads the run folder and its submission alike. `compare` opens the task only where the command line names
    it, because a run folder may come from a stranger."""
    run = run_once(place.config())
    questions = str(place.root / "questions")
    flags = ("--task", OWN, "--split", "val", "--annotations", questions)
    for predictions in (run.folder, run.folder / "submission.json"):
        done = job_here("score", *flags, "--predictions", str(predictions), "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["scores"] == run.scores["scores"]
    compared = (str(run.folder), str(run.folder), "--annotations", questions)
    with pytest.raises(ConfigError, match=f"add --task {OWN}"):
        main(["compare", *compared])
    assert main(["compare", *compared, "--task", OWN]) == 0


def nights(place: Place, small_night: SmallNight, cells: Sequence[dict[str, Any]]) -> Path:
    out = shutil.copytree(small_night.out, place.root / "out")
    matrix = yaml.safe_load(small_night.matrix.read_text())
    corpora = {"vqa-val2014": matrix["corpora"]["vqa-val2014"]}
    cell = {"task": OWN, "split": "val", "annotations": str(place.root / "questions"), "corpus": "vqa-val2014"}
    cell |= {"model": str(place.root / "visualbert-vqa"), "shard_size": 50}
    shutil.copytree(WEIGHTS / "visualbert-vqa", place.root / "visualbert-vqa")
    matrix |= {"out": str(out), "corpora": corpora, "cells": [cell | more for more in cells], "gate": {"drop": 25}}
    path = place.root / "matrix.yaml"
    path.write_text(yaml.safe_dump(matrix))
    return path


def test_a_night_of_an_own_benchmark(place: Place, small_night: SmallNight) -> None:
    """A new metric has its floor, gate, gallery, flips and name on the page of a night and on the page of a
    comparison."""
    matrix = nights(place, small_night, [{"floors": {"exact match": 1}, "drops": {"exact match": 5}}])

    def night(name: str) -> Night:
        return run_night(load_matrix(matrix, {"night": name}))

    first = night("1")
    assert [cell.error for cell in first.cells] == [None]
    page = first.report.read_text()
    assert 'class="examples question"' in page
    assert "exact match" in page
    damage(place.root / "visualbert-vqa")
    matrix.write_text(matrix.read_text().replace("exact match: 1", "exact match: 99"))
    second = night("2")
    assert second.exit_code == 4
    assert second.judged is not None
    (check,) = second.judged.gate.checks
    assert (check.watched.metric, check.verdict) == ("exact match", "fail")
    (comparison,) = (cell.comparison for cell in second.judged.cells)
    assert comparison is not None
    assert comparison.flips["exact match"].worse_count > 0
    page = second.report.read_text()
    assert 'id="flips"' in page
    assert comparison.flips["exact match"].worse[0].unit_id in page
    assert any("exact match is" in line for line in second.judged.gate.missed)


def test_a_matrix_is_checked_before_anything_runs(place: Place, small_night: SmallNight) -> None:
    """An unknown metric of the benchmark and a missing class are errors that name the cell."""
    matrix = nights(place, small_night, [{"floors": {"exact macth": 50}}])
    with pytest.raises(ConfigError, match=r"cells\[0\]: own_task:OpenQuestions has no metric 'exact macth'; did you"):
        load_matrix(matrix, {})
    matrix.write_text(matrix.read_text().replace(OWN, "own_task:Nobody"))
    with pytest.raises(ConfigError, match=r"cells\[0\]: task own_task:Nobody: own_task has no class"):
        load_matrix(matrix, {})


def test_another_form_is_the_models_business(place: Place, folder: Path) -> None:
    """A checkpoint that answers questions refuses multiple choice, and the error says so."""
    config = place.config("own_tasks:Choices", annotations=folder / "Choices")
    with pytest.raises(Exception, match="MultipleChoice") as caught:
        run_once(config)
    assert isinstance(caught.value, InputError)


def test_workers_need_no_benchmark(place: Place) -> None:
    """The job finds the file in its working folder and prints the metric, although its workers are other processes."""
    config = place.config()
    flags = {name: str(getattr(config, name)) for name in ("task", "split", "annotations", "features", "model", "out")}
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    command = [sys.executable, str(ROOT / "jobs" / "evaluate.py"), *words, "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=EXAMPLES, check=False)
    assert done.returncode == 0, done.stderr
    assert "exact match" in done.stdout


def test_the_job_says_what_is_no_task() -> None:
    """A name that leads to no task is exit code 2 and one line."""
    done = job_here("score", "--task", "own_task:Nobody", "--split", "val", "--annotations", ".", "--predictions", "p")
    assert done.returncode == 2
    assert "own_task has no class 'Nobody'" in the_error(done)
