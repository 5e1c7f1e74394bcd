"""Evaluation from start to end on small synthetic data: complete, repeatable, and refused where its inputs do not
fit."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from conftest import ROOT, SmallNight
from rich.console import Console

from visualbert_core.cli import main
from visualbert_core.config import AnsweringConfig, EvaluateConfig, PoolConfig
from visualbert_core.engine.pool import Pool
from visualbert_core.engine.shards import Part, ShardFolder, plan
from visualbert_core.errors import CheckpointError, ConfigError, CoverageError, InputError
from visualbert_core.evaluation.checks import check_fit
from visualbert_core.evaluation.inputs import RegionReader, RegionSource
from visualbert_core.evaluation.run import evaluate
from visualbert_core.evaluation.run_folder import read_run
from visualbert_core.evaluation.worker import ImageFile, batches, encode, plan_examples, read_predictions, wrong_images
from visualbert_core.features.store import FeatureStore
from visualbert_core.io.locations import location
from visualbert_core.models import Model, ReadsRegions, load_model
from visualbert_core.models.visualbert.checkpoint.metadata import FORMS, published_space
from visualbert_core.report import ReportCell, ReportInfo
from visualbert_core.report.html import render
from visualbert_core.report.terminal import print_table
from visualbert_core.schema import Example, Prediction, Question, Regions
from visualbert_core.synthetic import WEIGHTS
from visualbert_core.tasks import open_task

INLINE = PoolConfig(inline=True)


@pytest.fixture
def vqa(small_night: SmallNight, tmp_path: Path) -> EvaluateConfig:
    """Return the configuration of the small night's VQA evaluation, with a new output folder."""
    (store,) = (small_night.out / "features" / "vqa-val2014").iterdir()
    return EvaluateConfig(
        task="vqa",
        split="val",
        annotations=small_night.out / "synthetic" / "vqa",
        features=store,
        model=ROOT / "visualbert_core" / "synthetic" / "weights" / "visualbert-vqa",
        out=tmp_path,
        shard_size=5,
    )


def run(config: EvaluateConfig, pool: PoolConfig = INLINE) -> Path:
    with Pool(pool) as workers:
        return evaluate(config, workers).folder


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_cell_of_the_small_night_is_scored(small_night: SmallNight) -> None:
    """All four tasks have a score and complete coverage, the wrong-image baseline is far lower, and the exit code is
    0."""
    assert small_night.night.exit_code == 0
    assert len(small_night.night.cells) == 4
    for cell in small_night.night.cells:
        assert cell.run is not None
        assert cell.baseline is not None
        own, wrong = cell.run.scores, cell.baseline.scores
        assert own is not None
        assert wrong is not None
        assert own["coverage"]["missing"] == wrong["coverage"]["missing"] == 0
        assert own["scores"][own["headline"]] > wrong["scores"][own["headline"]] + 15


