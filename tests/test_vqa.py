"""VQA v2: the reader on official layouts, and scores equal to the output of VQAEval (golden/README.md)."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from visualbert_core.errors import AnnotationError, ConfigError, InputError
from visualbert_core.metrics.accuracy import CONTRACTIONS, AnswerTable, normalise, official_percent, soft_accuracy
from visualbert_core.schema import Prediction
from visualbert_core.tasks import judge, summarize
from visualbert_core.tasks.vqa import VqaTask

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(os.environ.get("VISUALBERT_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))

QUESTIONS, ANNOTATIONS = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"
PAIRS = "v2_mscoco_val2014_complementary_pairs.json"


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


def rename(folder: Path, name: str, subset: str) -> None:
    """Rename the files to another split, and change the split inside them."""
    (folder / name.replace("val2014", subset)).write_text((folder / name).read_text().replace("val2014", subset))
    (folder / name).unlink()


def question(question_id: int) -> dict[str, Any]:
    return {"image_id": question_id // 1000, "question": f"Question {question_id}?", "question_id": question_id}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write three questions about two images, with the annotations in another order."""
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
    """Each of 453 strings is normalised as by VQAEval's processPunctuation and processDigitArticle under Python 2.7."""
    strings = golden("vqa_normaliser.json")
    assert len(strings) == 453
    assert [[raw, normalise(raw)] for raw, _ in strings] == strings


def test_contractions_are_restored_once_apostrophes_are_missing() -> None:
    """The derived table has the size of the official one, without the entries that cannot change a lower-cased word."""
    # 120 without Id've, I'dve, Im and Ive, which have capitals, and let's and she's, which map to themselves
    assert len(CONTRACTIONS) == 114
    assert CONTRACTIONS["yall'd've"] == CONTRACTIONS["y'alld've"] == "y'all'd've"


@pytest.mark.parametrize("case", golden("vqa_corner_cases.json")["cases"], ids=lambda case: case["note"][:60])
def test_corner_case_scores_as_officially(case: dict[str, Any]) -> None:
    """Corner cases score as in VQAEval: unanimity, leave-one-out by record, few answers, empty normal forms, 33
    periods."""
    value = soft_accuracy(case["prediction"], case["answers"])
    assert 100 * value == pytest.approx(case["percent"], abs=1e-9)
    assert official_percent([value]) == case["rounded"]
    table = AnswerTable(1)
    table[0] = case["answers"]
    assert table.values([case["prediction"]]).tolist() == [value]


@pytest.mark.parametrize("index", range(35))
def test_always_normalising_scores_as_lmms_eval(index: int) -> None:
    """The protocol that always normalises gives every corner case what lmms-eval's vqav2_process_results gives it."""
    case, percent = golden("vqa_corner_cases.json")["cases"][index], golden("vqa_always_normalise.json")["cases"][index]
    value = soft_accuracy(case["prediction"], case["answers"], always_normalise=True)
    assert 100 * value == pytest.approx(percent, abs=1e-9)
    table = AnswerTable(1, always_normalise=True)
    table[0] = case["answers"]
    assert table.values([case["prediction"]]).tolist() == [value]


WORDS = st.sampled_from(["yes", "Yes", "yes.", "two dogs", "2 dogs", "the", "", " \t", "no\n", "1,000-2", "dont"])
RECORDS = st.fixed_dictionaries(
    {"answer": WORDS}, optional={"answer_id": st.integers(1, 11), "answer_confidence": st.sampled_from(["yes", "no"])}
)
OFFICIAL_RECORDS = st.lists(WORDS, min_size=10, max_size=10).map(lambda words: answers(*words))


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(OFFICIAL_RECORDS | st.lists(RECORDS, min_size=1, max_size=12), WORDS), min_size=1),
    always=st.booleans(),
)
def test_many_questions_score_as_one_by_one(rows: list[tuple[list[dict[str, Any]], str]], always: bool) -> None:
    """The vectorised scores equal the scores of one question at a time, bit for bit, for any mix of records and
    answers. No answer beats the best one, and an answer that no annotator gave is worth nothing."""
    table = AnswerTable(len(rows), always)
    for row, (annotators, _) in enumerate(rows):
        table[row] = annotators
    one_by_one = [soft_accuracy(answer, annotators, always) for annotators, answer in rows]
    assert table.values([answer for _, answer in rows]).tolist() == one_by_one
    best = table.values([table.best(row) for row in range(len(rows))])
    assert (best >= np.array(one_by_one) - 1e-12).all()  # the sum of equally many matches may differ in the last bit
    assert not table.values([table.unmatched_answer] * len(rows)).any()


