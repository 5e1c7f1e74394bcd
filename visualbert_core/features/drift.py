"""The drift check: does a detector still give the features that a store holds?

Owns which store a detector is compared with. The check runs before an extraction, or alone on a finished store.
`canary.py` compares the features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from visualbert_core.config import DriftConfig, ExtractConfig
from visualbert_core.corpus.listing import list_images
from visualbert_core.detector import load_detector
from visualbert_core.engine.pool import Pool
from visualbert_core.errors import InputError
from visualbert_core.features import canary
from visualbert_core.features.extract import ExtractionPlan, PrefetchingWorker
from visualbert_core.features.store import FeatureStore
from visualbert_core.features.worker import FeatureWorker, LoadDetector, full_fingerprint, plan_images
from visualbert_core.io import storage
from visualbert_core.io.locations import Location
from visualbert_core.schema import Image

INGREDIENT = "features"

CANARY_SHARD = 8  # images; small, so that several workers share the canary


def check_plan(plan: ExtractionPlan, config: DriftConfig, pool: Pool) -> None:
    """Extract `config.canary` images of a store again and compare the features. Do nothing where it is None.

    The store is `config.canary_store`, or else the store that an earlier run of the plan has left. Raise DriftError
    where the features differ. Raise InputError where an image has changed, or where there is nothing to compare.
    """
    if config.canary is None:
        return
    held = _resumed(plan, config.canary) if config.canary_store is None else FeatureStore.open(config.canary_store)
    canary.check(held, config.canary, _extraction(plan.images, plan.make_worker, plan.fingerprint), pool)


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
    canary.check(held, number, _extraction(found, make_worker, fingerprint), pool)


def _extraction(
    images: Mapping[str, Image], make_worker: Callable[[], FeatureWorker], fingerprint: dict[str, Any]
) -> canary.Extraction:
    """Describe an extraction for the canary, with workers that publish nothing."""
    plan_some = partial(plan_images, images, salt="canary", target=CANARY_SHARD)
    rehearsal = partial(PrefetchingWorker, partial(canary.DryRunWorker, make_worker))
    return canary.Extraction(images, plan_some, rehearsal, fingerprint)


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
