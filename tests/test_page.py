"""The page of a night with a gate as a reader sees it: in a real browser where there is one, and as bytes.

The module runs two nights over the synthetic data and damages two checkpoints before the second night. It also builds a
page of 200 flips over images that do not compress.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import re
import shutil
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, find
from conftest import ROOT
from PIL import Image as Pillow

from visualbert_core import tasks
from visualbert_core.comparison.compare import Comparison
from visualbert_core.comparison.flips import Flip, Flips
from visualbert_core.comparison.gate import Check, Gate, Watched
from visualbert_core.comparison.history import History, Row, Timing
from visualbert_core.nightly.night import Night
from visualbert_core.report import ReportCell, ReportInfo
from visualbert_core.report.curves import trend
from visualbert_core.report.flip_gallery import FLIPS, flip_gallery
from visualbert_core.report.gate_section import CellNight, GatedNight
from visualbert_core.report.html import environment, render
from visualbert_core.report.pictures import Sheet, picture
from visualbert_core.schema import Image, Regions

sys.path.insert(0, str(ROOT / "benchmarks"))
from bad_night import NIGHTS, bad_night


def comparisons(night: Night) -> dict[str, Comparison]:
    """Return the comparison of each cell with an earlier night, by the name of the cell."""
    assert night.judged is not None
    return {cell.name: cell.comparison for cell in night.judged.cells if cell.comparison is not None}


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    """Run a few nights over a few scenes and return the last night."""
    out = tmp_path_factory.mktemp("bad") / "out"
    return bad_night(out, images=12, noise=0.06, nights=NIGHTS[-2:], examples=2, wrong_image_baseline=False)


@pytest.fixture(scope="module")
def page(night: Night) -> str:
    return night.report.read_text()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find()
    if program is None:
        pytest.skip("no Chromium here")
    with Browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def figures_of(html: str) -> list[str]:
    return re.findall(r"<figure.*?</figure>", html, re.DOTALL)


def drawn(template: str, macro: str, *views: object) -> str:
    """Return the HTML that a template's macro makes of view models."""
    return str(getattr(environment().get_template(template).module, macro)(*views))


# ---------------------------------------------------------------------------------------------------------------------
# what the page says


def test_the_verdict_comes_first_and_says_why(night: Night, page: str) -> None:
    """The page starts with the verdict in words: which metric failed, by how much, with which p-value, and by which
    ingredient."""
    assert night.exit_code == 4
    assert night.judged is not None
    assert page.index('id="verdict"') < page.index('id="scores"') < page.index('id="flips"') < page.index('id="trend"')
    said = text_of(page[page.index('id="verdict"') : page.index('id="scores"')])
    assert "Fail: it got worse" in said
    failed = [check for check in night.judged.gate.checks if check.verdict == "fail"]
    assert failed
    for check in failed:
        assert check.change is not None
        assert f"{check.change.difference:+.2f} points".replace("-", "−") in said
        assert f"since night {NIGHTS[-2]}" in said
    assert re.search(r"Because of model : −\d+\.\d\d points \(nothing else differs\) model\.weights: ", said)
    assert re.search("no answer changed: +visualbert-vcr on vcr val", said)


def test_last_nights_score_stands_beside_tonights(night: Night, page: str) -> None:
    """Each metric shows last night's value and the paired difference, and a metric that did not change says so."""
    assert night.judged is not None
    (comparison,) = [c for name, c in comparisons(night).items() if "vqa" in name]
    change = comparison.metrics["accuracy"]
    cells = [text_of(cell) for cell in re.findall(r'data-label="earlier">(.*?)</td>', page)]
    assert any(
        f"{change.before:.1f}" in cell and f"{change.difference:+.2f}".replace("-", "−") in cell for cell in cells
    )
    assert any("unchanged" in cell for cell in cells)


