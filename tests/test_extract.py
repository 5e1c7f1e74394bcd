"""Extraction gives the same bytes on any pool, and one bad image costs one row."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from visualbert_core.config import DriftConfig, ExtractConfig, PoolConfig
from visualbert_core.corpus.images import fetch, read_image
from visualbert_core.corpus.listing import list_images
from visualbert_core.detector import Detection
from visualbert_core.engine import scheduler
from visualbert_core.engine.backend import LostError
from visualbert_core.engine.pool import Pool
from visualbert_core.errors import CheckpointError, CoverageError, InputError, ShardError
from visualbert_core.features.drift import check_plan
from visualbert_core.features.extract import plan_extraction, run_extraction
from visualbert_core.features.store import FeatureStore
from visualbert_core.features.worker import AHEAD, FeatureWorker, _batches, full_fingerprint, plan_images
from visualbert_core.io import lfs
from visualbert_core.io.locations import location
from visualbert_core.schema import Image

INLINE = PoolConfig(inline=True)


class OutOfMemoryError(RuntimeError):
    """A stand-in with the name of torch's error. To import torch takes an actor seconds."""


class PixelDetector:
    """A detector whose boxes and features are a fixed function of the pixels and of the given boxes, whatever the
    batch.

    The number of regions is the top left red value modulo 4. There, red 255 gives a NaN and 254 a value above float16's
    range. Each batch leaves a file in the detector's folder. The fingerprint is the folder's `fingerprint.json`.
    """

    space = "pixels"
    feature_size = 3
    largest = 1000

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def fingerprint(self) -> dict[str, Any]:
        return json.loads((self.folder / "fingerprint.json").read_text())

    def detect(self, images: Sequence[np.ndarray], boxes: Sequence[np.ndarray] | None = None) -> list[Detection]:
        assert len({image.shape for image in images}) == 1
        if len(images) > self.largest:
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        (self.folder / "batches" / f"{len(images)}-{os.urandom(8).hex()}").touch()
        return [self._regions(image, None if boxes is None else boxes[n]) for n, image in enumerate(images)]

    def _regions(self, image: np.ndarray, given: np.ndarray | None) -> Detection:
        corner = int(image[0, 0, 0])
        boxes = np.full((corner % 4, 4), corner, np.float32) if given is None else given
        features = np.outer(np.arange(1, len(boxes) + 1), image.mean((0, 1))).astype(np.float32)
        features[:, 0] = {255: np.nan, 254: 1e6}.get(corner, features[:, 0]) if len(boxes) else features[:, 0]
        return Detection(boxes, np.full(len(boxes), -1), boxes[:, 0] / 255, features)


def load(folder: str | Path, device: str | None = None, precision: str = "float32") -> PixelDetector:
    return PixelDetector(folder)


def load_otherwise(folder: str | Path, device: str | None = None, precision: str = "float32") -> PixelDetector:
    """Load a detector whose fingerprint differs on a worker (device None), as on a machine with other library
    versions."""
    detector = PixelDetector(folder)
    if device is None:
        detector.fingerprint = lambda: {"versions": {"torch": "0"}}  # type: ignore[method-assign]
    return detector


def load_on_a_small_gpu(folder: str | Path, device: str | None = None, precision: str = "float32") -> PixelDetector:
    """Load a detector that runs out of memory on a worker for a batch of more than two images."""
    detector = PixelDetector(folder)
    if device is None:
        detector.largest = 2
    return detector


def load_until_killed(folder: str | Path, device: str | None = None, precision: str = "float32") -> PixelDetector:
    """Load a detector that stops at its fourth batch on a worker."""
    return PixelDetector(folder) if device else StandsStill(folder)


class StandsStill(PixelDetector):
    batches = 0

    def detect(self, images: Sequence[np.ndarray], boxes: Sequence[np.ndarray] | None = None) -> list[Detection]:
        self.batches += 1
        while self.batches > 3:
            time.sleep(60)
        return super().detect(images, boxes)


