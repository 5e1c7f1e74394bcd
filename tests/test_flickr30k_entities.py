"""Flickr30K Entities: the reader on official layouts, the submissions, and the three protocols. The golden values come
from MDETR's and Plummer's evaluators (golden/README.md)."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visualbert_core.errors import AnnotationError, ConfigError, InputError, VisualBertCoreError
from visualbert_core.schema import Phrase, Prediction
from visualbert_core.tasks import judge, summarize
from visualbert_core.tasks.flickr30k_entities import RECALLS, UNRANKED, Flickr30kEntitiesTask

GOLDEN = json.loads((Path(__file__).parent / "golden" / "flickr_protocols.json").read_text())

CAPTION = (
    "[/EN#1/people Two young guys] near [/EN#0/notvisual it] and [/EN#2/clothing/other a hat] in [/EN#3/scene a yard] ."
)


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def thing(names: list[str], box: tuple[int, int, int, int] | None) -> str:
    flags = "<scene>1</scene><nobndbox>0</nobndbox>"
    if box is not None:
        sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        flags = "<bndbox>" + "".join(f"<{side}>{value}</{side}>" for side, value in sides) + "</bndbox>"
    return "<object>" + "".join(f"<name>{name}</name>" for name in names) + flags + "</object>"


def files(caption: str = CAPTION) -> dict[str, str]:
    """Return the files of one image. Chain 1 has two boxes and shares one of them with chain 2. Chain 3 is a scene
    without a box."""
    objects = thing(["1"], (10, 10, 20, 30)) + thing(["1", "2"], (50, 50, 90, 90)) + thing(["3"], None)
    return {
        "test.txt": "77\n",
        "Sentences/77.txt": f"A [/EN#3/scene yard] .\n{caption}\n",
        "Annotations/77.xml": f"<annotation><size><width>100</width></size>{objects}</annotation>",
    }


@pytest.fixture
def task(tmp_path: Path) -> Flickr30kEntitiesTask:
    return Flickr30kEntitiesTask(write(tmp_path, files()), "test")


def predict(answer: Any) -> list[Prediction]:
    return [Prediction("77/1", "77", answer, ())]


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the golden files: twelve images with 63 boxed phrases."""
    return write(tmp_path_factory.mktemp("flickr"), GOLDEN["files"])


def saved(path: Path, records: Any) -> Path:
    path.write_text(json.dumps(records))
    return path


@pytest.mark.parametrize("protocol", ["any-box", "merged"])
def test_scores_as_mdetr(made_up: Path, tmp_path: Path, protocol: str) -> None:
    """Every recall of every category has the name and value of MDETR's evaluator, also for inverted and empty
    candidate boxes, which can cost that evaluator a phrase that it had found."""
    task = Flickr30kEntitiesTask(made_up, "val", protocol)
    rows = task.read_submission(saved(tmp_path / "p.json", GOLDEN["predictions"]))
    assert list(task.official(judge(task, rows)).items()) == list(GOLDEN[protocol].items())


def test_scores_as_plummer(made_up: Path, tmp_path: Path) -> None:
    """Accuracy, upper bound and recall at 5 and 10 equal those of Plummer's pl-clc, in total and by phrase type."""
    task = Flickr30kEntitiesTask(made_up, "val", "plummer")
    scores = judge(task, task.read_submission(saved(tmp_path / "p.json", GOLDEN["predictions"])))
    assert task.official(scores) == GOLDEN["plummer"]["printed"]
    summary = summarize(scores)
    for metric, k in RECALLS.items():
        name = "Upper_bound" if k is None else f"Recall@{k}"
        assert summary.metrics[metric].value == pytest.approx(100 * GOLDEN["plummer"]["all"][name], abs=1e-9)
        ours = {group: values[metric][0] for group, values in summary.breakdown["phrase type"].items()}
        # The golden percentages have two digits after the point, hence the tolerance of half a last digit.
        assert ours == pytest.approx(GOLDEN["plummer"]["percent by type"][metric], abs=0.00501)


