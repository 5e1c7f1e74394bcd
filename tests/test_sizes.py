"""Checks before an evaluation, for images of another size than in the annotations; and the file for EvalAI after a run
over test-dev.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, SmallNight

from visualbert_core.config import EvaluateConfig, PoolConfig
from visualbert_core.engine.pool import Pool
from visualbert_core.errors import InputError
from visualbert_core.evaluation.checks import check_sizes
from visualbert_core.evaluation.inputs import RegionSource
from visualbert_core.evaluation.invariance_check import check_invariance
from visualbert_core.evaluation.run import evaluate
from visualbert_core.evaluation.run_folder import Run, read_run
from visualbert_core.features.importers.hdf5 import NO_SIZES
from visualbert_core.tasks import open_task, vqa

INLINE = PoolConfig(inline=True)
WEIGHTS = ROOT / "visualbert_core" / "synthetic" / "weights"
SIZE = "<size><width>{}</width><height>{}</height>"
OWN = SIZE.format(224, 224)


def run(config: EvaluateConfig) -> Run:
    with Pool(INLINE) as workers:
        return evaluate(config, workers)


@pytest.fixture
def flickr(small_night: SmallNight, tmp_path: Path) -> EvaluateConfig:
    """Return an evaluation of eight images of the small night, with its own annotations and output folder."""
    (store,) = (small_night.out / "features" / "flickr30k-val").iterdir()
    world = shutil.copytree(small_night.out / "synthetic" / "flickr30k", tmp_path / "flickr30k")
    model = WEIGHTS / "visualbert-flickr30k"
    task = "flickr30k_entities"
    return EvaluateConfig(task=task, split="val", annotations=world, features=store, model=model, out=tmp_path / "out")


def resize(config: EvaluateConfig, size: str, images: int = 8) -> None:
    """Change the <size> of `images` images in the annotations, and scale their boxes where the new size is a real
    one."""
    told = [int(side) for side in re.findall(r"\d+", size)]
    sides = dict(zip("xy", told if any(told) else (224, 224), strict=True))

    def scaled(found: re.Match[str]) -> str:
        axis, end, value = found.groups()
        return f"{axis}{end}{int(value) * sides[axis] // 224}"

    files = sorted((config.annotations / "Annotations").iterdir())[:images]
    for file in files:
        text = file.read_text()
        assert OWN in text
        text = re.sub(r"(?<=<)([xy])(m(?:in|ax)>)(\d+)", scaled, text)
        file.write_text(text.replace(OWN, size))


@pytest.mark.parametrize(
    ("size", "images", "says"),
    [
        ((299, 299), 8, "8 of 8 images have another size .* 224 × 224 in .*, 299 × 299 in .* .resized to 75 %"),
        ((225, 224), 8, "8 of 8 .* 225 × 224 in .* .1 pixel apart: rounded by a resize, or cropped\\?.;"),
        ((226, 225), 8, "8 of 8 .* 226 × 225 in .* .2 pixels apart: rounded by a resize, or cropped\\?.;"),
        ((640, 480), 1, "1 of 8 images have another size .*: image 1000 is 224 × 224 in .*, 640 × 480 in .*/1000.xml;"),
    ],
)
@pytest.mark.parametrize("again", [evaluate, check_invariance])
def test_images_of_another_size(
    flickr: EvaluateConfig,
    size: tuple[int, int],
    images: int,
    says: str,
    again: Callable[..., object],
) -> None:
    """Images of another size are refused before anything is written, by the invariance check too. The line has both
    sizes, the image and both files."""
    resize(flickr, SIZE.format(*size), images)
    with pytest.raises(InputError, match=says) as caught:
        run(flickr) if again is evaluate else check_invariance(flickr, INLINE, 4)
    assert str(flickr.features) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not flickr.out.exists()


def test_images_that_were_turned(
    small_night: SmallNight, flickr: EvaluateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where width and height are swapped, the line names the most likely cause."""
    sizes = [(str(1000 + n), 120, 160, 9) for n in range(8)]
    monkeypatch.setattr("visualbert_core.features.store.FeatureStore.sizes", lambda store: iter(sizes))
    resize(flickr, SIZE.format(160, 120))
    with pytest.raises(
        InputError, match=r"120 × 160 in .*, 160 × 120 in .*width and height swapped: turned by its EXIF"
    ):
        run(flickr)


@pytest.mark.parametrize("size", [OWN, "<size>", SIZE.format(0, 0)])
def test_the_right_size_and_none_pass(flickr: EvaluateConfig, size: str) -> None:
    """Annotations with the right size, or without any size, are accepted."""
    resize(flickr, size)
    scores = run(flickr).scores
    assert scores is not None
    assert scores["scores"]["recall@1"] > 50


def test_sizes_that_nobody_knows_are_said(flickr: EvaluateConfig) -> None:
    """An import without image sizes refuses no size, and every score carries a warning about it."""
    resize(flickr, SIZE.format(77, 99))
    assert flickr.features is not None
    source, task = RegionSource(flickr.features), open_task(flickr.task, flickr.annotations, flickr.split)
    with pytest.raises(InputError, match="77 × 99"):
        check_sizes(task, source)
    source.store.fingerprint["notes"] = [NO_SIZES]
    assert check_sizes(task, source) == [
        "features imported without the sizes of the images: not compared with the sizes in the annotations"
    ]


def test_a_run_over_test_dev(small_night: SmallNight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run over test-dev keeps its predictions, although they alone make no submission. With the questions of all of
    test in the folder, the same command line writes EvalAI's file and computes nothing."""
    monkeypatch.setitem(vqa.SUBSETS, "test", "val2014")  # images that the small night has
    monkeypatch.setitem(vqa.SUBSETS, "test-dev", "val2014-dev")
    (store,) = (small_night.out / "features" / "vqa-val2014").iterdir()
    whole = small_night.out / "synthetic" / "vqa" / "v2_OpenEnded_mscoco_val2014_questions.json"
    questions = json.loads(whole.read_text())
    asked = questions | {"questions": questions["questions"][:6]}
    (tmp_path / whole.name.replace("val2014", "val2014-dev")).write_text(json.dumps(asked))
    config = EvaluateConfig(
        task="vqa",
        split="test-dev",
        annotations=tmp_path,
        features=store,
        model=WEIGHTS / "visualbert-vqa",
        out=tmp_path / "out",
    )
    with pytest.raises(InputError, match=r"the predictions are complete, but no submission of test-dev alone: "):
        run(config)
    (folder,) = config.out.iterdir()
    record = read_run(folder).record
    assert (record["status"], record["submission"]) == ("complete", None)
    assert record["subset"].startswith("6 of 107,394 questions")
    parts = {path: path.stat().st_mtime_ns for path in folder.glob("predictions/*/*.parquet")}
    shutil.copy(whole, tmp_path)
    made = run(config)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("predictions/*/*.parquet")} == parts
    sent = json.loads((folder / made.record["submission"]).read_text())
    assert [row["question_id"] for row in sent] == [row["question_id"] for row in questions["questions"]]
    assert all(row["answer"] for row in sent[:6])
    assert not any(row["answer"] for row in sent[6:])
