"""The report over real run folders: what it shows beside a score, what it shows of examples, and what it must never
show.

`evaluation.run.evaluate` makes the runs, over stores and official annotation files that this module writes. Only the
model is a stand-in. It answers right when it sees the right image.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from base64 import b64decode
from collections.abc import Sequence
from copy import copy
from html import unescape
from html.parser import HTMLParser
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from rich.console import Console

from visualbert_core.cli import main
from visualbert_core.commands.evaluate import Command
from visualbert_core.config import EvaluateConfig, PoolConfig
from visualbert_core.engine.pool import Pool
from visualbert_core.engine.shards import Part, ShardFolder, plan
from visualbert_core.errors import CoverageError
from visualbert_core.evaluation.run import evaluate
from visualbert_core.evaluation.run_folder import Run, read_run, run_folder
from visualbert_core.features import label_names as names
from visualbert_core.features.parts import encode, encode_failures
from visualbert_core.features.store import FeatureStore, store_folder
from visualbert_core.models import ReadsRegions
from visualbert_core.report import ReportCell, ReportInfo
from visualbert_core.report import example_gallery as examples
from visualbert_core.report.example_gallery import choose
from visualbert_core.report.html import render, write_report
from visualbert_core.report.scores import SYNTHETIC
from visualbert_core.report.sections import command
from visualbert_core.report.terminal import print_table
from visualbert_core.schema import (
    Failure,
    Grounding,
    Image,
    LabelNames,
    MultipleChoice,
    Prediction,
    Question,
    Regions,
    Statement,
)
from visualbert_core.tasks import Task, open_task

WIDTH, HEIGHT = 400, 300
DEMO = ReportInfo("Demo", synthetic=True, examples=10)
REAL = ReportInfo("Nightly", synthetic=False, examples=10)
EVIL = '<script>alert("1")</script> & who?'

SPLITS = {"vqa": "val", "vcr": "val", "nlvr2": "dev", "flickr30k_entities": "val"}
MISTAKES = {f"{image}00{number}" for image in (1, 2, 3) for number in (0, 1)}  # 6 of the 12 questions of VQA

# ---------------------------------------------------------------------------------------------------------------------
# annotation files, images, a store, a model


def write_vqa(folder: Path) -> list[str]:
    keys = [{"image_id": image, "question_id": image * 1000 + number} for image in (1, 2, 3) for number in range(4)]
    questions = [key | {"question": EVIL if key["question_id"] == 1000 else "Is it so?"} for key in keys]
    people = [{"answer": "yes", "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)]
    kinds = {"question_type": "is it", "answer_type": "yes/no", "multiple_choice_answer": "yes", "answers": people}
    (folder / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps({"questions": questions}))
    annotations = {"annotations": [key | kinds for key in keys]}
    (folder / "v2_mscoco_val2014_annotations.json").write_text(json.dumps(annotations))
    return [f"COCO_val2014_{image:012d}" for image in (1, 2, 3)]


def write_vcr(folder: Path) -> list[str]:
    ids = ['a" id="evil@0', "scene@1"]
    record = {"objects": ["box", "ball", "<b>"], "answer_label": 1, "rationale_label": 2, "family": "look"}
    record |= {"question": ["What", "is", [0, 1], "?"], "answer_choices": [[[index % 3], "."] for index in range(4)]}
    record |= {"rationale_choices": [["I", "see", str(index)] for index in range(4)]}
    records = [
        record | {"annot_id": f"val-{index}", "img_fn": f"movie/{image_id}.jpg"} for index, image_id in enumerate(ids)
    ]
    (folder / "val.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    return ids


def write_nlvr2(folder: Path) -> list[str]:
    pairs = [f"dev-{number}-0" for number in (0, 1)]
    record = {"sentence": "Both are red.", "label": "True", "family": "both"}
    (folder / "dev.json").write_text("".join(json.dumps(record | {"identifier": f"{p}-0"}) + "\n" for p in pairs))
    return [f"{pair}-img{side}" for pair in pairs for side in (0, 1)]


def write_flickr(folder: Path) -> list[str]:
    for name in ("Sentences", "Annotations"):
        (folder / name).mkdir()
    for image_id in ("7", "8"):
        caption = "[/EN#1/people A <i>man</i>] and [/EN#2/other a dog] .\n"
        (folder / "Sentences" / f"{image_id}.txt").write_text(caption)
        boxes = {1: (100, 50, 200, 150), 2: (220, 60, 320, 160)}
        objects = "".join(
            f"<object><name>{chain}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
            f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            for chain, (x1, y1, x2, y2) in boxes.items()
        )
        (folder / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>{objects}</annotation>")
    (folder / "val.txt").write_text("7\n8\n")
    return ["7", "8"]


WRITERS = {"vqa": write_vqa, "vcr": write_vcr, "nlvr2": write_nlvr2, "flickr30k_entities": write_flickr}


def write_pictures(folder: Path, image_ids: Sequence[str]) -> dict[str, Image]:
    folder.mkdir()
    images = {image_id: Image(image_id, str(folder / f"{image_id}.png")) for image_id in image_ids}
    for image in images.values():
        Pillow.new("RGB", (WIDTH, HEIGHT), "teal").save(image.path)
    return images


def write_store(root: Path, image_ids: Sequence[str], bad: Sequence[str] = ()) -> FeatureStore:
    """Write a store with four regions per image: the whole image, A's gold box, B's gold box and a corner. Images in
    `bad` are quarantined."""
    fingerprint = {"space": "test", "feature_size": 2}
    folder = ShardFolder(store_folder(root, "corpus", fingerprint))
    shards = plan(image_ids, "salt", 1000)
    boxes = [[0, 0, WIDTH, HEIGHT], [100, 50, 200, 150], [220, 60, 320, 160], [300, 200, 390, 290]]
    arrays = np.array(boxes, np.float32), np.zeros(4, np.int16), np.ones(4, np.float32), np.zeros((4, 2), np.float16)
    for shard in shards:
        rows = [Regions(item, WIDTH, HEIGHT, *arrays, "digest") for item in shard.items if item not in bad]
        failures = [Failure(item, "decode", "DecodeError", f"{item} is cut short") for item in bad]
        part = Part(encode(rows, fingerprint), len(rows), encode_failures(failures), len(failures))
        folder.commit(shard, part)
    folder.finish(shards, {"corpus": "corpus", "fingerprint": fingerprint})
    return FeatureStore.open(folder.root)


class Stand:
    """Answer right where the regions are of the example's own images, except for MISTAKES; answer wrong otherwise."""

    name, protocol = "Stand", ""
    reads, forms = ReadsRegions(2, "test"), frozenset({Question, MultipleChoice, Statement, Grounding})

    def fingerprint(self) -> dict[str, Any]:
        return {"class": "Stand"}

    def predict(self, batch: Sequence[tuple[Any, tuple[Regions, ...]]]) -> list[Prediction]:
        return [self._one(example, regions) for example, regions in batch]

    def _one(self, example: Any, regions: tuple[Regions, ...]) -> Prediction:
        shown = tuple(row.image_id for row in regions)
        right = shown == example.image_ids and example.example_id not in MISTAKES
        answer: Any
        scores: tuple[float, ...]
        match example:
            case Question():
                answer, scores = ("yes" if right else "no"), (0.75,)
            case MultipleChoice():
                gold = 1 if example.example_id.endswith("/answer") else 2
                answer, scores = (gold if right else 0), (0.1, 0.2, 0.3, 0.4)
            case Statement():
                answer, scores = ("True" if right else "False"), (0.25, 0.75)
            case Grounding():
                # The second phrase gets the corner box whatever the image, so it is always a miss.
                boxes = regions[0].boxes.tolist()
                first = boxes[1] if right else boxes[0]
                answer, scores = [[first, boxes[2]], [boxes[3], boxes[2]]], (0.5, 0.5)
        return Prediction(example.example_id, example.image_ids[0], answer, scores)