@pytest.mark.parametrize(("runs", "percent"), golden("vqa_corner_cases.json")["rounding"])
def test_rounding_is_half_away_from_zero(runs: list[tuple[float, int]], percent: float) -> None:
    """Means are rounded half away from zero, as in Python 2 (1/32 → 3.13), not to the even neighbour."""
    assert official_percent(value for value, count in runs for _ in range(count)) == percent


@pytest.mark.parametrize("which", [0, 1])
def test_real_slice_scores_as_officially(which: int) -> None:
    """On 350 real questions, every question, both breakdowns and the overall figure equal VQAEval's."""
    if not (SHARED / "vqa" / QUESTIONS).exists():
        pytest.skip("the real VQA slice is not beside this clone (VISUALBERT_SHARED_DATA)")
    official = golden("vqa_slice.json")[which]
    task = VqaTask(SHARED / "vqa", "val")
    said = {example_id: answer for example_id, answer, _ in official["questions"]}
    scores = judge(task, predict(task, said))
    percents = {score.unit_id: 100 * score.value for score in scores}
    assert percents == pytest.approx({example_id: value for example_id, _, value in official["questions"]}, abs=1e-9)
    assert task.official(scores) == official["accuracy"]
    for kind, key in (("answer type", "perAnswerType"), ("question type", "perQuestionType")):
        assert summarize(scores).breakdown[kind].keys() == official["accuracy"][key].keys()
    other = VqaTask(SHARED / "vqa", "val", protocol="always-normalise")
    percents = {score.unit_id: 100 * score.value for score in judge(other, predict(task, said))}
    assert list(percents.values()) == pytest.approx(golden("vqa_always_normalise.json")["slice"][which], abs=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# the reader


def test_examples_in_question_order(folder: Path) -> None:
    """Questions keep their file's order and get the official image name, in any order of the annotations."""
    task = VqaTask(folder, "val")
    assert [example.example_id for example in task.examples()] == ["42000", "42001", "73000"]
    first = next(task.examples())
    assert (first.image_ids, first.text) == (("COCO_val2014_000000000042",), "Question 42000?")
    assert task.expected()["73000"] == "COCO_val2014_000000000073"
    assert [path.name for path in task.annotation_files()] == [QUESTIONS, ANNOTATIONS]


def test_train_is_read_from_its_own_files(folder: Path) -> None:
    """Split "train" opens the train2014 files and names train2014 images."""
    for name in (QUESTIONS, ANNOTATIONS):
        rename(folder, name, "train2014")
    assert next(VqaTask(folder, "train").examples()).image_ids == ("COCO_train2014_000000000042",)


def test_score_clusters_and_groups(folder: Path) -> None:
    """A score has its image as cluster and both types as groups."""
    task = VqaTask(folder, "val")
    scores = judge(task, predict(task, {"42000": "white", "42001": "yes", "73000": "Red"}))
    assert [score.value for score in scores] == [1.0, 1.0, 0.0]
    assert {score.cluster for score in scores[:2]} == {"COCO_val2014_000000000042"}
    assert scores[1].groups == {"answer type": ("other",), "question type": ("is the",)}


def test_gold_is_the_common_answer(folder: Path) -> None:
    """Gold is the file's multiple_choice_answer, or without one the commonest raw answer."""
    task = VqaTask(folder, "val")
    assert [task.gold(example_id) for example_id in ("42000", "42001", "73000")] == ["white", "no", "red"]


def test_chance_is_the_blind_guess_per_question_type(tmp_path: Path) -> None:
    """Chance answers every "what" with the commonest "what" answer, and every "is the" with its own."""
    annotations = [annotation(i * 1000, ["red"] * 10) for i in (1, 2)]
    annotations += [annotation(3000, ["blue"] * 10), annotation(4000, ["no"] * 8 + ["yes"] * 2, "is the")]
    task = VqaTask(write(tmp_path, [question(i * 1000) for i in (1, 2, 3, 4)], annotations), "val")
    assert task.chance({})["accuracy"] == pytest.approx(100 * 3 / 4)


def test_answer_that_is_no_string_is_refused(folder: Path) -> None:
    """An index instead of an answer is an error that names the question, not a score of zero."""
    task = VqaTask(folder, "val")
    with pytest.raises(InputError, match=r"42001.*17 is not a string"):
        judge(task, predict(task, {"42000": "white", "42001": 17, "73000": "red"}))


def test_unknown_split_and_protocol_name_the_known(folder: Path) -> None:
    """An unknown split or protocol is a configuration error that lists the known ones."""
    with pytest.raises(ConfigError, match=r"'test-std'.*known: val, train, test, test-dev"):
        VqaTask(folder, "test-std")
    with pytest.raises(ConfigError, match=r"'mmf'.*known: official, always-normalise"):
        VqaTask(folder, "val", protocol="mmf")


def test_order_never_changes_a_score(folder: Path) -> None:
    """Shuffled annotations, questions and predictions give every question the same score."""
    said = {"42000": "cream", "42001": "Yes.", "73000": "red"}
    ordered = {score.unit_id: score for score in judge(VqaTask(folder, "val"), predict(VqaTask(folder, "val"), said))}
    for seed in range(5):
        shuffle = random.Random(seed).shuffle
        _edit(folder / ANNOTATIONS, "annotations", shuffle)
        _edit(folder / QUESTIONS, "questions", shuffle)
        task = VqaTask(folder, "val")
        predictions = predict(task, said)
        shuffle(predictions)
        scores = judge(task, predictions)
        assert {score.unit_id: score for score in scores} == ordered
        assert task.official(scores) == VqaTask(folder, "val").official(list(ordered.values()))


def test_official_report_has_the_official_form(folder: Path) -> None:
    """The official report has VQAEval's keys and roundings."""
    task = VqaTask(folder, "val")
    scores = judge(task, predict(task, {"42000": "cream", "42001": "maybe", "73000": "red"}))
    assert task.official(scores) == {
        "overall": 63.33,
        "perQuestionType": {"is the": 0.0, "what": 95.0},
        "perAnswerType": {"other": 63.33},
    }


# ---------------------------------------------------------------------------------------------------------------------
# complementary pairs


def test_a_pair_counts_if_both_answers_have_full_marks(folder: Path) -> None:
    """A pair needs full marks on both answers: 90 percent is not enough. Its cluster is one image, and its groups are
    those that both questions share."""
    (folder / PAIRS).write_text("[[42000, 73000], [42001, 42000], [73000, 42000]]")
    task = VqaTask(folder, "val")
    assert task.annotation_files()[-1].name == PAIRS
    scores = judge(task, predict(task, {"42000": "white", "42001": "perhaps", "73000": "red"}))
    pairs = {score.unit_id: score for score in scores if score.metric == "pair_accuracy"}
    assert {unit_id: score.value for unit_id, score in pairs.items()} == {"42000+73000": 1.0, "42001+42000": 0.0}
    assert pairs["42000+73000"].cluster == "COCO_val2014_000000000042"
    assert pairs["42000+73000"].groups == {"answer type": ("other",), "question type": ("what",)}
    assert pairs["42001+42000"].groups == {"answer type": ("other",)}
    assert summarize(scores).metrics["accuracy"].n == 3
    assert task.chance({}).keys() == {"accuracy", "pair_accuracy"}
    scores = judge(task, predict(task, {"42000": "cream", "42001": "no", "73000": "red"}))  # worth 90, 100, 100
    assert [score.value for score in scores if score.metric == "pair_accuracy"] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[42000, 1]]", "question_id 1 is not in v2_OpenEnded"),
        ("[[42000, 73000], [42000]]", r"\[1\]: \[42000\] is no pair"),
        ("[[42000, 42000]]", "is no pair"),
        ('[[42000, "73000"]]', r"\[0\]: Expected `int`, got `str` - at `\$\[1\]`"),
        ("[42000]", r"\[0\]: Expected `array`, got `int`"),
        ('{"pairs": []}', "JSON, but not a list"),
    ],
)
def test_bad_pairs_end_in_one_line(folder: Path, text: str, message: str) -> None:
    """A pair that cannot be scored is an error, also in a slice of the benchmark, and never makes the denominator
    smaller."""
    (folder / PAIRS).write_text(text)
    with pytest.raises(AnnotationError, match=message):
        VqaTask(folder, "val")