def test_lenient_reading_is_mdetrs(made_up: Path, tmp_path: Path) -> None:
    """Lenient reading accepts what MDETR's evaluator accepts: a second answer and unknown captions count for nothing,
    captions without boxed phrases are skipped, and a sentence id may be text."""
    task = Flickr30kEntitiesTask(made_up, "val")
    path = saved(tmp_path / "p.json", GOLDEN["predictions"] + GOLDEN["forgiven"])
    with pytest.raises(InputError, match=r"record 29 .*Expected `int`, got `str` - at `\$.sentence_id`"):
        task.read_submission(path)
    first: dict[str, Prediction] = {}
    for row in task.read_submission(path, lenient=True):
        first.setdefault(row.example_id, row)
    assert first.keys() - task.expected().keys() == {"nobody/0", "700/77"}
    assert (task.lenient.duplicate, task.lenient.unknown) == ("first", "ignore")
    known = [row for row in first.values() if row.example_id in task.expected()]
    assert task.official(judge(task, known)) == GOLDEN["any-box"]


def test_example_has_the_boxed_phrases_only(task: Flickr30kEntitiesTask) -> None:
    """Captions keep their index in the file and lose their markup, and phrases without a box are not asked."""
    (example,) = task.examples()
    assert (example.example_id, example.image_ids) == ("77/1", ("77",))
    assert " ".join(example.words) == "Two young guys near it and a hat in a yard ."
    assert example.phrases == (Phrase(0, 3, "Two young guys"), Phrase(6, 8, "a hat"))
    assert task.expected() == {"77/1": "77"}


def test_any_box_of_the_phrase_is_right(task: Flickr30kEntitiesTask) -> None:
    """Either box of a phrase with two boxes is right, and the first match gives the rank."""
    wrong = [0.0, 60.0, 5.0, 70.0]
    scores = judge(task, predict([[wrong, [50, 50, 90, 90]], [[10, 10, 20, 30]]]))
    values = {(score.unit_id, score.metric): score.value for score in scores}
    assert values["77/1/0", "recall@1"] == 0.0
    assert values["77/1/0", "recall@5"] == values["77/1/0", "upper_bound"] == 1.0
    assert values["77/1/1", "upper_bound"] == 0.0
    assert {score.cluster for score in scores} == {"77"}


def test_two_types_count_in_both(task: Flickr30kEntitiesTask) -> None:
    """A phrase of two types counts in both groups, and once in the total."""
    summary = summarize(judge(task, predict(task.gold("77/1"))))
    groups = summary.breakdown["phrase type"]
    assert {name: metrics["recall@1"] for name, metrics in groups.items()} == {
        "clothing": (100.0, 1),
        "other": (100.0, 1),
        "people": (100.0, 1),
    }
    assert summary.metrics["recall@1"].n == 2


def test_enclosing_box_is_right_where_boxes_are_merged(tmp_path: Path) -> None:
    """Under the protocols merged and plummer, only the box around all boxes of a phrase is right."""
    write(tmp_path, files())
    around, alone, hat = [10, 10, 90, 90], [10, 10, 20, 30], [50, 50, 90, 90]
    found = {}
    for protocol in Flickr30kEntitiesTask.protocols:
        task = Flickr30kEntitiesTask(tmp_path, "test", protocol)
        for name, box in (("around", around), ("alone", alone)):
            scores = judge(task, predict([[box], [hat]]))
            found[protocol, name] = next(s.value for s in scores if s.metric == "recall@1")
        assert task.protocol == f"{Flickr30kEntitiesTask.protocols[protocol]}; own set or subset of 2 phrases"
    assert {key for key, value in found.items() if value} == {
        ("any-box", "alone"),
        ("merged", "around"),
        ("plummer", "around"),
    }


