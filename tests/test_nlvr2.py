"""NLVR2: the reader on official layouts, and scores equal to those of the authors' metrics.py (golden/README.md)."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from visualbert_core.errors import AnnotationError, ConfigError, CoverageError, InputError
from visualbert_core.evaluation.score import read_prediction_set, score
from visualbert_core.schema import Prediction, Statement
from visualbert_core.tasks import judge, summarize
from visualbert_core.tasks.nlvr2 import SPLITS, Nlvr2Task

FOLDER = Path(__file__).parent / "golden"
GOLDEN = json.loads((FOLDER / "nlvr2_scores.json").read_text())
SUBSETS = json.loads((FOLDER / "nlvr2_subsets.json").read_text())
LENIENT = json.loads((FOLDER / "nlvr2_lenient.json").read_text())
SHARED = Path(os.environ.get("VISUALBERT_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


def record(identifier: str, label: str = "True", **extra: Any) -> dict[str, Any]:
    sentence = re.sub(r"-\d+(?=-\d+$)", "", identifier)  # the pairs of one sentence share this key
    return {"identifier": identifier, "sentence": f"About {sentence}.", "label": label, "writer": "1"} | extra


def write(folder: Path, records: list[dict[str, Any]], split: str = "dev") -> Path:
    (folder / f"{split}.json").write_text("".join(json.dumps(line) + "\n" for line in records))
    return folder


def gold(task: Nlvr2Task) -> list[Prediction]:
    return predict(task, [task.gold(name) for name in task.expected()])


def balance(task: Nlvr2Task) -> dict[str, str]:
    """Map each identifier to balanced, unbalanced or neither, in file order."""
    return {s.unit_id: s.groups["balance"][0] for s in judge(task, gold(task)) if s.metric == "accuracy"}


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
    assert "".join(kind[0] for kind in balance(task).values()) == SUBSETS["slice"]


def test_made_up_records_score_as_officially(tmp_path: Path) -> None:
    """Accuracy and consistency equal metrics.py's on sentences with one to four pairs, shuffled records and answers in
    any case."""
    official = GOLDEN["made_up"]
    task = Nlvr2Task(write(tmp_path, official["records"], "test1"), "test1")
    metrics = summarize(judge(task, predict(task, official["predictions"]))).metrics
    assert metrics["accuracy"].value == pytest.approx(100 * official["accuracy"], abs=1e-9)
    assert metrics["consistency"].value == pytest.approx(100 * official["consistency"], abs=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# subsets and breakdowns


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    """Write the made-up records with URLs, their official subsets in subfolders, and their phenomena with CRLF line
    ends."""
    made = SUBSETS["made_up"]
    write(tmp_path, made["records"])
    for kind, subset in made["subsets"].items():
        (tmp_path / kind).mkdir()
        ids = set(subset["ids"])
        write(tmp_path / kind, [line for line in made["records"] if line["identifier"] in ids], f"{kind}_dev")
    (tmp_path / "annotated_dev_examples.txt").write_bytes(made["annotated"].encode())
    return tmp_path


def answered(task: Nlvr2Task) -> list[Prediction]:
    """Return the made-up answers to the examples of a task."""
    names = (line["identifier"] for line in SUBSETS["made_up"]["records"])
    said = dict(zip(names, SUBSETS["made_up"]["predictions"], strict=True))
    return predict(task, [said[name] for name in task.expected()])


@pytest.mark.parametrize("kind", ["balanced", "unbalanced"])
def test_subsets_score_as_officially(made_up: Path, kind: str) -> None:
    """A subset is filter_data.py's. Its accuracy is a group of the whole split, and its consistency is metrics.py's on
    the subset."""
    official = SUBSETS["made_up"]["subsets"][kind]
    task = Nlvr2Task(made_up, f"{kind}-dev")
    scores = judge(task, answered(task))
    assert task.official(scores) == {metric: official[metric] for metric in ("accuracy", "consistency")}
    assert "balance" not in summarize(scores).breakdown
    whole = Nlvr2Task(made_up, "dev")
    in_group = [name for name, group in balance(whole).items() if group == kind]
    assert in_group == official["ids"]
    group = summarize(judge(whole, answered(whole))).breakdown["balance"][kind]
    assert group == {"accuracy": (pytest.approx(official["filtered_accuracy"], abs=1e-9), len(in_group))}


def test_phenomena_score_as_officially(made_up: Path) -> None:
    """The accuracy on each linguistic phenomenon and its number of examples equal compute_category_accuracy.py's."""
    task = Nlvr2Task(made_up, "dev")
    groups = summarize(judge(task, answered(task))).breakdown["phenomenon"]
    ours = {name: [f"{value:.2f}", n] for name, metrics in groups.items() for value, n in [metrics["accuracy"]]}
    assert ours == SUBSETS["made_up"]["phenomena"]
    assert made_up / "annotated_dev_examples.txt" in task.annotation_files()