def test_every_flip_is_shown_with_both_answers(night: Night, page: str) -> None:
    """Each flip is one figure with its images and both answers, before and now, and metrics that got worse come
    first."""
    assert night.judged is not None
    flips = [found for c in comparisons(night).values() for found in c.flips.values()]
    gallery = page[page.index('id="flips"') : page.index('id="trend"')]
    figures = figures_of(gallery)
    assert len(figures) == sum(found.worse_count + found.better_count for found in flips) > 0
    ways = re.findall(r'data-way="(\w+)"', gallery)
    assert ways == sorted(ways, reverse=True)
    first = flips[0].worse[0]
    (figure,) = [each for each in figures if f'class="id">{first.unit_id}<' in each]
    assert f"before {first.answer_before} " in text_of(figure)
    assert f"now {first.answer_after} " in text_of(figure)


def test_a_phrase_has_its_boxes_before_and_now_and_the_right_one(night: Night, page: str) -> None:
    """A flip of Flickr30K Entities draws three boxes at their places in the image: before, now and right."""
    assert night.judged is not None
    (comparison,) = [c for name, c in comparisons(night).items() if "flickr" in name]
    flip = comparison.flips["recall@1"].worse[0]
    (figure,) = [each for each in figures_of(page) if f'class="id">{flip.unit_id}<' in each]
    for colour, corners in (("c0", flip.answer_before), ("c1", flip.answer_after)):
        assert re.search(rf'<g class="answer {colour}"><rect x="{corners[0]:.1f}" y="{corners[1]:.1f}"', figure)
    assert '<g class="gold c2">' in figure
    assert re.findall(r"<text [^>]*>(\w+)</text>", figure) == ["before", "now"]


def test_flips_of_a_model_without_regions(night: Night) -> None:
    """Flips of every form are shown without a store, with images in their own size and without any mention of
    regions."""
    assert night.judged is not None
    cells = [dataclasses.replace(cell, store=None) for cell in night.cells]
    nights = [CellNight(name, comparison, ()) for name, comparison in comparisons(night).items()]
    flips = flip_gallery(cells, nights)
    assert flips is not None
    assert flips["complaints"] == []
    section = environment().get_template("flips.html").render(page={"flips": flips})
    figures = figures_of(section)
    sizes = {re.findall(r'viewBox="0 0 (\d+) (\d+)"', figure)[0] for figure in figures}
    assert sizes == set(re.findall(r'<image [^>]*width="(\d+)" height="(\d+)"', section))
    assert len(figures) == len(figures_of(night.report.read_text().partition('id="trend"')[0])) > 0
    assert '<g class="gold c2"><rect' in section
    assert "regions" not in section


def test_a_picture_is_in_the_page_once(page: str) -> None:
    """Flips of one image share it: every reference has a target, and no image and no set of regions is embedded
    twice."""
    gallery = page[page.index('id="flips"') : page.index('id="trend"')]
    data = re.findall(r'href="(data:[^"]+)"', gallery)
    assert len(data) == len(set(data))
    references = re.findall(r'<use href="#([\w-]+)"', gallery)
    assert len([name for name in references if name.startswith("picture")]) > len(data)
    assert set(references) <= set(re.findall(r'id="([\w-]+)"', gallery))


def test_the_page_says_what_differs_and_what_it_cost(page: str) -> None:
    """The provenance section names the changed ingredient, and the cost section has seconds, items and bytes."""
    section = text_of(page[page.index('id="cell-1"') : page.index('id="cell-2"')])
    assert re.search(r"Differs from \S+ in model model\.weights: \w+ → \w+", section)
    assert re.search(r"evaluation \d+ examples in [\d.]+ s, [\d.,]+ a second", section)
    assert re.search(r"\d+ kB on disk for 12 images of vqa-val2014", section)


