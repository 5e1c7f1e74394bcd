"""The worker of an extraction: it turns a shard of images into a part of a feature store.

Owns which images share a batch, and what happens to an image that fails. A batch holds images of one shape, in the
order of the shard's ids, so a part depends only on its shard. A bad image becomes a failure row; a file that cannot be
reached stops the shard. The detector owns everything about pixels and boxes.

The stages overlap. Threads decode the next batches while the detector computes a batch, and threads round its results
to float16. A part is encoded, hashed and written while the detector serves the worker's other shard.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import PIL

from visualbert_core.corpus.images import DecodeError, fetch, image_shape, read_boxes, read_image, read_objects
from visualbert_core.detector import Detection, Detector, ObjectEncoder, load_detector
from visualbert_core.engine.hardware import halving_on_memory_error
from visualbert_core.engine.shards import LazyTuple, Marker, Part, Shard, ShardFolder, plan
from visualbert_core.errors import CheckpointError
from visualbert_core.features.parts import Outcome, encode_outcomes, to_half
from visualbert_core.io.locations import Location
from visualbert_core.provenance import differences
from visualbert_core.schema import Failure, GivenObjects, Image, Regions

INGREDIENT = "features"

DECODERS = 4  # threads per shard
AHEAD = 2  # batches of a shard that are decoded while the detector computes a batch
BATCH_PIXELS = 1 << 26  # per batch, so that a shard holds at most 800 MB of pixels, or four images if these are larger


LoadDetector = Callable[..., Detector]
"""`detector.load_detector`, or a function of a test with the same parameters."""


@dataclass(frozen=True)
class ImageShard(Shard):
    """A shard with its images, which say where they lie. `images` are in the order of `items`."""

    images: Sequence[Image]


def plan_images(images: Mapping[str, Image], image_ids: Sequence[str], salt: str, target: int) -> list[ImageShard]:
    """Cut some of the images into shards (see `shards.plan`).

    The `Image` objects of a shard are made when the shard is sent to a worker, to save the driver's memory.
    """
    return [
        ImageShard(shard.shard_id, shard.items, LazyTuple(len(shard.items), partial(_look_up, images, shard.items)))
        for shard in plan(image_ids, salt, target)
    ]


def _look_up(images: Mapping[str, Image], image_ids: Sequence[str]) -> tuple[Image, ...]:
    return tuple(images[image_id] for image_id in image_ids)


@dataclass(frozen=True)
class _Loaded:
    """A decoded image: its pixels uint8 [H, W, 3], the boxes or objects that were given with it, and its digest."""

    image: Image
    pixels: np.ndarray
    given: np.ndarray | GivenObjects | None
    digest: str


class Clock:
    """The seconds that each stage has taken so far, summed over all threads:

    decode    reading and decoding files
    wait      waiting for the next decoded batch of the shard
    turn      waiting with a decoded batch for the detector, which serves the worker's other shard
    detect    running the detector
    rows      rounding to float16
    encode    encoding and hashing the part in memory
    commit    writing the part to the disk or the object store
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("decode", "wait", "turn", "detect", "rows", "encode", "commit"), 0.0)
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[stage] += time.perf_counter() - start


def full_fingerprint(detector: Detector, boxes: str) -> dict[str, Any]:
    """Return the fingerprint that names the folder of a store.

    It has the detector's fingerprint, its space and D, the version of the image decoder, and whether boxes are given.
    """
    return {
        **detector.fingerprint(),
        "pillow": PIL.__version__,
        "space": detector.space,
        "feature_size": detector.feature_size,
        "given_boxes": boxes,
    }