def test_plummer_adds_one_to_every_side(tmp_path: Path) -> None:
    """The plummer protocol includes the last pixel, so half of a gold box of 9 × 9 pixels is not half of 10 × 10."""
    xml = f"<annotation>{thing(['1'], (1, 1, 10, 10))}</annotation>"
    write(tmp_path, files("[/EN#1/people He] .") | {"Annotations/77.xml": xml})
    half = {"merged": [1.0, 1.0, 5.5, 10.0], "plummer": [1.0, 1.0, 5.0, 10.0]}
    for protocol, box in half.items():
        task = Flickr30kEntitiesTask(tmp_path, "test", protocol)
        assert summarize(judge(task, predict([[box]]))).metrics["recall@1"].value == 100.0
        narrower = [*box[:2], box[2] - 0.01, box[3]]
        assert summarize(judge(task, predict([[narrower]]))).metrics["recall@1"].value == 0.0
    strictest = Flickr30kEntitiesTask(tmp_path, "test", "merged")
    assert summarize(judge(strictest, predict([[half["plummer"]]]))).metrics["recall@1"].value == 0.0


def test_pointing_asks_for_the_centre_of_the_first_box(task: Flickr30kEntitiesTask) -> None:
    """Pointing is right where the centre of the first candidate is in a gold box, edges included, however large the
    candidate is."""
    wide, edge = [[40, 40, 100, 100]], [[40, 60, 60, 80]]
    for first, second, value in ((wide, edge, 100.0), ([[0, 0, 5, 5], *wide], edge, 50.0), (wide, [], 50.0)):
        assert summarize(judge(task, predict([first, second]))).metrics["pointing"].value == value


def test_raw_coordinates(task: Flickr30kEntitiesTask) -> None:
    """Boxes keep the coordinates of the XML file, without the 1 that the dataset's own utility subtracts."""
    assert task.gold("77/1") == [[[10.0, 10.0, 20.0, 30.0], [50.0, 50.0, 90.0, 90.0]], [[50.0, 50.0, 90.0, 90.0]]]


def test_phrase_without_candidates_is_a_miss(task: Flickr30kEntitiesTask) -> None:
    """An empty ranking is wrong at every k, and its chance is 0."""
    predictions = predict([[], [[50, 50, 90, 90], [50, 50, 90, 90]]])
    assert summarize(judge(task, predictions)).metrics["upper_bound"].value == 50.0
    assert task.chance({"77/1": predictions[0]})["recall@1"] == 50.0


def test_one_box_a_phrase_is_no_ranking(task: Flickr30kEntitiesTask) -> None:
    """Predictions with at most one box for each phrase get recall@1 and pointing only, with the reason, and no chance.
    A second box brings the other metrics back and leaves recall@1 as it was."""
    wrong, right = [0.0, 60.0, 5.0, 70.0], [50.0, 50.0, 90.0, 90.0]
    one, two = predict([[right], []]), predict([[right, wrong], []])
    alone, ranked = (summarize(judge(task, rows)).metrics for rows in (one, two))
    assert list(alone) == ["recall@1", "pointing"]
    assert list(ranked) == [*RECALLS, "pointing"]
    assert all(alone[metric].value == ranked[metric].value == 50.0 for metric in alone)
    assert (task.chance({"77/1": one[0]}), task.in_pixels(one, None)[1]) == ({}, [UNRANKED])
    assert task.in_pixels(two, None)[1] == []
    assert {key.partition("_")[0] for key in task.official(judge(task, one))} == {"Recall@1"}
    plummer = Flickr30kEntitiesTask(task.folder, task.split, "plummer")
    assert plummer.official(judge(plummer, one)) == {"Accuracy": 0.0}  # its gold box is around both