def test_the_same_line_again_computes_nothing(vqa: EvaluateConfig) -> None:
    """A repeated run computes nothing: every byte and every part's time stay."""
    folder = run(vqa)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("predictions/*/*.parquet")}
    bytes_before = tree(folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("visualbert_core.evaluation.run.plan_examples", None)  # a new plan would fail
        run(vqa)
    assert before
    assert tree(folder) == bytes_before
    assert {path: path.stat().st_mtime_ns for path in folder.glob("predictions/*/*.parquet")} == before


@pytest.mark.parametrize("name", ["scores.json", "units.parquet", "submission.json"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_file_of_a_finished_run_is_made_again(name: str, damage: str, vqa: EvaluateConfig) -> None:
    """A deleted or cut file of a finished run is made again from the predictions."""
    folder = run(vqa)
    before = tree(folder)
    (folder / name).write_bytes((folder / name).read_bytes()[:-20])
    if damage == "missing":
        (folder / name).unlink()
    run(vqa)
    assert tree(folder) == before


def test_a_resumed_run_ends_with_the_same_bytes(vqa: EvaluateConfig) -> None:
    """A run that lost its scores and half of its shards is completed to the same bytes."""
    folder = run(vqa)
    whole = tree(folder)
    for path in sorted((folder / "predictions" / "shards").iterdir())[::2]:
        path.unlink()
    (folder / "predictions" / "manifest.json").unlink()
    (folder / "scores.json").unlink()
    run(vqa)
    assert tree(folder) == whole


def test_answers_do_not_depend_on_batch_or_shard_size(vqa: EvaluateConfig) -> None:
    """Another batch or shard size gives the same answers and the same score."""
    first = run(vqa)
    second = run(dataclasses.replace(vqa, out=vqa.out / "again", batch_size=7, shard_size=50))
    answers = [{p.example_id: p.answer for p in read_predictions(f / "predictions")[0]} for f in (first, second)]
    assert answers[0] == answers[1]
    scores = [read_run(folder).scores for folder in (first, second)]
    assert scores[0] is not None
    assert scores[1] is not None
    assert scores[0]["scores"] == scores[1]["scores"]


def test_other_ingredients_are_refused_by_name(vqa: EvaluateConfig) -> None:
    """A run folder that was made with another setting is not continued, and the message names the setting."""
    run(vqa)
    with pytest.raises(InputError, match=r"spec\.batch_size: 64 → 32") as raised:
        run(dataclasses.replace(vqa, batch_size=32))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["{}", "[]", "null", '{"spec": {}, "provenance": 3}', "{", "\xff"])
def test_damaged_documents_are_named(vqa: EvaluateConfig, text: str) -> None:
    """A run.json or scores.json that is damaged ends in one line with its path."""
    folder = run(vqa)
    for name in ("scores.json", "run.json"):
        (folder / name).write_bytes(text.encode("latin-1"))
        with pytest.raises(InputError, match=rf"{name} is damaged .*run the same line again") as raised:
            read_run(folder)
        assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        run(vqa)
    (folder / "run.json").unlink()
    assert read_run(run(vqa)).record["status"] == "complete"
    with pytest.raises(InputError, match=r"is not a run folder: it has no run\.json"):
        read_run(folder / "predictions")


def test_the_folder_of_a_training_is_named_and_not_called_damaged(vqa: EvaluateConfig) -> None:
    """A user who compares two trainings is not told to delete the record of one."""
    folder = run(vqa)
    (folder / "steps.jsonl").touch()
    with pytest.raises(InputError, match="is the folder of a training: name the run of an evaluation"):
        read_run(folder)


def test_run_folders_lie_on_a_disk(vqa: EvaluateConfig) -> None:
    """A bucket as --out is refused at once, because run folders must lie on a disk."""
    for out in (Path("s3://bucket/runs"), location("s3://bucket/runs")):
        with pytest.raises(ConfigError, match=r"^out is an address \(s3://\): use a folder on a disk"):
            dataclasses.replace(vqa, out=out)


def test_precision_is_an_ingredient(vqa: EvaluateConfig) -> None:
    """bfloat16 gives nearly the same answers as float32, the provenance names it, and one run folder cannot hold
    both."""
    half = dataclasses.replace(vqa, out=vqa.out / "half", precision="bfloat16")
    folders = run(vqa), run(half)
    exact, found = ({p.example_id: p.answer for p in read_predictions(f / "predictions")[0]} for f in folders)
    assert sum(exact[example_id] == answer for example_id, answer in found.items()) > 0.95 * len(exact)
    assert [read_run(f).record["provenance"]["model"]["precision"] for f in folders] == ["float32", "bfloat16"]
    with pytest.raises(InputError, match=r"precision: float32 → bfloat16"):
        run(dataclasses.replace(vqa, precision="bfloat16"))


def test_a_quarantined_image_leaves_its_questions_uncovered(
    vqa: EvaluateConfig, small_night: SmallNight, tmp_path: Path
) -> None:
    """An image without features gives no score: its questions are counted as missing, with the reason."""
    annotations = shutil.copytree(small_night.out / "synthetic" / "vqa", tmp_path / "vqa")
    for name in ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"):
        path = annotations / name
        path.write_text(path.read_text().replace('"image_id": 3,', '"image_id": 999,'))
    config = dataclasses.replace(vqa, annotations=annotations)
    with pytest.raises(
        CoverageError, match=r"44 predictions for 48 examples: 4 missing .*'COCO_val2014_0+999'.*delete this run folder"
    ):
        run(config)
    record = read_run(tmp_path / "visualbert-vqa__vqa__val")
    assert record.scores is None
    assert record.record["status"] == "incomplete"
    assert record.record["coverage"]["missing"] == 4


def test_features_of_another_size_are_refused(vqa: EvaluateConfig, tmp_path: Path) -> None:
    """A checkpoint whose visual dimension differs from the store's is refused in one line."""
    model = shutil.copytree(vqa.model, tmp_path / "plain")
    sidecar = model / "visualbert_core.json"
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"box_geometry": False}))
    with pytest.raises(CheckpointError, match=r"needs 262-d region features, .* has 256-d"):
        run(dataclasses.replace(vqa, model=model))


