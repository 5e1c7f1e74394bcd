"""The drift check (canary): a rounded detector passes, another detector fails, and other faults are not blamed on the
detector."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, run_here
from PIL import Image as Pillow
from test_extract import INLINE, World, tree

from visualbert_core.config import DriftConfig, ExtractConfig, PoolConfig
from visualbert_core.detector import Detection
from visualbert_core.detector.torchvision_rcnn import TorchvisionRCNN
from visualbert_core.engine.pool import Pool
from visualbert_core.errors import ConfigError, DriftError, InputError
from visualbert_core.features.drift import check_plan, compare
from visualbert_core.features.extract import extract, plan_extraction, run_extraction, spread
from visualbert_core.features.store import FeatureStore
from visualbert_core.schema import Regions
from visualbert_core.synthetic.scenes import make_scene

WEIGHTS = Path(__file__).parents[1] / "visualbert_core" / "synthetic" / "weights" / "detector"
IMAGES = 8


def proposals(folder: str | Path, device: str | None = None, precision: str = "float32") -> TorchvisionRCNN:
    """Load the synthetic data's detector with many overlapping regions, so that NMS matters."""
    detector = TorchvisionRCNN.from_pretrained(folder, "cpu")
    return select(detector, min_regions=36, max_regions=36, box_kind="proposal", nms_iou=0.7)


def select(detector: TorchvisionRCNN, **changes: Any) -> TorchvisionRCNN:
    rule = dataclasses.replace(detector.config.selection, **changes)
    detector.config = dataclasses.replace(detector.config, selection=rule)
    return detector


class Changed:
    """A detector that has the fingerprint of `proposals` and gives other features. A driver, a library or a user's edit
    can cause this."""

    def __init__(self, folder: str | Path, device: str | None = None, precision: str = "float32") -> None:
        self.true = proposals(folder)
        self.detector = self.change(proposals(folder))
        self.space, self.feature_size = self.true.space, self.true.feature_size

    def change(self, detector: TorchvisionRCNN) -> TorchvisionRCNN:
        return detector

    def fingerprint(self) -> dict[str, Any]:
        return self.true.fingerprint()

    def detect(self, images: Sequence[np.ndarray], boxes: Any = None) -> list[Detection]:
        return self.detector.detect(images, boxes)


class ColoursSwapped(Changed):
    def detect(self, images: Sequence[np.ndarray], boxes: Any = None) -> list[Detection]:
        return self.detector.detect([np.ascontiguousarray(image[:, :, ::-1]) for image in images], boxes)


class OtherResize(Changed):
    def change(self, detector: TorchvisionRCNN) -> TorchvisionRCNN:
        detector.model.transform.min_size = (220,)
        return detector


class OtherSuppression(Changed):
    def change(self, detector: TorchvisionRCNN) -> TorchvisionRCNN:
        return select(detector, nms_iou=0.5)


class Noisy(Changed):
    """Every weight is off by a random factor of size `scale`."""

    scale = 0.5

    def change(self, detector: TorchvisionRCNN) -> TorchvisionRCNN:
        torch.manual_seed(0)
        with torch.no_grad():
            for weights in detector.model.parameters():
                weights.mul_(1 + self.scale * torch.randn_like(weights))
        return detector


class Rounded(Noisy):
    """Every weight is off by a thousandth, ten times the rounding of TF32."""

    scale = 1e-3