def test_groups_need_their_ingredients(made_up: Path) -> None:
    """A breakdown is absent without the file of phenomena, on test splits, or when one record has no URL."""
    records = SUBSETS["made_up"]["records"]
    write(made_up, [line | {"identifier": "test1" + line["identifier"][3:]} for line in records], "test1")
    test = Nlvr2Task(made_up, "test1")
    assert summarize(judge(test, gold(test))).breakdown.keys() == {"balance"}
    (made_up / "annotated_dev_examples.txt").unlink()
    without = [records[0] | {"left_url": None}, *records[1:]]
    with pytest.raises(AnnotationError, match=r"line 1 .*`null` - at `\$.left_url`"):
        Nlvr2Task(write(made_up, without), "dev")
    del without[0]["left_url"], without[0]["right_url"]
    task = Nlvr2Task(write(made_up, without), "dev")
    assert summarize(judge(task, gold(task))).breakdown == {}


def test_a_subset_may_lie_in_the_folder_itself(made_up: Path) -> None:
    """A subset may be balanced/balanced_dev.json or balanced_dev.json; without both, the error names the missing
    file."""
    for place, name in ((made_up, "balanced-dev"), (made_up / "balanced", "balanced-dev")):
        assert len(Nlvr2Task(place, name).expected()) == len(SUBSETS["made_up"]["subsets"]["balanced"]["ids"])
    with pytest.raises(AnnotationError, match=r"balanced_test1\.json: not found"):
        Nlvr2Task(made_up, "balanced-test1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A.\n* x\n\nA.\n", " line 4: this sentence occurs twice"),
        ("A.\n* x\nB.\n", " line 3: neither an empty line nor '. phenomenon'"),
    ],
)
def test_bad_phenomena_are_named(made_up: Path, text: str, message: str) -> None:
    """A damaged file of phenomena is a one-line error with the line."""
    (made_up / "annotated_dev_examples.txt").write_text(text)
    with pytest.raises(AnnotationError, match=f"annotated_dev_examples.txt{message}"):
        Nlvr2Task(made_up, "dev")


def test_splits_and_protocol(tmp_path: Path) -> None:
    """A split's name finds every official file, all splits have labels, and there is one protocol."""
    assert len(SPLITS) == 8
    task = Nlvr2Task(write(tmp_path, [record("dev-1-0-0")]), "dev", "official")
    assert (task.protocol_key, task.labelled) == ("official", True)
    assert task.protocol == "NLVR2 official (metrics.py); own set or subset of 1 statements"
    with pytest.raises(ConfigError, match=r"known: dev, .*, balanced-dev"):
        Nlvr2Task(tmp_path, "balanced_dev")
    with pytest.raises(ConfigError, match="unknown NLVR2 protocol 'any'"):
        Nlvr2Task(tmp_path, "dev", "any")


# ---------------------------------------------------------------------------------------------------------------------
# submissions


@pytest.mark.parametrize("case", LENIENT["cases"], ids=lambda case: case["name"])
def test_lenient_is_what_the_official_program_does(tmp_path: Path, case: dict[str, Any]) -> None:
    """On 24 good and faulty files, the lenient mode gives the official program's score, and none where that program
    fails."""
    task = Nlvr2Task(write(tmp_path, LENIENT["records"]), "dev")
    path = tmp_path / "predictions.csv"
    path.write_bytes(case["csv"].encode())

    def official() -> dict[str, Any]:
        return score(task, read_prediction_set(task, path, "", "official"), "", "official")

    if case["scores"] is None:
        with pytest.raises(CoverageError, match="no score"):
            official()
    else:
        assert official()["official_form_of_subset"] == case["scores"]