def test_chance_is_a_random_order_of_the_candidates(task: Flickr30kEntitiesTask) -> None:
    """The recall of many random orders of the candidates equals the value that `chance` computes."""
    rng = np.random.default_rng(0)
    right, other = [50.0, 50.0, 90.0, 90.0], [[float(x), 0.0, float(x + 5), 5.0] for x in range(11)]
    candidates = np.array([right, right, *other])
    rows = [
        predict([rng.permutation(candidates).tolist(), rng.permutation(candidates).tolist()])[0] for _ in range(1500)
    ]
    expected = task.chance({"77/1": rows[0]})
    for metric in ("recall@1", "recall@5", "recall@10"):
        drawn = np.mean([s.value for row in rows for s in judge(task, [row]) if s.metric == metric])
        # 3 points are more than three standard errors of 1,500 draws of two phrases.
        assert 100 * drawn == pytest.approx(expected[metric], abs=3.0)
    assert expected["recall@1"] == pytest.approx(100 * 2 / 13)
    assert "upper_bound" not in expected


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([[[0, 0, 1, 1]]], "1 ranked lists for 2 phrases"),
        ("boxes", "str ranked lists"),
        ([[[0, 0, 1]], []], "phrase 0: not a list of"),
        ([[], [["a", 0, 1, 1]]], "phrase 1: not a list of"),
        ([[], 3], "phrase 1: not a list of"),
        ([[], [["0", "0", "1", "1"]]], "phrase 1: not a list of"),
        ([[], [[0, 0, 1, 10**400]]], "phrase 1: not a list of"),
        ([[], [[0, 0, 1, None]]], "phrase 1: not a list of"),
        ([[], [[]]], "phrase 1: not a list of"),
        ([[], {}], "phrase 1: not a list of"),
        ([[[0, 0, 1, float("nan")]], []], "phrase 0: a coordinate is not finite"),
    ],
)
def test_malformed_answer_is_refused(task: Flickr30kEntitiesTask, answer: Any, message: str) -> None:
    """An answer without one list of boxes for each phrase ends in one line that names the caption."""
    with pytest.raises(InputError, match=f"77/1.*{message}"):
        judge(task, predict(answer))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("test.txt", "", "no image ids"),
        ("test.txt", "77\n77\n", "image id 77 occurs twice"),
        ("test.txt", "77\n78\n", "78.xml: not found"),
        ("Annotations/77.xml", "<annotation></annotation>", "no test caption has a phrase with a box"),
        ("Annotations/77.xml", "<annotation><object>", "77.xml: not XML"),
        (
            "Annotations/77.xml",
            "<a><object><name>1</name><bndbox><xmin>1</xmin></bndbox></object></a>",
            "lacks a number",
        ),
        ("test.txt", "../77\n", "image id '../77' cannot be a file name"),
        ("Annotations/77.xml", '<!DOCTYPE a [<!ENTITY b "bbb">]><a>&b;</a>', "77.xml: the file has a DOCTYPE"),
        ("Annotations/77.xml", "<a>&b;</a>", "77.xml: not XML .*undefined entity"),
        ("Annotations/77.xml", f"<a>{thing(['1'], (1, 1, 10**400, 9))}</a>", "77.xml: bndbox .*inf.* is not a box"),
        ("Annotations/77.xml", f"<a>{thing(['1'], (9, 1, 1, 9))}</a>", "77.xml: bndbox .* is not a box"),
        ("Annotations/77.xml", "<a>" * 100_000, "77.xml: not XML"),
        ("Sentences/77.txt", "[/EN#1/people Two guys", "77.txt sentence 0: a phrase is not closed"),
        ("Sentences/77.txt", "[/EN#one/people Two] guys", "does not read"),
        ("Sentences/77.txt", "[/EN#1/people] guys", "sentence 0: .*does not read"),
        ("Sentences/77.txt", "[Two] guys", "sentence 0: .*Two.* does not read"),
        ("Sentences/77.txt", "x\n[/EN#1/people Two [/EN#2/other guys] .", "sentence 1: .*inside another phrase"),
    ],
    ids=lambda text: text[:30],
)
def test_bad_files_end_in_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    """Missing images, broken XML and broken markup end in one line with the file and the sentence."""
    write(tmp_path, files() | {name: text})
    with pytest.raises(AnnotationError, match=message) as caught:
        Flickr30kEntitiesTask(tmp_path, "test")
    assert "\n" not in str(caught.value)


