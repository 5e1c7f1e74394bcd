"""All four benchmarks in one night: VisualBERT from regions, ViLT where it has heads, and models that write text. Two
nights go through the gate. The pixel models are tiny and have random weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, SmallNight, small_matrix
from generative_folders import write_llava, write_paligemma
from vilt_folders import write_vilt

from visualbert_core.cli import main
from visualbert_core.commands.nightly import run_night
from visualbert_core.comparison.compare import compare
from visualbert_core.errors import ConfigError
from visualbert_core.evaluation.run_folder import Run, read_run
from visualbert_core.nightly.dry_run import plan_night
from visualbert_core.nightly.matrix import load_matrix
from visualbert_core.nightly.night import Night

WRITERS = {"vqa": "llava", "vcr": "llava", "nlvr2": "llava", "flickr30k_entities": "paligemma"}
CLASSIFIERS = {"vqa": "vilt", "nlvr2": "pair"}
MODELS = {
    "vqa": {"visualbert-vqa", "vilt", "llava"},
    "vcr": {"visualbert-vcr", "llava"},
    "nlvr2": {"visualbert-nlvr2", "pair", "llava"},
    "flickr30k_entities": {"visualbert-flickr30k", "paligemma", "chooser"},
}


@dataclass(frozen=True)
class Nights:
    root: Path
    first: Night
    second: Night

    def run(self, model: str, task: str, baseline: str = "") -> Run:
        split = {"nlvr2": "dev"}.get(task, "val")
        return read_run(self.root / "out" / "runs" / "all" / "2" / f"{model}__{task}__{split}{baseline}")


@pytest.fixture(scope="module")
def nights(small_night: SmallNight, tmp_path_factory: pytest.TempPathFactory) -> Nights:
    root = tmp_path_factory.mktemp("families-night")
    for name, write in {"llava": write_llava, "paligemma": write_paligemma, "vilt": write_vilt}.items():
        write(root / name)
    write_vilt(root / "pair", "ViltForImagesAndTextClassification")
    matrix = small_matrix(name="all", out=str(root / "out"), data=str(small_night.out / "synthetic"), examples=2)
    matrix |= {"gate": {"drop": 60}, "no_image_baseline": True}
    del matrix["synthetic"]
    for corpus in list(matrix["corpora"]):
        matrix["corpora"][f"{corpus}-pixels"] = {"images": matrix["corpora"][corpus]["images"]}
    for cell in list(matrix["cells"]):
        plain = {key: cell[key] for key in ("task", "split", "annotations", "shard_size")}
        plain["corpus"] = f"{cell['corpus']}-pixels"
        short = {"answering": {"max_new_tokens": 4}} if cell["task"] == "vqa" else {}
        matrix["cells"].append(plain | {"model": str(root / WRITERS[cell["task"]])} | short)
        if cell["task"] in CLASSIFIERS:
            matrix["cells"].append(plain | {"model": str(root / CLASSIFIERS[cell["task"]])})
    # Likelihoods over the regions of a store: one model reads pixels and features.
    (root / "chooser").symlink_to(root / "paligemma")
    chooser = next(cell for cell in matrix["cells"] if cell["model"] == str(root / "paligemma"))
    features = chooser["corpus"].removesuffix("-pixels")
    choosing = {"model": str(root / "chooser"), "features": features, "answering": {"answer_by": "likelihood"}}
    matrix["cells"].append(chooser | choosing)
    path = root / "all.yaml"
    path.write_text(yaml.safe_dump(matrix))
    return Nights(root, *(run_night(load_matrix(path, {"night": night})) for night in ("1", "2")))


@pytest.mark.parametrize("task", MODELS)
def test_every_family_has_a_score(nights: Nights, task: str) -> None:
    """Each model has complete coverage, a score with its interval, and the score with wrong images; a pixel model also
    has the score without an image. Only models that write say how they are asked."""
    for model in MODELS[task]:
        run = nights.run(model, task)
        assert run.scores is not None
        assert run.scores["coverage"]["missing"] == 0
        assert run.scores["intervals"].keys() == run.scores["scores"].keys()
        assert nights.run(model, task, "__wrong-image").scores is not None
        assert ("images" in run.record["provenance"]) == (not model.startswith("visualbert"))
        assert bool(run.scores["answering"]) == (model in {*WRITERS.values(), "chooser"})
        if not model.startswith("visualbert"):
            assert nights.run(model, task, "__none").scores is not None


def test_nothing_changed_from_night_to_night(nights: Nights) -> None:
    """The second night gives the answers of the first, so no cell is a regression; every cell of each family is judged
    by the gate."""
    assert nights.first.exit_code in (0, 5)  # 5: a split this small cannot show every drop
    assert nights.second.judged is not None
    checks = nights.second.judged.gate.checks
    assert {check.watched.cell for check in checks} == {
        cell.run.folder.name for cell in nights.second.cells if cell.run
    }
    assert "fail" not in {check.verdict for check in checks}
    for task, models in MODELS.items():
        for model in models:
            second = nights.run(model, task)
            first = read_run(Path(str(second.folder).replace("/all/2/", "/all/1/")))
            assert second.scores == first.scores


def test_leaderboard_files_of_a_writing_model(nights: Nights) -> None:
    """Likelihoods fill the numbers that a leaderboard's file asks for."""
    run = nights.run("llava", "nlvr2")
    assert run.record["submission"] is not None
    assert (run.folder / run.record["submission"]).is_file()