class Normalised(Changed):
    """Features have unit length, as some projects publish them. The cosine alone would not notice."""

    def detect(self, images: Sequence[np.ndarray], boxes: Any = None) -> list[Detection]:
        found = self.detector.detect(images, boxes)
        return [
            dataclasses.replace(d, features=d.features / np.linalg.norm(d.features, axis=1)[:, None]) for d in found
        ]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of images and a stopped extraction of them: half of the shards are done, without a manifest."""
    root = tmp_path_factory.mktemp("scenes")
    (root / "pictures").mkdir()
    for number in range(IMAGES):
        Pillow.fromarray(make_scene((3, number)).pixels).save(root / "pictures" / f"scene{number}.png")
    store = run(root, proposals)
    (store.folder / "manifest.json").unlink()
    (store.folder / "index.arrow").unlink()
    for marker in sorted(store.folder.glob("shards/*"))[::2]:
        marker.unlink()
    return root


def run(root: Path, load: Callable[..., Any], **options: Any) -> FeatureStore:
    with Pool(INLINE) as pool:
        paths = {"images": root / "pictures", "detector": WEIGHTS, "out": root / "out"}
        plan = plan_extraction(ExtractConfig(**paths, shard_size=2), load)
        check_plan(plan, DriftConfig(**options), pool)
        return run_extraction(plan, pool)


@pytest.mark.parametrize("load", [ColoursSwapped, OtherResize, OtherSuppression, Noisy, Normalised])
def test_another_detector_is_stopped(load: Callable[..., Any], scenes: Path) -> None:
    """Other features under the fingerprint of the stopped run end the job before it writes a byte."""
    before = tree(scenes)
    with pytest.raises(
        DriftError, match=r"^the detector does not give the features of .* in the worst image 'scene\d'"
    ):
        run(scenes, load, canary=4)
    assert tree(scenes) == before


def test_rounding_passes(scenes: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The same detector gets exactly 1 and a rounded one nearly 1, and both runs then complete."""
    caplog.set_level(logging.INFO, "visualbert_core")
    assert len(run(scenes, proposals, canary=IMAGES)) == IMAGES
    table = caplog.text
    assert table.count("1.00000") == 8  # median and minimum of four numbers
    assert len(run(scenes, Rounded, canary=IMAGES)) == IMAGES


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def newer(world: World) -> None:
    """Change the detector's fingerprint, so that it gets another store."""
    (world.detector / "fingerprint.json").write_text('{"versions": {"torch": "2"}}')


@pytest.mark.usefixtures("ray_session")
def test_a_store_of_another_version_is_compared_on_the_pool(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The pool's workers extract the compared images of a store with another fingerprint, no others, and the run
    follows."""
    caplog.set_level(logging.INFO, "visualbert_core")
    old = world.extract(limit=20)
    newer(world)
    before = world.batches()
    new = world.extract(canary=12, canary_store=old.folder, pool=PoolConfig(workers=2))
    assert (len(new), new.folder != old.folder) == (40, True)
    assert f"canary: 12 images of {old.folder} extracted anew" in caplog.text
    # A batch has one to four images. The check reads 12 images and the run 40.
    assert 3 + 10 <= world.batches() - before <= 12 + 40


def test_nothing_to_compare_is_an_error(world: World) -> None:
    """The check raises an error where nothing can be compared: in a first run, with a store of other images, or without
    a number of images."""
    with pytest.raises(InputError, match=r"nothing to compare: no shard of .* is finished; name another store"):
        world.extract(canary=4)
    assert not (world.root / "store").exists()
    other = World(world.root / "other")
    for path in other.pictures.iterdir():
        path.rename(path.with_stem(f"other-{path.stem}"))
    with pytest.raises(InputError, match=r"nothing to compare: it is to take 4 of 0 images"):
        world.extract(canary=4, canary_store=other.extract().folder)
    with pytest.raises(ConfigError, match="add --canary N"):
        world.extract(canary_store=other.root)


def test_a_store_whose_shards_were_of_another_size(world: World) -> None:
    """Where all shards of this run are new, the check compares with a finished store through its manifest."""
    world.extract(shard_size=10)
    assert len(world.extract(shard_size=4, canary=40)) == 40


def test_a_changed_image_is_not_the_detectors_fault(world: World) -> None:
    """An image file with other bytes, or with bytes that do not decode, is named, and no drift is reported."""
    world.extract()
    path = world.pictures / "image21.png"
    data = path.read_bytes()
    world.add("image21", 22)
    with pytest.raises(
        InputError, match=r"the file of image 'image21' has changed .* \(its digest differs\)"
    ) as raised:
        world.extract(canary=40)
    assert not isinstance(raised.value, DriftError)
    path.write_bytes(data[:40])
    with pytest.raises(InputError, match=r"image 'image21' has features in .*, but none now: image21\.png"):
        world.extract(canary=40)


def test_an_image_that_is_gone_is_said(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Images of the store that are not in the corpus are counted, and the remaining images are compared."""
    caplog.set_level(logging.INFO, "visualbert_core")
    store = world.extract()
    for number in (7, 9):
        (world.pictures / f"image{number:02}.png").unlink()
    assert len(world.extract("elsewhere", canary=40, canary_store=store.folder)) == 38
    log = caplog.text
    assert f"canary: 2 of the 40 images of {store.folder} are not in this corpus, the first 'image07'" in log
    assert "canary: 38 images of" in log


def test_other_sizes_of_features(world: World, tmp_path: Path) -> None:
    """A store with another feature size is refused, whatever its boxes are."""
    Pillow.fromarray(make_scene((3, 0)).pixels).save(world.pictures / "scene.png")
    other = world.extract(limit=50)
    paths = {"images": world.pictures, "detector": WEIGHTS, "out": tmp_path / "out"}
    with (
        Pool(INLINE) as pool,
        pytest.raises(DriftError, match=r"the detector gives 256-d features, but .* holds 3-d features"),
    ):
        check_plan(plan_extraction(ExtractConfig(**paths)), DriftConfig(canary=2, canary_store=other.folder), pool)


def regions(boxes: list[list[float]], features: list[list[float]], labels: Sequence[int]) -> Regions:
    arrays = np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int16), np.ones(len(labels), np.float32)
    return Regions("a", 9, 9, *arrays, np.array(features, np.float16).reshape(len(labels), 2), "")


