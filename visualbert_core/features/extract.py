"""images → feature store: the worker that turns a shard of images into a part, and the job that runs it over a corpus.

Owns which images share a batch and what becomes of one that fails. Batches hold images of one shape, cut from the
shard in the order of its ids, so what a part contains depends on nothing but the shard. A bad image is a failure row;
a file that cannot be reached stops the shard. Everything about pixels and boxes belongs to the detector.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from visualbert_core import storage
from visualbert_core.cluster import Pool, Worker
from visualbert_core.config import ExtractConfig
from visualbert_core.corpus import corpus_name, list_images
from visualbert_core.detector import Detection, Detector, ObjectEncoder, load_detector
from visualbert_core.errors import CheckpointError, ConfigError, CoverageError, InputError
from visualbert_core.features import canary
from visualbert_core.features.store import FeatureStore, encode, encode_failures, store_folder
from visualbert_core.images import DecodeError, fetch, image_shape, read_boxes, read_image, read_objects
from visualbert_core.provenance import differences, digest_json
from visualbert_core.schema import SCHEMA_VERSION, Failure, GivenObjects, Image, Regions
from visualbert_core.shards import Marker, Part, Shard, ShardFolder, plan, publish

DECODERS = 4  # threads per shard
CANARY_SHARD = 8  # images; small, so that several workers share the canary
HALF_MAX = float(np.finfo(np.float16).max)

LoadDetector = Callable[[str | Path, str | None], Detector]


@dataclass(frozen=True)
class ImageShard(Shard):
    """A shard of images that knows where they lie; `images` are in the order of `items`."""

    images: tuple[Image, ...]


@dataclass(frozen=True)
class _Loaded:
    image: Image
    pixels: np.ndarray
    given: np.ndarray | GivenObjects | None
    digest: str


def extract(config: ExtractConfig, pool: Pool, load: LoadDetector = load_detector) -> FeatureStore:
    """Fill `<out>/<corpus>/<fingerprint>/` with the features of a folder of images and open it.

    Run the same line again to resume; a finished store is opened at once. Images that cannot be decoded are counted
    in the store's manifest and listed by `FeatureStore.failures`.

    Raises InputError for a corpus without images, ConfigError for a detector that needs boxes and is given none,
    CheckpointError for a detector that does not load, DriftError where the canary finds other features and InputError
    where it has nothing to compare, both before anything is written, ShardError where a shard could not be computed,
    CoverageError for more failed images than `max_failures`.
    """
    if config.canary_store is not None and config.canary is None:
        raise ConfigError("canary_store needs to be told how many images of it to extract: add --canary N")
    images = {image.image_id: image for image in list_images(config.images, config.boxes)[: config.limit]}
    detector, out = config.detector.absolute(), storage.absolute(config.out)  # workers may stand elsewhere
    corpus = config.corpus or corpus_name(config.images)
    probe = load(detector, "cpu")
    if config.boxes == "none" and isinstance(probe, ObjectEncoder):
        raise ConfigError(f"{config.detector} finds no objects, it encodes given ones: add --boxes beside")
    fingerprint = full_fingerprint(probe, config.boxes)
    folder = ShardFolder(store_folder(out, corpus, fingerprint))
    shards = _shards(images, list(images), f"{SCHEMA_VERSION}:{digest_json(fingerprint)}", config.shard_size)
    make_worker = partial(FeatureWorker, detector, folder.root, fingerprint, config.batch_size, load)
    if config.canary is not None:
        extraction = _extraction(images, make_worker, fingerprint)
        if config.canary_store is None:
            held = _resumed(folder, shards, fingerprint, config.canary)
        else:
            held = FeatureStore.open(config.canary_store)
        canary.check(held, config.canary, extraction, pool)
    publish(folder.root / "fingerprint.json", json.dumps(fingerprint, indent=1, sort_keys=True).encode())
    pool.run(partial(_Fetching, make_worker), folder.pending(shards), f"features of {corpus}")
    folder.finish(shards, {"corpus": corpus, "fingerprint": fingerprint})
    store = FeatureStore.open(folder.root)
    failed = len(store.failures())
    if config.max_failures is not None and failed > config.max_failures:
        raise CoverageError(
            f"{folder.root}: {failed:,} images quarantined, more than the {config.max_failures:,} allowed; the others' "
            "features are kept"
        )
    return store


def check(
    store: str | Path, images: Path, detector: Path, number: int, pool: Pool, load: LoadDetector = load_detector
) -> None:
    """Extract `number` images of a finished store anew and compare (see `canary`). Raises DriftError, InputError."""
    held = FeatureStore.open(store)
    boxes = held.fingerprint.get("given_boxes", "none")
    found = {image.image_id: image for image in list_images(images, boxes)}
    detector = detector.absolute()
    fingerprint = full_fingerprint(load(detector, "cpu"), boxes)
    make_worker = partial(FeatureWorker, detector, held.folder, fingerprint, ExtractConfig.batch_size, load)
    canary.check(held, number, _extraction(found, make_worker, fingerprint), pool)


def _extraction(
    images: Mapping[str, Image], make_worker: Callable[[], FeatureWorker], fingerprint: dict[str, Any]
) -> canary.Extraction:
    plan_some = partial(_shards, images, salt="canary", target=CANARY_SHARD)
    rehearsal = partial(_Fetching, partial(canary.Rehearsal, make_worker))
    return canary.Extraction(images, plan_some, rehearsal, fingerprint)


def _resumed(
    folder: ShardFolder, shards: Sequence[ImageShard], fingerprint: dict[str, Any], number: int
) -> FeatureStore:
    """What a run over `shards` finds done: some of its shards, or else an earlier run's manifest over others."""
    if markers := folder.committed(shards):
        return FeatureStore.of_committed(folder, canary.spread(markers, number), fingerprint)
    if storage.size(folder.manifest_path) is not None:
        return FeatureStore.open(folder.root)
    raise InputError(
        f"the canary has nothing to compare: no shard of {folder.root} is done; name another store with "
        "--canary-store, or start without --canary"
    )