@pytest.mark.parametrize("task", MODELS)
def test_families_are_compared_example_by_example(nights: Nights, task: str) -> None:
    """Each model of a benchmark is paired with VisualBERT over the same units, whatever either reads."""
    first, *others = sorted(MODELS[task], key=lambda model: not model.startswith("visualbert"))
    for other in others:
        found = compare(nights.run(first, task), nights.run(other, task))
        assert found.metrics
    page = nights.second.report.read_text()
    assert "Models side by side" in page


def test_a_cell_reads_features_and_images(nights: Nights) -> None:
    """A model that chooses among the regions of a store reads the pixels of one corpus and the features of another. It
    ranks regions, so it has recall@5, and both are in its provenance; it is also asked about a grey image."""
    run = nights.run("chooser", "flickr30k_entities")
    assert {"images", "features"} <= run.record["provenance"].keys()
    assert "regions of the store by likelihood" in run.record["answering"]
    assert run.scores is not None
    assert run.scores["scores"]["recall@5"] > run.scores["scores"]["recall@1"]
    assert nights.run("chooser", "flickr30k_entities", "__none").scores is not None


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ({"answering": {"preset": "lavis"}}, "preset lavis is for questions"),
        ({"answering": {"answer_by": "generate"}}, "a MultipleChoice is answered by likelihood; leave it out"),
        ({"answering": {"prompt": "what?"}}, r"it must hold {} once"),
        ({"precision": "float16", "model": "visualbert-vcr"}, "VisualBERT computes in float32 or bfloat16"),
        ({"answering": {"beams": 5}, "model": "visualbert-vcr"}, "beams: this model has no such setting"),
        ({"features": "nowhere"}, "features: unknown corpus 'nowhere'"),
        ({"features": "pixels"}, "features: the corpus 'pixels' has no detector"),
        ({"features": "regions"}, "llava does not choose among regions of a second corpus; leave it out"),
        (
            {"task": "flickr30k_entities", "model": "paligemma", "answering": {"answer_by": "likelihood"}},
            "paligemma chooses among the regions of a feature store: name a corpus",
        ),
    ],
)
def test_a_wrong_cell_is_refused_before_the_night(
    nights: Nights, tmp_path: Path, cell: dict[str, Any], said: str
) -> None:
    """Settings that the model of a cell does not have end a dry run in one line that names the cell."""
    weights = ROOT / "visualbert_core" / "synthetic" / "weights"
    corpora = {"pixels": {"images": "i"}, "regions": {"images": "i", "detector": str(weights / "detector")}}
    values = {"task": "vcr", "split": "val", "annotations": "a", "corpus": "pixels", "model": "llava"} | cell
    if values["model"].startswith("visualbert"):
        values |= {"model": str(weights / values["model"]), "corpus": "regions"}
    else:
        values["model"] = str(nights.root / values["model"])
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({"name": "wrong", "out": "out", "corpora": corpora, "cells": [values]}))
    with pytest.raises(ConfigError, match=rf"cells\[0\]: .*{said}") as caught:
        main(["nightly", str(path), "--dry-run"])
    assert "\n" not in str(caught.value)


def test_a_dry_run_says_which_model_cannot_answer(nights: Nights, tmp_path: Path) -> None:
    """A model of another form and a missing folder would end their own cells, so the plan has a line for each."""
    cell = {"split": "val", "annotations": "a", "corpus": "pixels"}
    cells = [
        cell | {"task": "vcr", "model": str(nights.root / "vilt")},
        cell | {"task": "vqa", "model": str(tmp_path / "nothing")},
    ]
    path = tmp_path / "wrong.yaml"
    corpora = {"pixels": {"images": "i"}}
    path.write_text(yaml.safe_dump({"name": "wrong", "out": "out", "corpora": corpora, "cells": cells}))
    _, vilt, nothing = map(str, plan_night(load_matrix(path, {}), tmp_path))
    assert "vilt__vcr__val: " in vilt
    assert "ViLT answers Question, Statement and not MultipleChoice" in vilt
    assert nothing.endswith("nothing: no such checkpoint folder")
