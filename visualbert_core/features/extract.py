"""images → feature store: the job that runs workers (`worker.py`) over a corpus, and the canary before it.

Owns the plan, the order of the stages and what ends a run. The same line again finishes what is left.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from visualbert_core import storage
from visualbert_core.cluster import Pool
from visualbert_core.config import ExtractConfig
from visualbert_core.corpus import corpus_name, list_images
from visualbert_core.detector import Naming, ObjectEncoder, load_detector
from visualbert_core.errors import ConfigError, CoverageError, InputError, StoreError
from visualbert_core.features import canary, names
from visualbert_core.features.resume import check_images
from visualbert_core.features.store import FeatureStore, store_folder
from visualbert_core.features.worker import FeatureWorker, ImageShard, LoadDetector, full_fingerprint, plan_images
from visualbert_core.host import Worker
from visualbert_core.images import fetch
from visualbert_core.provenance import digest_json
from visualbert_core.schema import SCHEMA_VERSION, Image
from visualbert_core.shards import Marker, ShardFolder, publish

INGREDIENT = "features"

CANARY_SHARD = 8  # images; small, so that several workers share the canary


def extract(config: ExtractConfig, pool: Pool, load: LoadDetector = load_detector) -> FeatureStore:
    """Fill `<out>/<corpus>/<fingerprint>/` with the features of a folder of images and open it.

    Run the same line again to resume; a finished store is opened at once. Images that cannot be decoded are counted
    in the store's manifest and listed by `FeatureStore.failures`.

    Raises InputError for a corpus without images, ConfigError for a detector that needs boxes and is given none,
    CheckpointError for a detector that does not load; before anything is written, DriftError where the canary finds
    other features, InputError where it has nothing to compare or the store was made of other images; ShardError where
    a shard could not be computed, CoverageError for more failed images than `max_failures` or no others.
    """
    if config.canary_store is not None and config.canary is None:
        raise ConfigError("canary_store needs to be told how many images of it to extract: add --canary N")
    load = partial(load, precision=config.precision)
    every = list_images(config.images, config.boxes)
    images = every.first(config.limit)
    detector, out = config.detector.absolute(), storage.absolute(config.out)  # workers may stand elsewhere
    corpus = config.corpus or corpus_name(config.images)
    probe = load(detector, "cpu")
    if config.boxes == "none" and isinstance(probe, ObjectEncoder):
        raise ConfigError(f"{config.detector} finds no objects, it encodes given ones: add --boxes beside")
    fingerprint = full_fingerprint(probe, config.boxes)
    folder = ShardFolder(store_folder(out, corpus, fingerprint))
    shards = plan_images(images, images.ids, f"{SCHEMA_VERSION}:{digest_json(fingerprint)}", config.shard_size)
    make_worker = partial(FeatureWorker, detector, folder.root, fingerprint, config.batch_size, load)
    done = folder.committed(shards)
    if config.canary is not None:
        extraction = _extraction(images, make_worker, fingerprint)
        if config.canary_store is None:
            held = _resumed(folder, done, fingerprint, config.canary)
        else:
            held = FeatureStore.open(config.canary_store)
        canary.check(held, config.canary, extraction, pool)
    check_images(folder, done or _earlier(folder), every)
    publish(folder.root / "fingerprint.json", json.dumps(fingerprint, indent=1, sort_keys=True).encode())
    if isinstance(probe, Naming):
        names.write(folder.root, fingerprint, probe.names)
    known = {marker.shard_id for marker in done}
    left = [shard for shard in shards if shard.shard_id not in known]
    pool.run(partial(_Fetching, make_worker), left, f"features of {corpus}")
    folder.finish(shards, {"corpus": corpus, "fingerprint": fingerprint})
    store = FeatureStore.open_made(folder.root)
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
    load = partial(load, precision=held.fingerprint.get("precision", "float32"))
    boxes = held.fingerprint.get("given_boxes", "none")
    found = list_images(images, boxes)
    detector = detector.absolute()
    fingerprint = full_fingerprint(load(detector, "cpu"), boxes)
    make_worker = partial(FeatureWorker, detector, held.folder, fingerprint, ExtractConfig.batch_size, load)
    canary.check(held, number, _extraction(found, make_worker, fingerprint), pool)


def _earlier(folder: ShardFolder) -> Sequence[Marker]:
    """The shards of a finished run over other images, or other shards of the same."""
    with suppress(StoreError):  # unfinished, or with parts that are missing and about to be made again
        return folder.read_manifest().shards
    return ()


def _extraction(
    images: Mapping[str, Image], make_worker: Callable[[], FeatureWorker], fingerprint: dict[str, Any]
) -> canary.Extraction:
    plan_some = partial(plan_images, images, salt="canary", target=CANARY_SHARD)
    rehearsal = partial(_Fetching, partial(canary.Rehearsal, make_worker))
    return canary.Extraction(images, plan_some, rehearsal, fingerprint)


def _resumed(folder: ShardFolder, done: Sequence[Marker], fingerprint: dict[str, Any], number: int) -> FeatureStore:
    """What a run finds done: some of its shards, or else an earlier run's manifest over others."""
    if done:
        return FeatureStore.of_committed(folder, canary.spread(done, number), fingerprint)
    if storage.size(folder.manifest_path) is not None:
        return FeatureStore.open(folder.root)
    raise InputError(
        f"the canary has nothing to compare: no shard of {folder.root} is done; name another store with "
        "--canary-store, or start without --canary"
    )


class _Fetching:
    """A worker that gets its shards' images with the bytes of those that lie in tables or object stores. As two shards
    are in flight, the next one's arrive while this one is computed."""

    def __init__(self, make_worker: Callable[[], Worker[ImageShard]]) -> None:
        self.worker = make_worker()

    def run(self, shard: ImageShard) -> Marker:
        lost = set(shard.quarantined)  # reading them may be what ends a process
        asked = [image for image in shard.images if image.image_id not in lost]
        return self.worker.run(replace(shard, images=tuple(fetch(asked))))