@pytest.mark.parametrize("case", LENIENT["cases"], ids=lambda case: case["name"])
def test_strict_refuses_what_is_not_one_answer_each(tmp_path: Path, case: dict[str, Any]) -> None:
    """The strict mode accepts other line ends, outer spaces and a byte order mark, and refuses every other fault."""
    task = Nlvr2Task(write(tmp_path, LENIENT["records"]), "dev")
    path = tmp_path / "predictions.csv"
    path.write_bytes(case["csv"].encode())
    harmless = {"as asked", "no newline at the end", "spaces around the line", "byte order mark"}
    if case["name"] in harmless or case["name"].startswith("line ends"):
        assert score(task, read_prediction_set(task, path, ""), "")["scores"]["accuracy"] == 75.0
    else:
        with pytest.raises(CoverageError, match=r"predictions\.csv"):
            score(task, read_prediction_set(task, path, ""), "")


def test_submission_is_the_leaderboards_file(tmp_path: Path) -> None:
    """A submission has one line per statement in the split's order, with labels as in the official files, and reads
    back the same."""
    task = Nlvr2Task(write(tmp_path, [record("dev-7-0-0"), record("dev-1-0-0")]), "dev")
    predictions = {row.example_id: row for row in predict(task, ["true", "FALSE"])[::-1]}
    data = task.submission(predictions)
    assert data == b"dev-7-0-0,True\ndev-1-0-0,False\n"
    (tmp_path / task.submission_name).write_bytes(data)
    read = task.read_submission(tmp_path / task.submission_name)
    assert read == [
        Prediction(name, f"{name[:-2]}-img0", answer, ())
        for name, answer in (("dev-7-0-0", "True"), ("dev-1-0-0", "False"))
    ]


def test_read_submission_keeps_what_coverage_judges(tmp_path: Path) -> None:
    """Duplicates and unknown ids are kept in file order for the coverage check; an unknown id has no image."""
    task = Nlvr2Task(write(tmp_path, [record("dev-7-0-0")]), "dev")
    path = tmp_path / "predictions.csv"
    path.write_text("dev-9-0-0,True\ndev-7-0-0,true\ndev-7-0-0,False")
    assert [(row.example_id, row.image_id, row.answer) for row in task.read_submission(path)] == [
        ("dev-9-0-0", "", "True"),
        ("dev-7-0-0", "dev-7-0-img0", "True"),
        ("dev-7-0-0", "dev-7-0-img0", "False"),
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"dev-7-0-0,True\ndev-7-0-0", "line 2: 1 columns; write identifier,True"),
        (b"dev-7-0-0,True,0.7", "line 1: 3 columns"),
        (b"dev-7-0-0,True\n\n", "line 2: 1 columns"),
        (b"dev-7-0-0,yes", r"line 1 \('dev-7-0-0'\): 'yes' is neither"),
        (b"dev-7-0-0,\xff", "not UTF-8 at byte 10"),
    ],
)
def test_bad_submission_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    """A malformed line is a one-line error with file and line number."""
    task = Nlvr2Task(write(tmp_path, [record("dev-7-0-0")]), "dev")
    path = tmp_path / "predictions.csv"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        task.read_submission(path)
    assert str(caught.value).startswith(str(path))


def test_best_and_worst(tmp_path: Path) -> None:
    """The label is worth everything and the other label nothing."""
    task = Nlvr2Task(write(tmp_path, [record("dev-1-0-0", "False"), record("dev-1-1-0")]), "dev")
    for answer, value in ((task.best, 1.0), (task.worst, 0.0)):
        scores = judge(task, predict(task, [answer(name) for name in task.expected()]))
        assert {score.value for score in scores} == {value}


# ---------------------------------------------------------------------------------------------------------------------
# records


def test_examples(tmp_path: Path) -> None:
    """A record becomes a statement about its left and right image, in file order."""
    task = Nlvr2Task(write(tmp_path, [record("dev-850-3-1"), record("dev-7-0-0")]), "dev")
    images = ("dev-850-3-img0", "dev-850-3-img1")
    assert next(task.examples()) == Statement("dev-850-3-1", images, "About dev-850-1.")
    assert list(task.expected().items()) == [("dev-850-3-1", "dev-850-3-img0"), ("dev-7-0-0", "dev-7-0-img0")]


