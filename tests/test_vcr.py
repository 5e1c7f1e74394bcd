"""VCR: the reader on official layouts, and scores and submissions equal to R2C's (golden/README.md)."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visualbert_core.errors import AnnotationError, ConfigError, InputError, VisualBertCoreError
from visualbert_core.schema import Prediction
from visualbert_core.tasks import judge, summarize
from visualbert_core.tasks.vcr import COLUMNS, PRINTED, VcrTask

SUBMISSION = json.loads((Path(__file__).parent / "golden" / "vcr_submission.json").read_text())
GOLDEN = json.loads((Path(__file__).parent / "golden" / "vcr_scores.json").read_text())


def record(annot_id: str = "val-1", **changes: Any) -> dict[str, Any]:
    """Make a record with the official keys that matter; its text is ours."""
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


def unlabelled(annot_id: str = "test-1") -> dict[str, Any]:
    """Make a record of the test set, without labels."""
    return {key: value for key, value in record(annot_id, img_id="test-0").items() if not key.endswith("_label")}


def write(folder: Path, *records: dict[str, Any], split: str = "val") -> Path:
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records))
    return folder


def predict(task: VcrTask, said: dict[str, Any]) -> list[Prediction]:
    return [Prediction(example_id, image_id, said[example_id], ()) for example_id, image_id in task.expected().items()]


def test_scores_as_officially(tmp_path: Path) -> None:
    """On 61 made-up records with tied scores, the three means equal those that eval_q2ar prints."""
    items = GOLDEN["items"]
    labels = [{key: item[key] for key in ("answer_label", "rationale_label")} for item in items]
    task = VcrTask(write(tmp_path, *(record(f"val-{i}", **label) for i, label in enumerate(labels))), "val")
    said = {
        f"val-{i}/{part}": max(range(4), key=item[f"{part}_scores"].__getitem__)  # of tied choices the lowest index
        for i, item in enumerate(items)
        for part in ("answer", "rationale")
    }
    metrics = summarize(judge(task, predict(task, said))).metrics
    assert list(metrics) == ["q_to_a", "qa_to_r", "q_to_ar"]
    for name, metric in metrics.items():
        assert f"{metric.value / 100:.3f}" == f"{GOLDEN[name]:.3f}"
        assert metric.n == 61
    printed = {name: GOLDEN[metric] for metric, name in PRINTED.items()}
    assert task.official(judge(task, predict(task, said))) == printed


def test_two_examples_a_record(tmp_path: Path) -> None:
    """A record asks for the answer given the question, and for the rationale given question and *right* answer, over
    the same regions."""
    answer, rationale = VcrTask(write(tmp_path, record()), "val").examples()
    assert (answer.example_id, rationale.example_id) == ("val-1/answer", "val-1/rationale")
    assert answer.context == ("Why", "does", (2,), "wait", "?")
    assert rationale.context == ("Why", "does", (2,), "wait", "?", (2,), "sits", ".")
    assert answer.choices[1] == ((2,), "sits", ".")
    assert rationale.choices[2] == ((2, 1), "are", "close", ".")
    assert answer.mentioned == rationale.mentioned == (1, 2)
    assert answer.objects == ("person", "cup", "person", "chair")


def test_image_id_loses_only_the_last_suffix(tmp_path: Path) -> None:
    """Only the folder and the last suffix are removed: film names contain dots."""
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
    """The regions are those that any part of the record mentions, so that they do not give the answer away."""
    assert {example.mentioned for example in VcrTask(write(tmp_path, record(**changes)), "val").examples()} == {
        mentioned
    }


def test_joint_score_needs_both(tmp_path: Path) -> None:
    """Q→AR is scored per record, and a right answer with a wrong rationale, or the reverse, is worth nothing."""
    task = VcrTask(write(tmp_path, *(record(f"val-{i}") for i in range(4))), "val")
    chosen = [(1, 2), (1, 0), (0, 2), (0, 0)]
    said = {f"val-{i}/{part}": c[j] for i, c in enumerate(chosen) for j, part in enumerate(("answer", "rationale"))}
    scores = judge(task, predict(task, said))
    assert [score.value for score in scores if score.metric == "q_to_ar"] == [1.0, 0.0, 0.0, 0.0]
    assert [score.value for score in scores if score.metric == "q_to_a"] == [1.0, 1.0, 0.0, 0.0]
    assert [score.value for score in scores if score.metric == "qa_to_r"] == [1.0, 0.0, 1.0, 0.0]


def test_gold_chance_and_family(tmp_path: Path) -> None:
    """Gold is the index in the file, chance is one in four for each part, and "family" is a breakdown."""
    task = VcrTask(write(tmp_path, record(family="same")), "val")
    assert (task.gold("val-1/answer"), task.gold("val-1/rationale")) == (1, 2)
    assert task.chance({}) == {"q_to_a": 25.0, "qa_to_r": 25.0, "q_to_ar": 6.25}
    scores = judge(task, predict(task, {"val-1/answer": 1, "val-1/rationale": 2}))
    assert summarize(scores).breakdown["family"]["same"]["q_to_ar"] == (100.0, 1)


@pytest.mark.parametrize("answer", [4, -1, "1", True, 1.0, None])
def test_choice_out_of_range_is_refused(tmp_path: Path, answer: Any) -> None:
    """An answer that is not the index of a choice is an error that names the example."""
    task = VcrTask(write(tmp_path, record()), "val")
    with pytest.raises(InputError, match=r"val-1/rationale.*is not 0, 1, 2 or 3"):
        judge(task, predict(task, {"val-1/answer": 1, "val-1/rationale": answer}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": ["Why", [4], "?"]}, r"question: tag \[4\] is out of range for 4 objects"),
        ({"rationale_choices": [["b"], ["b"], ["b"], [[-1]]]}, r"rationale_choices: tag \[-1\] is out of range"),
        ({"answer_label": 4}, r"Expected `int` <= 3 - at `\$.answer_label`"),
        ({"answer_choices": [["a"]] * 3}, r"Expected `array` of length 4, got 3 - at `\$.answer_choices`"),
        ({"answer_choices": "abcd"}, r"Expected `array`, got `str` - at `\$.answer_choices`"),
        ({"question": ["Why", 3]}, r"Expected `str \| array`, got `int` - at `\$.question\[1\]`"),
        ({"question": ["Why", ["3"]]}, r"Expected `int`, got `str` - at `\$.question\[1\]\[0\]`"),
        ({"objects": ["person", 2]}, r"Expected `str`, got `int` - at `\$.objects\[1\]`"),
        ({"annot_id": "val-1"}, "annot_id val-1 occurs twice"),
        ({"annot_id": "val\n2"}, r"annot_id 'val\\n2' is not an id"),
        ({"annot_id": ""}, "annot_id '' is not an id"),
        ({"img_fn": "../movie/x.jpg"}, "'img_fn' is '../movie/x.jpg', not a file below the image folder"),
        ({"img_fn": "movie/../../x.jpg"}, "not a file below the image folder"),
        ({"img_fn": "/movie/x.jpg"}, "not a file below the image folder"),
        ({"img_fn": ""}, "'img_fn' is '', not a file"),
        ({"img_fn": "movie/\ud800.jpg"}, "holds half a character"),
        ({"rationale_label": 1.0}, r"Expected `int`, got `float` - at `\$.rationale_label`"),
        ({"question": [["Why"]]}, r"Expected `int`, got `str` - at `\$.question\[0\]\[0\]`"),
    ],
)
def test_bad_record_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """A malformed record is a one-line error with file, line number and fault."""
    write(tmp_path, record("val-1"), record(**({"annot_id": "val-2"} | changes)))
    with pytest.raises(AnnotationError, match=message) as caught:
        VcrTask(tmp_path, "val")
    assert "val.jsonl line 2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labelled_split_needs_labels(tmp_path: Path) -> None:
    """A val file with test records cannot be opened."""
    with pytest.raises(AnnotationError, match=r"line 1 \(annot_id test-1\): .*missing required field `answer_label`"):
        VcrTask(write(tmp_path, unlabelled()), "val")
    with pytest.raises(ConfigError, match="'tset'; known: val, train, test"):
        VcrTask(tmp_path, "tset")
    with pytest.raises(ConfigError, match="unknown VCR protocol 'r2c'; known: official"):
        VcrTask(tmp_path, "val", "r2c")


# ---------------------------------------------------------------------------------------------------------------------
# the test set


@pytest.fixture
def test_set(tmp_path: Path) -> VcrTask:
    return VcrTask(write(tmp_path, unlabelled("test-0"), unlabelled("test-1"), split="test"), "test")


def test_unlabelled_records_give_five_examples(test_set: VcrTask) -> None:
    """A test record asks for the answer, and for the rationale after each of the four answers, over the same
    regions."""
    examples = list(test_set.examples())[:5]
    assert [example.example_id for example in examples] == [
        "test-0/answer",
        "test-0/rationale/0",
        "test-0/rationale/1",
        "test-0/rationale/2",
        "test-0/rationale/3",
    ]
    question = ("Why", "does", (2,), "wait", "?")
    assert [example.context for example in examples[1:]] == [question + answer for answer in examples[0].choices]
    assert {example.choices for example in examples[1:]} == {(("A",), ("B",), ((2, 1), "are", "close", "."), ("D",))}
    assert {example.mentioned for example in examples} == {(1, 2)}
    assert list(test_set.expected()) == [example.example_id for example in test_set.examples()]


def test_unlabelled_split_has_no_score(test_set: VcrTask) -> None:
    """Any function that needs labels says that the split has none, and what the user can make instead."""
    asked = [
        lambda: list(test_set.score({})),
        lambda: test_set.chance({}),
        lambda: test_set.gold("test-0/answer"),
        lambda: test_set.best("test-0/answer"),
        lambda: test_set.worst("test-0/rationale/2"),
    ]
    assert not test_set.labelled
    for ask in asked:
        with pytest.raises(ConfigError, match=r"VCR test has no public labels.*submission\.csv"):
            ask()


# ---------------------------------------------------------------------------------------------------------------------
# submissions


def golden_task(folder: Path) -> VcrTask:
    labels = [{"answer_label": a, "rationale_label": r} for _, a, r in SUBMISSION["labels"]]
    names = [annot_id for annot_id, _, _ in SUBMISSION["labels"]]
    return VcrTask(write(folder, *(record(n, **label) for n, label in zip(names, labels, strict=True))), "val")


def golden_file(folder: Path) -> Path:
    (folder / "s.csv").write_text("".join(line + "\n" for line in SUBMISSION["csv"]))
    return folder / "s.csv"


def five_a_record(rows: list[dict[str, str]]) -> dict[str, Prediction]:
    """Make predictions with the scores of a submission's rows, five per record."""
    found = {}
    for row in rows:
        names = {"answer": "answer"} | {f"rationale/{i}": f"rationale_conditioned_on_a{i}" for i in range(4)}
        for part, block in names.items():
            example_id = f"{row['annot_id']}/{part}"
            found[example_id] = Prediction(example_id, "", 0, tuple(float(row[f"{block}_{i}"]) for i in range(4)))
    return found


