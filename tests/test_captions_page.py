"""The page of a night with captions: people's captions, true and false words, flips by CIDEr, and numbers beside it.

A model of this file has a caption for each image. It runs through the library twice, as two nights.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, find
from captions_golden import coco_folder
from PIL import Image as Pillow
from rich.console import Console

from visualbert_core.commands.evaluate import result_lines
from visualbert_core.comparison.compare import compare
from visualbert_core.comparison.gate import Gate
from visualbert_core.config import EvaluateConfig, PoolConfig
from visualbert_core.corpus.listing import list_images
from visualbert_core.engine.pool import Pool
from visualbert_core.evaluation.run import evaluate
from visualbert_core.evaluation.run_folder import Run
from visualbert_core.models import ReadsPixels
from visualbert_core.report import ReportCell, ReportInfo
from visualbert_core.report.gate_section import CellNight, GatedNight
from visualbert_core.report.html import render
from visualbert_core.report.terminal import print_table
from visualbert_core.schema import Captioning, Example, Generated, Pixels, Prediction
from visualbert_core.tasks.captions import CaptionsTask
from visualbert_core.tasks.shown import Words

SCENES = ("red circle", "blue square", "green star", "black cross", "white moon", "pink heart", "grey box", "gold ring")


class Scenes(CaptionsTask):
    """Captions of images that show one thing each, so words can be told true or false."""

    splits = CaptionsTask.splits

    def marked(self, example_id: str, answer: str) -> Sequence[Words]:
        """Return the colour and the shape as true or false, and other words without a mark."""
        own, known = SCENES[int(example_id)].split(), " ".join(SCENES).split()
        parts = re.split(r"(\w+)", answer)
        return [Words(part, part in own if part in known else None) for part in parts if part]


class Table:
    """A model with a caption for each image id; it has read the image, and does not look at it."""

    reads, forms = ReadsPixels(), frozenset({Captioning})
    name, protocol = "table", "generate, greedy, at most 30 new tokens"

    def __init__(self, captions: Mapping[str, str]) -> None:
        self.captions = captions

    def fingerprint(self) -> dict[str, Any]:
        return dict(self.captions)

    def predict(self, batch: Sequence[tuple[Example, tuple[Pixels, ...]]]) -> list[Prediction]:
        found = []
        for example, (picture,) in batch:
            said = self.captions[picture.image_id]
            found.append(Prediction(example.example_id, example.image_ids[0], said, (0.5,), (Generated(said),)))
        return found


def load(captions: Mapping[str, str], *_: Any) -> Table:
    return Table(captions)


@dataclass(frozen=True)
class Nights:
    page: str
    path: Path
    cell: ReportCell
    info: ReportInfo
    before: Run


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    """Return two nights: in the second, the caption of one image is worse and that of another is better."""
    root = tmp_path_factory.mktemp("captions")
    (root / "images").mkdir()
    (root / "model").mkdir()
    for number in range(len(SCENES)):
        pixels = np.full((40, 60, 3), 20 * number, np.uint8)
        Pillow.fromarray(pixels).save(root / "images" / f"{number}.png")
    images = [{"id": number, "file_name": f"{number}.png"} for number in range(len(SCENES))]
    forms = ("a {} on a table", "there is one {} here", "the {}, seen from <above>")
    said = [
        {"image_id": number, "caption": form.format(scene)} for number, scene in enumerate(SCENES) for form in forms
    ]
    coco_folder(root, {"images": images, "annotations": said}, "val")
    task = Scenes(root, "val")
    first = {str(number): f"a {scene} on a table" for number, scene in enumerate(SCENES)} | {"3": "a red cross"}
    second = first | {"0": "a blue circle & a <b>table</b>", "3": "a black cross on a table", "7": ""}
    runs = []
    for name, captions in (("before", first), ("after", second)):
        for visual in ("own", "wrong-image")[: 1 if name == "before" else 2]:
            config = EvaluateConfig(
                task=f"{__name__}:Scenes",
                split="val",
                annotations=root,
                model=root / "model",
                out=root / name,
                images=root / "images",
                visual=visual,  # type: ignore[arg-type]
            )
            runs.append(evaluate(config, Pool(PoolConfig(inline=True)), partial(load, captions), task))
    before, after, wrong = runs
    cell = ReportCell("table on scenes", task, None, dict(list_images(root / "images").items()), after, wrong)
    info = ReportInfo("Night", synthetic=False, examples=len(SCENES))
    night = GatedNight(Gate("2", "pass", (), ()), (CellNight("cell", compare(before, after), ()),))
    page = render(info, [cell], night)
    (root / "report.html").write_text(page)
    return Nights(page, root / "report.html", cell, info, before)


def text_of(html: str) -> str:
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", html)))


def figures_of(html: str) -> dict[str, str]:
    """Return id → figure."""
    return {re.findall(r'class="id">(\w+)<', each)[0]: each for each in re.findall(r"<figure.*?</figure>", html, re.S)}


def test_all_references_stand_beside_a_caption(nights: Nights) -> None:
    """Each example shows every caption of people, and markup in a caption is text."""
    examples = figures_of(nights.page[nights.page.index("<h3>Examples") :])
    assert set(examples) == {str(number) for number in range(len(SCENES))}
    assert text_of(examples["1"]).count("blue square") == 4  # the model and three people
    assert "the blue square, seen from <above>" in text_of(examples["1"])
    assert "no words" in text_of(examples["7"])
    assert "a blue circle & a <b>table</b>" in text_of(examples["0"])


def test_true_and_false_words_are_marked(nights: Nights) -> None:
    """The task says which words are true of the scene; the page marks them in examples and in flips."""
    for figure in (figures_of(part)["0"] for part in (nights.page, nights.page[nights.page.index("<h3>Examples") :])):
        assert '<span class="false" title="false">blue</span> <span class="true" title="true">circle</span>' in figure
    wrong_image = figures_of(nights.page[nights.page.index("<h3>Examples") :])["1"].split("wrong image</dt>")[1]
    assert wrong_image.count('class="false"') == 2


def test_flips_are_ordered_by_the_change_of_cider(nights: Nights) -> None:
    """Each image whose CIDEr changed is a flip with both captions, both grades and the change; no confidence counts."""
    flips = nights.page[nights.page.index('id="flips"') : nights.page.index("<h3>Examples")]
    found = {name: text_of(figure) for name, figure in figures_of(flips).items()}
    assert set(found) == {"0", "3", "7"}
    assert re.search(r"beforea red cross \(CIDEr-D \d\.\d\d\) nowa black cross on a table \(CIDEr-D ", found["3"])
    changes = {
        name: float(re.findall(r"change([−+][\d.]+)", text)[0].replace("−", "-")) for name, text in found.items()
    }
    assert changes["3"] > 0 > changes["0"] > changes["7"]
    assert flips.index(">7<") < flips.index(">0<") < flips.index(">3<")


def test_numbers_beside_the_score(nights: Nights) -> None:
    """scores.json, page, terminal and `evaluate` have a person and the model by the person's judges, the wrong image,
    length, distinct captions, the share that was cut, and the decoding."""
    run = nights.cell.run
    assert run is not None
    assert run.scores is not None
    person, own = run.scores["person"]["cider"], run.scores["as_person"]["cider"]
    assert run.scores["beside"]["distinct captions"] == len(SCENES)
    out = io.StringIO()
    print_table(nights.info, [nights.cell], Console(file=out, width=80))
    page, shown = text_of(nights.page), (re.sub(r"\s+", " ", out.getvalue()), "\n".join(result_lines(run.scores)))
    assert re.search(rf"{person:.1f} model {own:.1f}", page)
    assert "a person gets: for Scenes each reference of an image, judged by the image's other references" in page
    assert "Scores in percent (CIDEr-D: up to 1,000), with 95 % intervals" in page
    for text in shown:
        assert re.search(rf"judged as the person is: (CIDEr-D|cider) {person:.1f} and {own:.1f}", text)
    for text in (page, *shown):
        assert "words per caption: " in text
        assert "distinct captions: 8" in text
        assert "cut: 0.0 % of 8 texts" in text
        assert "unparsed" not in text  # every text is a caption
        assert "generate, greedy, at most 30 new tokens" in text


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find()
    if program is None:
        pytest.skip("no Chromium here")
    with Browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("width", [320, 1200])
def test_captions_fit_a_phone_and_a_desktop(browser: Browser, nights: Nights, width: int) -> None:
    """The page does not scroll sideways, and reports no problem."""
    browser.open(nights.path, width=width)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.problems == []
    assert browser.run("document.querySelectorAll('.references li').length") == 3 * (len(SCENES) + 3)