@pytest.fixture
def cell(tmp_path: Path) -> Any:
    """Return a function that makes the cell of a task."""

    def make(task_name: str, bad: Sequence[str] = (), title: str | None = None) -> ReportCell:
        root = tmp_path / task_name
        (root / "annotations").mkdir(parents=True)
        image_ids = WRITERS[task_name](root / "annotations")
        task: Task = open_task(task_name, root / "annotations", SPLITS[task_name])
        store = write_store(root / "features", image_ids, bad)
        images = write_pictures(root / "images", image_ids)
        runs: list[Run] = []
        error = None
        for visual in ("own", "wrong-image"):
            config = EvaluateConfig(
                task=task_name,
                split=SPLITS[task_name],
                annotations=root / "annotations",
                features=store.folder,
                model=Path("stand"),
                out=root / "runs",
                visual=visual,  # type: ignore[arg-type]
            )
            try:
                runs.append(evaluate(config, Pool(PoolConfig(inline=True)), load=lambda *_: Stand()))
            except CoverageError as incomplete:
                error = str(incomplete)
                runs.append(read_run(run_folder(config)))
        return ReportCell(title or task_name, task, store, images, runs[0], runs[1], error)

    return make


class Page(HTMLParser):
    """Parse a page: collect its tags, and the texts of the score table's cells by row."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[dict[str, str]] = []
        self._column: str | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag == "tr":
            self.rows.append({})
        if tag in ("td", "th"):
            self._column = attributes.get("data-label") or attributes.get("class")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._column = None

    def handle_data(self, data: str) -> None:
        if self._column and self.rows:
            self.rows[-1][self._column] = self.rows[-1].get(self._column, "") + data

    def count(self, name: str) -> int:
        return sum(tag == name for tag, _ in self.tags)

    def scores(self) -> list[dict[str, str]]:
        return [row for row in self.rows if "score" in row]


# ---------------------------------------------------------------------------------------------------------------------
# scores


def test_every_score_has_its_baseline_beside_it(cell: Any) -> None:
    """Each row of a metric has the run's own score and the score of the wrong-image run beside it."""
    cells = [cell("vqa"), cell("flickr30k_entities")]
    expected = [
        (f"{own.run.scores['scores'][m]:.1f}", f"{own.baseline.scores['scores'][m]:.1f}")
        for own, metrics in zip(
            cells, (["accuracy"], ["recall@1", "pointing", "recall@5", "recall@10", "upper_bound"]), strict=True
        )
        for m in metrics
    ]
    rows = Page(render(DEMO, cells)).scores()
    assert [(row["score"].split()[0], row["wrong image"].split()[0]) for row in rows] == expected
    assert expected[:2] == [("50.0", "0.0"), ("50.0", "0.0")]


