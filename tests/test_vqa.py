"""VQA v2: the reader on official layouts, and the score against VQAEval's own output (golden/README.md)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from visualbert_core.errors import AnnotationError, ConfigError, InputError
from visualbert_core.metrics.accuracy import CONTRACTIONS, normalise, official_percent, soft_accuracy
from visualbert_core.schema import Prediction
from visualbert_core.tasks import judge, summarize
from visualbert_core.tasks.vqa import VqaTask

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(os.environ.get("VISUALBERT_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))

QUESTIONS, ANNOTATIONS = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"


def golden(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text())


def answers(*words: str) -> list[dict[str, Any]]:
    return [{"answer": word, "answer_confidence": "yes", "answer_id": i} for i, word in enumerate(words, start=1)]


def annotation(question_id: int, words: list[str], question_type: str = "what", **extra: Any) -> dict[str, Any]:
    record = {"question_id": question_id, "image_id": question_id // 1000, "answers": answers(*words)}
    return record | {"question_type": question_type, "answer_type": "other"} | extra


def write(folder: Path, questions: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> Path:
    about = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": "val2014"}
    (folder / QUESTIONS).write_text(json.dumps(about | {"task_type": "Open-Ended", "questions": questions}))
    (folder / ANNOTATIONS).write_text(json.dumps(about | {"annotations": annotations}))
    return folder


def question(question_id: int) -> dict[str, Any]:
    return {"image_id": question_id // 1000, "question": f"Question {question_id}?", "question_id": question_id}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three questions about two images; the annotations come in another order, as they may."""
    annotations = [
        annotation(73000, ["red"] * 10, multiple_choice_answer="red"),
        annotation(42001, ["no"] * 6 + ["yes"] * 4, "is the"),
        annotation(42000, ["White"] * 7 + ["cream"] * 3, multiple_choice_answer="white"),
    ]
    return write(tmp_path, [question(i) for i in (42000, 42001, 73000)], annotations)


def predict(task: VqaTask, said: dict[str, Any]) -> list[Prediction]:
    return [
        Prediction(example_id, image_id, said[example_id], (1.0,)) for example_id, image_id in task.expected().items()
    ]


# ---------------------------------------------------------------------------------------------------------------------
# the official score


def test_normaliser_is_the_official_one() -> None:
    """Each of 453 strings comes out as from VQAEval's processPunctuation and processDigitArticle under Python 2.7."""
    strings = golden("vqa_normaliser.json")
    assert len(strings) == 453
    assert [[raw, normalise(raw)] for raw, _ in strings] == strings


def test_contractions_are_restored_once_apostrophes_are_missing() -> None:
    """The derived table has the size of the official one without what cannot change a lower-cased word."""
    assert len(CONTRACTIONS) == 114  # 120 less Id've, I'dve, Im, Ive (capitals) and let's, she's (to themselves)
    assert CONTRACTIONS["yall'd've"] == CONTRACTIONS["y'alld've"] == "y'all'd've"


@pytest.mark.parametrize("case", golden("vqa_corner_cases.json")["cases"], ids=lambda case: case["note"][:60])
def test_corner_case_scores_as_officially(case: dict[str, Any]) -> None:
    """Unanimity, leave-one-out by record, few answers, empty normal forms, 33 periods: as VQAEval scores them."""
    value = soft_accuracy(case["prediction"], case["answers"])
    assert 100 * value == pytest.approx(case["percent"], abs=1e-9)
    assert official_percent([value]) == case["rounded"]


@pytest.mark.parametrize(("runs", "percent"), golden("vqa_corner_cases.json")["rounding"])
def test_rounding_is_half_away_from_zero(runs: list[tuple[float, int]], percent: float) -> None:
    """Means print as under Python 2 (1/32 → 3.13), not to the even neighbour."""
    assert official_percent(value for value, count in runs for _ in range(count)) == percent


@pytest.mark.parametrize("which", [0, 1])
def test_real_slice_scores_as_officially(which: int) -> None:
    """On 350 real questions, every question, both breakdowns and the overall figure equal VQAEval's."""
    if not (SHARED / "vqa" / QUESTIONS).exists():
        pytest.skip("the real VQA slice is not beside this clone (VISUALBERT_SHARED_DATA)")
    official = golden("vqa_slice.json")[which]
    task = VqaTask(SHARED / "vqa", "val")
    scores = judge(task, predict(task, {example_id: said for example_id, said, _ in official["questions"]}))
    percents = {score.unit_id: 100 * score.value for score in scores}
    assert percents == pytest.approx({example_id: value for example_id, _, value in official["questions"]}, abs=1e-9)
    assert official_percent(score.value for score in scores) == official["accuracy"]["overall"]
    for kind, key in (("answer type", "perAnswerType"), ("question type", "perQuestionType")):
        groups = {name: [s.value for s in scores if name in s.groups[kind]] for name in official["accuracy"][key]}
        assert {name: official_percent(values) for name, values in groups.items()} == official["accuracy"][key]
        assert summarize(scores).breakdown[kind].keys() == official["accuracy"][key].keys()


# ---------------------------------------------------------------------------------------------------------------------
# the reader


def test_examples_in_question_order(folder: Path) -> None:
    """Questions keep their file's order and get the official image name, whatever the order of the annotations."""
    task = VqaTask(folder, "val")
    assert [example.example_id for example in task.examples()] == ["42000", "42001", "73000"]
    first = next(task.examples())
    assert (first.image_ids, first.text) == (("COCO_val2014_000000000042",), "Question 42000?")
    assert task.expected()["73000"] == "COCO_val2014_000000000073"
    assert [path.name for path in task.annotation_files()] == [QUESTIONS, ANNOTATIONS]