def _shards(images: Mapping[str, Image], image_ids: Sequence[str], salt: str, target: int) -> list[ImageShard]:
    return [
        ImageShard(shard.shard_id, shard.items, tuple(images[item] for item in shard.items))
        for shard in plan(image_ids, salt, target)
    ]


def full_fingerprint(detector: Detector, boxes: str) -> dict[str, Any]:
    """What names a store's folder: the detector's own fingerprint, its space and D, and whether boxes were given."""
    return {
        **detector.fingerprint(),
        "space": detector.space,
        "feature_size": detector.feature_size,
        "given_boxes": boxes,
    }


class _Fetching:
    """A worker that gets its shards' images with the bytes of those that lie in tables or object stores. As two shards
    are in flight, the next one's arrive while this one is computed."""

    def __init__(self, make_worker: Callable[[], Worker[ImageShard]]) -> None:
        self.worker = make_worker()

    def run(self, shard: ImageShard) -> Marker:
        return self.worker.run(replace(shard, images=tuple(fetch(shard.images))))


class FeatureWorker:
    """Holds a detector and turns shards of images into committed parts. `run` may be called from several threads:
    reading and writing overlap, the detector serves one batch at a time.

    Raises CheckpointError where the detector loads here to something else than the driver's.
    """

    def __init__(
        self,
        detector_folder: str | Path,
        store: str | Path,
        fingerprint: dict[str, Any],
        batch_size: int,
        load: LoadDetector = load_detector,
    ) -> None:
        self.detector = load(detector_folder, None)
        self.folder = ShardFolder(store)
        self.fingerprint = fingerprint
        self.batch_size = batch_size
        self.lock = threading.Lock()
        if found := differences(fingerprint, full_fingerprint(self.detector, fingerprint["given_boxes"])):
            raise CheckpointError(f"{detector_folder}: this worker's detector differs from the job's: {found[0]}")

    def run(self, shard: ImageShard) -> Marker:
        """Compute and commit one shard. Raises OSError for files that cannot be reached, and what the detector does."""
        outcomes: dict[str, Regions | Failure] = {}
        with ThreadPoolExecutor(DECODERS) as threads:
            shapes = dict(zip(shard.images, threads.map(_shape, shard.images), strict=True))
            for batch in _batches(shapes, self.batch_size):
                answers = list(threads.map(self._load, batch, [shapes[image] for image in batch]))
                outcomes |= {answer.item_id: answer for answer in answers if isinstance(answer, Failure)}
                outcomes |= self._detect([answer for answer in answers if isinstance(answer, _Loaded)])
        ordered = [outcomes[item] for item in shard.items]
        rows = [row for row in ordered if isinstance(row, Regions)]
        failures = [failure for failure in ordered if isinstance(failure, Failure)]
        part = Part(encode(rows, self.fingerprint), len(rows), encode_failures(failures), len(failures))
        return self.folder.commit(shard, part)

    def _detect(self, batch: Sequence[_Loaded]) -> dict[str, Regions | Failure]:
        if not batch:
            return {}
        pixels = [loaded.pixels for loaded in batch]
        objects = [loaded.given for loaded in batch if isinstance(loaded.given, GivenObjects)]
        boxes = [loaded.given for loaded in batch if isinstance(loaded.given, np.ndarray)] or None
        with self.lock:
            if objects and isinstance(self.detector, ObjectEncoder):
                detections = self.detector.encode(pixels, objects)
            else:
                detections = self.detector.detect(pixels, boxes)
        pairs = zip(batch, detections, strict=True)
        return {loaded.image.image_id: _row(loaded, detection) for loaded, detection in pairs}

    def _load(self, image: Image, shape: tuple[int, int] | None) -> _Loaded | Failure:
        name = Path(image.path).name
        try:
            pixels, digest = read_image(image)
            height, width = pixels.shape[:2]
            if (height, width) != shape:
                raise DecodeError(f"{name} decodes to {width} × {height}, but its header says otherwise")
            given = None if image.boxes_path is None else self._read_given(image.boxes_path)
            boxes = given.boxes if isinstance(given, GivenObjects) else given
            if boxes is not None and boxes[0].tolist() != [0, 0, width, height]:
                theirs = "{:g} × {:g}".format(*boxes[0, 2:])
                raise DecodeError(f"{name} is {width} × {height}, but its boxes are for {theirs}")
        except DecodeError as error:
            return Failure(image.image_id, "decode", type(error.__cause__ or error).__name__, str(error))
        return _Loaded(image, pixels, given, digest)

    def _read_given(self, path: str) -> np.ndarray | GivenObjects:
        if isinstance(self.detector, ObjectEncoder):
            return read_objects(path, self.detector.classes)
        return read_boxes(path)