# ---------------------------------------------------------------------------------------------------------------------
# splits without labels, submissions


@pytest.mark.parametrize("split", ["test", "test-dev"])
def test_a_split_without_labels_makes_submissions_only(folder: Path, split: str) -> None:
    """Both test sets use test2015 images, and a function that needs labels says that there are none."""
    subset = {"test": "test2015", "test-dev": "test-dev2015"}[split]
    rename(folder, QUESTIONS, subset)
    if split == "test-dev":  # test-dev alone makes no submission: EvalAI wants all of test2015
        questions = folder / QUESTIONS.replace("val2014", subset)
        whole = questions.read_text().replace("test-dev", "test")
        (folder / QUESTIONS.replace("val2014", "test2015")).write_text(whole)
    task = VqaTask(folder, split)
    assert not task.labelled
    assert next(task.examples()).image_ids == ("COCO_test2015_000000000042",)
    assert len(task.annotation_files()) == 1
    predictions = {p.example_id: p for p in predict(task, {"42000": "white", "42001": "é", "73000": ""})}
    sent = json.loads(task.submission(predictions))
    assert [list(record.values()) for record in sent] == [[42000, "white"], [42001, "é"], [73000, ""]]
    for judged in (
        lambda: list(task.score(predictions)),
        lambda: task.chance(predictions),
        lambda: task.official([]),
        lambda: task.gold("42000"),
        lambda: task.best("42000"),
        lambda: task.worst("42000"),
    ):
        with pytest.raises(ConfigError, match=f"VQA {split} has no public labels"):
            judged()