def test_gpus_have_a_price(night: Night) -> None:
    """A matrix with the price of a GPU-hour gives a cell's GPU-seconds a price. Without a GPU or a price there is
    none."""
    history = History(night.report.parent / "history" / "bad-night")
    (row,) = history.rows("visualbert-vqa__vqa__val")[-1:]
    row = dataclasses.replace(
        row, extraction=Timing(items=5, seconds=900, gpus=4), evaluation=Timing(items=5, seconds=900, gpus=4)
    )
    cells = (
        CellNight("vqa", None, (row,)),
        CellNight("vqa", None, (dataclasses.replace(row, extraction=None, evaluation=None),)),
    )

    def cost(each: CellNight, gpu_hour: float | None) -> str:
        assert night.judged is not None
        info = dataclasses.replace(night.info, gpu_hour=gpu_hour)
        page = render(info, night.cells[:1], GatedNight(night.judged.gate, (each,)))
        return text_of(page[page.index("<h3>Cost") : page.index("<h3>Examples")])

    priced, free = (cost(each, 2.5) for each in cells)
    assert "3,600.0 GPU-seconds" in priced
    assert "price 5.00, at 2.5 for a GPU-hour, extraction included" in priced
    assert "price" not in free + cost(cells[0], None)


def test_nothing_on_it_leads_outside(page: str) -> None:
    """The page has no address but anchors and data, and allows one script by its digest and no other script."""
    assert not re.search(r"https?:|@import|url\(", page)
    assert all(link.startswith(("#", "data:")) for link in re.findall(r'\b(?:href|src)="([^"]*)"', page))
    assert len(re.findall("<script", page)) == 1
    assert re.search(r"script-src 'sha256-[\w+/=]+'\"", page)


def test_what_was_written_gives_the_same_bytes_again(night: Night, page: str) -> None:
    """The verdict, the comparisons and the history on the disk render to the same bytes."""
    assert night.judged is not None
    history = History(night.report.parent / "history" / "bad-night")
    compared = comparisons(night).items()
    cells = tuple(CellNight(name, comparison, tuple(history.rows(name))) for name, comparison in compared)
    assert render(night.info, night.cells, GatedNight(night.judged.gate, cells)) == page


def test_a_night_with_nothing_to_compare_with_says_so(night: Night) -> None:
    """Without a comparison the page says "cannot tell" and why: one cell has no earlier night, one has no score."""
    failed = ReportCell("broken <i>", None, None, {}, None, error="weights are gone")
    checks = tuple(
        Check(Watched(name, "accuracy", 5.0), "cannot tell", reason)
        for name, reason in (("a", "no earlier night; the next can use this one"), ("b", "no score tonight"))
    )
    nights = CellNight("a", None, ()), CellNight("b", None, ())
    gate = Gate("1", "cannot tell", checks, ("vqa: accuracy is 3.00, which is below 85",))
    first = render(night.info, [night.cells[0], failed], GatedNight(gate, nights))
    said = text_of(first)
    assert "Cannot tell whether it got worse" in said
    assert "? cannot tell : accuracy: no earlier night; the next can use this one" in said
    assert "? cannot tell : accuracy: no score tonight" in said
    assert "✗ out of bounds: vqa: accuracy is 3.00" in said
    assert "broken &lt;i&gt;" in first
    assert not {"script", "i"} & set(re.findall(r"<(\w+)", first))
    assert 'id="flips"' not in first
    assert 'id="trend"' not in first


# ---------------------------------------------------------------------------------------------------------------------
# in a browser


def test_it_opens_without_a_complaint_and_asks_for_nothing(browser: Browser, night: Night) -> None:
    """Opened from file://, the page gives no console message, requests only itself and its data, and decodes all
    images."""
    browser.open(night.report)
    assert browser.run("document.querySelectorAll('figure').length") > 0
    assert browser.problems == []
    assert {address.split(":")[0] for address in browser.requests} <= {"file", "data"}
    assert browser.run("[...document.images].every((image) => image.naturalWidth > 0)")