def test_annotation_files_are_all_that_was_read(task: Flickr30kEntitiesTask) -> None:
    """The list of annotation files has the split, its captions and its boxes."""
    assert [path.name for path in task.annotation_files()] == ["test.txt", "77.txt", "77.xml"]
    assert all(path.is_file() for path in task.annotation_files())


def test_deep_xml_is_read(tmp_path: Path) -> None:
    """Deeply nested XML does not crash the reader, and the boxes at the top are found."""
    deep = "<x>" * 100_000 + "</x>" * 100_000
    write(tmp_path, files() | {"Annotations/77.xml": f"<annotation>{deep}{thing(['1'], (1, 1, 9, 9))}</annotation>"})
    assert Flickr30kEntitiesTask(tmp_path, "test").gold("77/1") == [[[1.0, 1.0, 9.0, 9.0]]]


def test_best_and_worst_bound_every_answer(made_up: Path, tmp_path: Path) -> None:
    """Under every protocol and metric, no answer scores more than `best` or less than `worst`."""
    for protocol in Flickr30kEntitiesTask.protocols:
        task = Flickr30kEntitiesTask(made_up, "val", protocol)
        rows = task.read_submission(saved(tmp_path / "p.json", GOLDEN["predictions"]))
        lists = [task.best, None, task.worst]
        best, real, worst = (
            {(s.unit_id, s.metric): s.value for s in judge(task, rows if answer is None else answered(task, answer))}
            for answer in lists
        )
        # Neither the best nor the worst answer has a second box, so the metrics of a ranking have no bound.
        assert {metric for _, metric in real.keys() - best.keys()} == {"recall@5", "recall@10", "upper_bound"}
        assert best.keys() == worst.keys()
        assert all(best[unit] >= real[unit] >= worst[unit] for unit in best)
        assert (set(best.values()), set(worst.values())) == ({1.0}, {0.0})


def answered(task: Flickr30kEntitiesTask, answer: Any) -> list[Prediction]:
    return [Prediction(example_id, image, answer(example_id), ()) for example_id, image in task.expected().items()]


# ---------------------------------------------------------------------------------------------------------------------
# Submissions.


def test_submission_comes_back_the_same(made_up: Path, tmp_path: Path) -> None:
    """A submission that is written, read and written again has the same predictions in the split's order, the same
    scores and the same bytes."""
    task = Flickr30kEntitiesTask(made_up, "val")
    rows = task.read_submission(saved(tmp_path / "p.json", GOLDEN["predictions"]))
    shuffled = {row.example_id: row for row in random.Random(1).sample(rows, len(rows))}
    written = task.submission(shuffled)
    (tmp_path / task.submission_name).write_bytes(written)
    again = task.read_submission(tmp_path / task.submission_name)
    assert [row.example_id for row in again] == list(task.expected())
    assert judge(task, again) == judge(task, rows)
    assert task.submission({row.example_id: row for row in again}) == written
    record = json.loads(written)[0]
    assert (type(record["image_id"]), type(record["sentence_id"])) == (str, int)


def test_submission_needs_well_formed_answers(task: Flickr30kEntitiesTask) -> None:
    """A caption with a malformed prediction is named."""
    with pytest.raises(InputError, match="77/1: 1 ranked lists for 2 phrases"):
        task.submission({"77/1": predict([[]])[0]})