def test_a_submission_is_read_back(folder: Path) -> None:
    """Each record becomes a prediction, in file order, with duplicates and unknown ids; other keys are not read."""
    task = VqaTask(folder, "val")
    predictions = predict(task, {"42000": "white", "42001": "no", "73000": "red"})
    path = folder / task.submission_name
    path.write_bytes(task.submission({p.example_id: p for p in predictions}))
    assert [(p.example_id, p.image_id, p.answer) for p in task.read_submission(path)] == [
        (p.example_id, p.image_id, p.answer) for p in predictions
    ]
    path.write_text('[{"question_id": 7, "answer": "a", "confidence": NaN}, {"question_id": 7, "answer": "b"}]')
    assert task.read_submission(path) == [Prediction("7", "", "a", ()), Prediction("7", "", "b", ())]


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"question_id": "42000", "answer": "a"}]', r"record 1: Expected `int`, got `str` - at `\$.question_id`"),
        (
            '[{"question_id": 1, "answer": "a"}, {"question_id": 2, "answer": 3}]',
            r"record 2 \(question_id 2\): .*`int` - at",
        ),
        ('[{"question_id": 1}]', r"record 1 \(question_id 1\): .*missing required field `answer`"),
        ('[["question_id", 1]]', "record 1: Expected `object`, got `array`"),
        ('{"question_id": 1, "answer": "a"}', "dict, not a list of records"),
        (
            '[{"question_id": 1, "answer": "a"}',
            r"not JSON at line 1 column 35 .*or write it again",
        ),
        ("", "not JSON at line 1 column 1"),
    ],
)
def test_a_bad_submission_ends_in_one_line(folder: Path, text: str, message: str, lenient: bool) -> None:
    """A fault on which VQAEval asserts or crashes is an error with file and record, in strict and in lenient mode."""
    path = folder / "submission.json"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"submission.json.*{message}") as caught:
        VqaTask(folder, "val").read_submission(path, lenient)
    assert not isinstance(caught.value, AnnotationError)