def test_official_submission_is_scored_as_officially(tmp_path: Path) -> None:
    """A CSV by R2C's program scores as eval_q2ar prints for its arrays, with the rationales' block of the right answer.
    Scores may be tied, tiny, huge and negative."""
    task = golden_task(tmp_path)
    rows = task.read_submission(golden_file(tmp_path))
    assert [row.example_id for row in rows] == list(task.expected())
    assert task.official(judge(task, rows)) == SUBMISSION["printed"]
    assert task.read_submission(golden_file(tmp_path), lenient=True) == rows


def test_submission_is_the_official_file(tmp_path: Path) -> None:
    """The submission has the bytes that R2C's program writes for the same scores."""
    predictions = five_a_record(list(csv.DictReader(SUBMISSION["csv"])))
    assert golden_task(tmp_path).submission(predictions) == golden_file(tmp_path).read_bytes()


def test_test_submission_comes_back(test_set: VcrTask, tmp_path: Path) -> None:
    """On the test set all five examples of a record read back with their scores, in the split's order."""
    rng = random.Random(3)
    made = {
        example_id: Prediction(example_id, image, 0, tuple(rng.random() for _ in range(4)))
        for example_id, image in test_set.expected().items()
    }
    (tmp_path / test_set.submission_name).write_bytes(test_set.submission(made))
    back = test_set.read_submission(tmp_path / test_set.submission_name)
    assert [(row.example_id, row.image_id, row.scores) for row in back] == [
        (row.example_id, row.image_id, row.scores) for row in made.values()
    ]
    assert all(row.answer == row.scores.index(max(row.scores)) for row in back)


