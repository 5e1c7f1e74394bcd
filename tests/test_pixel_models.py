"""Models that read pixels: two nights of a stand-in over all benchmarks, without a detector and without a store.

No code of the package may assume regions, logits or a feature store. The stand-in (`pixel_model.py`) has none of them.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import SmallNight, run_here, small_matrix
from pixel_model import BrightnessModel, install, write_checkpoint

from visualbert_core.commands.nightly import run_night
from visualbert_core.comparison.compare import compare
from visualbert_core.config import EvaluateConfig, PoolConfig
from visualbert_core.corpus.images import read_image
from visualbert_core.engine import scheduler
from visualbert_core.engine.pool import Pool
from visualbert_core.errors import CheckpointError, ConfigError, CoverageError, InputError, ShardError
from visualbert_core.evaluation import inputs
from visualbert_core.evaluation.inputs import ImageSource, PixelReader
from visualbert_core.evaluation.invariance_check import check_invariance, describe
from visualbert_core.evaluation.run import evaluate
from visualbert_core.evaluation.run_folder import Run, read_run
from visualbert_core.evaluation.units import read_units
from visualbert_core.evaluation.worker import plan_examples, read_predictions
from visualbert_core.models import ReadsPixels, load_model
from visualbert_core.nightly.matrix import load_matrix
from visualbert_core.nightly.night import Night
from visualbert_core.schema import Example, Image, Pixels, Prediction, Question
from visualbert_core.tasks import open_task

INLINE = PoolConfig(inline=True)
TASKS = ("vqa", "vcr", "nlvr2", "flickr30k_entities", "captions")


@dataclass(frozen=True)
class Nights:
    root: Path
    world: Path
    first: Night
    second: Night

    def run(self, night: str, task: str, baseline: bool = False) -> Run:
        runs = (self.root / "out" / "runs" / "pixels" / night).glob(f"brightness__{task}__*")
        (folder,) = (path for path in runs if path.name.endswith("__wrong-image") == baseline)
        return read_run(folder)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(install(tmp_path_factory.mktemp("site")))
        yield


def write_matrix(root: Path, world: Path, **changes: Any) -> Path:
    """Write the demo's matrix over the small night's synthetic data, with no detector in a corpus and the stand-in in
    every cell."""
    matrix = small_matrix(name="pixels", out=str(root / "out"), data=str(world), examples=4, gate={"drop": 20})
    matrix |= {"wrong_image_baseline": True}
    del matrix["synthetic"]
    for corpus in matrix["corpora"].values():
        corpus.pop("detector")
        corpus.pop("shard_size")
        corpus.pop("boxes", None)
    (located,) = (cell for cell in matrix["cells"] if cell["task"] == "flickr30k_entities")
    matrix["cells"].append(located | {"task": "captions"})  # its Sentences/ are references, too
    for cell in matrix["cells"]:
        cell["model"] = str(root / "brightness")
        cell["drops"] = {}
    (root / "matrix.yaml").write_text(yaml.safe_dump(matrix | changes))
    return root / "matrix.yaml"


@pytest.fixture(scope="module")
def nights(installed: None, small_night: SmallNight, tmp_path_factory: pytest.TempPathFactory) -> Nights:
    """Run two nights; the second night has other weights, so nearly every answer changes."""
    root, world = tmp_path_factory.mktemp("pixels"), small_night.out / "synthetic"
    matrix = write_matrix(root, world)
    found = []
    for night, shift in (("1-first", 0), ("2-shifted", 1)):
        write_checkpoint(root / "brightness", shift)
        found.append(run_night(load_matrix(matrix, {"night": night})))
    return Nights(root, world, *found)


def vqa_config(nights: Nights, out: Path, **changes: Any) -> EvaluateConfig:
    images = nights.world / "vqa" / "val2014"
    return EvaluateConfig(
        **{
            "task": "vqa",
            "split": "val",
            "annotations": nights.world / "vqa",
            "images": images,
            "model": nights.root / "brightness",
            "out": out,
            "batch_size": 7,
            "shard_size": 5,
        }
        | changes
    )


def evaluated(config: EvaluateConfig) -> Run:
    with Pool(INLINE) as pool:
        return evaluate(config, pool)


def test_every_benchmark_is_scored_without_features(nights: Nights) -> None:
    """All forms get complete scores and a wrong-image baseline without a store, and the provenance names the
    images."""
    assert not (nights.root / "out" / "features").exists()
    for task in TASKS:
        for baseline in (False, True):
            run = nights.run("1-first", task, baseline)
            assert run.scores is not None
            assert run.record["coverage"]["missing"] == 0
            assert run.scores["visual"] == ("wrong-image" if baseline else "own")
            assert set(run.record["provenance"]["images"]) == {"count", "digest"}
            assert "features" not in run.record["provenance"]


def test_the_wrong_image_is_another_picture(nights: Nights) -> None:
    """The wrong-image baseline reads other images: the stand-in answers from pixels alone, and its answers change."""
    own, wrong = (
        read_predictions(nights.run("1-first", "vqa", baseline).folder / "predictions")[0] for baseline in (False, True)
    )
    assert [p.example_id for p in own] == [p.example_id for p in wrong]
    assert [p.answer for p in own] != [p.answer for p in wrong]


def test_two_nights_are_gated_and_compared(nights: Nights) -> None:
    """The gate judges every cell, and a comparison names the model as the cause and lists flips with confidences."""
    judged = nights.second.judged
    assert judged is not None
    assert len(judged.gate.checks) == len(nights.second.cells)
    for task in TASKS:
        found = compare(nights.run("1-first", task), nights.run("2-shifted", task))
        assert found.answers_changed > 0
        assert {name for cause in found.causes for name in cause.ingredients} == {"model"}
    flips = compare(nights.run("1-first", "vqa"), nights.run("2-shifted", "vqa")).flips["accuracy"]
    assert flips.worse_count + flips.better_count > 0
    assert all(flip.confidence_after is not None for flip in (*flips.worse, *flips.better))


def test_captions_are_compared_in_their_own_scale(nights: Nights) -> None:
    """The change of CIDEr and of BLEU is that of the two scores, with an interval around it. Flips show CIDEr-D from 0
    to 10, and the gate says which drop it would have seen."""
    runs = [nights.run(night, "captions") for night in ("1-first", "2-shifted")]
    before, after = (run.scores for run in runs)
    assert before is not None
    assert after is not None
    found = compare(*runs)
    for metric, change in found.metrics.items():
        assert (change.before, change.after) == pytest.approx((before["scores"][metric], after["scores"][metric]))
        assert change.difference == pytest.approx(change.after - change.before, abs=0.01)
        assert change.low is not None
        assert change.high is not None
        assert change.low < change.difference < change.high
        assert change.scale == (1000 if metric == "cider" else 100)
        assert (change.step < 1) == (metric != "rouge-l")
    flip = max(found.flips["cider"].better, key=lambda flip: flip.value_after)
    units = {unit.unit_id: unit.value for unit in read_units(runs[1].folder)["cider"]}
    assert flip.value_after == pytest.approx(10 * units[flip.unit_id])
    judged = nights.second.judged
    assert judged is not None
    (check,) = (check for check in judged.gate.checks if check.watched.metric == "cider")
    assert check.visible is not None
    assert 0 < check.visible < 1000


def test_the_page_shows_examples_and_flips(nights: Nights) -> None:
    """Each cell has example images and the night has flips, without any region, because the model reads none."""
    page = nights.second.report.read_text()
    assert page.count("<img ") + page.count("<image ") > 4 * 4
    assert 'id="flips"' in page
    assert "cannot be shown" not in page
    assert "regions drawn over it" not in page
    assert "Thin boxes are the regions" not in page
    assert "--images IMAGES" in page
    assert "--features" not in page


def test_answers_do_not_depend_on_the_batch(nights: Nights, tmp_path: Path) -> None:
    """The invariance check compares answers and confidences where the model has no logits."""
    found = check_invariance(vqa_config(nights, tmp_path), INLINE, examples=20)
    assert (found.compared, found.changed, found.largest_difference) == ("confidences", (), 0.0)
    assert "largest difference of confidences: 0.0e+00" in list(describe(found))
    assert list(tmp_path.iterdir()) == []


def test_answers_do_not_depend_on_shards(nights: Nights, tmp_path: Path) -> None:
    """Other batches and shards give the same predictions and the same scores."""
    other = evaluated(vqa_config(nights, tmp_path, batch_size=1, shard_size=100))
    night = nights.run("2-shifted", "vqa")
    assert read_predictions(other.folder / "predictions") == read_predictions(night.folder / "predictions")
    assert other.scores is not None
    assert night.scores is not None
    assert other.scores["scores"] == night.scores["scores"]


def test_naming_what_the_model_does_not_read(nights: Nights, small_night: SmallNight, tmp_path: Path) -> None:
    """A store for a pixel model, images for a region model, both or neither: one line names the right flag."""
    (store,) = (small_night.out / "features" / "vqa-val2014").iterdir()
    with pytest.raises(CheckpointError, match=r"reads pixels, .* is a feature store: name the corpus .*--images"):
        evaluated(vqa_config(nights, tmp_path, images=None, features=store))
    weights = Path(__file__).parents[1] / "visualbert_core" / "synthetic" / "weights" / "visualbert-vqa"
    with pytest.raises(CheckpointError, match=r"reads region features, .* is a corpus of images.*--features"):
        evaluated(vqa_config(nights, tmp_path, model=weights))
    with pytest.raises(CheckpointError, match="reads pixels only: leave out features"):
        evaluated(vqa_config(nights, tmp_path, features=store))
    with pytest.raises(CheckpointError, match="reads region features only: leave out images"):
        evaluated(vqa_config(nights, tmp_path, features=store, model=weights))
    with pytest.raises(ConfigError, match="give either features"):
        vqa_config(nights, tmp_path, images=None)


def test_changed_code_of_a_model_is_another_run(
    nights: Nights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code of a model from outside is an ingredient: after it changed, the old score does not come back."""
    source = (Path(__file__).parent / "pixel_model.py").read_text()
    (tmp_path / "changing_model.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    config = vqa_config(nights, tmp_path / "runs")

    def load(*opening: Any) -> Any:
        module = importlib.reload(importlib.import_module("changing_model"))
        return module.BrightnessModel.from_pretrained(*opening)

    with Pool(INLINE) as pool:
        run = evaluate(config, pool, load)
        assert "model" in run.record["provenance"]["code"]
        (tmp_path / "changing_model.py").write_text(
            source.replace('("yes", "no", "2", "red")', '("no", "yes", "2", "red")')
        )
        with pytest.raises(InputError, match=r"other ingredients \(code\.model"):
            evaluate(config, pool, load)


def test_an_image_that_does_not_decode_is_a_failure(nights: Nights, tmp_path: Path) -> None:
    """The questions of an image that does not decode fail with the reason, the others are answered, and no score is
    given."""
    images = shutil.copytree(nights.world / "vqa" / "val2014", tmp_path / "val2014")
    first, second, *_ = sorted(images.glob("*.*"))
    first.write_bytes(first.read_bytes()[:100])
    second.unlink()
    with pytest.raises(CoverageError, match="no score"):
        evaluated(vqa_config(nights, tmp_path / "runs", images=images))
    predictions, failures = read_predictions(tmp_path / "runs" / "brightness__vqa__val" / "predictions")
    assert len(predictions) > 0
    assert {failure.stage for failure in failures} == {"images"}
    assert {failure.error for failure in failures} >= {"NoImage"}
    assert any(repr(first.stem) in failure.message for failure in failures)


def test_a_batch_of_large_images_is_cut(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch holds a bounded number of pixels, however large its images are, and the reader returns every example."""
    source = ImageSource(nights.world / "nlvr2" / "images" / "dev")
    examples = list(open_task("nlvr2", nights.world / "nlvr2", "dev").examples())
    source.identify(examples)
    (shard,) = plan_examples(examples, None, source.files, "salt", 100)
    (size, *_) = {file.size for file in shard.files}
    assert size is not None
    monkeypatch.setattr(inputs, "BATCH_PIXELS", 3 * size[0] * size[1])
    read = [joined for joined, _ in PixelReader().read(shard, 64)]
    assert max(len({p.image_id for _, pictures in joined for p in pictures}) for joined in read) == 3 - 3 % 2
    assert sorted(e.example_id for joined in read for e, _ in joined) == sorted(shard.items)


def test_a_family_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point whose module or class is missing is a one-line CheckpointError that names it."""
    monkeypatch.syspath_prepend(install(tmp_path / "site"))
    (tmp_path / "site" / "brightness-1.0.dist-info" / "entry_points.txt").write_text(
        "[visualbert_core.models]\nlost = no_such_module:Model\nold = pixel_model:OldModel\n"
    )
    for kind, said in (("lost", "No module named 'no_such_module'"), ("old", "has no attribute 'OldModel'")):
        folder = write_checkpoint(tmp_path / kind, 0)
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(CheckpointError, match=said):
            load_model(folder, Question, "cpu")


class Careless(BrightnessModel):
    """Breaks the contract in one way."""

    def __init__(self, way: str) -> None:
        super().__init__(0)
        self.way = way
        if way == "reads":
            self.reads = ReadsPixels  # type: ignore[assignment]

    def fingerprint(self) -> dict[str, Any]:
        return {"weights": Path("x")} if self.way == "fingerprint" else {"way": self.way}

    def predict(self, batch: Sequence[tuple[Example, tuple[Pixels, ...]]]) -> list[Prediction]:
        if self.way == "draws":
            for _, pictures in batch:
                pictures[0].rgb[:] = 0
        found = super().predict(batch)
        changes: dict[str, Any] = {"ids": {"example_id": "x"}, "scores": {"scores": (0.1, 0.2, 0.7)}}.get(self.way, {})
        if self.way == "boxes":
            changes = {"answer": [[[0.1, 0.1, 0.9, 0.9]]]}
            return [dataclasses.replace(p, answer=changes["answer"] * len(p.answer)) for p in found]
        return [dataclasses.replace(p, **changes) for p in found]


@pytest.mark.parametrize(
    ("way", "error", "said"),
    [
        ("reads", CheckpointError, "`reads` must be"),
        ("fingerprint", CheckpointError, "fingerprint must be JSON"),
        ("ids", CheckpointError, "answered 'x', which is not an example of its batch"),
        ("scores", CheckpointError, "gave 3 scores for .*; a Question has 1"),
        ("draws", ShardError, "read-only"),
        ("boxes", InputError, "no score: .*normalised"),
    ],
)
def test_a_model_that_breaks_the_contract(
    nights: Nights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, error: type[Exception], said: str
) -> None:
    """It gets one line that says how, and never a score."""
    monkeypatch.setattr(scheduler, "RETRY_WAITS", (0.0, 0.0))
    config = vqa_config(nights, tmp_path)
    if way == "boxes":
        images, annotations = nights.world / "flickr30k" / "images", nights.world / "flickr30k"
        config = dataclasses.replace(config, task="flickr30k_entities", images=images, annotations=annotations)
    with Pool(INLINE) as pool, pytest.raises(error, match=said):
        evaluate(config, pool, lambda *_: Careless(way))


def test_an_image_that_changes_while_a_run_reads_it(nights: Nights, tmp_path: Path) -> None:
    """No shard is committed with another image than the run was claimed for, and running again is what helps."""
    images = shutil.copytree(nights.world / "vqa" / "val2014", tmp_path / "val2014")
    source, examples = ImageSource(images), list(open_task("vqa", nights.world / "vqa", "val").examples())
    source.identify(examples)
    (shard,) = plan_examples(examples, None, source.files, "salt", 100)
    first, second, *_ = sorted(images.glob("*.*"))
    shutil.copyfile(second, first)
    with pytest.raises(InputError, match="has changed since the run began: run the same line again"):
        list(PixelReader().read(shard, 7))


def test_what_ends_a_process_is_not_read_again(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding an image may kill a worker. So the files of quarantined examples are not read, and every other image is
    decoded once."""
    source = ImageSource(nights.world / "vqa" / "val2014")
    examples = list(open_task("vqa", nights.world / "vqa", "val").examples())
    (shard,) = plan_examples(examples, None, source.files, "salt", 100)
    deadly = examples[0].image_ids[0]
    lost = tuple(item for item, ids in zip(shard.items, shard.image_ids, strict=True) if deadly in ids)
    decoded: list[str] = []

    def read(image: Image) -> tuple[np.ndarray, str]:
        decoded.append(image.image_id)
        return read_image(image)

    monkeypatch.setattr(inputs, "read_image", read)
    batches = list(PixelReader().read(dataclasses.replace(shard, quarantined=lost), 7))
    assert deadly not in decoded
    assert sorted(decoded) == sorted(set(decoded)) == sorted({e.image_ids[0] for e in examples} - {deadly})
    assert sum(len(joined) for joined, _ in batches) == len(examples) - len(lost)


def test_other_images_of_the_same_names_are_another_run(nights: Nights, tmp_path: Path) -> None:
    """A finished run is reused; after one image has changed, the same command line is refused with the difference."""
    images = shutil.copytree(nights.world / "vqa" / "val2014", tmp_path / "val2014")
    config = vqa_config(nights, tmp_path / "runs", images=images)
    run = evaluated(config)
    before = (run.folder / "scores.json").stat().st_mtime_ns
    assert (evaluated(config).folder / "scores.json").stat().st_mtime_ns == before
    first, second, *_ = sorted(images.glob("*.*"))
    shutil.copyfile(second, first)
    with pytest.raises(InputError, match=r"a run of other ingredients \(images.digest"):
        evaluated(config)


def test_images_of_another_size_are_refused(nights: Nights, tmp_path: Path) -> None:
    """An image of another size than in the annotations is refused, because its boxes would be wrong for any model."""
    from PIL import Image

    images = shutil.copytree(nights.world / "flickr30k" / "images", tmp_path / "images")
    for path in images.glob("*.*"):
        with Image.open(path) as picture:
            picture.resize((picture.width * 3 // 4, picture.height * 3 // 4)).save(path)
    annotations = nights.world / "flickr30k"
    config = vqa_config(nights, tmp_path, task="flickr30k_entities", images=images, annotations=annotations)
    with pytest.raises(InputError, match="have another size than in their annotations"):
        evaluated(dataclasses.replace(config, split="val"))


def test_the_command_takes_images(nights: Nights, tmp_path: Path) -> None:
    """`visualbert evaluate --images` runs the same evaluation and gives the scores of the night."""
    job = Path(__file__).parents[1] / "jobs" / "evaluate.py"
    config = vqa_config(nights, tmp_path)
    flags = {"task": "vqa", "split": "val", "annotations": config.annotations, "images": config.images}
    flags |= {"model": config.model, "out": config.out}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    ended = run_here(job, *words, "--inline", "--json")
    assert ended.returncode == 0, ended.stderr
    night = nights.run("2-shifted", "vqa")
    assert night.scores is not None
    assert json.loads(ended.stdout)["scores"] == night.scores["scores"]