def test_train_is_read_from_its_own_files(folder: Path) -> None:
    """Split "train" opens the train2014 files and names train2014 images."""
    for name in (QUESTIONS, ANNOTATIONS):
        (folder / name).rename(folder / name.replace("val2014", "train2014"))
    assert next(VqaTask(folder, "train").examples()).image_ids == ("COCO_train2014_000000000042",)


def test_score_clusters_and_groups(folder: Path) -> None:
    """A score carries its image as cluster and both types as groups."""
    task = VqaTask(folder, "val")
    scores = judge(task, predict(task, {"42000": "white", "42001": "yes", "73000": "Red"}))
    assert [score.value for score in scores] == [1.0, 1.0, 0.0]
    assert {score.cluster for score in scores[:2]} == {"COCO_val2014_000000000042"}
    assert scores[1].groups == {"answer type": ("other",), "question type": ("is the",)}


def test_gold_is_the_common_answer(folder: Path) -> None:
    """The file's multiple_choice_answer, or without one the commonest raw answer."""
    task = VqaTask(folder, "val")
    assert [task.gold(example_id) for example_id in ("42000", "42001", "73000")] == ["white", "no", "red"]


def test_chance_is_the_blind_guess_per_question_type(tmp_path: Path) -> None:
    """Every "what" is answered by the commonest "what" answer, every "is the" by its own."""
    annotations = [annotation(i * 1000, ["red"] * 10) for i in (1, 2)]
    annotations += [annotation(3000, ["blue"] * 10), annotation(4000, ["no"] * 8 + ["yes"] * 2, "is the")]
    task = VqaTask(write(tmp_path, [question(i * 1000) for i in (1, 2, 3, 4)], annotations), "val")
    assert task.chance({})["accuracy"] == pytest.approx(100 * 3 / 4)


def test_answer_that_is_no_string_is_refused(folder: Path) -> None:
    """An index instead of an answer is an error that names the question, not a zero."""
    task = VqaTask(folder, "val")
    with pytest.raises(InputError, match=r"42001.*17 is not a string"):
        judge(task, predict(task, {"42000": "white", "42001": 17, "73000": "red"}))


def test_unknown_split_names_the_known(folder: Path) -> None:
    """A split without public answers is a configuration error."""
    with pytest.raises(ConfigError, match=r"'test'.*known: val, train"):
        VqaTask(folder, "test")


def _edit(path: Path, key: str, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content[key])
    path.write_text(json.dumps(content))


BROKEN: dict[str, tuple[Any, str]] = {
    "missing folder": (lambda f: [p.unlink() for p in f.iterdir()] and f.rmdir(), "vqa: not found"),
    "missing file": (lambda f: (f / ANNOTATIONS).unlink(), f"{ANNOTATIONS}: not found"),
    "truncated": (lambda f: (f / QUESTIONS).write_text((f / QUESTIONS).read_text()[:-40]), "not JSON at line 1 column"),
    "not an object": (lambda f: (f / QUESTIONS).write_text("[]"), "is list, not an object"),
    "binary": (lambda f: (f / QUESTIONS).write_bytes(b"\x1f\x8b\xff"), "not UTF-8"),
    "questions is no list": (lambda f: (f / QUESTIONS).write_text('{"questions": {}}'), "'questions' is dict"),
    "no questions": (lambda f: _edit(f / QUESTIONS, "questions", lambda q: q.clear()), "is empty"),
    "a number as question": (
        lambda f: _edit(f / QUESTIONS, "questions", lambda q: q.append(3)),
        "is int, not an object",
    ),
    "a number as answer": (
        lambda f: _edit(f / ANNOTATIONS, "annotations", lambda a: a[0]["answers"].append(3)),
        "73000: is int, not an object",
    ),
    "missing key": (lambda f: _edit(f / ANNOTATIONS, "annotations", lambda a: a[1].pop("answers")), "42001.*'answers'"),
    "string id": (
        lambda f: _edit(f / QUESTIONS, "questions", lambda q: q[2].update(question_id="1")),
        r"questions\[2\]",
    ),
    "duplicate": (lambda f: _edit(f / QUESTIONS, "questions", lambda q: q.append(q[0])), "42000 occurs twice"),
    "no annotation": (lambda f: _edit(f / ANNOTATIONS, "annotations", lambda a: a.pop()), "42000 is not in v2_mscoco"),
    "no question": (lambda f: _edit(f / QUESTIONS, "questions", lambda q: q.pop()), "73000 is not in v2_OpenEnded"),
    "no answers": (
        lambda f: _edit(f / ANNOTATIONS, "annotations", lambda a: a[0]["answers"].clear()),
        "73000: no answers",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_bad_files_end_in_one_line(tmp_path: Path, fault: str) -> None:
    """Missing, truncated or inconsistent files end in one line that says where and what."""
    folder = tmp_path / "vqa"
    folder.mkdir()
    ids = (42000, 42001, 73000)
    write(folder, [question(i) for i in ids], [annotation(i, ["red"] * 10) for i in reversed(ids)])
    damage, message = BROKEN[fault]
    damage(folder)
    with pytest.raises(AnnotationError, match=message) as caught:
        VqaTask(folder, "val")
    assert "\n" not in str(caught.value)
    assert "vqa" in str(caught.value)
