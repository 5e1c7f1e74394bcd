"""Models of several families side by side: two nights of one matrix over questions and phrases, with VisualBERT from
regions, a model that reads pixels, and a model that writes its answers. `pixel_model.py` has the last two."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html import unescape
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT, SmallNight
from pixel_model import install, write_checkpoint
from test_pixel_models import write_matrix

from visualbert_core.commands.nightly import run_night
from visualbert_core.comparison.compare import PARSED, compare
from visualbert_core.comparison.gate import Check
from visualbert_core.comparison.text import describe
from visualbert_core.config import AnsweringConfig
from visualbert_core.engine.shards import Part, ShardFolder, plan
from visualbert_core.errors import ConfigError
from visualbert_core.evaluation.run_folder import Run, read_run
from visualbert_core.evaluation.worker import encode, read_predictions
from visualbert_core.models import visual_source
from visualbert_core.models.base import refuse_answering
from visualbert_core.models.registry import FAMILIES
from visualbert_core.nightly.dry_run import plan_night
from visualbert_core.nightly.matrix import load_matrix, runs_folder
from visualbert_core.nightly.night import Night
from visualbert_core.report.html import render
from visualbert_core.schema import Generated, Prediction, Question
from visualbert_core.tasks import judge, open_task
from visualbert_core.tasks.vqa import BLIP2_ASKED, LAVIS_ASKED

WEIGHTS = ROOT / "visualbert_core" / "synthetic" / "weights"
QUESTION = {"task": "vqa", "split": "val", "annotations": "vqa", "shard_size": 5}
PHRASE = {"task": "flickr30k_entities", "split": "val", "annotations": "flickr30k", "shard_size": 5}


@dataclass(frozen=True)
class Nights:
    root: Path
    matrix: Path
    first: Night
    second: Night

    def run(self, name: str, night: str = "2-babbles") -> Run:
        return read_run(self.root / "out" / "runs" / "families" / night / name)

    @property
    def page(self) -> str:
        return self.second.report.read_text()

    def check(self, name: str, metric: str) -> Check:
        assert self.second.judged is not None
        found = {(each.watched.cell, each.watched.metric): each for each in self.second.judged.gate.checks}
        return found[name, metric]


def families_matrix(root: Path, world: Path, **changes: Any) -> Path:
    corpora = {
        "regions": {"images": "vqa/val2014", "detector": str(WEIGHTS / "detector"), "shard_size": 5},
        "pixels": {"images": "vqa/val2014"},
        "flickr": {"images": "flickr30k/images"},
    }
    cells = [
        QUESTION | {"corpus": "regions", "model": str(WEIGHTS / "visualbert-vqa")},
        QUESTION | {"corpus": "pixels", "model": str(root / "brightness")},
        QUESTION | {"corpus": "pixels", "model": str(root / "scribe"), "unparsed_rise": 20, "drops": {"accuracy": 50}},
        PHRASE | {"corpus": "flickr", "model": str(root / "scribe")},
    ]
    matrix = write_matrix(root, world, name="families", no_image_baseline=True, gate={"drop": 50})
    values = yaml.safe_load(matrix.read_text()) | {"corpora": corpora, "cells": cells} | changes
    matrix.write_text(yaml.safe_dump(values))
    return matrix


@pytest.fixture(scope="module")
def nights(small_night: SmallNight, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nights]:
    """Run two nights. On the second, the model that writes finds no answer in half of its texts."""
    root, world = tmp_path_factory.mktemp("families"), small_night.out / "synthetic"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(install(tmp_path_factory.mktemp("site")))
        write_checkpoint(root / "brightness", 0)
        matrix, found = families_matrix(root, world), []
        for night, babble in (("1-fluent", 1), ("2-babbles", 5)):
            write_checkpoint(root / "scribe", 0, "scribe", babble=babble)
            found.append(run_night(load_matrix(matrix, {"night": night})))
        yield Nights(root, matrix, *found)


def test_texts_without_an_answer_are_counted_and_wrong(nights: Nights) -> None:
    """scores.json has the numbers of texts, of those without an answer and of those that were cut, and a question whose
    text holds no answer scores 0."""
    run = nights.run("scribe__vqa__val")
    assert run.scores is not None
    predictions, _ = read_predictions(run.folder / "predictions")
    texts = [text for row in predictions for text in row.generated]
    unparsed = sum(not text.parsed for text in texts)
    assert run.scores["generated"] == {
        "texts": len(texts),
        "unparsed": unparsed,
        "cut": sum(text.cut for text in texts),
    }
    assert 0 < unparsed < len(texts)
    assert "generated" not in (nights.run("brightness__vqa__val").scores or {})


def test_an_unparsed_answer_is_wrong_whatever_the_model_gives(nights: Nights, small_night: SmallNight) -> None:
    """Where no answer was found in a text, the right answer beside it does not count. An unparsed phrase costs its own
    phrase only, and the unit keeps what the model gave."""
    world = small_night.out / "synthetic"
    for name, split, folder in (("nlvr2", "dev", "nlvr2"), ("vqa", "val", "vqa"), ("vcr", "val", "vcr")):
        task = open_task(name, world / folder, split)
        right = [Prediction(key, image, task.best(key), ()) for key, image in task.expected().items()]
        babble = [replace(right[0], generated=(Generated("hm", parsed=False),)), *right[1:]]
        (before, *_), (after, *_) = (
            [s for s in judge(task, rows) if s.judged and s.judged.example_id == right[0].example_id]
            for rows in (right, babble)
        )
        assert (before.value, after.value) == (1.0, 0.0)
        assert after.judged == before.judged
    task = open_task("flickr30k_entities", world / "flickr30k", "val")
    rows = [Prediction(key, image, task.best(key), ()) for key, image in task.expected().items()]
    at = next(number for number, row in enumerate(rows) if len(row.answer) > 1)
    texts = tuple(Generated("", parsed=number > 0) for number in range(len(rows[at].answer)))
    rows[at] = replace(rows[at], generated=texts)
    hits = [s for s in judge(task, rows) if s.metric == "recall@1" and s.judged and not s.value]
    assert [(s.judged.example_id, s.judged.part) for s in hits if s.judged] == [(rows[at].example_id, 0)]


def test_what_form_alone_costs_stands_beside_the_score(nights: Nights) -> None:
    """Officially "Yes." is wrong where all annotators wrote "yes". The value under the other protocol stands in the
    same row of the page, and only for a model that writes."""
    scores = nights.run("scribe__vqa__val").scores
    assert scores is not None
    always = scores["other_protocols"]["always-normalise"]["accuracy"]
    assert always > scores["scores"]["accuracy"]
    assert f'<span class="interval">{always:.1f} always-normalise</span>' in nights.page
    assert "other_protocols" not in (nights.run("brightness__vqa__val").scores or {})
    assert nights.page.count("always-normalise</span>") == 2  # in the score table, and beside the other families


def test_the_page_shows_families_side_by_side(nights: Nights) -> None:
    """A benchmark with three models has a table with score, paired difference to the first, share of unparsed texts,
    seconds and protocol. A benchmark with one model has none."""
    (section,) = re.findall(r'<section id="models">.*?</section>', nights.page, re.DOTALL)
    assert section.count("<table") == 1
    rows = re.findall(r"<tr>\n<th scope=\"row\".*?</tr>", section, re.DOTALL)
    assert [re.findall(r'cell-\d">([^<]*)<', row)[0] for row in rows] == ["visualbert-vqa", "brightness", "scribe"]
    first, *others = (nights.run(f"{name}__vqa__val") for name in ("visualbert-vqa", "brightness", "scribe"))
    for row, run in zip(rows[1:], others, strict=True):
        change = compare(first, run).metrics["accuracy"]
        assert change.low is not None
        assert f"<b>{change.difference:+.2f}</b>".replace("-", "−") in row
        assert f"[{change.low:+.2f}, ".replace("-", "−") in row
    assert "Question: {} Answer:; generate" in rows[2]
    generated = nights.run("scribe__vqa__val").scores["generated"]  # type: ignore[index]
    assert f"{100 * generated['unparsed'] / generated['texts']:.1f} %" in rows[2]
    assert all(re.search(r'data-label="seconds an answer">\d+\.\d{3}<', row) for row in rows)


def test_texts_are_shown_as_they_came(nights: Nights) -> None:
    """Texts without an answer come first, with their question, and markup in a text is escaped."""
    assert "✗ no answer found" in nights.page
    assert "&lt;i&gt;hm&lt;/i&gt;" in nights.page
    assert "<i>hm" not in nights.page
    assert re.search(r"unparsed: \d+\.\d % of 48 texts held no answer and count as wrong", nights.page)
    assert re.search(r"cut: \d+\.\d % of 48 texts", nights.page)


def test_an_example_says_that_no_answer_was_found(nights: Nights) -> None:
    """A figure whose answer is empty shows the text, so that it does not look like a fault of the page."""
    found = re.findall(r'<p class="note">No answer found in <q class="text">([^<]*)</q>', nights.page)
    assert found
    assert all(len(unescape(text)) <= 125 for text in found)


def test_predictions_of_an_older_version_are_read(tmp_path: Path) -> None:
    """Rows from before models wrote texts have no such columns. The night after an upgrade is compared with them."""
    folder = ShardFolder(tmp_path)
    shards = plan(["7"], "test", 100)
    kept = pq.read_table(pa.BufferReader(encode([Prediction("7", "1", "yes", (0.5,))])))
    old = io.BytesIO()
    pq.write_table(kept.drop_columns(["generated", "input_cut"]), old)
    folder.commit(shards[0], Part(old.getvalue(), 1, None, 0))
    folder.finish(shards, {})
    assert read_predictions(tmp_path) == ([Prediction("7", "1", "yes", (0.5,))], [])


def test_a_model_without_an_image(nights: Nights) -> None:
    """Cells over pixels get a baseline over a grey image, and the cell over regions says why it has none."""
    scores = nights.run("brightness__vqa__val__none").scores
    assert scores is not None
    assert scores["visual"] == "none"
    assert f'data-label="no image"><b>{scores["scores"]["accuracy"]:.1f}</b>' in nights.page
    assert 'data-label="no image"><span class="interval">regions</span>' in nights.page
    assert not (nights.run("visualbert-vqa__vqa__val").folder.parent / "visualbert-vqa__vqa__val__none").exists()


def test_a_rise_of_unparsed_texts_is_a_regression(nights: Nights) -> None:
    """The gate watches the share where a cell asks for it: the rise fails the night although the score may fall less
    than what matters. The history keeps the counts."""
    check = nights.check("scribe__vqa__val", PARSED)
    assert check.verdict == "fail"
    assert check.change is not None
    assert check.change.difference < -20
    assert nights.second.exit_code == 4
    assert nights.second.judged is not None
    assert {each.watched.metric for each in nights.second.judged.gate.checks} == {"accuracy", "recall@1", PARSED}
    history = (nights.root / "out" / "history" / "families" / "2-babbles" / "scribe__vqa__val.json").read_text()
    assert '"unparsed":' in history
    trends = re.findall(r'<th scope="col">unparsed</th>\n<th scope="col">verdict</th>', nights.page)
    assert len(trends) == 2  # of the two cells that write


def test_a_paper_s_number_stands_beside_one_way_to_ask(small_night: SmallNight) -> None:
    """BLIP-2 has three published ways to ask. The paper's number on val stands beside its own, LAVIS's number beside
    none, because its program scores otherwise, and the guide has no number."""
    task = open_task("vqa", small_night.out / "synthetic" / "vqa", "val")
    task.subset = None  # The few questions stand for the whole split.
    guide = 'hf-guide: "Question: {} Answer:", generate, greedy, at most 10 new tokens, raw'
    for network, kind, percent in (("BLIP-2 ViT-g OPT-2.7B", "OPT", 53.5), ("BLIP-2 ViT-g FlanT5-XL", "FlanT5", 63.1)):
        found = [
            task.published_for({"network": network, "answering": asked})
            for asked in (BLIP2_ASKED[kind], LAVIS_ASKED[kind], guide)
        ]
        assert [each and each.percent["accuracy"] for each in found] == [percent, None, None]
    assert task.published_for({"network": "ViLT-B/32", "answering": BLIP2_ASKED["OPT"]}) is None
    assert task.published_for({}) is None
    assert not any(value == 41.0 for each in task.published for value in each.percent.values())


def test_published_ways_to_ask_are_what_the_presets_print() -> None:
    """The lines in the benchmark's file are those of the presets, which no task may import."""
    protocol = pytest.importorskip("visualbert_core.models.generative.protocol")
    for name, published in (("blip2-paper", BLIP2_ASKED), ("lavis", LAVIS_ASKED)):
        for kind, asked in published.items():
            printed = protocol.resolve(Question, "blip-2", False, kind == "FlanT5", AnsweringConfig(preset=name))
            assert str(printed) == asked


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_says_what_it_reads(family: str, tmp_path: Path) -> None:
    """A matrix asks a family what it reads before it opens weights, so every class of this package says it."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    assert visual_source(tmp_path) in ("regions", "pixels")


def test_two_families_are_compared(nights: Nights) -> None:
    """Regions against pixels: what each reads and how each is asked are causes, and no advice is given that nobody can
    follow."""
    found = compare(nights.run("visualbert-vqa__vqa__val"), nights.run("scribe__vqa__val"))
    (cause,) = found.causes
    assert {"model", "features", "images", "answering"} <= set(cause.ingredients)
    assert "two families" in cause.how
    assert "evaluate once more" not in cause.how
    text = list(describe(found))
    assert any(line.startswith(PARSED) for line in text)
    assert "answering:  → Question: {} Answer:; generate" in "\n".join(text)
    assert compare(nights.run("brightness__vqa__val"), nights.run("visualbert-vqa__vqa__val")).parsed is None


def test_a_dry_run_names_what_is_read(nights: Nights) -> None:
    """The plan has a line for each corpus of pixels with the number of its images, and one for the baseline that is not
    asked."""
    config = load_matrix(nights.matrix, {"night": "3-next"})
    lines = list(map(str, plan_night(config, runs_folder(config))))
    assert "images of pixels: 12 images, whose pixels the models read" in lines
    assert "images of flickr: 8 images, whose pixels the models read" in lines
    region = "visualbert-vqa__vqa__val, no image: not asked, because there are no regions of a grey image"
    assert region in lines
    assert any(line.startswith("brightness__vqa__val, no image: 48 of 48 examples to do") for line in lines)


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (
            {"corpus": "pixels", "model": str(WEIGHTS / "visualbert-vqa")},
            r"cells\[0\]: visualbert-vqa reads regions, but the corpus 'pixels' has no detector",
        ),
        (
            {"corpus": "regions", "model": "brightness"},
            r"cells\[0\]: brightness reads pixels, but the corpus 'regions'",
        ),
        (
            {"corpus": "regions", "model": str(WEIGHTS / "visualbert-vqa"), "no_image": {"accuracy": [0, 50]}},
            r"cells\[0\]: no_image: there are no regions of a grey image",
        ),
        ({"corpus": "pixels", "model": "brightness", "no_image": {"acuracy": [0, 50]}}, "no metric 'acuracy'"),
        ({"corpus": "pixels", "model": "brightness", "no_image": {"accuracy": [50, 0]}}, "no_image.accuracy"),
        ({"corpus": "pixels", "model": "brightness", "unparsed_rise": 0}, "unparsed_rise is 0"),
    ],
)
def test_a_model_that_cannot_read_its_corpus(nights: Nights, tmp_path: Path, cell: dict[str, Any], said: str) -> None:
    """The matrix is refused before anything is computed, also by a dry run, and the line names cell and corpus."""
    model = cell["model"] if Path(cell["model"]).is_absolute() else str(nights.root / cell["model"])
    matrix = families_matrix(tmp_path, nights.root, cells=[QUESTION | cell | {"model": model}])
    with pytest.raises(ConfigError, match=said):
        load_matrix(matrix, {})


@pytest.mark.parametrize("setting", [{"precision": "bfloat16"}, {"batch_size": 4}, {"shard_size": 5}])
def test_settings_without_effect_are_refused(nights: Nights, tmp_path: Path, setting: dict[str, Any]) -> None:
    """A corpus without a detector computes nothing, so a setting of that computation is a mistake."""
    (name,) = setting
    matrix = families_matrix(tmp_path, nights.root, corpora={"pixels": {"images": "vqa/val2014"} | setting})
    with pytest.raises(ConfigError, match=f"corpora.pixels: {name}: .* has no effect without a detector"):
        load_matrix(matrix, {})


def test_an_empty_detector_is_one_clear_error(nights: Nights, tmp_path: Path) -> None:
    """An empty path is neither the folder of the matrix nor a corpus of pixels."""
    corpora = {"pixels": {"images": "vqa/val2014", "detector": ""}}
    with pytest.raises(ConfigError, match=r"corpora\.pixels: detector is empty: name a path, or leave the key out"):
        load_matrix(families_matrix(tmp_path, nights.root, corpora=corpora), {})


def test_bounds_of_a_model_without_an_image(nights: Nights) -> None:
    """A score over grey images outside its bounds is a line that names the baseline."""
    from visualbert_core.nightly.gating import CellResult
    from visualbert_core.nightly.night import missed

    config = load_matrix(nights.matrix, {})
    cell = replace(config.cells[1], no_image={"accuracy": (99.0, 100.0)})
    shown = nights.second.cells[1]
    (line,) = missed(CellResult(cell, shown))
    assert re.fullmatch(r"brightness on vqa val \(no image\): accuracy is \d+\.\d\d, which is below 99", line)


def test_the_same_page_again(nights: Nights) -> None:
    """Equal cells give equal bytes."""
    assert render(nights.second.info, nights.second.cells) == render(nights.second.info, nights.second.cells)


def test_a_model_without_texts_refuses_their_settings() -> None:
    """A model of another package calls what docs/how-to/model.md names."""
    refuse_answering("folder", AnsweringConfig())
    refuse_answering("folder", AnsweringConfig(prompt="a photo of"), "prompt")
    with pytest.raises(ConfigError, match="folder: prompt: this model has no such setting"):
        refuse_answering("folder", AnsweringConfig(prompt="a photo of"))