def test_the_filter_chooses_by_cell_direction_and_text(browser: Browser, night: Night) -> None:
    """The filter shows the matching flips and their count, and clearing it shows all flips again."""
    browser.open(night.report)
    shown = "[...document.querySelectorAll('.flips figure')].filter((f) => f.getClientRects().length)"
    said = "document.querySelector('output').textContent"
    everything = browser.run(said)

    def choose(name: str, value: str) -> list[str]:
        browser.run(
            f"document.forms[0].elements.{name}.value = {value!r};"
            "document.forms[0].dispatchEvent(new Event('input', {bubbles: true}))"
        )
        found: list[str] = browser.run(f"{shown}.map((f) => f.dataset.cell + f.dataset.way + f.textContent)")
        return found

    of_cell = choose("cell", "1")
    cells = browser.run("[...document.querySelectorAll('.flips figure')].map((f) => f.dataset.cell)")
    assert browser.run(said).startswith(f"{cells.count('1')} of {len(cells)}")
    assert 0 < cells.count("1") < len(cells)
    assert all(each.startswith("1") for each in of_cell)
    assert all(each.startswith("1better") for each in choose("way", "better"))
    assert choose("way", "worse") == of_cell
    word = re.findall(r"[a-z]{4,}", of_cell[0].split("visualbert-vqa on vqa val")[1])[0]
    assert of_cell[0] in choose("text", word.upper())
    assert choose("text", "zzzz") == []
    assert browser.run(said).startswith("0 of ")
    for name in ("cell", "way", "text"):
        choose(name, "")
    assert browser.run(said) == everything
    assert browser.problems == []


def test_show_more_shows_more_and_keeps_the_readers_place(browser: Browser, night: Night) -> None:
    """The page first shows one screen of flips; the button shows more and moves the focus to the first new flip."""
    browser.open(night.report)
    shown = "[...document.querySelectorAll('.flips figure')].filter((f) => f.getClientRects().length).length"
    every = browser.run("document.querySelectorAll('.flips figure').length")
    before = browser.run(shown)
    assert before == 24 < every
    browser.run("document.getElementById('more').click()")
    assert browser.run(shown) == min(every, 48)
    assert browser.run("[...document.querySelectorAll('.flips figure')].indexOf(document.activeElement)") == 24


def test_the_theme_can_be_switched_by_keyboard(browser: Browser, night: Night) -> None:
    """The keyboard switches between light and dark, whatever the system's setting, and text stays readable in both."""
    browser.open(night.report)
    grounds = {}
    browser.run("document.getElementById('theme-system').focus()")
    for theme in ("light", "dark"):
        browser.key("ArrowRight", 39)
        assert browser.run(f"document.getElementById('theme-{theme}').checked")
        grounds[theme] = browser.run("getComputedStyle(document.body).backgroundColor")
        for selector in ("body", ".about", ".wrong", "#verdict li", ".id", ".note"):
            contrast = browser.run(CONTRAST % selector)
            assert contrast >= 4.5, (theme, selector, contrast)
    assert grounds["light"] != grounds["dark"]
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("getComputedStyle(document.body).color") == "rgb(29, 33, 38)"
    browser.call("Emulation.setEmulatedMedia", media="")


# The contrast as WCAG defines it, of an element's text and the first opaque background behind it.
CONTRAST = """(() => {
  const light = (colour) => {
    const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
      .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const element = document.querySelector("%s");
  let behind = element;
  while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
  const pair = [light(getComputedStyle(element).color), light(getComputedStyle(behind).backgroundColor)];
  return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
})()"""


LOOKS = {
    "as it is": "",
    "wide font": "* { letter-spacing: .12em !important; }",  # as wide as a wider font, whichever fonts this machine has
    "large text": "html { font-size: 125%; }",
    "large text in a wide font": "html { font-size: 125%; } * { letter-spacing: .12em !important; }",
}
WIDTHS = (320, 390, 768, 1280)