def test_features_of_another_space_are_refused(vqa: EvaluateConfig, tmp_path: Path) -> None:
    """Features of another space are refused even with equal dimensions, and where the user allows them, every score has
    a warning."""
    model = shutil.copytree(vqa.model, tmp_path / "foreign")
    sidecar = model / "visualbert_core.json"
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"feature_space": "vg_c4"}))
    config = dataclasses.replace(vqa, model=model)
    with pytest.raises(CheckpointError, match=r"'vg_c4'.*'world-tiny-rcnn-fc7'"):
        run(config)
    forced = read_run(run(dataclasses.replace(config, allow_feature_space_mismatch=True)))
    assert forced.scores is not None
    (warning,) = forced.scores["warnings"]
    assert "'vg_c4'" in warning
    assert read_run(run(vqa)).scores["warnings"] == []  # type: ignore[index]
    cell = ReportCell("forced", open_task("vqa", vqa.annotations, "val"), None, {}, forced)
    info = ReportInfo("t", synthetic=True, examples=0)
    assert "features of another space" in render(info, [cell])
    console = Console(file=io.StringIO(), width=120)
    print_table(info, [cell], console)
    assert "WARNING: features of another space" in console.file.getvalue()  # type: ignore[attr-defined]


def without_space(folder: Path, to: Path) -> Path:
    """Copy a checkpoint without the name of the feature space that it was trained on."""
    model = shutil.copytree(folder, to)
    sidecar = model / "visualbert_core.json"
    told = json.loads(sidecar.read_text())
    del told["feature_space"]
    sidecar.write_text(json.dumps(told))
    return model


