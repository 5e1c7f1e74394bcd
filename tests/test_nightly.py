"""Nights in a row over the synthetic data: which metrics got worse, which did not, and which ingredient caused it."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from conftest import ROOT, small_matrix
from test_jobs import job, job_here, the_error

from visualbert_core.commands.nightly import run_night
from visualbert_core.comparison.compare import Comparison
from visualbert_core.comparison.gate import Check
from visualbert_core.comparison.history import History
from visualbert_core.errors import ConfigError, InputError
from visualbert_core.evaluation.run_folder import claim
from visualbert_core.nightly.dry_run import plan_night
from visualbert_core.nightly.matrix import load_matrix, runs_folder
from visualbert_core.nightly.night import Night

WEIGHTS = ROOT / "visualbert_core" / "synthetic" / "weights"
CELL = "visualbert-vqa__vqa__val"
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"


def write_matrix(root: Path, **changes: Any) -> Path:
    """Write a matrix with a VQA cell and a gate, over copies of the demo's weights that a test may damage."""
    matrix = small_matrix(out=str(root / "out"), wrong_image_baseline=False, examples=0)
    matrix["synthetic"] |= {"seed": 6, "vqa_images": 24, "vcr_images": 1, "nlvr2_sets": 1, "flickr_images": 1}
    matrix["cells"] = [matrix["cells"][0] | {"model": str(root / "visualbert-vqa"), "shard_size": 50}]
    matrix["corpora"] = {"vqa-val2014": matrix["corpora"]["vqa-val2014"] | {"detector": str(root / "detector")}}
    matrix["gate"] = {"drop": 25}
    path = root / "matrix.yaml"
    path.write_text(yaml.safe_dump(matrix | changes))
    for name in ("visualbert-vqa", "detector"):
        if not (root / name).exists():
            shutil.copytree(WEIGHTS / name, root / name)
    return path


def damage(model: Path) -> None:
    """Add noise to every matrix of a checkpoint."""
    import torch
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(0)
    weights = load_file(model / "model.safetensors")
    noisy = {
        name: w + (0.3 * torch.randn(w.shape, generator=generator)).to(w.dtype) if w.ndim == 2 else w
        for name, w in weights.items()
    }
    save_file(noisy, model / "model.safetensors")


def resize_to(detector: Path, size: int) -> None:
    config = json.loads((detector / "config.json").read_text())
    config["builder_args"]["image_size"] = size
    (detector / "config.json").write_text(json.dumps(config))


def relabel(annotations: Path, count: int, answer: str = "zebra") -> None:
    """Replace the answers of all ten annotators for the first `count` questions."""
    path = annotations / ANNOTATIONS
    document = json.loads(path.read_text())
    for record in document["annotations"][:count]:
        record["multiple_choice_answer"] = answer
        record["answers"] = [person | {"answer": answer} for person in record["answers"]]
    path.write_text(json.dumps(document))


@dataclass(frozen=True)
class Nights:
    root: Path
    nights: dict[str, Night]

    def check(self, name: str) -> Check:
        judged = self.nights[name].judged
        assert judged is not None
        (check,) = judged.gate.checks
        return check

    def comparison(self, name: str) -> Comparison:
        judged = self.nights[name].judged
        assert judged is not None
        (found,) = (cell.comparison for cell in judged.cells if cell.name == CELL)
        assert found is not None
        return found


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    """Run five nights: a first one, the same again, a damaged checkpoint, another resize rule, two changed
    annotations."""
    root = tmp_path_factory.mktemp("nights")
    matrix, nights = write_matrix(root), {}

    def run(night: str) -> None:
        nights[night] = run_night(load_matrix(matrix, {"night": night}))

    run("1-first")
    run("2-again")
    damage(root / "visualbert-vqa")
    run("3-damaged")
    shutil.copy(WEIGHTS / "visualbert-vqa" / "model.safetensors", root / "visualbert-vqa")
    resize_to(root / "detector", 160)
    run("4-resized")
    resize_to(root / "detector", 224)
    world = root / "out" / "synthetic" / "vqa"
    shutil.copytree(world, root / "annotations")
    relabel(world, 2)
    run("5-relabelled")
    shutil.copy(root / "annotations" / ANNOTATIONS, world)
    return Nights(root, nights)