def test_row_holds_interval_chance_and_n(cell: Any) -> None:
    """A score has its 95 % interval, the score of guessing and the number of units."""
    (row,) = Page(render(DEMO, [cell("vqa")])).scores()
    assert re.fullmatch(r"50\.0 \[\d+\.\d, \d+\.\d\]", row["score"])
    assert (row["chance"], row["n"]) == ("100.0", "12")


def named(cell: ReportCell, network: str, answering: str = "") -> ReportCell:
    """Return the cell as the run of another network."""
    scores = cell.run.scores | {"network": network, "answering": answering}  # type: ignore[union-attr, operator]
    return dataclasses.replace(cell, run=dataclasses.replace(cell.run, scores=scores))


def test_paper_is_quoted_beside_real_scores_only(cell: Any) -> None:
    """The published recall@1 on val is shown for the whole official split and the same network, asked in the same way.
    It is replaced by a warning for a part of the split. A page of synthetic data never shows it."""
    grounding = named(cell("flickr30k_entities"), "VisualBERT")
    official = dataclasses.replace(grounding, task=copy(grounding.task))
    official.task.subset = None  # type: ignore[union-attr]
    assert Page(render(REAL, [official])).scores()[0]["paper"] == "70.4"
    assert "arXiv:1908.03557, table 4" in render(REAL, [official])
    for other in (named(official, "ViLT-B/32"), named(official, "VisualBERT", "Where is {}?")):
        assert Page(render(REAL, [other])).scores()[0]["paper"] == "–"
        assert "arXiv" not in render(REAL, [other])
    assert SYNTHETIC not in render(REAL, [official])
    part = render(REAL, [grounding])
    assert Page(part).scores()[0]["paper"] == "–"
    assert "of 1,000 images: this is not the official val split" in part
    assert "not the official val split" not in render(DEMO, [grounding])
    synthetic = render(DEMO, [grounding])
    assert SYNTHETIC in synthetic
    assert "70.4" not in synthetic
    assert ">paper</th>" not in synthetic
    assert "arXiv" not in synthetic


def test_cell_without_a_run_says_so_and_why(cell: Any) -> None:
    """A cell without a run is a row of the table with the reason, and counts as lacking a score."""
    failed = ReportCell("VCR", None, None, {}, None, None, "weights are <gone>")
    page = render(DEMO, [cell("vqa"), failed])
    assert "✗ no score: </strong>weights are &lt;gone&gt;" in page
    assert "2 evaluations, 1 with a score" in page
    assert len(Page(page).scores()) == 1