def _shape(image: Image) -> tuple[int, int] | None:
    """None for a file without a readable header: `_load` will say what is wrong with it."""
    try:
        return image_shape(image)
    except DecodeError:
        return None


def _batches(shapes: dict[Image, tuple[int, int] | None], size: int) -> Iterator[list[Image]]:
    groups: dict[tuple[int, int] | None, list[Image]] = {}
    for image, shape in shapes.items():
        groups.setdefault(shape, []).append(image)
    for group in groups.values():
        members = iter(group)
        while batch := list(islice(members, size)):
            yield batch


def _row(loaded: _Loaded, detection: Detection) -> Regions | Failure:
    image_id = loaded.image.image_id
    if not np.isfinite(detection.features).all():
        return Failure(image_id, "features", "NotFinite", "the detector's features hold NaN or infinity")
    height, width = loaded.pixels.shape[:2]
    return Regions(
        image_id=image_id,
        width=width,
        height=height,
        boxes=detection.boxes.astype(np.float32),
        labels=detection.labels.astype(np.int16),
        scores=detection.scores.astype(np.float32),
        features=detection.features.clip(-HALF_MAX, HALF_MAX).astype(np.float16),
        image_digest=loaded.digest,
        attributes=None if detection.attributes is None else detection.attributes.astype(np.int16),
        attribute_scores=None if detection.attribute_scores is None else detection.attribute_scores.astype(np.float32),
    )