def test_best_and_worst_span_the_range(folder: Path) -> None:
    """Best answers get the highest possible score and worst answers get zero."""
    (folder / PAIRS).write_text("[[42000, 73000]]")
    task = VqaTask(folder, "val")
    for choose, percent in ((task.best, 100.0), (task.worst, 0.0)):
        scores = judge(task, predict(task, {example_id: choose(example_id) for example_id in task.expected()}))
        assert {metric.value for metric in summarize(scores).metrics.values()} == {percent}


# ---------------------------------------------------------------------------------------------------------------------
# bad files


def _edit(path: Path, key: str, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content[key])
    path.write_text(json.dumps(content))


BROKEN: dict[str, tuple[Any, str]] = {
    "missing folder": (lambda f: [p.unlink() for p in f.iterdir()] and f.rmdir(), "vqa: not found"),
    "missing file": (lambda f: (f / ANNOTATIONS).unlink(), f"{ANNOTATIONS}: not found"),
    "truncated": (lambda f: (f / QUESTIONS).write_text((f / QUESTIONS).read_text()[:-40]), "not JSON at line 1 column"),
    "not an object": (lambda f: (f / QUESTIONS).write_text("[]"), "JSON, but not an object"),
    "binary": (lambda f: (f / QUESTIONS).write_bytes(b"\x1f\x8b\xff"), "compressed by gzip: unpack it"),
    "questions is no list": (lambda f: (f / QUESTIONS).write_text('{"questions": {}}'), "no list 'questions'"),
    "no questions": (lambda f: _edit(f / QUESTIONS, "questions", lambda q: q.clear()), "is empty"),
    "a number as question": (
        lambda f: _edit(f / QUESTIONS, "questions", lambda q: q.append(3)),
        "Expected `object`, got `int`",
    ),
    "a number as answer": (
        lambda f: _edit(f / ANNOTATIONS, "annotations", lambda a: a[0]["answers"].append(3)),
        r"73000\): Expected `object`, got `int` - at `\$.answers\[10\]`",
    ),
    "missing key": (lambda f: _edit(f / ANNOTATIONS, "annotations", lambda a: a[1].pop("answers")), "42001.*`answers`"),
    "string id": (
        lambda f: _edit(f / QUESTIONS, "questions", lambda q: q[2].update(question_id="1")),
        r"questions\[2\]",
    ),
    "duplicate": (lambda f: _edit(f / QUESTIONS, "questions", lambda q: q.append(q[0])), "42000 occurs twice"),
    "no annotation": (lambda f: _edit(f / ANNOTATIONS, "annotations", lambda a: a.pop()), "42000 is not in v2_mscoco"),
    "no question": (lambda f: _edit(f / QUESTIONS, "questions", lambda q: q.pop()), "73000 is not in v2_OpenEnded"),
    "numbered common answer": (
        lambda f: _edit(f / ANNOTATIONS, "annotations", lambda a: a[2].update(multiple_choice_answer=7)),
        r"42000\): .*`int` - at `\$.multiple_choice_answer`",
    ),
    "common answer but no answers": (
        lambda f: _edit(f / ANNOTATIONS, "annotations", lambda a: a[0].update(answers=[], multiple_choice_answer="x")),
        "73000: no answers",
    ),
    "annotation twice": (
        lambda f: _edit(f / ANNOTATIONS, "annotations", lambda a: a.append(a[0])),
        f"{ANNOTATIONS}: question_id 73000 occurs twice",
    ),
    "no answers": (
        lambda f: _edit(f / ANNOTATIONS, "annotations", lambda a: a[0]["answers"].clear()),
        "73000: no answers",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_bad_files_end_in_one_line(tmp_path: Path, fault: str) -> None:
    """Missing, truncated or inconsistent files are a one-line error with the place and the fault."""
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


def test_odd_answer_ids_are_scored_one_by_one(folder: Path) -> None:
    """An answer_id that is a list or missing is legal, and its records are compared as VQAEval compares them."""
    odd = [{"answer": "red", "answer_id": [i]} for i in range(4)] + [{"answer": "blue"}] * 6
    _edit(folder / ANNOTATIONS, "annotations", lambda a: a[0].update(answers=odd))
    task = VqaTask(folder, "val")
    said = {"42000": "x", "42001": "x", "73000": "red"}
    assert [score.value for score in judge(task, predict(task, said))] == [0.0, 0.0, soft_accuracy("red", odd)]


def test_an_annotation_may_name_its_image_in_any_way_or_not_at_all(folder: Path) -> None:
    """An image_id may be an integer, a float, a string, null or missing. Another image, and a value that is no number,
    are refused."""
    for image_id in (42, 42.0, "42", None):
        _edit(folder / ANNOTATIONS, "annotations", lambda a, i=image_id: a[2].update(image_id=i))
        assert len(VqaTask(folder, "val").expected()) == 3
    for image_id, message in (
        ("43", "'image_id' is '43', but in v2_Open.* it is 42"),
        ([42], r"got `array` - at `\$.image_id`"),
    ):
        _edit(folder / ANNOTATIONS, "annotations", lambda a, i=image_id: a[2].update(image_id=i))
        with pytest.raises(AnnotationError, match=f"question_id 42000.*{message}"):
            VqaTask(folder, "val")
    _edit(folder / ANNOTATIONS, "annotations", lambda a: a[2].pop("image_id"))
    assert len(VqaTask(folder, "val").expected()) == 3


def test_an_image_may_have_more_digits_than_a_name_of_coco(folder: Path) -> None:
    """A user's own image_id of more than twelve digits is read whole, also where the annotation writes it as text."""
    for file, key, number in ((QUESTIONS, "questions", 1234567890123), (ANNOTATIONS, "annotations", "1234567890123")):
        _edit(folder / file, key, lambda records, number=number: [r.update(image_id=number) for r in records])
    assert set(VqaTask(folder, "val").expected().values()) == {"COCO_val2014_1234567890123"}
    _edit(folder / ANNOTATIONS, "annotations", lambda a: a[2].update(image_id=5))
    with pytest.raises(AnnotationError, match=r"is 5, but in v2_Open.* it is 1234567890123;"):
        VqaTask(folder, "val")


def test_annotators_without_ids_are_compared_by_all_their_fields(folder: Path) -> None:
    """An undeclared field distinguishes two annotators, as in VQAEval, which compares whole records."""
    alike = [{"answer": "red"}] * 3 + [{"answer": "blue"}] * 7
    told_apart = [record | {"annotator": number} for number, record in enumerate(alike)]
    for records in (alike, told_apart):
        _edit(folder / ANNOTATIONS, "annotations", lambda a, records=records: a[0].update(answers=records))
        task = VqaTask(folder, "val")
        found = judge(task, predict(task, {"42000": "x", "42001": "x", "73000": "red"}))[2].value
        assert found == soft_accuracy("red", records)
    assert soft_accuracy("red", alike) != soft_accuracy("red", told_apart)


def test_benchmark_runs_small() -> None:
    """benchmarks/scoring.py makes its files and scores them, and without the official program it says so."""
    command = [sys.executable, "benchmarks/scoring.py", "--questions", "60", "--repeats", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "60 questions" in done.stdout
    assert "--official" in done.stdout