def test_regions_are_matched_by_their_boxes() -> None:
    """Regions are matched by their boxes in any order: equal boxes pair up, and missing or moved boxes have no
    partner."""
    corner, whole, far = [0, 0, 4, 4], [0, 0, 9, 9], [5, 5, 9, 9]
    then = regions([corner, whole, whole], [[1, 0], [0, 2], [3, 0]], [1, -1, 3])
    same = compare(then, regions([whole, whole, corner], [[0, 2], [3, 0], [1, 0]], [8, 3, 1]))
    assert (same.matched, same.cosine, same.length, same.labels) == (1, 1, 1, 1)  # label -1: the store had no label
    less = compare(then, regions([far, corner], [[1, 0], [0, 0.5]], [1, 2]))
    assert (less.matched, less.cosine, less.length, less.labels) == (pytest.approx(1 / 3), 0, 0.5, 0)
    nothing = regions([], [], [])
    assert compare(nothing, nothing).matched == 1
    assert compare(then, nothing).matched == 0


def test_images_are_spread() -> None:
    """The check takes the same images every time, at equal distances, and not more than there are."""
    assert spread(range(100), 4) == [12, 37, 62, 87]
    assert spread(range(3), 9) == [0, 1, 2]


def test_the_command(scenes: Path) -> None:
    """The command accepts a finished store with its own detector and, in a new process, refuses another detector."""
    with Pool(INLINE) as pool:
        paths = {"images": scenes / "pictures", "detector": WEIGHTS, "out": scenes / "finished"}
        store = extract(ExtractConfig(**paths), pool)
    line = ["canary", str(store.folder), "-n", "3", "--images", str(scenes / "pictures"), "--detector"]
    done = run_here(ROOT / "visualbert_core" / "__main__.py", "store", *line, WEIGHTS)
    assert (done.returncode, done.stdout) == (0, f"{WEIGHTS} gives the features of {store.folder}\n"), done.stderr
    assert "cosine     1.00000   0.995   1.00000    0.95  scene" in done.stderr
    Noisy(WEIGHTS).detector.save_pretrained(scenes / "noisy")
    line = [sys.executable, "-m", "visualbert_core", "store", *line, str(scenes / "noisy")]
    done = subprocess.run(line, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("error: the detector does not give the features of")