def test_incomplete_run_shows_no_number_but_what_is_missing(cell: Any) -> None:
    """With a quarantined image there is no score. The page names the image, the reason, and the examples without an
    answer."""
    broken = cell("vqa", bad=["COCO_val2014_000000000002"])
    page = render(DEMO, [broken])
    assert Page(page).scores() == []
    assert "8 of 12 predicted, 4 missing" in page
    assert "1 image in quarantine" in page
    assert "decode: COCO_val2014_000000000002 is cut short" in page
    assert "4 examples without a prediction" in page
    assert "<figure" not in page


def test_breakdown_has_both_scores(cell: Any) -> None:
    """Groups show the score of the wrong image beside their own score."""
    page = render(DEMO, [cell("vqa")])
    assert re.search(r'<th scope="row">yes/no</th><td>50\.0</td><td>0\.0</td><td>12</td>', page)


# ---------------------------------------------------------------------------------------------------------------------
# the page


def test_annotation_text_is_escaped(cell: Any) -> None:
    """Markup in questions, objects, phrases, titles and image names becomes neither an element nor an attribute."""
    page = render(ReportInfo("<u>", True, 12), [cell("vqa", title="<s>"), cell("vcr"), cell("flickr30k_entities")])
    assert "&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt; &amp; who?" in page
    assert "A &lt;i&gt;man&lt;/i&gt;" in page
    assert "&lt;b&gt;[2]" in page
    assert not {"script", "i", "u", "s"} & {tag for tag, _ in Page(page).tags}
    alts = [attributes["alt"] or "" for tag, attributes in Page(page).tags if tag == "img"]
    assert any('a" id="evil@0' in alt for alt in alts)