@pytest.mark.parametrize(
    ("part", "scores", "message"),
    [
        ("rationale/2", None, "no prediction of test-1/rationale/2; .*rationale for each of the four answers"),
        ("answer", None, "no prediction of test-1/answer"),
        ("answer", (), r"test-1/answer: scores \[\] are not 4 finite numbers"),
        ("answer", (1.0, 2.0, 3.0), "are not 4 finite numbers"),
        ("rationale/0", (1.0, 2.0, 3.0, float("nan")), "test-1/rationale/0: .*not 4 finite numbers"),
    ],
)
def test_submission_needs_four_scores_of_five_examples(
    test_set: VcrTask, part: str, scores: tuple[float, ...] | None, message: str
) -> None:
    """An example that is missing or lacks four scores is named."""
    made = {e: Prediction(e, image, 0, (0.1, 0.2, 0.3, 0.4)) for e, image in test_set.expected().items()}
    del made[f"test-1/{part}"]
    if scores is not None:
        made[f"test-1/{part}"] = Prediction(f"test-1/{part}", "", 0, scores)
    with pytest.raises(InputError, match=message):
        test_set.submission(made)


def test_reading_keeps_what_coverage_must_judge(test_set: VcrTask, tmp_path: Path) -> None:
    """Duplicate and unknown records are kept in the file's order, and columns may have any order."""
    names = list(reversed(COLUMNS))
    rows = [
        {"annot_id": a} | {name: str(i % 7) for i, name in enumerate(COLUMNS[1:])} for a in ("test-1", "who", "test-1")
    ]
    lines = [",".join(names), *(",".join(row[name] for name in names) for row in rows)]
    (tmp_path / "s.csv").write_bytes(("\ufeff" + "\r\n".join(lines) + "\r\n\r\n").encode())
    found = test_set.read_submission(tmp_path / "s.csv")
    five = [f"test-1/{part}" for part in ("answer", *(f"rationale/{i}" for i in range(4)))]
    assert [row.example_id for row in found] == [*five, "who/answer", *five]
    assert [row.scores for row in found[:3]] == [(0, 1, 2, 3), (4, 5, 6, 0), (1, 2, 3, 4)]
    assert [row.answer for row in found[:3]] == [3, 2, 3]
    assert found[5].image_id == ""