def test_units_of_both_metrics(tmp_path: Path) -> None:
    """Consistency joins the pairs of one sentence, and both metrics cluster by set because the pairs of a set share
    photographs."""
    names = ["dev-1-0-0", "dev-1-1-0", "dev-1-0-1", "dev-2-0-0"]
    task = Nlvr2Task(write(tmp_path, [record(name) for name in names]), "dev")
    scores = judge(task, predict(task, ["True", "False", "True", "True"]))
    consistency = {score.unit_id: score.value for score in scores if score.metric == "consistency"}
    assert consistency == {"dev-1-0": 0.0, "dev-1-1": 1.0, "dev-2-0": 1.0}
    assert [score.cluster for score in scores] == ["dev-1"] * 3 + ["dev-2"] + ["dev-1"] * 2 + ["dev-2"]


def test_chance_knows_the_group_sizes(tmp_path: Path) -> None:
    """A coin is right on both pairs of a sentence one time in four, and chance uses the real group sizes."""
    names = ["dev-1-0-0", "dev-1-1-0", "dev-1-0-1"]
    task = Nlvr2Task(write(tmp_path, [record(name) for name in names]), "dev")
    assert task.chance({}) == {"accuracy": 50.0, "consistency": pytest.approx(100 * (0.25 + 0.5) / 2)}


def test_family_becomes_a_breakdown(tmp_path: Path) -> None:
    """The optional "family" groups both metrics, and records without it and without URLs have no groups."""
    task = Nlvr2Task(write(tmp_path, [record("dev-1-0-0", family="count"), record("dev-2-0-0")]), "dev")
    breakdown = summarize(judge(task, predict(task, ["True", "False"]))).breakdown
    assert breakdown == {"family": {"count": {"accuracy": (100.0, 1), "consistency": (100.0, 1)}}}


def test_gold_answers_score_full(tmp_path: Path) -> None:
    """Predictions equal to `gold` score 100 % on both metrics."""
    task = Nlvr2Task(write(tmp_path, [record("dev-1-0-0", "False"), record("dev-1-1-0")]), "dev")
    metrics = summarize(judge(task, gold(task))).metrics
    assert (metrics["accuracy"].value, metrics["consistency"].value) == (100.0, 100.0)


@pytest.mark.parametrize("answer", ["1", " True", "", 1, True, None])
def test_other_answers_are_refused(tmp_path: Path, answer: Any) -> None:
    """An answer other than "True" or "False" is an error, although metrics.py counts it as wrong without a word."""
    task = Nlvr2Task(write(tmp_path, [record("dev-1-0-0")]), "dev")
    with pytest.raises(InputError, match=r"dev-1-0-0.*neither 'True' nor 'False'"):
        judge(task, predict(task, [answer]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"identifier": "dev-1-0-1", "sente', "dev.json line 2: not JSON"),
        ("[]", "line 2: Expected `object`, got `array`"),
        ('{"sentence": "x"}', "line 2: .*missing required field `identifier`"),
        (json.dumps(record("dev-1-0-0")), "line 2: identifier dev-1-0-0 occurs twice"),
        (json.dumps(record("dev-1-0")), "line 2: identifier 'dev-1-0' is not split-set-pair-sentence"),
        (json.dumps(record("dev\n-1-0-0")), r"line 2: identifier 'dev\\n-1-0-0' is not split-set-pair-sentence"),
        (json.dumps(record("dev-1-0-1", "true")), r"line 2 .*'label' is 'true', not 'True' or 'False'"),
        (json.dumps(record("dev-1-0-1", sentence=3)), r"line 2 .*Expected `str`, got `int` - at `\$.sentence`"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    """A damaged record is a one-line error with its file and line number."""
    write(tmp_path, [record("dev-1-0-0")])
    with (tmp_path / "dev.json").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(AnnotationError, match=message) as caught:
        Nlvr2Task(tmp_path, "dev")
    assert "\n" not in str(caught.value)


def test_empty_file_is_an_error(tmp_path: Path) -> None:
    """A file without records is an error, because it has no score."""
    with pytest.raises(AnnotationError, match="no records"):
        Nlvr2Task(write(tmp_path, []), "dev")