def test_the_first_night_cannot_tell(five: Nights) -> None:
    """The first night has nothing to compare with and ends with exit code 5, and the next night compares with it."""
    assert five.nights["1-first"].exit_code == 5
    assert five.check("1-first").reason.startswith("no earlier night")
    assert five.check("2-again").watched.compared_with == "1-first"


def test_the_same_again_passes(five: Nights) -> None:
    """An identical rerun passes with p = 1, no flips and no causes, although so few questions could not show a relevant
    drop."""
    night, check, comparison = five.nights["2-again"], five.check("2-again"), five.comparison("2-again")
    assert (night.exit_code, check.verdict, check.p) == (0, "pass", 1.0)
    assert (comparison.answers_changed, comparison.causes, comparison.differs) == (0, (), {})
    assert comparison.metrics["accuracy"].difference == 0
    assert [(f.worse_count, f.better_count) for f in comparison.flips.values()] == [(0, 0)]


def test_a_damaged_checkpoint_fails_and_the_model_is_named(five: Nights) -> None:
    """A damaged checkpoint is exit code 4; the model gets all of the drop, and its weights are the difference that is
    named."""
    night, check, comparison = five.nights["3-damaged"], five.check("3-damaged"), five.comparison("3-damaged")
    assert (night.exit_code, check.verdict) == (4, "fail")
    assert comparison.metrics["accuracy"].difference < -15
    (cause,) = comparison.causes
    assert cause.ingredients == ("model",)
    assert cause.points == pytest.approx(comparison.metrics["accuracy"].difference)
    assert [line.partition(":")[0] for line in cause.lines] == ["model.weights"]
    assert comparison.flips["accuracy"].worse_count > comparison.flips["accuracy"].better_count


def test_flips_say_what_was_answered_and_how_surely(five: Nights) -> None:
    """Each flip has both answers as the runs store them, and the flips with the largest fall of confidence come
    first."""
    flips = five.comparison("3-damaged").flips["accuracy"]
    assert all(f.value_after < f.value_before and f.answer_before != f.answer_after for f in flips.worse)
    changes = [f.change for f in flips.worse]
    assert changes == sorted(changes)  # changes of confidence: the largest fall first
    first = flips.worse[0]
    assert first.change == pytest.approx(
        first.confidence_after * (2 * first.value_after - 1) - first.confidence_before * (2 * first.value_before - 1)
    )


def test_a_failed_night_is_no_baseline(five: Nights) -> None:
    """The night after a failed night is compared with the night before the failure."""
    assert five.check("4-resized").watched.compared_with == "2-again"


def test_other_features_are_named_with_the_rule_that_changed(five: Nights) -> None:
    """With another image size in the extraction, the features get the whole change, and the resize rule is the
    difference named."""
    comparison = five.comparison("4-resized")
    assert comparison.answers_changed > 0
    (cause,) = comparison.causes
    assert cause.ingredients == ("features",)
    scores = comparison.after["scores"]["accuracy"] - comparison.before["scores"]["accuracy"]
    assert cause.points == pytest.approx(scores)
    assert "features.detector.resize.min: [224] → [160]" in cause.lines


def test_changed_annotations_are_no_regression(five: Nights) -> None:
    """With new answers for two questions the score moves and no prediction does. The gate judges both nights by
    tonight's annotations and passes, and the annotations get all of the change."""
    check, comparison = five.check("5-relabelled"), five.comparison("5-relabelled")
    moved = comparison.after["scores"]["accuracy"] - comparison.before["scores"]["accuracy"]
    assert moved < 0
    assert (five.nights["5-relabelled"].exit_code, check.verdict) == (0, "pass")
    assert comparison.answers_changed == 0
    assert comparison.metrics["accuracy"].difference == 0
    (cause,) = comparison.causes
    assert cause.ingredients == ("annotations",)
    assert cause.points == pytest.approx(moved)


def test_every_night_enters_the_history(five: Nights) -> None:
    """The history has one row per night, in order, with score, interval, ingredients and time; only the repeat is a
    rerun."""
    rows = History(five.root / "out" / "history" / "demo").rows(CELL)
    assert [row.night for row in rows] == list(five.nights)
    assert [row.verdict for row in rows][:3] == ["cannot tell", "pass", "fail"]
    assert [row.rerun for row in rows] == [False, True, False, False, False]
    assert all(row.evaluation is not None and row.evaluation.items == 96 for row in rows)
    assert [row.extraction.items for row in rows if row.extraction] == [24, 0, 0, 24, 0]
    other = [[name for name in row.ingredients if row.ingredients[name] != rows[0].ingredients[name]] for row in rows]
    assert other == [[], [], ["model"], ["features"], ["annotations"]]