def row_of(annot_id: str = "test-1", **cells: str) -> str:
    return ",".join((dict.fromkeys(COLUMNS, "0.5") | {"annot_id": annot_id} | cells)[name] for name in COLUMNS)


HEADER = ",".join(COLUMNS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: column 'annot_id' is missing.* must name 21 columns"),
        (row_of(), "line 1: column 'annot_id' is missing"),
        (HEADER.replace("a3_3", "a3_4"), "column 'rationale_conditioned_on_a3_3' is missing"),
        (HEADER.replace("answer_1", "answer_0"), "column 'answer_1' is missing; the first"),
        (HEADER + ",answer_0", "column 'answer_0' is there twice; the first"),
        (HEADER + ",extra", "column 'extra' is not known; the first"),
        (f"{HEADER}\n{row_of()}\n{row_of()[:-9]}", "line 3: the row does not have 21 cells"),
        (f"{HEADER}\n{row_of(answer_2='')}", "line 2 .test-1. answer_2: '' is not a finite number"),
        (f"{HEADER}\n{row_of(answer_2='nan')}", "answer_2: 'nan' is not a finite number"),
        (f"{HEADER}\n{row_of(answer_2='1e999')}", "answer_2: '1e999' is not a finite number"),
        (f"{HEADER}\n{row_of(rationale_conditioned_on_a1_0='x')}", "rationale_conditioned_on_a1_0: 'x' is not"),
        (f"{HEADER}\n{row_of('')}", "line 2: annot_id '' is not the id of a record"),
        (f'{HEADER}\n"{row_of()}', "line 2: not CSV"),
        (f"{HEADER}\n{'x' * 200_000}", "line 2: not CSV .field larger"),
    ],
    ids=lambda text: text[-30:],
)
def test_bad_submission_is_one_line(test_set: VcrTask, tmp_path: Path, text: str, message: str) -> None:
    """A header without the 21 columns, a short row or a cell without a number is a one-line error with file and
    line."""
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        test_set.read_submission(tmp_path / "s.csv")
    assert "s.csv" in str(caught.value)
    assert str(caught.value).isprintable()