class World:
    """40 images of three shapes and a detector folder."""

    def __init__(self, root: Path, new: bool = True) -> None:
        self.root, self.pictures, self.detector = root, root / "pictures", root / "detector"
        if new:
            self.make()

    def make(self) -> None:
        (self.detector / "batches").mkdir(parents=True)
        (self.detector / "fingerprint.json").write_text('{"versions": {"torch": "1"}}')
        self.pictures.mkdir()
        for number in range(40):
            self.add(f"image{number:02d}", number)

    def add(self, name: str, corner: int) -> Path:
        height, width = [(6, 8), (8, 6), (5, 5)][len(name) * corner % 3]
        pixels = np.random.default_rng(corner).integers(0, 200, (height, width, 3), np.uint8)
        pixels[0, 0, 0] = corner
        path = self.pictures / f"{name}.png"
        Pillow.fromarray(pixels).save(path)
        return path

    def extract(self, out: str = "store", **options: Any) -> FeatureStore:
        settings = {"batch_size": 4, "shard_size": 10, "pool": INLINE, "load": load, **options}
        with Pool(settings.pop("pool")) as pool:
            how = settings.pop("load")
            root = self.root / out if "://" not in out else location(out)
            paths = {"images": self.pictures, "detector": self.detector, "out": root, "corpus": "toy"}
            drift = DriftConfig(**{key: settings.pop(key) for key in ("canary", "canary_store") if key in settings})
            plan = plan_extraction(ExtractConfig(**paths, **settings), how)
            check_plan(plan, drift, pool)
            return run_extraction(plan, pool)

    def batches(self) -> int:
        return len(list((self.detector / "batches").iterdir()))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_every_image_gets_its_own_regions(world: World) -> None:
    """Each row has what the detector gives for that image alone, in float16, with the image's size and digest."""
    store, detector = world.extract(), load(world.detector)
    assert sorted(store.image_ids) == [f"image{number:02d}" for number in range(40)]
    for image in list_images(world.pictures, "none").values():
        pixels, digest = read_image(image)
        (expected,), found = detector.detect([pixels]), store.fetch(image.image_id)
        assert (found.height, found.width, found.image_digest) == (*pixels.shape[:2], digest)
        np.testing.assert_array_equal(found.boxes, expected.boxes)
        np.testing.assert_array_equal(found.features, expected.features.astype(np.float16))


@pytest.mark.usefixtures("ray_session")
def test_bytes_do_not_depend_on_workers_batches_or_restarts(world: World) -> None:
    """An inline run, one worker, three workers, another batch size and a resumed run write the same bytes."""
    (world.pictures / "bad.png").write_bytes(b"no image")
    reference = tree(world.extract("inline").folder)
    for name, options in {
        "one": {"pool": PoolConfig(workers=1)},
        "three": {"pool": PoolConfig(workers=3)},
        "batches": {"batch_size": 1},
    }.items():
        assert tree(world.extract(name, **options).folder) == reference
    folder = world.extract("resumed").folder
    for name in list(reference)[::3]:
        (folder / name).unlink()
    assert tree(world.extract("resumed", pool=PoolConfig(workers=2)).folder) == reference