def test_the_verdict_is_written_for_programs_and_people(five: Nights) -> None:
    """gate.json, the JUnit XML and the Markdown report the same verdict of a failed night."""
    folder = five.nights["3-damaged"].runs
    assert json.loads((folder / "gate.json").read_text())["verdict"] == "fail"
    (suite,) = ElementTree.parse(folder / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("1", "1", "0")
    (case,) = suite
    assert (case.get("classname"), case.get("name"), case[0].tag) == (CELL, "accuracy", "failure")
    summary = (folder / "summary.md").read_text()
    assert summary.startswith("## ❌ demo, 3-damaged: fail")
    assert "points: model (nothing else differs); model.weights:" in summary
    document = json.loads((folder / CELL / "comparison.json").read_text())
    assert document["causes"][0]["ingredients"] == ["model"]


def test_compare_as_a_person_runs_it(five: Nights) -> None:
    """`jobs/compare.py` reports the same difference for two run folders, refuses unlike runs, and compares them with a
    flag."""
    runs = five.root / "out" / "runs" / "demo"
    first, damaged, relabelled = (runs / night / CELL for night in ("1-first", "3-damaged", "5-relabelled"))
    done = job("compare", first, damaged)
    assert done.returncode == 0, done.stderr
    assert "points: model (nothing else differs)" in done.stdout
    document = json.loads(job_here("compare", first, damaged, "--json", "--flips", 3).stdout)
    assert document["metrics"]["accuracy"]["p"] < 0.001
    assert len(document["flips"]["accuracy"]["worse"]) == 3
    assert set(document["groups"]) == {"answer type", "question type"}

    refused = job_here("compare", first, relabelled)
    assert refused.returncode == 5
    assert "annotations: " in the_error(refused)
    forced = json.loads(job_here("compare", first, relabelled, "--force", "--json").stdout)
    assert forced["metrics"]["accuracy"]["difference"] < 0
    assert forced["warnings"][0].startswith("not comparable: annotations")
    rescored = json.loads(job_here("compare", first, relabelled, "-a", five.root / "annotations", "--json").stdout)
    assert rescored["metrics"]["accuracy"]["difference"] == 0
    other = job_here("compare", damaged, relabelled, "-a", WEIGHTS)
    assert other.returncode == 2


def test_model_and_annotations_are_told_apart(five: Nights) -> None:
    """When model and annotations both change, scoring the stored predictions again gives each its points, and these add
    up."""
    runs = five.root / "out" / "runs" / "demo"
    pair = runs / "5-relabelled" / CELL, runs / "3-damaged" / CELL
    document = json.loads(job_here("compare", *pair, "-a", five.root / "annotations", "--json").stdout)
    causes = {tuple(cause["ingredients"]): cause["points"] for cause in document["causes"]}
    assert set(causes) == {("model",), ("annotations",)}
    total = document["after"]["scores"]["accuracy"] - document["before"]["scores"]["accuracy"]
    assert sum(causes.values()) == pytest.approx(total)
    assert causes["annotations",] > 0 > causes["model",]
    unknown = json.loads(job_here("compare", *pair, "--force", "--json").stdout)
    (cause,) = unknown["causes"]
    assert (cause["ingredients"], cause["points"]) == (["model", "annotations"], None)


# ---------------------------------------------------------------------------------------------------------------------


def test_a_dry_run_counts_and_does_nothing(five: Nights, tmp_path: Path) -> None:
    """A dry run counts images, examples and time of a new night, finds nothing to do for a finished night, and writes
    nothing."""
    matrix = write_matrix(five.root)
    before = sorted((five.root / "out").rglob("*"))
    done = job_here("nightly", matrix, "--night", "6-planned", "--dry-run")
    assert done.returncode == 0, done.stderr
    features, examples = done.stdout.splitlines()
    assert features == "features of vqa-val2014: 0 of 24 images to do"
    assert examples.startswith(f"{CELL}: 96 of 96 examples to do, about ")
    there = load_matrix(matrix, {"night": "4-resized"})
    assert str(list(plan_night(there, runs_folder(there)))[1]) == f"{CELL}: 0 of 96 examples to do"
    assert sorted((five.root / "out").rglob("*")) == before
    new = load_matrix(write_matrix(tmp_path), {})
    unknown = list(plan_night(new, runs_folder(new)))
    assert [step.to_do for step in unknown] == [None, None]
    assert all(str(tmp_path / "out" / "synthetic") in step.note for step in unknown)
    assert not (tmp_path / "out").exists()


def test_a_night_under_its_floor_is_no_baseline(five: Nights, tmp_path: Path) -> None:
    """A night under its floor has failed and is no baseline, even if nothing changed and the gate's test passes."""
    root = tmp_path / "nights"
    shutil.copytree(five.root, root)
    cells = yaml.safe_load(write_matrix(root).read_text())["cells"]
    floors = [cells[0] | {"floors": {"accuracy": 100.0}}]
    night = run_night(load_matrix(write_matrix(root, cells=floors), {"night": "6-floor"}))
    assert night.judged is not None
    assert ([check.verdict for check in night.judged.gate.checks], night.exit_code) == (["pass"], 4)
    history = History(root / "out" / "history" / "demo")
    assert history.rows(CELL)[-1].verdict == "fail"
    baseline = history.baseline(CELL, "7", None)
    assert baseline is not None
    assert baseline.night == "5-relabelled"


def test_a_smoke_night_leaves_no_trace(five: Nights) -> None:
    """A smoke night runs a few examples, says so, and leaves no trace in the history or in the nights' runs and
    stores."""
    out = five.root / "out"
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if "smoke" not in path.parts}
    night = run_night(load_matrix(write_matrix(five.root), {"night": "7", "limit": 5}))
    assert (night.exit_code, night.judged) == (0, None)
    (cell,) = night.cells
    assert cell.run is not None
    assert cell.run.scores is None
    assert cell.run.record["status"] == "sample"
    assert cell.run.record["coverage"] == {"expected": 5, "predicted": 5, "missing": 0, "duplicate": 0, "unknown": 0}
    assert "smoke night" in night.info.title
    assert "smoke night" in (out / "smoke" / "report.html").read_text()
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*") if "smoke" not in path.parts}
    assert before == after


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ({"false_alarm": 0.01}, "did you mean 'false_alarms'"),
        ({"false_alarms": 0}, "must be between 0 and 1"),
        ({"drop": -1}, "must be above 0 points"),
        ({"drop": "much"}, "expected float"),
    ],
)
def test_a_wrong_threshold_ends_before_anything_runs(gate: dict[str, Any], message: str, tmp_path: Path) -> None:
    """A wrong threshold is exit code 2 with the name of its key, and nothing is written."""
    done = job_here("nightly", write_matrix(tmp_path, gate=gate))
    assert done.returncode == 2
    assert message in the_error(done)
    assert not (tmp_path / "out").exists()