class FeatureWorker:
    """Hold a detector, and turn shards of images into committed parts.

    Several threads may call `run`: the detector serves one batch at a time, and everything else overlaps. `clock`
    counts the seconds of each stage. Raise CheckpointError where this detector's fingerprint differs from the one that
    the driver has computed, for example because of other versions or files on this machine.
    """

    def __init__(
        self,
        detector_folder: str | Path,
        store: str | Location,
        fingerprint: dict[str, Any],
        batch_size: int,
        load: LoadDetector = load_detector,
    ) -> None:
        self.detector = load(detector_folder, None)
        self.folder = ShardFolder(store)
        self.fingerprint = fingerprint
        self.batch_size = batch_size
        self.lock = threading.Lock()
        self.clock = Clock()
        if found := differences(fingerprint, full_fingerprint(self.detector, fingerprint["given_boxes"])):
            raise CheckpointError(
                f"{detector_folder}: the detector of this worker differs from the detector of the job: {found[0]}; "
                "give every machine the same files and versions"
            )

    def run(self, shard: ImageShard) -> Marker:
        """Compute and commit one shard. Raise OSError where a file cannot be reached, and what the detector raises."""
        part = self.compute(shard)
        with self.clock("commit"):
            return self.folder.commit(shard, part)

    def compute(self, shard: ImageShard) -> Part:
        """Compute one shard, and publish nothing."""
        found: list[Future[dict[str, Outcome]]] = []
        outcomes: dict[str, Outcome] = {**shard.lost()}
        # An actor has two shards at a time, so these images arrive while the detector computes the other shard.
        images = fetch([image for image in shard.images if image.image_id not in outcomes])
        with ThreadPoolExecutor(DECODERS) as threads:
            for answers in self._decoded(threads, images):
                outcomes |= {answer.item_id: answer for answer in answers if isinstance(answer, Failure)}
                if batch := [answer for answer in answers if isinstance(answer, _Loaded)]:
                    about = [(loaded.image.image_id, loaded.pixels.shape, loaded.digest) for loaded in batch]
                    found.append(threads.submit(self._rows, about, halving_on_memory_error(self._detect, batch)))
        for future in found:
            outcomes |= future.result()
        ordered = [outcomes[item] for item in shard.items]
        with self.clock("encode"):
            return encode_outcomes(ordered, self.fingerprint)

    def _decoded(self, threads: ThreadPoolExecutor, images: Sequence[Image]) -> Iterator[list[_Loaded | Failure]]:
        """Yield the decoded batches of a shard, while the threads decode the next ones."""
        with self.clock("wait"):
            shapes = dict(zip(images, threads.map(_shape, images), strict=True))
        batches, coming = _batches(shapes, self.batch_size), deque[list[Future[_Loaded | Failure]]]()
        while True:
            for batch in islice(batches, 1 + AHEAD - len(coming)):
                coming.append([threads.submit(self._load, image, shapes[image]) for image in batch])
            if not coming:
                return
            with self.clock("wait"):
                answers = [future.result() for future in coming.popleft()]
            yield answers

    def _detect(self, batch: Sequence[_Loaded]) -> list[Detection]:
        """Run the detector on a batch of one shape, alone on the device."""
        pixels = [loaded.pixels for loaded in batch]
        objects = [loaded.given for loaded in batch if isinstance(loaded.given, GivenObjects)]
        boxes = [loaded.given for loaded in batch if isinstance(loaded.given, np.ndarray)] or None
        with self.clock("turn"):
            self.lock.acquire()  # not `with`, so that the wait and the computation are timed apart
        try:
            with self.clock("detect"):
                if objects and isinstance(self.detector, ObjectEncoder):
                    return self.detector.encode(pixels, objects)
                return self.detector.detect(pixels, boxes)
        finally:
            self.lock.release()

    def _rows(
        self, about: Sequence[tuple[str, tuple[int, ...], str]], detections: Sequence[Detection]
    ) -> dict[str, Outcome]:
        """Return the outcome of each image. `about` has its id, its shape and its digest, so no pixels are held."""
        with self.clock("rows"):
            return {each[0]: to_regions(*each, found) for each, found in zip(about, detections, strict=True)}

    def _load(self, image: Image, shape: tuple[int, int] | None) -> _Loaded | Failure:
        """Decode an image and read its boxes. Return a failure where the bytes, the size or the boxes are wrong."""
        name = PurePosixPath(image.path).name
        given: np.ndarray | GivenObjects | None = None
        boxes = None
        try:
            with self.clock("decode"):
                pixels, digest = read_image(image)
                height, width = pixels.shape[:2]
                if (height, width) != shape:
                    raise DecodeError(f"{name} decodes to {width} × {height}, but its header says otherwise")
                if image.boxes_path is not None and isinstance(self.detector, ObjectEncoder):
                    given = read_objects(image.boxes_path, self.detector.classes)
                    boxes = given.boxes
                elif image.boxes_path is not None:
                    given = boxes = read_boxes(image.boxes_path)
            if boxes is not None and boxes[0].tolist() != [0, 0, width, height]:
                theirs = "{:g} × {:g}".format(*boxes[0, 2:])
                raise DecodeError(f"{name} is {width} × {height}, but its boxes are for an image of {theirs}")
        except DecodeError as error:
            return Failure(image.image_id, "decode", type(error.__cause__ or error).__name__, str(error))
        return _Loaded(image, pixels, given, digest)


def _shape(image: Image) -> tuple[int, int] | None:
    """Return (H, W) of an image, or None where its header cannot be read; `_load` says later what is wrong."""
    try:
        return image_shape(image)
    except DecodeError:
        return None


def _batches(shapes: dict[Image, tuple[int, int] | None], size: int) -> Iterator[list[Image]]:
    """Yield batches of at most `size` images of one shape, smaller ones where the images are large."""
    groups: dict[tuple[int, int] | None, list[Image]] = {}
    for image, shape in shapes.items():
        groups.setdefault(shape, []).append(image)
    for shape, group in groups.items():
        members = iter(group)
        most = size if shape is None else min(size, BATCH_PIXELS // (shape[0] * shape[1]))
        while batch := list(islice(members, max(1, most))):
            yield batch


def to_regions(image_id: str, shape: Sequence[int], digest: str, detection: Detection) -> Outcome:
    """Turn the detection of an image, whose shape begins with (H, W), into a row of a store.

    Return a failure where a number of it is not finite.
    """
    for name in ("features", "boxes", "scores"):
        if not np.isfinite(getattr(detection, name)).all():
            return Failure(image_id, "features", "NotFinite", f"the detector's {name} hold NaN or infinity")
    return Regions(
        image_id=image_id,
        width=shape[1],
        height=shape[0],
        boxes=detection.boxes.astype(np.float32),
        labels=detection.labels.astype(np.int16),
        scores=detection.scores.astype(np.float32),
        features=to_half(detection.features),
        image_digest=digest,
        attributes=None if detection.attributes is None else detection.attributes.astype(np.int16),
        attribute_scores=None if detection.attribute_scores is None else detection.attribute_scores.astype(np.float32),
    )