def widest(browser: Browser, page: Path, width: int, look: str, prepare: str = "") -> Any:
    """Return the width of the page in a window of `width`, with every section unfolded."""
    browser.open(page, width=width)
    browser.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    browser.run(f"document.head.append(Object.assign(document.createElement('style'), {{textContent: {look!r}}}))")
    if prepare:
        assert browser.run(prepare) > 0
    return browser.run("document.documentElement.scrollWidth")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("look", LOOKS)
def test_nothing_is_wider_than_the_screen(browser: Browser, night: Night, width: int, look: str) -> None:
    """The page never scrolls sideways on phones and desktops, whatever the font and the reader's text size."""
    assert widest(browser, night.report, width, LOOKS[look]) <= width


# A word of 150 letters is added to each text of the page. Column names and numbers are the package's own texts, so they
# get none.
GROW = """(() => {
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), texts = [];
  while (walk.nextNode()) texts.push(walk.currentNode);
  const ours = "script, .theme, thead, dt, .scores td:not(.none)";
  const theirs = texts.filter((text) => /[a-z]{2}/i.test(text.data) && !text.parentElement.closest(ours));
  theirs.forEach((text) => { text.data += "x".repeat(150); });
  return theirs.length;
})()"""


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("look", ["as it is", "large text in a wide font"])
def test_no_long_word_is_wider_than_the_screen(
    browser: Browser, night: Night, tmp_path: Path, width: int, look: str
) -> None:
    """Ids, names of models and nights, answers, question types and warnings may be long words without making the page
    wider."""
    assert widest(browser, night.report, width, LOOKS[look], GROW) <= width
    long, cell = "x" * 150, night.cells[0]
    assert cell.run is not None
    assert cell.run.scores is not None
    scores = cell.run.scores | {"warnings": [long], "breakdown": {long: {long: {"accuracy": [50.0, 4]}}}}
    failed = [{"item_id": long, "stage": long, "error": long, "message": long}]
    coverage = {"expected": 2, "predicted": 1, "missing": 1, "duplicate": 0, "unknown": 0}
    record = cell.run.record | {"failed": failed, "coverage": coverage}
    run = dataclasses.replace(cell.run, record=record, scores=scores)
    cells = [dataclasses.replace(cell, title=long, run=run), ReportCell(long, None, None, {}, None, error=long)]
    page = tmp_path / "page.html"
    page.write_text(render(dataclasses.replace(night.info, title=long), cells))
    assert widest(browser, page, width, LOOKS[look]) <= width


def test_readers_who_see_nothing_are_told_everything(browser: Browser, night: Night) -> None:
    """Every control, image and plot has a name for screen readers, headings descend one level at a time, ids are
    unique."""
    browser.open(night.report)
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    named = ("button", "combobox", "searchbox", "radio", "image", "link", "region")
    seen = [node for node in nodes if not node["ignored"] and node["role"]["value"] in named]
    assert {node["role"]["value"] for node in seen} >= {"combobox", "searchbox", "radio", "image", "link"}
    assert [node for node in seen if not node["name"]["value"]] == []
    levels = browser.run("[...document.querySelectorAll('h1,h2,h3')].map((heading) => +heading.tagName[1])")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = browser.run("[...document.querySelectorAll('[id]')].map((each) => each.id)")
    assert len(ids) == len(set(ids))


def test_it_prints(browser: Browser, night: Night) -> None:
    """The page prints to a PDF without any control."""
    browser.open(night.report)
    assert browser.pdf().startswith(b"%PDF")
    browser.call("Emulation.setEmulatedMedia", media="print")
    for selector in (".theme", "nav", "#filter"):
        assert browser.run(f"document.querySelector({selector!r}).getClientRects().length") == 0
    browser.call("Emulation.setEmulatedMedia", media="")