def test_a_night_must_be_a_name(tmp_path: Path) -> None:
    """The name of a night must not contain a path to another folder."""
    done = job("nightly", write_matrix(tmp_path), "--night", "../x")
    assert (done.returncode, "cannot name a folder" in the_error(done)) == (2, True)


def test_another_smoke_night_takes_the_place_of_the_first(tmp_path: Path) -> None:
    """A smoke night replaces an earlier smoke night of other ingredients, because it only tests that everything
    runs."""
    for limit in (3, 4):
        night = run_night(load_matrix(write_matrix(tmp_path), {"limit": limit}))
        assert night.exit_code == 0, night.cells[0].error
        assert night.cells[0].run is not None
        assert night.cells[0].run.record["coverage"]["predicted"] == limit
    whole = run_night(load_matrix(write_matrix(tmp_path, gate=None), {}))
    run = whole.cells[0].run
    assert run is not None
    with pytest.raises(InputError, match="a run of other ingredients"):
        claim(run.folder, run.record | {"provenance": {}, "spec": run.record["spec"] | {"limit": 3}})


def test_a_dry_run_knows_the_precision(tmp_path: Path) -> None:
    """A dry run recognises a store of bfloat16 features and has nothing to do."""
    matrix = yaml.safe_load(write_matrix(tmp_path, gate=None).read_text())
    matrix["corpora"]["vqa-val2014"]["precision"] = "bfloat16"
    config = load_matrix(write_matrix(tmp_path, gate=None, corpora=matrix["corpora"]), {})
    run_night(config)
    features = next(iter(plan_night(config, runs_folder(config))))
    assert (features.total, features.to_do) == (24, 0)


def cell_of(root: Path, **changes: Any) -> dict[str, Any]:
    cell: dict[str, Any] = yaml.safe_load(write_matrix(root).read_text())["cells"][0]
    return cell | changes