# ---------------------------------------------------------------------------------------------------------------------
# properties


@settings(max_examples=40, deadline=None)
@given(chosen=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=24, max_size=24), seed=st.integers())
def test_order_never_matters_and_best_and_worst_are_bounds(
    tmp_path_factory: pytest.TempPathFactory, chosen: list[tuple[int, int]], seed: int
) -> None:
    """Shuffled predictions give the same unit scores, which lie between the scores of the worst and of the best
    answers."""
    task = golden_task(tmp_path_factory.mktemp("vcr"))
    answers = [answer for pair in chosen for answer in pair]
    said = dict(zip(task.expected(), answers, strict=True))
    rows = predict(task, said)
    scores = judge(task, rows)
    assert judge(task, random.Random(seed).sample(rows, len(rows))) == scores
    best = judge(task, predict(task, {e: task.best(e) for e in task.expected()}))
    worst = judge(task, predict(task, {e: task.worst(e) for e in task.expected()}))
    assert all(b.value >= s.value >= w.value for b, s, w in zip(best, scores, worst, strict=True))
    assert ({s.value for s in best}, {s.value for s in worst}) == ({1.0}, {0.0})


def mutants(text: str, count: int) -> Iterator[bytes]:
    """Yield `count` damaged copies of a text: cut short, with bytes replaced, with pieces doubled, or with hostile
    pieces such as huge numbers."""
    rng = random.Random(9)
    raw = text.encode()
    for _ in range(count):
        start, stop = sorted(rng.randrange(len(raw) + 1) for _ in range(2))
        grains = [b"1e999", b"-1", b"[", b"]", b"{", b'"', b",", b"null", b"9" * 300]
        yield rng.choice(
            [
                raw[:stop],
                raw[:start] + rng.randbytes(rng.randrange(1, 4)) + raw[start + 1 :],
                raw[:stop] + raw[start:],
                raw[:start] + rng.choice(grains) + raw[start:],
            ]
        )


def test_mutated_files_score_or_end_in_one_line(memory: Path) -> None:
    """A damaged byte in the annotations or in a submission gives scores or one error line."""
    files = {"val.jsonl": json.dumps(record("val-1")) + "\n", "s.csv": f"{HEADER}\n{row_of('val-1')}\n"}
    errors = []
    for name in files:
        for mutant in mutants(files[name], 300):
            for other, text in files.items():
                (memory / other).write_text(text)
            (memory / name).write_bytes(mutant)
            errors.append(error_of(memory))
    assert all(str(error).isprintable() for error in errors if error is not None)
    assert 20 < errors.count(None) < len(errors) - 20


def error_of(folder: Path) -> VisualBertCoreError | None:
    """Score the folder's s.csv and return the error, or None for scores. Only our own errors are caught."""
    try:
        task = VcrTask(folder, "val")
        judge(task, task.read_submission(folder / "s.csv"))
    except VisualBertCoreError as error:
        return error
    return None