def test_a_killed_job_resumes_to_the_same_bytes(world: World) -> None:
    """A job that was killed after its first shards gives the same bytes when the same line runs again."""
    reference = tree(world.extract("whole", shard_size=1).folder)
    script = (
        "from test_extract import World, load_until_killed; "
        f"World(Path({str(world.root)!r}), new=False).extract('killed', shard_size=1, load=load_until_killed)"
    )
    job = subprocess.Popen(
        [sys.executable, "-c", "from pathlib import Path; " + script],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    while job.poll() is None and len(list(world.root.glob("killed/**/shards/*.json"))) < 3:
        time.sleep(0.01)
    assert job.poll() is None
    job.kill()
    job.wait()
    assert not list(world.root.glob("killed/**/manifest.json"))
    before = world.batches()
    assert tree(world.extract("killed", shard_size=1).folder).items() >= reference.items()
    # With one image a shard, the killed job had committed at least three images.
    assert world.batches() - before <= 40 - 3


def test_a_finished_store_is_opened_without_computing(world: World) -> None:
    """A repeated run computes nothing, and one more image costs only its shard."""
    world.extract()
    before = world.batches()
    assert len(world.extract()) == 40
    assert world.batches() == before
    parts = set((world.root / "store").rglob("parts/*"))
    world.add("newcomer", 7)
    assert "newcomer" in world.extract()
    # One more image changes the shard into which its hash falls, or splits that shard in two.
    assert len(set((world.root / "store").rglob("parts/*")) - parts) <= 2


def test_other_images_of_the_same_names_are_refused(world: World) -> None:
    """A store is refused where its images were edited, swapped or renamed since."""
    store = world.extract(shard_size=4)
    before = tree(store.folder)
    paths = sorted(world.pictures.iterdir())
    data = [path.read_bytes() for path in paths]
    for path, other in zip(paths, data[1:] + data[:1], strict=True):
        path.write_bytes(other)
    with pytest.raises(
        InputError, match=r"the file of 'image\d\d' is not the file that they were made from .*--corpus"
    ):
        world.extract(shard_size=4)
    with pytest.raises(InputError, match=r"the file of 'image\d\d' is not the file that they were made from"):
        world.extract(shard_size=5)  # with this shard size no shard is done yet
    for path in paths:
        path.rename(path.with_stem("x" + path.stem))
    with pytest.raises(InputError, match=r"features of other images, e\.g\. 'image\d\d': .*--corpus"):
        world.extract(shard_size=4)
    assert tree(store.folder) == before


def test_a_part_that_was_deleted_is_made_again(world: World) -> None:
    """A deleted part is extracted again, even the only one, where no other part shows which images the store has."""
    store = world.extract(shard_size=100)
    before = tree(store.folder)
    store.part_paths[0].unlink()
    assert tree(world.extract(shard_size=100).folder) == before


def test_bad_images_are_rows(world: World) -> None:
    """An image that does not decode and an image with features that are not finite become failure rows with a
    reason."""
    (world.pictures / "bad.png").write_bytes(b"<html>")
    world.add("nan", 255)
    store = world.extract()
    assert len(store) == 40
    failures = {failure.item_id: failure for failure in store.failures()}
    assert failures.keys() == {"bad", "nan"}
    assert (failures["bad"].stage, failures["bad"].error) == ("decode", "UnidentifiedImageError")
    assert failures["nan"].stage == "features"


def test_a_thousand_bad_images_among_a_thousand_good_ones(world: World) -> None:
    """Among a thousand good images, a thousand bad ones become failure rows with a reason; above the limit the job ends
    with CoverageError, and the features are kept."""
    good = (world.pictures / "image00.png").read_bytes()
    damage: list[Callable[[bytes], bytes]] = [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"GIF89a" + b[6:]]
    for number in range(960):
        (world.pictures / f"more{number}.png").write_bytes(good)
    for number in range(1000):
        (world.pictures / f"bad{number}.png").write_bytes(damage[number % 3](good))
    store = world.extract(shard_size=500, batch_size=100)
    failures = store.failures()
    assert (len(store), len(failures)) == (1000, 1000)
    assert all(failure.item_id.startswith("bad") and failure.message for failure in failures)
    with pytest.raises(CoverageError, match=r"1,000 images quarantined, more than the 999 allowed"):
        world.extract(shard_size=500, batch_size=100, max_failures=999)
    assert len(world.extract(shard_size=500, batch_size=100, max_failures=1000)) == 1000


def test_a_shard_of_bad_images_only_is_finished(world: World) -> None:
    """A corpus without one good image is no success, but its store is complete and has the reason for each image."""
    shutil.rmtree(world.pictures)
    world.pictures.mkdir()
    for name in ("a", "b"):
        (world.pictures / f"{name}.jpg").touch()
    for _ in range(2):  # a second run must give the same error
        with pytest.raises(CoverageError, match=r"none of 2 images has features; a: ") as refused:
            world.extract()
    store = FeatureStore.open(str(refused.value).partition(":")[0])
    assert (len(store), len(store.failures())) == (0, 2)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("pool", [INLINE, PoolConfig(workers=1)])
def test_what_is_no_file_costs_its_row(world: World, pool: PoolConfig) -> None:
    """A link to a device, a pipe, nothing or itself, a huge file and a Git LFS pointer each cost one row, stop no
    worker, and change no other image's features."""
    without = world.extract("without")
    os.mkfifo(world.pictures / "pipe.png")
    (world.pictures / "huge.png").touch()
    os.truncate(world.pictures / "huge.png", 1 << 40)
    (world.pictures / "pointer.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    for name, target in {"zero": "/dev/zero", "piped": "pipe.png", "self": "self.png", "nothing": "nowhere"}.items():
        (world.pictures / f"{name}.png").symlink_to(target)
    store = world.extract("with", pool=pool)
    assert {failure.item_id: failure.message for failure in store.failures()} == {
        "huge": "huge.png has 1,099,511,627,776 bytes, more than the limit of 536,870,912",
        "nothing": "nothing.png is a link to nothing",
        "pipe": "pipe.png is a pipe, not a file",
        "piped": "piped.png is a pipe, not a file",
        "pointer": f"pointer.png is {lfs.REASON}",
        "self": "self.png is a link that leads to itself, not a file",
        "zero": "zero.png is a device, not a file",
    }
    assert sorted(store.image_ids) == sorted(without.image_ids)
    for image_id in store.image_ids:
        np.testing.assert_array_equal(store.fetch(image_id).features, without.fetch(image_id).features)


def test_an_image_that_is_a_device_now_is_another(world: World) -> None:
    """A finished store is refused where its images were replaced by devices, because that is another corpus."""
    world.extract()
    for path in world.pictures.iterdir():
        path.unlink()
        path.symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"the file of 'image\d+' is not the file that they were made from"):
        world.extract()


@pytest.mark.parametrize("target", ["/dev/zero", "pipe", "nowhere", "image01.json"])
def test_boxes_that_are_no_file_cost_their_row(world: World, target: str) -> None:
    """A boxes file that leads to a device, a pipe, nothing or itself is the failure of its image alone."""
    for image in list_images(world.pictures, "none").values():
        height, width, _ = read_image(image)[0].shape
        boxes = json.dumps({"boxes": [], "width": width, "height": height})
        Path(image.path).with_suffix(".json").write_text(boxes)
    os.mkfifo(world.pictures / "pipe")
    (world.pictures / "image01.json").unlink()
    (world.pictures / "image01.json").symlink_to(target)
    store = world.extract(boxes="beside")
    (failure,) = store.failures()
    assert (failure.item_id, len(store)) == ("image01", 39)
    assert failure.message.startswith("image01.json ")


def test_an_image_whose_reading_ends_the_process_is_a_row(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image from a table or a bucket that ends the process while it is read becomes one failure row, because each
    trial of the search for it reads only that trial's images."""
    monkeypatch.setattr(scheduler, "START_WAIT", 0.0)

    def deadly(images: Sequence[Image]) -> list[Image]:
        if "image07" in {image.image_id for image in images}:
            raise LostError("the worker's process ended")
        return fetch(images)

    monkeypatch.setattr("visualbert_core.features.worker.fetch", deadly)
    store = world.extract()
    assert [failure.item_id for failure in store.failures()] == ["image07"]
    assert len(store) == 39


def test_large_features_are_clamped(world: World) -> None:
    """A finite value above float16's range becomes the largest float16, never infinity."""
    world.add("large", 254)
    features = world.extract().fetch("large").features
    assert features[:, 0].tolist() == [65504.0, 65504.0]


def test_given_boxes_are_used(world: World) -> None:
    """With given boxes, the regions are the whole image and these boxes, and a missing or wrong file is one failure."""
    for image in list_images(world.pictures, "none").values():
        height, width, _ = read_image(image)[0].shape
        boxes = {"boxes": [[1, 1, 3, 3, 0.9]], "width": width, "height": height}
        Path(image.path).with_suffix(".json").write_text(json.dumps(boxes))
    (world.pictures / "image00.json").unlink()
    (world.pictures / "image01.json").write_text('{"boxes": [], "width": 99, "height": 99}')
    detected, given = world.extract(), world.extract(boxes="beside")
    assert given.folder != detected.folder
    assert given.fetch("image02").boxes[1].tolist() == [1, 1, 3, 3]
    assert given.fetch("image02").num_regions == 2
    reasons = {failure.item_id: failure.message for failure in given.failures()}
    assert reasons["image00"] == "image00.json is missing: it must hold the boxes of its image"
    assert reasons["image01"] == "image01.png is 6 × 8, but its boxes are for an image of 99 × 99"


def load_naming(folder: str | Path, device: str | None = None, precision: str = "float32") -> PixelDetector:
    """Load a detector with attributes: each region's rank, with a score of 0.5."""

    class HasLabelNames(PixelDetector):
        def detect(self, images: Sequence[np.ndarray], boxes: Sequence[np.ndarray] | None = None) -> list[Detection]:
            found = super().detect(images, boxes)
            ranks = [np.arange(len(detection.boxes)) for detection in found]
            return [replace(d, attributes=r, attribute_scores=r * 0 + 0.5) for d, r in zip(found, ranks, strict=True)]

    return HasLabelNames(folder)


def test_attributes_are_kept(world: World) -> None:
    """Attributes are stored as int16 and their scores as float32, and rows of a detector without them have None."""
    row = world.extract(load=load_naming).fetch("image03")
    assert row.attributes is not None
    assert row.attribute_scores is not None
    assert (row.attributes.tolist(), row.attributes.dtype) == ([0, 1, 2], np.int16)
    assert (row.attribute_scores.tolist(), row.attribute_scores.dtype) == ([0.5, 0.5, 0.5], np.float32)
    assert world.extract("plain").fetch("image03").attributes is None


def test_a_file_out_of_reach_stops_the_job(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that the disk no longer gives, directly or through a link, is no bad image: its shard fails, other
    shards are kept, and the same line completes the job once the disk is back."""
    monkeypatch.setattr(scheduler, "RETRY_WAITS", (0.0, 0.0))
    link, disk = world.pictures / "image05.png", world.root / "disk"
    disk.mkdir()
    link.rename(disk / "image05.png")
    link.symlink_to(disk / "image05.png")

    def unmount(folder: str | Path, device: str | None = None, precision: str = "float32") -> PixelDetector:
        if disk.exists():
            disk.rename(world.root / "away")
        return PixelDetector(folder)

    with pytest.raises(ShardError, match=r"1 shard.*FileNotFoundError.*image05\.png"):
        world.extract(load=unmount)
    parts, markers = (len(list(world.root.rglob(pattern))) for pattern in ("parts/*", "shards/*"))
    assert parts == markers > 0
    (world.root / "away").rename(disk)
    assert len(world.extract()) == 40
    assert len(list(world.root.rglob("parts/*"))) == parts + 1


def test_limit_takes_the_first_images(world: World) -> None:
    """A limit gives a store of exactly the first ids."""
    assert sorted(world.extract(limit=3).image_ids) == ["image00", "image01", "image02"]


def test_the_next_batches_are_decoded_meanwhile(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker reads the next batches while the detector works, up to a bound: this detector waits for them, so a
    worker that does not read ahead fails."""
    read, enough = [], threading.Event()

    def reading(image: Image) -> tuple[np.ndarray, str]:
        read.append(image.image_id)
        if len(read) >= 3:
            enough.set()
        return read_image(image)

    class Waiting(PixelDetector):
        def detect(self, images: Sequence[np.ndarray], boxes: Sequence[np.ndarray] | None = None) -> list[Detection]:
            assert enough.wait(600)
            seen.append(len(read))
            return super().detect(images, boxes)

    seen: list[int] = []
    monkeypatch.setattr("visualbert_core.features.worker.read_image", reading)
    world.extract(batch_size=1, shard_size=40, load=lambda folder, *_, **__: Waiting(folder))
    assert all(count <= done + 1 + AHEAD for done, count in enumerate(seen))


def test_the_clock_knows_every_stage(world: World) -> None:
    """The worker's clock measures a time above zero for each stage."""
    detector = load(world.detector)
    images = list_images(world.pictures)
    worker = FeatureWorker(world.detector, world.root / "store", full_fingerprint(detector, "none"), 4, load)
    for shard in plan_images(images, images.ids, "salt", 10):
        worker.run(shard)
    assert min(worker.clock.seconds.values()) > 0
    assert worker.clock.seconds.keys() >= {"decode", "detect", "encode", "commit"}


def test_large_images_share_a_batch_with_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is bounded in pixels but has at least one image, and its members depend on the shard alone."""
    monkeypatch.setattr("visualbert_core.features.worker.BATCH_PIXELS", 100)
    shapes = {
        Image(name, name): shape for name, shape in (("a", (5, 10)), ("b", (20, 10)), ("c", (5, 10)), ("d", None))
    }
    shapes |= {Image(name, name): (5, 10) for name in "efg"} | {Image("h", "h"): (20, 10)}
    found = [[image.image_id for image in batch] for batch in _batches(shapes, 8)]
    assert found == [["a", "c"], ["e", "f"], ["g"], ["b"], ["h"], ["d"]]


def test_precision_is_a_store_of_its_own(world: World) -> None:
    """The loader receives the precision, and another precision gives another fingerprint and store."""

    def precise(folder: str | Path, device: str | None = None, precision: str = "float32") -> PixelDetector:
        detector, own = PixelDetector(folder), {} if precision == "float32" else {"precision": precision}
        detector.fingerprint = lambda: {"versions": {"torch": "1"}} | own  # type: ignore[method-assign]
        return detector

    full, low = (world.extract(load=precise, precision=name) for name in ("float32", "bfloat16"))
    assert full.folder == world.extract().folder
    assert low.folder != full.folder


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("pool", [INLINE, PoolConfig(workers=1)])
def test_a_smaller_gpu_gives_the_same_bytes(world: World, pool: PoolConfig) -> None:
    """A batch that exceeds the GPU's memory is halved until it fits, and the store has the same bytes."""
    reference = tree(world.extract("large", batch_size=8).folder)
    before = world.batches()
    assert tree(world.extract("small", batch_size=8, load=load_on_a_small_gpu, pool=pool).folder) == reference
    assert world.batches() - before >= 40 / 2


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("pool", [INLINE, PoolConfig(workers=1)])
def test_a_worker_with_another_detector_is_refused(world: World, pool: PoolConfig) -> None:
    """A worker whose libraries would give other features is refused before it computes one."""
    with pytest.raises(CheckpointError, match=r"differs from the detector of the job: versions\.torch: 1 → 0"):
        world.extract(load=load_otherwise, pool=pool)
    assert world.batches() == 0