def test_a_checkpoint_without_a_space_is_said(
    vqa: EvaluateConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint without a feature space puts a warning in the log, the scores and the page, unless the user names
    the space for the run."""
    model = without_space(vqa.model, tmp_path / "silent")
    silent = dataclasses.replace(vqa, model=model)
    found = read_run(run(silent))
    assert found.scores is not None
    (warning,) = found.scores["warnings"]
    assert warning.startswith("unnamed feature space: the checkpoint does not say")
    assert "'world-tiny-rcnn-fc7'" in warning
    assert "--feature-space NAME, or in visualbert_core.json" in warning
    assert f"silent: {warning}" in caplog.messages
    caplog.clear()
    cell = ReportCell("silent", open_task("vqa", vqa.annotations, "val"), None, {}, found)
    assert "unnamed feature space" in render(ReportInfo("t", synthetic=True, examples=0), [cell])

    named = dataclasses.replace(silent, feature_space="world-tiny-rcnn-fc7", out=tmp_path / "named")
    told = read_run(run(named))
    assert told.scores is not None
    assert told.scores["warnings"] == []
    assert told.scores["scores"] == found.scores["scores"]
    assert told.record["provenance"]["spec"]["feature_space"] == "world-tiny-rcnn-fc7"
    assert "WARNING" not in caplog.text
    # A run without the flag has the same spec as before the flag existed.
    assert "feature_space" not in found.record["spec"]


def test_a_space_that_is_named_binds(vqa: EvaluateConfig, tmp_path: Path) -> None:
    """A feature space that the user names binds: a store of another space is refused or gives a warning, and the name
    may not contradict the checkpoint's file."""
    silent = dataclasses.replace(vqa, model=without_space(vqa.model, tmp_path / "silent"), feature_space="vg_c4")
    with pytest.raises(CheckpointError, match=r"'vg_c4'.*'world-tiny-rcnn-fc7'"):
        run(silent)
    forced = read_run(run(dataclasses.replace(silent, allow_feature_space_mismatch=True)))
    assert forced.scores is not None
    (warning,) = forced.scores["warnings"]
    assert warning.startswith("features of another space: the checkpoint was trained on 'vg_c4'")
    says = r"visualbert_core\.json says .*'world-tiny-rcnn-fc7', but feature_space says 'vg_c4'"
    for foreign in (False, True):
        with pytest.raises(CheckpointError, match=says):
            run(dataclasses.replace(vqa, feature_space="vg_c4", allow_feature_space_mismatch=foreign))
    assert read_run(run(dataclasses.replace(vqa, feature_space="world-tiny-rcnn-fc7"))).scores is not None


@pytest.mark.parametrize(
    ("name", "task", "size", "labels", "space"),
    [
        ("visualbert-vqa", "vqa", 2048, 3129, "pythia_fpn"),
        ("my-own", "vqa", 2048, 3129, "pythia_fpn"),
        ("my-own", "vqa", 2048, 10, None),
        ("visualbert-vqa-coco-pre", "vqa", 2048, 10, "pythia_fpn"),
        ("visualbert-vqa", "vqa", 1024, 3129, None),
        ("models--uclanlp--visualbert-vqa/snapshots/4d7a21", "vqa", 2048, 3129, "pythia_fpn"),
        ("visualbert-nlvr2", "nlvr2", 1024, 2, "detectron_fpn"),
        ("own", "nlvr2", 1024, 2, "detectron_fpn"),
        ("visualbert-vcr", "vcr", 512, 2, "r2c_resnet50"),
        ("own", "vcr", 512, 2, "r2c_resnet50"),
        ("own", "vcr", 2048, 2, None),
        ("visualbert-vqa-pre", "flickr30k_entities", 2048, 2, "pythia_fpn"),
        ("own", "flickr30k_entities", 2054, 2, None),
    ],
)
def test_the_published_checkpoint_that_it_looks_like(
    tmp_path: Path, name: str, task: str, size: int, labels: int, space: str | None
) -> None:
    """The likely published checkpoint is found by a folder's name, also in the Hub's cache, or by the number of labels;
    the feature size must fit in both cases."""
    from visualbert_core.models.visualbert import VisualBertConfig

    folder = tmp_path / name
    assert published_space(folder, FORMS[task], VisualBertConfig(visual_embedding_dim=size, num_labels=labels)) == space


def test_the_report_of_46_percent(vqa: EvaluateConfig) -> None:
    """The warning names the space that the similar published checkpoint was trained on, and says whether the store has
    it."""
    model = cast(Model[Regions], SimpleNamespace(reads=ReadsRegions(2048, None, likely_space="pythia_fpn")))
    for space, says in {
        "vg_c4": "these are 'vg_c4', but the published checkpoint that looks like this one needs 'pythia_fpn': if",
        "pythia_fpn": "these are 'pythia_fpn', and the published checkpoint that looks like this one needs them",
    }.items():
        source = RegionSource(vqa.features)
        source.store = cast(FeatureStore, SimpleNamespace(feature_size=2048, space=space))
        (warning,) = check_fit(model, source, vqa)
        assert says in warning
        named = dataclasses.replace(vqa, feature_space="pythia_fpn", allow_feature_space_mismatch=True)
        assert len(check_fit(model, source, named)) == (space != "pythia_fpn")


def doubted(example_id: str) -> bool:
    return example_id.endswith("1")


class Doubtful:
    """A model that answers some questions with NaN. It stands for a user's own model."""

    def __init__(self, model: Model[Regions]) -> None:
        self.model = model
        self.reads, self.forms, self.name, self.protocol = model.reads, model.forms, "Doubtful", ""
        self.fingerprint = model.fingerprint

    def predict(self, batch: Any) -> list[Any]:
        nan = (float("nan"),)
        return [
            dataclasses.replace(found, scores=nan) if doubted(found.example_id) else found  # type: ignore[union-attr]
            for found in self.model.predict(batch)
        ]


def test_any_models_nan_is_a_failure(vqa: EvaluateConfig) -> None:
    """A NaN of any model is a failure, and the other answers of its batch stay."""

    def load(folder: Path, form: type[Example], device: str | None, precision: str, answering: AnsweringConfig) -> Any:
        return Doubtful(load_model(folder, form, device, precision, answering))

    asked = [example.example_id for example in open_task("vqa", vqa.annotations, "val").examples()]
    bad = set(filter(doubted, asked))
    assert 0 < len(bad) < len(asked)
    with Pool(INLINE) as pool, pytest.raises(CoverageError, match="NaN or infinity"):
        evaluate(vqa, pool, load)
    predictions, failures = read_predictions(vqa.out / "visualbert-vqa__vqa__val" / "predictions")
    assert {failure.item_id for failure in failures} == bad
    assert {prediction.example_id for prediction in predictions} == set(asked) - bad


def test_a_broken_model_is_not_scored(vqa: EvaluateConfig, tmp_path: Path) -> None:
    """Answers without a finite number behind them are failures with a reason, never wrong answers."""
    import torch
    from safetensors.torch import load_file, save_file

    model = shutil.copytree(vqa.model, tmp_path / "nan")
    weights = load_file(model / "model.safetensors")
    weights["cls.bias"] = torch.full_like(weights["cls.bias"], float("nan"))
    save_file(weights, model / "model.safetensors")
    with pytest.raises(CoverageError, match=r"0 predictions for 48 examples.*NaN or infinity.*--allow-partial"):
        run(dataclasses.replace(vqa, model=model))


def test_wrong_images_are_never_the_own_one(vqa: EvaluateConfig, small_night: SmallNight) -> None:
    """The baseline gives each example the regions of another image, and uses each image equally often."""
    store = FeatureStore.open(vqa.features)
    donors = wrong_images(open_task("vqa", vqa.annotations, "val").examples(), store)
    assert len(donors) == 12
    assert all(own != other for own, other in donors.items())
    assert Counter(donors.values()) == Counter(donors.keys())
    (pairs,) = (small_night.out / "features" / "nlvr2-dev").iterdir()
    examples = list(open_task("nlvr2", small_night.out / "synthetic" / "nlvr2", "dev").examples())
    swapped = wrong_images(examples, FeatureStore.open(pairs))
    assert all(not set(own) & set(other) for own, other in swapped.items())


def no_files(image_ids: Iterable[str]) -> tuple[ImageFile, ...]:
    """Return the image files that a shard carries. With a feature store there are none."""
    return ()


def test_an_image_is_read_once_for_all_its_examples(vqa: EvaluateConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard fetches each image once, and all images in one request, although VQA asks several questions of an
    image."""
    reader, asked = RegionReader(vqa.features), list[list[str]]()
    read = reader.store.fetch_many
    monkeypatch.setattr(reader.store, "fetch_many", lambda ids: asked.append(list(ids)) or read(ids))
    shard = plan_examples(open_task("vqa", vqa.annotations, "val").examples(), None, no_files, "salt", 100)[0]
    assert sum(len(joined) for joined, _ in reader.read(shard, 7)) > 12
    (ids,) = asked
    assert len(ids) == len(set(ids)) == 12


def test_batches_hold_every_example_once(vqa: EvaluateConfig) -> None:
    """Batches hold every example exactly once, and do not depend on the order of the examples."""
    examples = list(open_task("vqa", vqa.annotations, "val").examples())
    shards = plan_examples(examples, None, no_files, "salt", 5)
    assert sorted(item for shard in shards for item in shard.items) == sorted(e.example_id for e in examples)
    read = list(RegionReader(vqa.features).read(shards[0], 3))
    assert not any(failures for _, failures in read)
    cut = [[example.example_id for example, _ in batch] for batch, _ in read]
    again = batches(shards[0].asked()[::-1], 3)
    assert [each for each in cut if each] == [[example.example_id for example, _ in batch] for batch in again]
    assert sorted(i for batch in cut for i in batch) == sorted(shards[0].items)


def test_predictions_survive_parquet(tmp_path: Path) -> None:
    """Every form of answer comes back from Parquet as it was written, and equal rows give equal bytes."""
    rows = [
        Prediction("a", "i", "no", (0.5,)),
        Prediction("b", "i", 3, (0.25, 0.75)),
        Prediction("c", "j", [[[1.25, 2, 3, 4]], []], ()),
    ]
    folder = ShardFolder(tmp_path)
    (shard,) = plan([row.example_id for row in rows], "test", 10)
    folder.commit(shard, Part(encode(rows), len(rows), None, 0))
    folder.finish([shard], {})
    assert read_predictions(tmp_path) == (rows, [])
    assert encode(rows) == encode(list(rows))


def test_a_lone_image_has_no_wrong_image(vqa: EvaluateConfig) -> None:
    """A single image has no wrong-image baseline, because it would get its own regions."""
    alone = [Question("1", ("COCO_val2014_000000000001",), "What?")]
    with pytest.raises(InputError, match="needs a second image"):
        wrong_images(alone, FeatureStore.open(vqa.features))


def test_a_sample_has_no_score_and_says_so(
    small_night: SmallNight, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`evaluate --limit 3` predicts three examples and ends with 0; the line names the folder."""
    (store,) = (small_night.out / "features" / "vqa-val2014").iterdir()
    about = ["--task", "vqa", "--split", "val", "--annotations", str(small_night.out / "synthetic" / "vqa")]
    about += ["--features", str(store), "--model", str(WEIGHTS / "visualbert-vqa"), "--out", str(tmp_path)]
    assert main(["evaluate", *about, "--limit", "3", "--inline"]) == 0
    assert re.fullmatch(r"a sample \(3 examples\), so no score: .*vqa__val\S*\n", capsys.readouterr().out)
