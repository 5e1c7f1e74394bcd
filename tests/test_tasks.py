"""The registry, coverage before any score, the summary, and the contract that every task keeps."""

from __future__ import annotations

import ast
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from visualbert_core.errors import AnnotationError, ConfigError, CoverageError
from visualbert_core.schema import Prediction, Score
from visualbert_core.synthetic.captions import SceneCaptions
from visualbert_core.tasks import TASKS, Task, find_task, judge, open_task, summarize, title_of

SPLITS = {"vqa": "val", "vcr": "val", "nlvr2": "dev", "flickr30k_entities": "test", "captions": "test"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write two or three records for each benchmark, in one folder.

    Only Flickr30K Entities and captions share files.
    """
    answers = [{"answer": "red", "answer_id": i} for i in range(10)]
    kinds = {"question_type": "what", "answer_type": "other", "answers": answers}
    questions = [{"question_id": i, "image_id": i, "question": "What?"} for i in (1, 2)]
    annotations = [{"question_id": i, "image_id": i} | kinds for i in (1, 2)]
    four = [["a"], ["b"], ["c"], [[0]]]
    vcr = {"img_fn": "m/x@1.jpg", "objects": ["person"], "question": ["Who", "?"], "answer_choices": four}
    vcr |= {"rationale_choices": four, "answer_label": 0, "rationale_label": 3}
    nlvr2 = {"sentence": "Yes.", "label": "True"}
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    files = {
        "v2_OpenEnded_mscoco_val2014_questions.json": json.dumps({"questions": questions}),
        "v2_mscoco_val2014_annotations.json": json.dumps({"annotations": annotations}),
        "val.jsonl": "".join(json.dumps(vcr | {"annot_id": f"val-{i}"}) + "\n" for i in range(3)),
        "dev.json": "".join(json.dumps(nlvr2 | {"identifier": f"dev-{i}-0-0"}) + "\n" for i in range(3)),
        "test.txt": "5\n6",
        "Sentences/5.txt": "[/EN#1/people A man] .\n[/EN#1/people He] runs .",
        "Sentences/6.txt": "Nobody .",
        "Annotations/5.xml": f"<annotation><object><name>1</name>{box}</object></annotation>",
        "Annotations/6.xml": "<annotation></annotation>",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def gold(task: Task) -> list[Prediction]:
    return [
        Prediction(example_id, image_id, task.gold(example_id), ()) for example_id, image_id in task.expected().items()
    ]


@pytest.mark.parametrize("name", TASKS)
def test_metrics_are_known_before_any_is_scored(folder: Path, name: str) -> None:
    """A task lists every metric that it scores, because floors and drops are checked by that list. VQA's metric of
    pairs needs a file that these records lack. The ranking metrics need a phrase with two boxes."""
    task = open_task(name, folder, SPLITS[name])
    found = {score.metric for score in judge(task, gold(task))}
    lacking = {"vqa": {"pair_accuracy"}, "flickr30k_entities": {"recall@5", "recall@10", "upper_bound"}}
    assert set(task.metrics) - found == lacking.get(name, set())
    assert found <= set(task.metrics)


@pytest.mark.parametrize("name", TASKS)
def test_task_keeps_the_contract(folder: Path, name: str) -> None:
    """A task has unique examples, and `expected` lists them in order. Gold is worth 100 %, the headline is scored, and
    files exist."""
    task = open_task(name, folder, SPLITS[name])
    examples = list(task.examples())
    assert {example.example_id: example.image_ids[0] for example in examples} == task.expected()
    assert [example.example_id for example in examples] == list(task.expected())
    summary = summarize(judge(task, gold(task)))
    if name == "captions":  # people disagree: the captions of one are not worth 100 % to the others
        assert round(summary.metrics["bleu-1"].value) == 100
    else:
        assert {metric.value for metric in summary.metrics.values()} == {100.0}
    assert task.headline in summary.metrics
    assert task.chance({row.example_id: row for row in gold(task)}).keys() <= summary.metrics.keys()
    assert (task.name, task.split) == (name, SPLITS[name])
    assert all(path.is_file() for path in task.annotation_files())


@pytest.mark.parametrize("name", TASKS)
def test_answers_survive_json(folder: Path, name: str) -> None:
    """Answers are stored as JSON and are worth the same after reading."""
    task = open_task(name, folder, SPLITS[name])
    stored = [Prediction(p.example_id, p.image_id, json.loads(json.dumps(p.answer)), ()) for p in gold(task)]
    assert judge(task, stored) == judge(task, gold(task))


@pytest.mark.parametrize("name", TASKS)
def test_no_score_without_full_coverage(folder: Path, name: str) -> None:
    """One missing, double or unknown prediction is a one-line error with count and id, for every benchmark."""
    task = open_task(name, folder, SPLITS[name])
    rows = gold(task)
    first = rows[0].example_id
    faults = {
        "1 missing": rows[1:],
        "1 duplicate": [*rows, rows[0]],
        "1 unknown": [*rows, Prediction("nobody", "x", rows[0].answer, ())],
    }
    for fault, predictions in faults.items():
        shown = "nobody" if "unknown" in fault else first
        with pytest.raises(CoverageError, match=re.escape(f"{fault} ({shown})")) as caught:
            judge(task, iter(predictions))
        assert "\n" not in str(caught.value)


def named_elsewhere(words: frozenset[str]) -> list[str]:
    """List the places outside `tasks/` where a string of the code is one of `words`. The rooms `synthetic` and `models`
    are left out: they write files of the four benchmarks and name the published checkpoints."""
    found = []
    for path in sorted((ROOT / "visualbert_core").rglob("*.py")):
        place = path.relative_to(ROOT / "visualbert_core")
        if place.parts[0] in ("tasks", "synthetic", "models") or place == Path("commands/convert.py"):
            continue
        strings = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
        found += [f"{place}:{node.lineno} {node.value!r}" for node in strings if node.value in words]
    return found


def test_nothing_outside_asks_for_a_benchmark_or_a_metric() -> None:
    """No code outside a benchmark's file contains the benchmark's name or the names of its metrics."""
    metrics = (metric for name in TASKS for metric in find_task(name).metrics)
    assert named_elsewhere(frozenset((*TASKS, *metrics))) == []
    assert named_elsewhere(frozenset({"wrong-image"})) != []  # the search does find a word that is there


def test_unknown_task_names_the_known() -> None:
    """A mistyped task is a configuration error that names the right ones."""
    with pytest.raises(ConfigError, match=r"'flickr30k'; did you mean 'flickr30k_entities'\?"):
        open_task("flickr30k", Path(), "test")


def test_summary_is_percent_with_interval_and_groups() -> None:
    """Metrics keep the order of the scores, groups are sorted, and a unit in two groups counts in both."""
    both = {"type": ("people", "animals")}
    scores = [
        Score("1", "recall@1", 1.0, "a", both),
        Score("1", "accuracy", 0.5, "a", both),
        Score("2", "recall@1", 0.0, "b", {"type": ("people",), "kind": ("x",)}),
    ]
    summary = summarize(iter(scores))
    assert list(summary.metrics) == ["recall@1", "accuracy"]
    metric = summary.metrics["recall@1"]
    assert (metric.value, metric.n, metric.low, metric.high) == (50.0, 2, 0.0, 100.0)
    assert math.isnan(summary.metrics["accuracy"].low)  # one image gives no interval
    assert list(summary.breakdown) == ["kind", "type"]
    assert list(summary.breakdown["type"]) == ["animals", "people"]
    assert summary.breakdown["type"]["people"] == {"recall@1": (50.0, 2), "accuracy": (50.0, 1)}


def test_summary_of_nothing_is_empty() -> None:
    """No scores give no metrics, and no division by zero."""
    assert summarize([]).metrics == {}


def test_published_numbers_name_scored_metrics(folder: Path) -> None:
    """Every published number belongs to a metric of the task and names its source, and no two numbers compete for one
    place."""
    for name in TASKS:
        task = open_task(name, folder, SPLITS[name])
        for each in task.published:
            assert each.source
            assert each.percent.keys() <= set(task.metrics)
            assert all(0 < each.percent[m] < task.scales.get(m, 100) for m in each.percent)
        places = [(each.network, each.split, each.protocol, each.answering) for each in task.published]
        assert len(places) == len(set(places))


def test_scoring_needs_no_torch_no_ray_no_pillow() -> None:
    """Opening and scoring a benchmark imports no heavy library."""
    code = "import sys, visualbert_core.tasks; print([m for m in ('torch', 'ray', 'PIL') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    """A lone surrogate, which JSON can escape and no text file can hold, is an error of its record; a pair is text."""
    record = {"identifier": "dev-1-0-0", "sentence": "\N{DOG FACE}", "label": "True"}
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(record))
    assert next(open_task("nlvr2", tmp_path, "dev").examples()).text == "\N{DOG FACE}"  # type: ignore[union-attr]
    path.write_text(json.dumps(record | {"sentence": "\ud83d"}))
    with pytest.raises(AnnotationError, match=r"line 1 .*holds half a character"):
        open_task("nlvr2", tmp_path, "dev")


def test_titles_can_be_read() -> None:
    """A title has the word of a benchmark, or the title of a class, and not the module in which the class lies."""
    assert [title_of(name) for name in ("vqa", SceneCaptions.name)] == ["vqa", "Captions of scenes"]