def test_reading_keeps_what_coverage_must_judge(task: Flickr30kEntitiesTask, tmp_path: Path) -> None:
    """The reader returns repeated captions, unknown images and unknown sentences in the file's order and skips captions
    without boxed phrases; an empty ranking is a prediction."""
    good = {"image_id": 77, "sentence_id": 1, "boxes": [[], [[1, 1, 2, 2]]], "scores": "ignored"}
    unknown = [{"image_id": "78", "sentence_id": 1, "boxes": []}, {"image_id": "77", "sentence_id": 2, "boxes": [1]}]
    unasked = {"image_id": "77", "sentence_id": 0, "boxes": [[["nonsense"]]]}
    rows = task.read_submission(saved(tmp_path / "p.json", [good, *unknown, unasked, good]))
    assert [(row.example_id, row.image_id) for row in rows] == [
        ("77/1", "77"),
        ("78/1", ""),
        ("77/2", ""),
        ("77/1", "77"),
    ]
    assert (rows[0].answer, rows[0].scores) == ([[], [[1, 1, 2, 2]]], ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON at line 1 column 1"),
        ('[{"image_id": "77", "sent', "p.json: not JSON at line 1 .*truncated"),
        ("{}", "p.json: dict, not a list of records"),
        ("[3]", "record 1: Expected `object`, got `int`; write"),
        ("[" * 100_000, "p.json: .*lists are too deep"),
        (f"[{'9' * 5000}]", "p.json: a number is too long"),
        ('[{"sentence_id": 1, "boxes": []}]', "record 1: .*missing required field `image_id`"),
        (
            '[{"image_id": null, "sentence_id": 1, "boxes": []}]',
            r"record 1: Exp.* got `null` - at `\$.image_id`",
        ),
        ('[{"image_id": "77", "sentence_id": true, "boxes": []}]', r"record 1 .*, got `bool` - at `\$.sentence_id`"),
        (
            '[{"image_id": "77", "sentence_id": 1, "boxes": {}}]',
            r"record 1 .*Expected `array`.* at `\$.boxes`",
        ),
        ('[{"image_id": "7\\n7", "sentence_id": 1, "boxes": []}]', "is not the id of a caption"),
        ('[{"image_id": "\\ud800", "sentence_id": 1, "boxes": []}]', "holds half a character"),
        ('[{"image_id": "77", "sentence_id": 1, "boxes": [[]]}]', r"record 1 .77/1.: 1 ranked lists for 2 phrases"),
        ('[{"image_id": "77", "sentence_id": 1, "boxes": [[], [[0, 0, NaN, 1]]]}]', "phrase 1: .*not finite"),
        ('[{"image_id": "77", "sentence_id": 1, "boxes": [[], [[0, 0, 1e999, 1]]]}]', "phrase 1: .*not finite"),
    ],
    ids=lambda text: text[:30],
)
@pytest.mark.parametrize("lenient", [False, True])
def test_bad_submission_is_one_line(
    task: Flickr30kEntitiesTask, tmp_path: Path, text: str, message: str, lenient: bool
) -> None:
    """A file without a list of records, or a record without boxes, ends in one line with the file and the record,
    lenient or not."""
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        task.read_submission(tmp_path / "p.json", lenient)
    assert "p.json" in str(caught.value)
    assert str(caught.value).isprintable()


def test_submission_that_is_no_text(task: Flickr30kEntitiesTask, tmp_path: Path) -> None:
    """A missing file, a folder and a picture are refused by name."""
    (tmp_path / "p.json").write_bytes(b"\xff\xd8\xff")
    for path, message in (
        (tmp_path / "no.json", "no.json: not found; name the file of predictions"),
        (tmp_path, "cannot be read"),
        (tmp_path / "p.json", "a JPEG image"),
    ):
        with pytest.raises(InputError, match=message):
            task.read_submission(path)


def test_unknown_protocol_names_the_nearest(tmp_path: Path) -> None:
    """An unknown protocol is an error that names the known ones, and the default is any-box, which VisualBERT
    reports."""
    write(tmp_path, files())
    with pytest.raises(ConfigError, match="'anybox'; known: any-box"):
        Flickr30kEntitiesTask(tmp_path, "test", "anybox")
    assert Flickr30kEntitiesTask(tmp_path, "test").protocol_key == "any-box"