def test_the_line_on_the_page_makes_the_run(cell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line on the page gives the configuration of the run's record again, with foreign features and
    precision."""
    shown = cell("vqa")
    spec = shown.run.record["spec"] | {
        "precision": "bfloat16",
        "allow_feature_space_mismatch": True,
        "feature_space": "mine",
    }
    run = dataclasses.replace(shown.run, record=shown.run.record | {"spec": spec})
    program, name, *words = shlex.split(command(shown, run))
    assert (program, name) == ("visualbert", "evaluate")
    given: list[Command] = []
    monkeypatch.setattr(Command, "run", lambda self: given.append(self) or 0)
    assert main([name, *words]) == 0
    flags = vars(given[0].evaluation)
    asked = {name: flags[name] for name in spec.keys() & flags.keys() - {"model"}}
    assert asked == {name: spec[name] for name in asked}
    assert len(asked) >= 8
    assert flags["model"].name == spec["model"]


def test_page_needs_no_network(cell: Any) -> None:
    """The page loads nothing from outside: links are anchors, images are data, styles import nothing."""
    page = render(REAL, [cell(name) for name in WRITERS])
    assert not re.search(r"https?:|@import|url\(", page)
    for _, attributes in Page(page).tags:
        assert all(attributes[name].startswith(("#", "data:")) for name in ("src", "href") if name in attributes)


def test_same_runs_give_the_same_bytes(cell: Any, tmp_path: Path) -> None:
    """Runs just made and runs read from their folders render to the same bytes."""
    fresh = [cell("vqa"), cell("flickr30k_entities")]
    reread = [
        ReportCell(c.title, c.task, c.store, c.images, read_run(c.run.folder), read_run(c.baseline.folder))
        for c in fresh
    ]
    write_report(tmp_path / "a.html", DEMO, fresh)
    write_report(tmp_path / "b.html", DEMO, reread)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert not list(tmp_path.glob(".*")), "a draft was left behind"


# ---------------------------------------------------------------------------------------------------------------------
# examples


def test_number_of_examples_half_of_them_wrong(cell: Any) -> None:
    """Ten of twelve questions are shown, five right and five wrong; with fewer examples all are shown."""
    page = render(DEMO, [cell("vqa")])
    assert Page(page).count("figure") == 10
    assert (page.count("✓ right"), page.count("✗ wrong")) == (5, 5)
    assert "10 of 12 examples, drawn by a hash of their ids: 5 not right, 5 right." in page
    assert Page(render(DEMO, [cell("vcr"), cell("nlvr2"), cell("flickr30k_entities")])).count("figure") == 4 + 2 + 2


def test_choice_follows_hashes_and_fills_up() -> None:
    """The choice of examples ignores the order of the file, and takes more right examples where too few are wrong."""
    worth = {str(number): float(number >= 3) for number in range(40)}
    chosen = choose(worth, 10)
    assert chosen == choose(dict(reversed(worth.items())), 10)
    assert chosen != sorted(chosen, key=int)
    assert sorted(worth[example_id] for example_id in chosen) == [0.0] * 3 + [1.0] * 7
    assert len(choose(dict.fromkeys(map(str, range(40)), 0.0), 10)) == 10


def test_question_shows_all_three_answers(cell: Any) -> None:
    """A figure of a question has the model's answer with its confidence, the right answer, and the answer for the wrong
    image."""
    page = render(DEMO, [cell("vqa")])
    text = unescape(re.sub(r"<[^>]+>", " ", page[page.index("<figcaption") :]))
    wanted = r"✗ wrong .*? model\s+no\s+✗\s+75 %\s+right answer\s+yes\s+wrong image\s+no\s+✗"
    assert re.search(wanted, text, re.DOTALL)


def test_regions_are_called_by_their_names(cell: Any) -> None:
    """Under the image of a question and under both images of a statement, the page lists the detector's names of the
    regions, each name once and as text. A store without names has no list."""
    question, statement = cell("vqa"), cell("nlvr2")
    assert "regions: " not in render(DEMO, [question])
    for asked in (question, statement):
        names.write(asked.store.folder, asked.store.fingerprint, LabelNames(("<b>ball",)))
        asked = dataclasses.replace(asked, store=FeatureStore.open(asked.store.folder))
        sides = {"regions"} if asked.title == "vqa" else {"left regions", "right regions"}
        lines = re.findall(r'<p class="note">([a-z ]*regions): &lt;b&gt;ball</p>', render(DEMO, [asked]))
        assert set(lines) == sides
        assert len(lines) == len(sides) * (10 if asked.title == "vqa" else 2)


def test_vcr_names_objects_and_marks_choices(cell: Any) -> None:
    """Tags read like "ball[1]", boxes have the same index, and the region of the whole image is not drawn."""
    page = render(DEMO, [cell("vcr")])
    text = re.sub(r"<[^>]+>", "", page[page.index("<figcaption") :])
    assert "What is box[0] and ball[1]?" in text
    assert re.search(r'<rect x="100\.0" y="50\.0" [^>]*></rect></g>.*>\[0\]</text>', page)
    assert f'width="{WIDTH}.0"' not in page
    assert page.count('class="mark gold"') == 4


def test_nlvr2_shows_both_pictures(cell: Any) -> None:
    """A figure of a statement shows the left image and the right image side by side."""
    page = Page(render(DEMO, [cell("nlvr2")]))
    alts = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert len(alts) == 4
    assert [alt.split(" picture ")[0] for alt in alts if alt] == ["left", "right"] * 2


def test_flickr_draws_answer_and_right_box_in_original_pixels(cell: Any) -> None:
    """The answered box and the right box of each phrase are drawn in pixels of the original image, and hits differ from
    misses."""
    page = render(DEMO, [cell("flickr30k_entities")])
    assert f'viewBox="0 0 {WIDTH} {HEIGHT}"' in page
    for place, kind in (("220.0", "gold"), ("300.0", "answer")):
        assert re.search(rf'<g class="{kind} c1"><rect x="{place}"', page)
    text = " ".join(re.sub(r"<[^>]+>", "", page).split())
    assert "partly right, 50 %" in text
    assert "model IoU 1.00 ✓ wrong image IoU 0.08 ✗" in text
    assert "model IoU 0.00 ✗ wrong image IoU 0.00 ✗" in text


@pytest.mark.parametrize(
    ("task_name", "said"), [("vqa", ">yes</dd>"), ("vcr", "What is <"), ("nlvr2", "Both are red.")]
)
def test_a_model_without_regions_has_examples(cell: Any, task_name: str, said: str) -> None:
    """Without a store each image is shown in its own size with what was asked, and the page does not mention
    regions."""
    shown = dataclasses.replace(cell(task_name), store=None)
    page = render(DEMO, [shown])
    section = page[page.index("<h3>Examples") : page.index("<summary>Provenance")]
    assert said in section
    assert "<img" in section
    assert "cannot be shown" not in section
    assert set(re.findall(r'viewBox="([^"]+)"', section)) == {f"0 0 {WIDTH} {HEIGHT}"}
    assert not re.search(r"regions|boxes|<rect", section)


def test_a_grounding_without_regions_still_has_its_boxes(cell: Any) -> None:
    """The answered box and the right box are drawn without a store, in pixels of the image. An image that is gone has
    no known size, so its frame has no boxes."""
    shown = dataclasses.replace(cell("flickr30k_entities"), store=None)
    page = render(DEMO, [shown])
    assert page.count(f'viewBox="0 0 {WIDTH} {HEIGHT}"') == 2
    for place, kind in (("220.0", "gold"), ("300.0", "answer")):
        assert re.search(rf'<g class="{kind} c1"><rect x="{place}"', page)
    gone = render(DEMO, [dataclasses.replace(shown, images={})])
    assert "7 cannot be shown: its file is not known here" in gone
    assert "<rect" not in gone


def test_a_model_without_confidences_has_examples(cell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generative model may give no probability, and its answers are shown without one."""
    read = examples.read_predictions

    def without_scores(folder: Path) -> Any:
        predictions, rest = read(folder)
        return [dataclasses.replace(each, scores=()) for each in predictions], rest

    monkeypatch.setattr(examples, "read_predictions", without_scores)
    page = render(DEMO, [cell(name) for name in WRITERS])
    assert Page(page).count("figure") == 10 + 4 + 2 + 2
    assert 'class="confidence"' not in page


def test_thumbnails_are_small(cell: Any) -> None:
    """Images are embedded with at most 256 pixels on the longer side."""
    data = re.findall(r"data:image/jpeg;base64,([\w+/=]+)", render(DEMO, [cell("vqa")]))
    assert {Pillow.open(BytesIO(b64decode(each))).size for each in data} == {(256, 192)}


def test_picture_that_cannot_be_read_is_said_to_be(cell: Any) -> None:
    """An image that was moved since the run loses its thumbnail, and the page is still written."""
    grounding = cell("flickr30k_entities")
    path = Path(grounding.images["7"].path)
    path.unlink()
    del grounding.images["8"]
    page = render(DEMO, [grounding])
    assert "7 cannot be shown: No such file" in page
    assert "8 cannot be shown: its file is not known here" in page
    path.symlink_to("/dev/zero")
    assert f"7 cannot be shown: {path.name} is a device, not a file" in render(DEMO, [grounding])


def test_run_whose_predictions_are_gone_keeps_its_scores(cell: Any) -> None:
    """Without the folder of predictions the table stays, and the section of examples says why it is empty."""
    asked = cell("vqa")
    (asked.run.folder / "predictions" / "manifest.json").unlink()
    page = render(DEMO, [asked])
    assert len(Page(page).scores()) == 1
    assert "No examples: " in page


# ---------------------------------------------------------------------------------------------------------------------
# the terminal


def test_terminal_prints_the_same_scores(cell: Any) -> None:
    """In 80 columns score, interval and baseline of a metric are on one line, and titles are not read as markup."""
    cells = [cell("vqa", title="[red]VQA"), ReportCell("VCR", None, None, {}, None, None, "no [model]")]
    printed = StringIO()
    print_table(DEMO, cells, Console(file=printed, width=80))
    text = printed.getvalue()
    (row,) = Page(render(DEMO, cells)).scores()
    line = next(line for line in text.splitlines() if line.strip().startswith("accuracy"))
    assert line.split() == ["accuracy", *row["score"].split(), row["n"], row["chance"], *row["wrong image"].split()]
    assert "[red]VQA\n" in text
    assert "VCR\n  no score: no [model]" in text


def test_terminal_has_no_column_for_what_was_not_asked(cell: Any) -> None:
    """Where no cell has a wrong-image baseline, the table has no column for it."""
    asked = dataclasses.replace(cell("vqa"), baseline=None)
    printed = StringIO()
    print_table(DEMO, [asked], Console(file=printed, width=80))
    assert "accuracy" in printed.getvalue()
    assert "wrong image" not in printed.getvalue()
    assert "no score" not in printed.getvalue()


def test_a_score_under_chance_is_said_to_be(cell: Any) -> None:
    """A score at or under chance has its remark on the page and in the terminal, not only in scores.json."""
    asked = cell("vqa")  # all its questions have one answer, so no model can beat the blind guess
    printed = StringIO()
    print_table(DEMO, [asked], Console(file=printed, width=80))
    assert "WARNING: accuracy is under chance" in printed.getvalue()
    assert "accuracy is under chance" in render(DEMO, [asked])
