"""The drift check: does a detector still give the features that a store holds?

Owns which store a detector is compared with. The check runs before an extraction, or alone on a finished store. The
images take the same way as in every extraction: decoding, detector and encoding on a worker of the pool. Their part
comes back to the driver, where `canary.py` compares it with the store. Nothing is written to the folder of the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from visualbert_core.config import DriftConfig, ExtractConfig
from visualbert_core.corpus.listing import list_images
from visualbert_core.detector import load_detector
from visualbert_core.engine.pool import Pool
from visualbert_core.engine.shards import FileDigest, Marker, Part, ShardFolder
from visualbert_core.errors import DriftError, InputError
from visualbert_core.features import canary
from visualbert_core.features.extract import ExtractionPlan, PrefetchingWorker
from visualbert_core.features.store import FeatureStore
from visualbert_core.features.worker import FeatureWorker, ImageShard, LoadDetector, full_fingerprint, plan_images
from visualbert_core.io import storage
from visualbert_core.io.locations import Location
from visualbert_core.printable import logger
from visualbert_core.schema import Image

INGREDIENT = "features"

_LOG = logger(__name__)

CANARY_SHARD = 8  # images; small, so that several workers share the canary


def check_plan(plan: ExtractionPlan, config: DriftConfig, pool: Pool) -> None:
    """Extract `config.canary` images of a store again and compare the features. Do nothing where it is None.

    The store is `config.canary_store`, or else the store that an earlier run of the plan has left. Raise DriftError
    where the features differ. Raise InputError where an image has changed, or where there is nothing to compare.
    """
    if config.canary is None:
        return
    held = _resumed(plan, config.canary) if config.canary_store is None else FeatureStore.open(config.canary_store)
    _check(held, config.canary, plan.images, plan.make_worker, plan.fingerprint, pool)


def check_store(
    store: str | Location, images: Location, detector: Path, number: int, pool: Pool, load: LoadDetector = load_detector
) -> None:
    """Extract `number` images of a finished store again and compare the features.

    The precision and the boxes are those of the store's fingerprint. Raise DriftError where the features differ. Raise
    InputError where an image has changed, or where there is nothing to compare.
    """
    held = FeatureStore.open(store)
    load = partial(load, precision=held.fingerprint.get("precision", "float32"))
    boxes = held.fingerprint.get("given_boxes", "none")
    found = list_images(images, boxes)
    detector = detector.absolute()
    fingerprint = full_fingerprint(load(detector, "cpu"), boxes)
    make_worker = partial(FeatureWorker, detector, held.folder, fingerprint, ExtractConfig.batch_size, load)
    _check(held, number, found, make_worker, fingerprint, pool)


def _check(
    store: FeatureStore,
    number: int,
    images: Mapping[str, Image],
    make_worker: Callable[[], FeatureWorker],
    fingerprint: dict[str, Any],
    pool: Pool,
) -> None:
    """Extract `number` images of `store` again, spread over its ids, and log how similar the features are."""
    name = str(store.folder)
    known = [image_id for image_id in store.image_ids if image_id in images]
    if not known or number < 1:
        raise InputError(
            f"the canary has nothing to compare: it is to take {number} of {len(known)} images that are both in {name} "
            "and in this corpus; check --images"
        )
    if gone := [image_id for image_id in store.image_ids if image_id not in images]:
        counts = f"{len(gone):,} of the {len(store):,} images of {name}"
        _LOG.warning("canary: %s are not in this corpus, the first %r", counts, gone[0])
    if fingerprint["feature_size"] != store.feature_size:
        raise DriftError(
            f"the detector gives {fingerprint['feature_size']}-d features, but {name} holds {store.feature_size}-d "
            "features: name the detector that made the store"
        )
    shards = plan_images(images, canary.spread(known, number), "canary", CANARY_SHARD)
    with TemporaryDirectory() as folder:
        again = _extract(shards, make_worker, fingerprint, pool, ShardFolder(folder))
        unreadable = again.failures()
        pairs = list(zip(store.fetch_many(again.image_ids), again.scan(), strict=True))
    changed = [now.image_id for then, now in pairs if then.image_digest not in ("", now.image_digest)]
    matches = [canary.compare(then, now) for then, now in pairs if now.image_id not in changed]
    for line in canary.table(matches, name) if matches else ():
        _LOG.info(line)
    if drift := canary.drift(matches):
        raise DriftError(f"the detector does not give the features of {name}: {'; '.join(drift)}")
    if changed:
        others = f" and {len(changed) - 1} more of {len(pairs)}" if changed[1:] else ""
        raise InputError(
            f"the file of image {changed[0]!r}{others} has changed since {name} was made (its digest differs): "
            "restore the file, or delete the store"
        )
    if unreadable:
        first = unreadable[0]
        raise InputError(f"image {first.item_id!r} has features in {name}, but none now: {first.message}")


@dataclass(frozen=True)
class MarkerWithPart(Marker):
    """A marker that also carries the part, so that the part travels from the worker to the driver."""

    content: Part


class DryRunWorker:
    """A worker that computes a part and publishes nothing."""

    def __init__(self, make_worker: Callable[[], FeatureWorker]) -> None:
        self.worker = make_worker()

    def run(self, shard: ImageShard) -> Marker:
        part = self.worker.compute(shard)
        return MarkerWithPart(shard.shard_id, part.rows, part.failed, FileDigest.of(part.data), None, part)


def _extract(
    shards: Sequence[ImageShard],
    make_worker: Callable[[], FeatureWorker],
    fingerprint: dict[str, Any],
    pool: Pool,
    folder: ShardFolder,
) -> FeatureStore:
    """Compute the shards on the pool, commit them to `folder` in this process, and open it as a store."""
    by_id = {shard.shard_id: shard for shard in shards}
    for marker in pool.run(partial(PrefetchingWorker, partial(DryRunWorker, make_worker)), shards, "canary"):
        assert isinstance(marker, MarkerWithPart)
        folder.commit(by_id[marker.shard_id], marker.content)
    folder.finish(shards, {"fingerprint": fingerprint})
    return FeatureStore.open(folder.root)


def _resumed(plan: ExtractionPlan, number: int) -> FeatureStore:
    """Open what an earlier run has left: finished shards of this plan, or else a finished store of other shards.

    Raise InputError where an earlier run has finished no shard.
    """
    folder = plan.folder
    if plan.done:
        return FeatureStore.of_committed(folder, canary.spread(plan.done, number), plan.fingerprint)
    if storage.size(folder.manifest_path) is not None:
        return FeatureStore.open(folder.root)
    raise InputError(
        f"the canary has nothing to compare: no shard of {folder.root} is finished; name another store with "
        "--canary-store, or start without --canary"
    )