def test_a_cell_names_a_feature_space(five: Nights, tmp_path: Path) -> None:
    """The key `feature_space` of a cell is the flag of its evaluation: a space that contradicts the checkpoint fails
    that cell."""
    root = shutil.copytree(five.root, tmp_path / "nights")
    cells = [cell_of(root, feature_space="vg_c4")]
    night = run_night(load_matrix(write_matrix(root, cells=cells), {"night": "6-named"}))
    assert night.exit_code == 2
    assert "feature_space says 'vg_c4'" in str(night.cells[0].error)


def test_what_cannot_end_well_does_not_begin(tmp_path: Path) -> None:
    """Two cells with one run folder, unknown metrics, names with paths and runs in a bucket are one-line errors, and
    nothing is written."""
    corpora = yaml.safe_load(write_matrix(tmp_path).read_text())["corpora"]
    twice = [cell_of(tmp_path), cell_of(tmp_path, precision="bfloat16")]
    wrong: dict[str, dict[str, Any]] = {
        rf"cells\[0\] and cells\[1\] would share the run folder {CELL}": {"cells": twice},
        "vqa has no metric 'acuracy'; did you mean 'accuracy'": {"cells": [cell_of(tmp_path, drops={"acuracy": 1})]},
        "vqa has no metric 'recall'": {"cells": [cell_of(tmp_path, floors={"recall": 50})]},
        "'../x' cannot name a folder": {"name": "../x"},
        "name is empty: it must be a name": {"name": ""},
        "'/x' cannot name a folder": {"corpora": corpora | {"/x": corpora["vqa-val2014"]}},
        r"out is an address \(s3://\): use a folder on a disk": {"out": "s3://bucket/x"},
    }
    for says, changes in wrong.items():
        with pytest.raises(ConfigError, match=says):
            load_matrix(write_matrix(tmp_path, **changes), {})
    assert not (tmp_path / "out").exists()


def test_images_of_a_matrix_may_lie_in_a_bucket(tmp_path: Path) -> None:
    """An address in a matrix is not taken as relative to the data folder."""
    corpora = yaml.safe_load(write_matrix(tmp_path).read_text())["corpora"]
    corpora["vqa-val2014"]["images"] = "s3://bucket/val2014"
    config = load_matrix(write_matrix(tmp_path, corpora=corpora), {})
    assert str(config.corpora["vqa-val2014"].images) == "s3://bucket/val2014"


def test_the_matrix_that_comes_along_is_valid() -> None:
    """jobs/nightly.yaml is a valid matrix with a gate, and its models and detectors exist."""
    config = load_matrix(ROOT / "jobs" / "nightly.yaml", {})
    assert config.gate is not None
    assert all((cell.model / "config.json").exists() for cell in config.cells)
    assert all((corpus.detector / "config.json").exists() for corpus in config.corpora.values())


def test_a_corpus_that_the_system_does_not_hand_out_ends_its_cells_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket that does not answer or a folder without permission fails only its cells: the report names it, exit code
    1."""

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "s3://bucket/images")

    monkeypatch.setattr("visualbert_core.nightly.night.extract", refuse)
    night = run_night(load_matrix(write_matrix(tmp_path, gate=None), {}))
    assert night.exit_code == 1
    (cell,) = night.cells
    assert cell.run is None
    assert "s3://bucket/images" in night.report.read_text()


@pytest.mark.parametrize(
    "name", ["comparison.json", "gate.json", "junit.xml", "summary.md", f"{CELL}.json", "report.html"]
)
def test_a_full_disk_while_a_night_is_written_names_the_file(
    five: Nights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A full disk is one error line with the file and exit code 1. No half-written file is left, and all earlier files
    are unchanged."""
    out = shutil.copytree(five.root / "out", tmp_path / "out")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    sync = os.fsync

    def full(descriptor: int) -> None:
        if f".{name}." in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr("os.fsync", full)
    done = job_here("nightly", five.root / "matrix.yaml", "--out", out, "--night", "2-again")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(rf"{re.escape(str(out))}/\S*{re.escape(name)}: No space left on device", line)
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert not [path for path in after if path.name.startswith(".")]
    assert before.keys() <= after.keys()
    kept = [path for path in before if "features" in path.parts or "predictions" in path.parts or path.name == name]
    assert [path for path in kept if before[path] != after[path]] == []