# ---------------------------------------------------------------------------------------------------------------------
# size, scale


def test_200_flips_over_400_pictures_fit_into_five_megabytes(night: Night, tmp_path: Path) -> None:
    """The page stays under five megabytes in the worst case: 400 different images of noise with a hundred regions
    each."""
    cell, comparison = many_flips(night, tmp_path, count=FLIPS + 50)
    flips = flip_gallery([cell], [CellNight("cell", comparison, ())])
    section = environment().get_template("flips.html").render(page={"flips": flips})
    assert len(re.findall("<figure", section)) == FLIPS
    assert section.count("data:image/jpeg;base64,") == 2 * FLIPS
    size = len(section.encode()) + len(render(ReportInfo("many", False, 0), []).encode())
    assert 3_000_000 < size < 5_000_000, "the pictures are worse than they need to be, or the page is too large"


class Noise:
    """The store of `many_flips`: a hundred boxes per image."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)

    def fetch_many(self, image_ids: tuple[str, ...]) -> Iterator[Regions]:
        for image_id in image_ids:
            corners = np.sort(self._random.uniform(0, 480, (100, 2, 2)), axis=1).reshape(100, 4).astype(np.float32)
            yield Regions(image_id, 640, 480, corners, *(np.zeros(100),) * 3, "digest")  # type: ignore[arg-type]


def many_flips(night: Night, folder: Path, count: int) -> tuple[ReportCell, Comparison]:
    """Copy a pair of the night's NLVR2 images `count` times, each copy a file of noise, and make every answer
    a flip."""
    assert night.judged is not None
    (cell,) = [each for each in night.cells if "nlvr2" in each.title]
    (comparison,) = [c for name, c in comparisons(night).items() if "nlvr2" in name]
    assert cell.task is not None
    example = next(iter(cell.task.examples()))
    random = np.random.default_rng(0)
    source = folder / "0.jpg"
    Pillow.fromarray(random.integers(0, 256, (480, 640, 3), np.uint8)).save(source, quality=50)

    class Task:
        """The same statement about the copied images."""

        headline = "accuracy"
        references, marked = tasks.Task.references, tasks.Task.marked  # the defaults of every benchmark

        def examples(self) -> Iterator[Any]:
            for index in range(count):
                yield dataclasses.replace(example, example_id=str(index), image_ids=(f"l{index}", f"r{index}"))

        def gold(self, example_id: str) -> str:
            return "True"

    images = {}
    for name in (f"{side}{index}" for side in "lr" for index in range(count)):
        path = folder / f"{name}.jpg"
        shutil.copy(source, path)
        images[name] = Image(name, str(path))
    flips = tuple(Flip(str(i), str(i), None, 1.0, 0.0, "True", "False", 0.9, 0.8, -1.7) for i in range(count))
    flipped = dataclasses.replace(comparison, flips={"accuracy": Flips(count, 0, flips, ())})
    return dataclasses.replace(cell, task=Task(), store=Noise(), images=images), flipped  # type: ignore[arg-type]


def test_pictures_share_their_bytes(tmp_path: Path) -> None:
    """One image keeps its best quality; with less room images are made smaller, and none is left out."""
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    Pillow.fromarray(noise).save(tmp_path / "a.png")
    image = Image("a", str(tmp_path / "a.png"))
    (regions,) = Noise().fetch_many(("a",))
    sizes = []
    for limit in (1_000_000, 8_000):
        sheet = Sheet.of([(image, regions)], limit)
        sizes.append(len(drawn("pictures.html", "sheet", sheet)))
        shown = picture("picture", "a", image, regions, [], sheet, outlined=True)
        assert '<use href="#picture-0">' in drawn("pictures.html", "shared", shown)
    assert sizes[1] < 8_000 * 4 / 3 + 4_000 < sizes[0]
    gone = Image("b", str(tmp_path / "b.png"))
    shown = picture("picture", "b", gone, regions, [], Sheet.of([(gone, regions)], 1000), outlined=True)
    assert "b cannot be shown: No such file" in drawn("pictures.html", "shared", shown)


def test_images_of_one_file_are_not_mixed_up(tmp_path: Path) -> None:
    """Members of a tar and rows of a table share a path, and each figure still shows its own image."""
    images, data = [], b""
    for name, colour in (("red", "#f00"), ("blue", "#00f")):
        encoded = io.BytesIO()
        Pillow.new("RGB", (640, 480), colour).save(encoded, "PNG")
        images.append(Image(name, str(tmp_path / "shard.tar"), start=len(data), size=len(encoded.getvalue())))
        data += encoded.getvalue()
    (tmp_path / "shard.tar").write_bytes(data)
    (regions,) = Noise().fetch_many(("a",))
    sheet = Sheet.of([(image, regions) for image in images], 1_000_000)
    shown = [picture("picture", "", image, regions, [], sheet) for image in images]
    uses = [re.search(r'<use href="#(picture-\d)">', drawn("pictures.html", "shared", each)) for each in shown]
    assert [found and found[1] for found in uses] == ["picture-0", "picture-1"]
    html = drawn("pictures.html", "sheet", sheet)
    pictures = re.findall(r'<image id="picture-\d" href="data:image/jpeg;base64,([^"]+)"', html)
    decoded = [Pillow.open(io.BytesIO(base64.b64decode(jpeg))).getpixel((9, 9)) for jpeg in pictures]
    assert [max(range(3), key=list(pixel).__getitem__) for pixel in decoded] == [0, 2]  # type: ignore[arg-type]


def row(night: str, score: float, verdict: str) -> Row:
    numbers: dict[str, Any] = {"scores": {"accuracy": score}, "intervals": {"accuracy": [score - 1, score + 1]}}
    return Row(night=night, cell="c", verdict=verdict, run="r", headline="accuracy", units={"accuracy": 9}, **numbers,
               ingredients={"model": "new" if verdict == "fail" else "old"})  # fmt: skip


def test_an_ingredient_that_an_old_row_lacks_has_not_changed() -> None:
    """A row of an older version has no digest of an ingredient that came later. The trend names only digests that both
    rows have and that differ."""
    common = {"cell": "c", "verdict": "pass", "run": "r", "headline": "accuracy", "scores": {"accuracy": 50.0}}
    common |= {"intervals": {"accuracy": [40.0, 60.0]}, "units": {"accuracy": 9}}
    digests = ({"model": "1"}, {"model": "1", "images": "2"}, {"model": "3", "images": "2"})
    rows = [Row(night=str(n), ingredients=each, **common) for n, each in enumerate(digests)]  # type: ignore[arg-type]
    assert [night["differs"] for night in trend(rows, None)["nights"]] == [None, [], ["model"]]


def test_the_trend_is_a_plot_and_a_table() -> None:
    """The plot marks each night by its verdict. The table has a row per night, latest first, with the ingredients that
    changed since the night before. The plot's description names the failed nights."""
    rows = [row("1", 70.0, "cannot tell"), row("2", 71.0, "pass"), row("3", 60.0, "fail")]
    html = drawn("trend.html", "figure", trend(rows, None), "title", 1)
    assert re.findall(r'class="night ([\w-]+)"', html) == ["cannot-tell", "pass", "fail"]
    assert "accuracy over 3 nights, from 70.0 to 60.0; lowest 60.0, highest 71.0; failed: 3" in html
    table = [text_of(line).strip() for line in re.findall(r"<tr><th scope=\"row\">.*?</tr>", html, re.DOTALL)]
    assert [line[0] for line in table] == ["3", "2", "1"]
    assert table[0].endswith("model")
    heights = [float(y) for y in re.findall(r'y="([\d.]+)" class="night', html)]
    assert heights[1] < heights[0] < heights[2]