# ---------------------------------------------------------------------------------------------------------------------
# Properties.


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), protocol=st.sampled_from(sorted(Flickr30kEntitiesTask.protocols)))
def test_order_of_predictions_never_matters(made_up: Path, seed: int, protocol: str) -> None:
    """A shuffled file gets the same score for each unit."""
    task = Flickr30kEntitiesTask(made_up, "val", protocol)
    rows = [
        Prediction(f"{r['image_id']}/{r['sentence_id']}", str(r["image_id"]), r["boxes"], ())
        for r in GOLDEN["predictions"]
    ]
    assert judge(task, random.Random(seed).sample(rows, len(rows))) == judge(task, rows)


coordinate = st.integers(0, 300).map(float)
boxes = st.tuples(coordinate, coordinate, st.integers(30, 200), st.integers(30, 200)).map(
    lambda b: (b[0] + 1, b[1] + 1, b[0] + b[2], b[1] + b[3])
)


@settings(max_examples=60, deadline=None)
@given(gold=boxes, ranked=st.lists(boxes, max_size=12))
def test_protocols_agree_on_a_single_box(
    tmp_path_factory: pytest.TempPathFactory, gold: tuple[float, ...], ranked: list[tuple[float, ...]]
) -> None:
    """All protocols agree on a phrase with one box, unless an IoU is so near 0.5 that one pixel decides."""
    near = [box for box in ranked if abs(iou(box, gold) - 0.5) < 0.05]
    ranked = [box for box in ranked if box not in near]
    folder = tmp_path_factory.mktemp("one")
    xml = f"<annotation>{thing(['1'], tuple(int(v) for v in gold))}</annotation>"
    write(folder, files("[/EN#1/people He] .") | {"Annotations/77.xml": xml})
    values = [
        [score.value for score in judge(Flickr30kEntitiesTask(folder, "test", key), predict([list(map(list, ranked))]))]
        for key in Flickr30kEntitiesTask.protocols
    ]
    assert values[0] == values[1] == values[2]


def iou(box: tuple[float, ...], gold: tuple[float, ...]) -> float:
    width = min(box[2], gold[2]) - max(box[0], gold[0])
    height = min(box[3], gold[3]) - max(box[1], gold[1])
    shared = max(width, 0) * max(height, 0)
    sizes = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, gold))
    return shared / (sizes - shared)


def mutants(text: str, count: int) -> Iterator[bytes]:
    """Yield damaged copies of the text: cut short, with bytes replaced, pieces doubled, or odd values inserted."""
    rng = random.Random(8)
    raw = text.encode()
    for _ in range(count):
        start, stop = sorted(rng.randrange(len(raw) + 1) for _ in range(2))
        yield rng.choice(
            [
                raw[:stop],
                raw[:start] + rng.randbytes(rng.randrange(1, 4)) + raw[start + 1 :],
                raw[:stop] + raw[start:],
                raw[:start]
                + rng.choice([b"1e999", b"-1", b"[", b"]", b"{", b'"', b"<", b"null", b"9" * 5000])
                + raw[start:],
            ]
        )


def test_mutated_files_score_or_end_in_one_line(memory: Path) -> None:
    """Any damage to one of the four files ends in scores or in one line of printable text."""
    submitted = json.dumps([{"image_id": "77", "sentence_id": 1, "boxes": [[[1, 1, 9, 9]], [[1.5, 2, 3, 4]]]}])
    original = files() | {"p.json": submitted}
    errors = []
    for name in original:
        for mutant in mutants(original[name], 80):
            write(memory, original)
            (memory / name).write_bytes(mutant)
            errors.append(error_of(memory))
    assert all(str(error).isprintable() for error in errors if error is not None)
    # If no mutation did harm, or every one did, the test would show nothing.
    assert 20 < errors.count(None) < len(errors) - 20


def error_of(folder: Path) -> VisualBertCoreError | None:
    """Score the folder's p.json. Return the library's error, or None where there are scores. Other errors are not
    caught."""
    try:
        task = Flickr30kEntitiesTask(folder, "test")
        judge(task, task.read_submission(folder / "p.json"))
    except VisualBertCoreError as error:
        return error
    return None
