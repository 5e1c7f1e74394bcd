"""VCR: the reader on official layouts, and the scores against R2C's eval_q2ar output (golden/README.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from visualbert_core.errors import AnnotationError, ConfigError, InputError
from visualbert_core.schema import Prediction
from visualbert_core.tasks import judge, summarize
from visualbert_core.tasks.vcr import VcrTask

GOLDEN = json.loads((Path(__file__).parent / "golden" / "vcr_scores.json").read_text())


def record(annot_id: str = "val-1", **changes: Any) -> dict[str, Any]:
    """A record with the official keys that matter; its text is ours."""
    return {
        "annot_id": annot_id,
        "img_id": "val-0",
        "img_fn": "movie_1/1054_Harry.Potter.1_00.01.02.345@0.jpg",
        "metadata_fn": "movie_1/1054_Harry.Potter.1_00.01.02.345@0.json",
        "objects": ["person", "cup", "person", "chair"],
        "question": ["Why", "does", [2], "wait", "?"],
        "answer_choices": [["They", "rest", "."], [[2], "sits", "."], ["No", "one", "."], ["It", "rains", "."]],
        "answer_label": 1,
        "rationale_choices": [["A"], ["B"], [[2, 1], "are", "close", "."], ["D"]],
        "rationale_label": 2,
    } | changes


def write(folder: Path, *records: dict[str, Any]) -> Path:
    (folder / "val.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records))
    return folder


def predict(task: VcrTask, said: dict[str, Any]) -> list[Prediction]:
    return [Prediction(example_id, image_id, said[example_id], ()) for example_id, image_id in task.expected().items()]


def test_scores_as_officially(tmp_path: Path) -> None:
    """On 61 made-up records with score ties, the three means equal those that eval_q2ar prints."""
    items = GOLDEN["items"]
    labels = [{key: item[key] for key in ("answer_label", "rationale_label")} for item in items]
    task = VcrTask(write(tmp_path, *(record(f"val-{i}", **label) for i, label in enumerate(labels))), "val")
    said = {
        f"val-{i}/{part}": max(range(4), key=item[f"{part}_scores"].__getitem__)  # ties: the lowest index
        for i, item in enumerate(items)
        for part in ("answer", "rationale")
    }
    metrics = summarize(judge(task, predict(task, said))).metrics
    assert list(metrics) == ["q_to_a", "qa_to_r", "q_to_ar"]
    for name, metric in metrics.items():
        assert f"{metric.value / 100:.3f}" == f"{GOLDEN[name]:.3f}"
        assert metric.n == 61


def test_two_examples_a_record(tmp_path: Path) -> None:
    """The answer is asked of the question, the rationale of question and *right* answer, over the same regions."""
    answer, rationale = VcrTask(write(tmp_path, record()), "val").examples()
    assert (answer.example_id, rationale.example_id) == ("val-1/answer", "val-1/rationale")
    assert answer.context == ("Why", "does", (2,), "wait", "?")
    assert rationale.context == ("Why", "does", (2,), "wait", "?", (2,), "sits", ".")
    assert answer.choices[1] == ((2,), "sits", ".")
    assert rationale.choices[2] == ((2, 1), "are", "close", ".")
    assert answer.mentioned == rationale.mentioned == (1, 2)
    assert answer.objects == ("person", "cup", "person", "chair")


def test_image_id_loses_only_the_last_suffix(tmp_path: Path) -> None:
    """Film names hold dots; the folder goes, the dots stay."""
    task = VcrTask(write(tmp_path, record()), "val")
    assert set(task.expected().values()) == {"1054_Harry.Potter.1_00.01.02.345@0"}


NOTHING = {"question": ["Why", "?"], "answer_choices": [["a"]] * 4, "rationale_choices": [["b"]] * 4}


@pytest.mark.parametrize(
    ("changes", "mentioned"),
    [
        ({}, (1, 2)),
        (NOTHING, (0, 2)),
        (NOTHING | {"objects": ["cup", "chair"]}, (0, 1)),
        (NOTHING | {"question": ["Is", "Everyone", "at", [3], "?"]}, (0, 2, 3)),
        (NOTHING | {"rationale_choices": [["b"], ["b"], ["b"], [[3], "b"]]}, (3,)),
    ],
    ids=["tags of every part", "nothing: persons", "nothing, no persons: all", "everyone", "a wrong rationale counts"],
)
def test_mentioned_objects(tmp_path: Path, changes: dict[str, Any], mentioned: tuple[int, ...]) -> None:
    """The regions shown are those mentioned in any part, so that they do not give the answer away."""
    assert {example.mentioned for example in VcrTask(write(tmp_path, record(**changes)), "val").examples()} == {
        mentioned
    }


def test_joint_score_needs_both(tmp_path: Path) -> None:
    """Q→AR is per record: right answer with wrong rationale, or the reverse, is worth nothing."""
    task = VcrTask(write(tmp_path, *(record(f"val-{i}") for i in range(4))), "val")
    chosen = [(1, 2), (1, 0), (0, 2), (0, 0)]
    said = {f"val-{i}/{part}": c[j] for i, c in enumerate(chosen) for j, part in enumerate(("answer", "rationale"))}
    scores = judge(task, predict(task, said))
    assert [score.value for score in scores if score.metric == "q_to_ar"] == [1.0, 0.0, 0.0, 0.0]
    assert [score.value for score in scores if score.metric == "q_to_a"] == [1.0, 1.0, 0.0, 0.0]
    assert [score.value for score in scores if score.metric == "qa_to_r"] == [1.0, 0.0, 1.0, 0.0]


def test_gold_chance_and_family(tmp_path: Path) -> None:
    """Gold is the index in the file, chance one of four twice, and "family" a breakdown."""
    task = VcrTask(write(tmp_path, record(family="same")), "val")
    assert (task.gold("val-1/answer"), task.gold("val-1/rationale")) == (1, 2)
    assert task.chance({}) == {"q_to_a": 25.0, "qa_to_r": 25.0, "q_to_ar": 6.25}
    scores = judge(task, predict(task, {"val-1/answer": 1, "val-1/rationale": 2}))
    assert summarize(scores).breakdown["family"]["same"]["q_to_ar"] == (100.0, 1)


@pytest.mark.parametrize("answer", [4, -1, "1", True, 1.0, None])
def test_choice_out_of_range_is_refused(tmp_path: Path, answer: Any) -> None:
    """An answer that is no index of a choice is an error that names the example."""
    task = VcrTask(write(tmp_path, record()), "val")
    with pytest.raises(InputError, match=r"val-1/rationale.*is not 0, 1, 2 or 3"):
        judge(task, predict(task, {"val-1/answer": 1, "val-1/rationale": answer}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": ["Why", [4], "?"]}, r"question: tag \[4\] is out of range for 4 objects"),
        ({"rationale_choices": [["b"], ["b"], ["b"], [[-1]]]}, r"rationale_choices: tag \[-1\] is out of range"),
        ({"answer_label": 4}, "'answer_label' is 4"),
        ({"answer_choices": [["a"]] * 3}, "'answer_choices' has 3 choices, not 4"),
        ({"answer_choices": "abcd"}, "'answer_choices' is str, not a list"),
        ({"question": ["Why", 3]}, "question: is int, not a list"),
        ({"question": ["Why", ["3"]]}, "question: is str, not a whole number"),
        ({"objects": ["person", 2]}, "'objects' is int, not a string"),
        ({"annot_id": "val-1"}, "annot_id val-1 occurs twice"),
    ],
)
def test_bad_record_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """A malformed record ends in one line with file, line number and what is wrong."""
    write(tmp_path, record("val-1"), record(**({"annot_id": "val-2"} | changes)))
    with pytest.raises(AnnotationError, match=message) as caught:
        VcrTask(tmp_path, "val")
    assert "val.jsonl line 2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_record_without_labels_is_an_error(tmp_path: Path) -> None:
    """Test records have no labels; a val file made of them cannot be scored, and the test split cannot be opened."""
    unlabelled = record()
    del unlabelled["answer_label"]
    with pytest.raises(AnnotationError, match=r"line 1 .val-1.: no 'answer_label'"):
        VcrTask(write(tmp_path, unlabelled), "val")
    with pytest.raises(ConfigError, match="known: val, train"):
        VcrTask(tmp_path, "test")
