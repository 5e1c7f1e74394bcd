"""Extract features: run the workers of `worker.py` over a corpus and fill a feature store.

Owns the plan of an extraction, the order of its steps, and the reasons to end it with an error. One of them: the store
that a run would continue was made from other images. Running the same line again computes only the shards that are
left.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from visualbert_core.config import ExtractConfig
from visualbert_core.corpus.images import DecodeError, fetch, identify
from visualbert_core.corpus.listing import Corpus, corpus_name, list_images
from visualbert_core.detector import Detector, HasLabelNames, ObjectEncoder, load_detector
from visualbert_core.engine.pool import Pool
from visualbert_core.engine.shards import Marker, ShardFolder, publish
from visualbert_core.errors import ConfigError, CoverageError, InputError, StoreError
from visualbert_core.features import label_names as names
from visualbert_core.features.store import FeatureStore, store_folder
from visualbert_core.features.worker import FeatureWorker, ImageShard, LoadDetector, full_fingerprint, plan_images
from visualbert_core.io import storage
from visualbert_core.io.locations import Location, absolute
from visualbert_core.provenance import digest_json
from visualbert_core.schema import SCHEMA_VERSION, Image

INGREDIENT = "features"

PARTS, IMAGES = 4, 8  # the parts whose digests `_check_images` reads; the images of these parts that it hashes

_OTHERWISE = "give these images a different corpus name (--corpus), or delete that folder"

Item = TypeVar("Item")


@dataclass(frozen=True)
class ExtractionPlan:
    """An extraction before it runs."""

    corpus: str
    every: Corpus
    """All images of the corpus."""
    images: Corpus
    """The images to extract: all, or the first `limit`."""
    detector: Detector
    """The detector on this process's CPU. It only answers for its properties; every worker loads the detector again."""
    fingerprint: dict[str, Any]
    folder: ShardFolder
    shards: Sequence[ImageShard]
    done: Sequence[Marker]
    """The markers of the shards that an earlier run has finished."""
    make_worker: Callable[[], FeatureWorker]
    max_failures: int | None


def extract(config: ExtractConfig, pool: Pool, load: LoadDetector = load_detector) -> FeatureStore:
    """Fill `<out>/<corpus>/<fingerprint>/` with the features of a corpus, and open it as a store.

    Running the same line again resumes the work; a finished store opens at once. The manifest counts the images that
    cannot be decoded, and `FeatureStore.failures` lists them. Raise what `plan_extraction` and `run_extraction` raise.
    """
    return run_extraction(plan_extraction(config, load), pool)


def plan_extraction(config: ExtractConfig, load: LoadDetector = load_detector) -> ExtractionPlan:
    """List the images, load the detector and cut the corpus into shards. Write nothing.

    Raise InputError where the corpus has no images, ConfigError where the detector needs boxes and gets none,
    CheckpointError where the detector does not load.
    """
    load = partial(load, precision=config.precision)
    every = list_images(config.images, config.boxes)
    images = every.first(config.limit)
    detector, out = config.detector.absolute(), absolute(config.out)  # workers may have another working folder
    corpus = config.corpus or corpus_name(config.images)
    probe = load(detector, "cpu")
    if config.boxes == "none" and isinstance(probe, ObjectEncoder):
        raise ConfigError(f"{config.detector} finds no objects, it encodes given objects: add --boxes beside")
    fingerprint = full_fingerprint(probe, config.boxes)
    folder = ShardFolder(store_folder(out, corpus, fingerprint))
    shards = plan_images(images, images.ids, f"{SCHEMA_VERSION}:{digest_json(fingerprint)}", config.shard_size)
    make_worker = partial(FeatureWorker, detector, folder.root, fingerprint, config.batch_size, load)
    done = folder.committed(shards)
    return ExtractionPlan(
        *(corpus, every, images, probe, fingerprint, folder, shards, done, make_worker, config.max_failures)
    )


def run_extraction(plan: ExtractionPlan, pool: Pool) -> FeatureStore:
    """Compute the shards that are left, and open the finished store.

    Raise InputError, before anything is written, where the store was made from other images. Raise ShardError where a
    shard cannot be computed. Raise CoverageError where more than `max_failures` images fail, or all images fail.
    """
    folder, fingerprint = plan.folder, plan.fingerprint
    _check_images(folder, plan.done or _earlier(folder), plan.every)
    publish(folder.root / "fingerprint.json", json.dumps(fingerprint, indent=1, sort_keys=True).encode())
    if isinstance(plan.detector, HasLabelNames):
        names.write(folder.root, fingerprint, plan.detector.names)
    known = {marker.shard_id for marker in plan.done}
    left = [shard for shard in plan.shards if shard.shard_id not in known]
    pool.run(plan.make_worker, left, f"features of {plan.corpus}")
    folder.finish(plan.shards, {"corpus": plan.corpus, "fingerprint": fingerprint})
    store = FeatureStore.open_made(folder.root)
    failed = len(store.failures())
    if plan.max_failures is not None and failed > plan.max_failures:
        raise CoverageError(
            f"{folder.root}: {failed:,} images quarantined, more than the {plan.max_failures:,} allowed; the features "
            "of the other images are kept; mend the images and delete that folder, or raise --max-failures"
        )
    return store


def _earlier(folder: ShardFolder) -> Sequence[Marker]:
    """Return the shards of a finished run that cut its images differently, such as one with another `limit`."""
    with suppress(StoreError):  # the run is unfinished, or a part is missing and is about to be computed again
        return folder.read_manifest().shards
    return ()


def _check_images(folder: ShardFolder, done: Sequence[Marker], corpus: Mapping[str, Image]) -> None:
    """Compare images of committed shards with the images of the same ids in `corpus`.

    The folder of a store names the recipe and the corpus, not the pictures. This check takes milliseconds, and finds a
    different corpus of the same name. To find one edited image among many, use `--canary N` with a large N.
    """
    digests: dict[str, str] = {}
    for marker in spread([marker for marker in done if marker.rows], PARTS):
        digests |= _digests(folder.part_path(marker.shard_id))
    common = [image_id for image_id in digests if image_id in corpus]
    if digests and not common:
        stranger = next(iter(digests))
        raise InputError(f"{folder.root} holds the features of other images, e.g. {stranger!r}: {_OTHERWISE}")
    for image in fetch([corpus[image_id] for image_id in spread(common, IMAGES)]):
        digest = None
        with suppress(DecodeError):  # it has no bytes now, such as a link to a device
            digest, _ = identify(image)
        if digests[image.image_id] not in ("", digest):
            raise InputError(
                f"{folder.root} holds the features of other images: the file of {image.image_id!r} is not the file "
                f"that they were made from ({image.path}, its digest differs); restore it, or else {_OTHERWISE}"
            )


def _digests(path: Location) -> dict[str, str]:
    """Return the digest of every image in a part, by image id."""
    try:
        with pq.ParquetFile(storage.opened(path), page_checksum_verification=True) as file:
            table = file.read(["image_id", "image_digest"], use_threads=False)
    except (OSError, pa.ArrowInvalid) as error:
        raise StoreError(f"{path} is damaged ({error}): delete it and run the line again that wrote it") from None
    return dict(zip(table["image_id"].to_pylist(), table["image_digest"].to_pylist(), strict=True))


def spread(items: Sequence[Item], number: int) -> list[Item]:
    """Return `number` of the items at equal distances, or all items where there are fewer."""
    count = min(number, len(items))
    return [items[(2 * position + 1) * len(items) // (2 * count)] for position in range(count)]
