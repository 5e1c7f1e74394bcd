"""Flickr30K Entities: the reader on official layouts, and recall against MDETR's evaluator (golden/README.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from visualbert_core.errors import AnnotationError, InputError
from visualbert_core.schema import Phrase, Prediction
from visualbert_core.tasks import judge, summarize
from visualbert_core.tasks.flickr30k_entities import Flickr30kEntitiesTask

GOLDEN = json.loads((Path(__file__).parent / "golden" / "flickr_any_box.json").read_text())

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
    """One image: chain 1 has two boxes, one of them shared with chain 2; chain 3 is a scene without a box."""
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


def test_scores_as_mdetr(tmp_path: Path) -> None:
    """Made-up captions and boxes: every recall, overall and by phrase type, equals MDETR's "separate" evaluator."""
    task = Flickr30kEntitiesTask(write(tmp_path, GOLDEN["files"]), "val")
    rows = [
        Prediction(f"{row['image_id']}/{row['sentence_id']}", row["image_id"], row["boxes"], ())
        for row in GOLDEN["predictions"]
    ]
    summary = summarize(judge(task, rows))
    assert list(summary.metrics) == list(GOLDEN["report"])
    for metric, official in GOLDEN["report"].items():
        assert summary.metrics[metric].value == pytest.approx(100 * official["all"], abs=1e-9)
        ours = {group: values[metric][0] for group, values in summary.breakdown["phrase type"].items()}
        assert ours == pytest.approx(
            {group: 100 * value for group, value in official.items() if group != "all"}, abs=1e-9
        )


def test_example_has_the_boxed_phrases_only(task: Flickr30kEntitiesTask) -> None:
    """Captions keep their index in the file, their words lose the markup, phrases without a box are not asked."""
    (example,) = task.examples()
    assert (example.example_id, example.image_ids) == ("77/1", ("77",))
    assert " ".join(example.words) == "Two young guys near it and a hat in a yard ."
    assert example.phrases == (Phrase(0, 3, "Two young guys"), Phrase(6, 8, "a hat"))
    assert task.expected() == {"77/1": "77"}


def test_any_box_of_the_phrase_is_right(task: Flickr30kEntitiesTask) -> None:
    """A phrase with two boxes is found by either of them, at the rank of the first match."""
    wrong = [0.0, 60.0, 5.0, 70.0]
    scores = judge(task, predict([[wrong, [50, 50, 90, 90]], [[10, 10, 20, 30]]]))
    values = {(score.unit_id, score.metric): score.value for score in scores}
    assert values["77/1/0", "recall@1"] == 0.0
    assert values["77/1/0", "recall@5"] == values["77/1/0", "upper_bound"] == 1.0
    assert values["77/1/1", "upper_bound"] == 0.0
    assert {score.cluster for score in scores} == {"77"}


def test_two_types_count_in_both(task: Flickr30kEntitiesTask) -> None:
    """A phrase of two types stands in both groups, and once in the total."""
    summary = summarize(judge(task, predict(task.gold("77/1"))))
    groups = summary.breakdown["phrase type"]
    assert {name: metrics["recall@1"] for name, metrics in groups.items()} == {
        "clothing": (100.0, 1),
        "other": (100.0, 1),
        "people": (100.0, 1),
    }
    assert summary.metrics["recall@1"].n == 2


def test_raw_coordinates(task: Flickr30kEntitiesTask) -> None:
    """Boxes are as the XML has them: the 1 that the dataset's own utility subtracts is not subtracted."""
    assert task.gold("77/1") == [[[10.0, 10.0, 20.0, 30.0], [50.0, 50.0, 90.0, 90.0]], [[50.0, 50.0, 90.0, 90.0]]]


def test_phrase_without_candidates_is_a_miss(task: Flickr30kEntitiesTask) -> None:
    """An empty ranking is wrong at every k, and no guess either."""
    predictions = predict([[], [[50, 50, 90, 90]]])
    assert summarize(judge(task, predictions)).metrics["upper_bound"].value == 50.0
    assert task.chance({"77/1": predictions[0]})["recall@1"] == 50.0


def test_chance_is_a_random_order_of_the_candidates(task: Flickr30kEntitiesTask) -> None:
    """Shuffling the candidates many times gets the recall that `chance` computes."""
    rng = np.random.default_rng(0)
    right, other = [50.0, 50.0, 90.0, 90.0], [[float(x), 0.0, float(x + 5), 5.0] for x in range(11)]
    candidates = np.array([right, right, *other])
    rows = [
        predict([rng.permutation(candidates).tolist(), rng.permutation(candidates).tolist()])[0] for _ in range(1500)
    ]
    expected = task.chance({"77/1": rows[0]})
    for metric in ("recall@1", "recall@5", "recall@10"):
        drawn = np.mean([s.value for row in rows for s in judge(task, [row]) if s.metric == metric])
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
        ([[[0, 0, 1, float("nan")]], []], "phrase 0: a coordinate is not finite"),
    ],
)
def test_malformed_answer_is_refused(task: Flickr30kEntitiesTask, answer: Any, message: str) -> None:
    """Answers that are not one list of boxes a phrase end in one line that names the caption."""
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
        ("Sentences/77.txt", "[/EN#1/people Two guys", "77.txt sentence 0: a phrase is not closed"),
        ("Sentences/77.txt", "x\n[/EN#1/people Two [/EN#2/other guys] .", "sentence 1: .*inside another phrase"),
    ],
)
def test_bad_files_end_in_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    """Missing images, broken XML and broken markup end in one line with the file and the sentence."""
    write(tmp_path, files() | {name: text})
    with pytest.raises(AnnotationError, match=message) as caught:
        Flickr30kEntitiesTask(tmp_path, "test")
    assert "\n" not in str(caught.value)


def test_annotation_files_are_all_that_was_read(task: Flickr30kEntitiesTask) -> None:
    """The list of files covers the split, its captions and its boxes."""
    assert [path.name for path in task.annotation_files()] == ["test.txt", "77.txt", "77.xml"]
    assert all(path.is_file() for path in task.annotation_files())
