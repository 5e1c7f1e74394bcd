"""NLVR2: the reader on official layouts, and the scores against metrics.py's own output (golden/README.md)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from visualbert_core.errors import AnnotationError, InputError
from visualbert_core.schema import Prediction, Statement
from visualbert_core.tasks import judge, summarize
from visualbert_core.tasks.nlvr2 import Nlvr2Task

GOLDEN = json.loads((Path(__file__).parent / "golden" / "nlvr2_scores.json").read_text())
SHARED = Path(os.environ.get("VISUALBERT_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


def record(identifier: str, label: str = "True", **extra: Any) -> dict[str, Any]:
    return {"identifier": identifier, "sentence": f"About {identifier}.", "label": label, "writer": "1"} | extra


def write(folder: Path, records: list[dict[str, Any]], split: str = "dev") -> Path:
    (folder / f"{split}.json").write_text("".join(json.dumps(line) + "\n" for line in records))
    return folder


def predict(task: Nlvr2Task, said: list[Any]) -> list[Prediction]:
    pairs = zip(task.expected().items(), said, strict=True)
    return [Prediction(example_id, image_id, answer, (0.5, 0.5)) for (example_id, image_id), answer in pairs]


@pytest.mark.parametrize("which", range(3))
def test_real_slice_scores_as_officially(which: int) -> None:
    """On 1,193 real statements accuracy and consistency equal metrics.py's, for three sets of predictions."""
    if not (SHARED / "nlvr2" / "dev.json").exists():
        pytest.skip("the real NLVR2 slice is not beside this clone (VISUALBERT_SHARED_DATA)")
    official = GOLDEN["slice"][which]
    task = Nlvr2Task(SHARED / "nlvr2", "dev")
    words = {"T": "True", "F": "False", "t": "true"}
    metrics = summarize(judge(task, predict(task, [words[letter] for letter in official["predictions"]]))).metrics
    assert metrics["accuracy"].value == pytest.approx(100 * official["accuracy"], abs=1e-9)
    assert metrics["consistency"].value == pytest.approx(100 * official["consistency"], abs=1e-9)
    assert (metrics["accuracy"].n, metrics["consistency"].n) == (1193, 346)


def test_made_up_records_score_as_officially(tmp_path: Path) -> None:
    """Sentences on one to four pairs, records shuffled, answers in any case: the same two numbers as metrics.py's."""
    official = GOLDEN["made_up"]
    task = Nlvr2Task(write(tmp_path, official["records"], "test1"), "test1")
    metrics = summarize(judge(task, predict(task, official["predictions"]))).metrics
    assert metrics["accuracy"].value == pytest.approx(100 * official["accuracy"], abs=1e-9)
    assert metrics["consistency"].value == pytest.approx(100 * official["consistency"], abs=1e-9)


def test_examples(tmp_path: Path) -> None:
    """A record becomes a statement about its left and right image, in file order."""
    task = Nlvr2Task(write(tmp_path, [record("dev-850-3-1"), record("dev-7-0-0")]), "dev")
    images = ("dev-850-3-img0", "dev-850-3-img1")
    assert next(task.examples()) == Statement("dev-850-3-1", images, "About dev-850-3-1.")
    assert list(task.expected().items()) == [("dev-850-3-1", "dev-850-3-img0"), ("dev-7-0-0", "dev-7-0-img0")]


def test_units_of_both_metrics(tmp_path: Path) -> None:
    """Consistency joins the pairs of one sentence; both metrics cluster by set, whose pairs share photographs."""
    names = ["dev-1-0-0", "dev-1-1-0", "dev-1-0-1", "dev-2-0-0"]
    task = Nlvr2Task(write(tmp_path, [record(name) for name in names]), "dev")
    scores = judge(task, predict(task, ["True", "False", "True", "True"]))
    consistency = {score.unit_id: score.value for score in scores if score.metric == "consistency"}
    assert consistency == {"dev-1-0": 0.0, "dev-1-1": 1.0, "dev-2-0": 1.0}
    assert [score.cluster for score in scores] == ["dev-1"] * 3 + ["dev-2"] + ["dev-1"] * 2 + ["dev-2"]


def test_chance_knows_the_group_sizes(tmp_path: Path) -> None:
    """A coin is right on both pairs of a sentence one time in four."""
    names = ["dev-1-0-0", "dev-1-1-0", "dev-1-0-1"]
    task = Nlvr2Task(write(tmp_path, [record(name) for name in names]), "dev")
    assert task.chance({}) == {"accuracy": 50.0, "consistency": pytest.approx(100 * (0.25 + 0.5) / 2)}


def test_family_becomes_a_breakdown(tmp_path: Path) -> None:
    """The optional "family" groups both metrics; official records have no groups."""
    task = Nlvr2Task(write(tmp_path, [record("dev-1-0-0", family="count"), record("dev-2-0-0")]), "dev")
    breakdown = summarize(judge(task, predict(task, ["True", "False"]))).breakdown
    assert breakdown == {"family": {"count": {"accuracy": (100.0, 1), "consistency": (100.0, 1)}}}


def test_gold_answers_score_full(tmp_path: Path) -> None:
    """Predicting `gold` is 100 % on both metrics."""
    task = Nlvr2Task(write(tmp_path, [record("dev-1-0-0", "False"), record("dev-1-1-0")]), "dev")
    metrics = summarize(judge(task, predict(task, [task.gold(name) for name in task.expected()]))).metrics
    assert (metrics["accuracy"].value, metrics["consistency"].value) == (100.0, 100.0)


@pytest.mark.parametrize("answer", ["1", " True", "", 1, True, None])
def test_other_answers_are_refused(tmp_path: Path, answer: Any) -> None:
    """What is neither "True" nor "False" is an error, where metrics.py would count it as wrong in silence."""
    task = Nlvr2Task(write(tmp_path, [record("dev-1-0-0")]), "dev")
    with pytest.raises(InputError, match=r"dev-1-0-0.*neither 'True' nor 'False'"):
        judge(task, predict(task, [answer]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"identifier": "dev-1-0-1", "sente', "dev.json line 2: not JSON"),
        ("[]", "line 2: is list"),
        ('{"sentence": "x"}', "line 2: no 'identifier'"),
        (json.dumps(record("dev-1-0-0")), "line 2: identifier dev-1-0-0 occurs twice"),
        (json.dumps(record("dev-1-0")), "line 2 .*not split-set-pair-sentence"),
        (json.dumps(record("dev-1-0-1", "true")), "line 2 .*'label' is 'true'"),
        (json.dumps(record("dev-1-0-1", sentence=3)), "line 2 .*'sentence' is int, not a string"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    """A damaged record ends in one line with its file and line number."""
    write(tmp_path, [record("dev-1-0-0")])
    with (tmp_path / "dev.json").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(AnnotationError, match=message) as caught:
        Nlvr2Task(tmp_path, "dev")
    assert "\n" not in str(caught.value)


def test_empty_file_is_an_error(tmp_path: Path) -> None:
    """A file without records has no score, not a division by zero."""
    with pytest.raises(AnnotationError, match="no records"):
        Nlvr2Task(write(tmp_path, []), "dev")
