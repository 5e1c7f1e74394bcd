"""The drift check: does a detector give the features that a store holds? It runs before an extraction, or by itself.

Owns which store an extraction is compared with. How the features are compared stands in `canary.py`.
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
    """Extract `config.canary` images anew that a store holds, and compare; does nothing where that is None.

    The store is `config.canary_store`, or else what an earlier run of the plan has left. Raises DriftError where the
    features differ, InputError where there is nothing to compare.
    """
    if config.canary is None:
        return
    held = _resumed(plan, config.canary) if config.canary_store is None else FeatureStore.open(config.canary_store)
    canary.check(held, config.canary, _extraction(plan.images, plan.make_worker, plan.fingerprint), pool)


def check_store(
    store: str | Location, images: Location, detector: Path, number: int, pool: Pool, load: LoadDetector = load_detector
) -> None:
    """Extract `number` images of a finished store anew and compare. Raises DriftError, InputError."""
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
    plan_some = partial(plan_images, images, salt="canary", target=CANARY_SHARD)
    rehearsal = partial(PrefetchingWorker, partial(canary.DryRunWorker, make_worker))
    return canary.Extraction(images, plan_some, rehearsal, fingerprint)


def _resumed(plan: ExtractionPlan, number: int) -> FeatureStore:
    """Open what an earlier run has left: some of the plan's shards, or else a manifest over others."""
    folder = plan.folder
    if plan.done:
        return FeatureStore.of_committed(folder, canary.spread(plan.done, number), plan.fingerprint)
    if storage.size(folder.manifest_path) is not None:
        return FeatureStore.open(folder.root)
    raise InputError(
        f"the canary has nothing to compare: no shard of {folder.root} is done; name another store with "
        "--canary-store, or start without --canary"
    )
