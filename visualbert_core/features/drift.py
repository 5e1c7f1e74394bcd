"""The drift check, or canary: extract a few images again, and compare the features with those in a store.

Owns which store a detector is compared with, and which differences count as drift. The check runs before an extraction,
or alone on a finished store. The images take the same way as in every extraction: decoding, detector and encoding on a
worker of the pool. Their part comes back to the driver, which compares it with the store. Nothing is written to the
folder of the store.

Regions are matched by their boxes: greedily, the largest overlap first, and each region once. Overlaps that are equal
to three digits are matched in the order of the regions, so that the copies of a repeated box are matched in order.

The limits accept rounding, as between two CPUs or GPUs. With the detector of the synthetic data, weights that are off
by 0.1 % or rounded to bfloat16 pass. These changes fail: BGR in place of RGB, a side shorter by 2 %, suppression at 0.6
in place of 0.7, refined boxes in place of proposals, and another mean of the pixels. A setting that changes no region
of these images is not noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from visualbert_core.config import DriftConfig, ExtractConfig
from visualbert_core.corpus.listing import list_images
from visualbert_core.detector import load_detector
from visualbert_core.engine.pool import Pool
from visualbert_core.engine.shards import FileDigest, Marker, Part, ShardFolder
from visualbert_core.errors import DriftError, InputError
from visualbert_core.features.extract import ExtractionPlan, spread
from visualbert_core.features.store import FeatureStore
from visualbert_core.features.worker import FeatureWorker, ImageShard, full_fingerprint, plan_images
from visualbert_core.io import storage
from visualbert_core.io.locations import Location
from visualbert_core.metrics.recall import box_iou
from visualbert_core.printable import logger
from visualbert_core.schema import Image, Regions

INGREDIENT = "features"

_LOG = logger(__name__)

CANARY_SHARD = 8  # images; small, so that several workers share the canary
MATCH_IOU = 0.9
"""The smallest overlap (IoU) of two boxes that count as one region."""


class Limit(NamedTuple):
    """The smallest value that the median of the images, and every single image, may have."""

    median: float
    every: float


LIMITS = {
    "matched": Limit(0.95, 0.5),
    "cosine": Limit(0.995, 0.95),
    "length": Limit(0.98, 0.9),
    "labels": Limit(0.9, 0.5),
}
"""The limit of each number of a `Match`."""


@dataclass(frozen=True)
class Match:
    """How similar the regions of one image are to those in the store, from 0 to 1. NaN means nothing to compare."""

    image_id: str
    matched: float
    """The number of matched pairs, divided by the larger of the two numbers of regions."""
    cosine: float
    """The cosine between the features of a pair, as a mean over the pairs."""
    length: float
    """The shorter length of the two features of a pair, divided by the longer one, as a mean over the pairs."""
    labels: float
    """The share of pairs with equal labels, among the pairs for which the store has a label."""


def check_plan(plan: ExtractionPlan, config: DriftConfig, pool: Pool) -> None:
    """Extract `config.canary` images of a store again and compare the features. Do nothing where it is None.

    The store is `config.canary_store`, or else the store that an earlier run of the plan has left. Raise DriftError
    where the features differ. Raise InputError where an image has changed, or where there is nothing to compare.
    """
    if config.canary is None:
        return
    held = _resumed(plan, config.canary) if config.canary_store is None else FeatureStore.open(config.canary_store)
    _check(held, config.canary, plan.images, plan.make_worker, plan.fingerprint, pool)


def check_store(store: str | Location, images: Location, detector: Path, number: int, pool: Pool) -> None:
    """Extract `number` images of a finished store again and compare the features.

    The precision and the boxes are those of the store's fingerprint. Raise DriftError where the features differ. Raise
    InputError where an image has changed, or where there is nothing to compare.
    """
    held = FeatureStore.open(store)
    load = partial(load_detector, precision=held.fingerprint.get("precision", "float32"))
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
    shards = plan_images(images, spread(known, number), "canary", CANARY_SHARD)
    by_id = {shard.shard_id: shard for shard in shards}
    with TemporaryDirectory() as root:
        folder = ShardFolder(root)
        for marker in pool.run(partial(DryRunWorker, make_worker), shards, "canary"):
            assert isinstance(marker, MarkerWithPart)
            folder.commit(by_id[marker.shard_id], marker.content)
        folder.finish(shards, {"fingerprint": fingerprint})
        again = FeatureStore.open(root)
        unreadable = again.failures()
        pairs = list(zip(store.fetch_many(again.image_ids), again.scan(), strict=True))
    changed = [now.image_id for then, now in pairs if then.image_digest not in ("", now.image_digest)]
    matches = [compare(then, now) for then, now in pairs if now.image_id not in changed]
    for line in _table(matches, name) if matches else ():
        _LOG.info(line)
    if drift := _drift(matches):
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


def _resumed(plan: ExtractionPlan, number: int) -> FeatureStore:
    """Open what an earlier run has left: finished shards of this plan, or else a finished store of other shards."""
    folder = plan.folder
    if plan.done:
        return FeatureStore.of_committed(folder, spread(plan.done, number), plan.fingerprint)
    if storage.size(folder.manifest_path) is not None:
        return FeatureStore.open(folder.root)
    raise InputError(
        f"the canary has nothing to compare: no shard of {folder.root} is finished; name another store with "
        "--canary-store, or start without --canary"
    )


def compare(then: Regions, now: Regions) -> Match:
    """Compare the regions of an image in the store, `then`, with those extracted again, `now`."""
    pairs = _partners(then.boxes, now.boxes)
    most = max(then.num_regions, now.num_regions)
    matched = len(pairs) / most if most else 1.0
    if not pairs:
        return Match(then.image_id, matched, np.nan, np.nan, np.nan)
    ours, theirs = np.array(pairs).T
    a, b = then.features[ours].astype(np.float64), now.features[theirs].astype(np.float64)
    lengths = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    both_zero = (lengths[0] == 0) & (lengths[1] == 0)
    with np.errstate(invalid="ignore"):  # a feature of zeros gives 0/0; two such features count as equal
        cosines = np.where(both_zero, 1, np.nan_to_num((a * b).sum(1) / (lengths[0] * lengths[1])))
        ratios = np.where(both_zero, 1, np.minimum(*lengths) / np.maximum(*lengths))
    labelled = then.labels[ours] >= 0
    equal = (then.labels[ours] == now.labels[theirs])[labelled]
    labels = float(equal.mean()) if labelled.any() else np.nan
    return Match(then.image_id, matched, float(cosines.mean()), float(ratios.mean()), labels)


def _table(matches: Sequence[Match], name: str) -> list[str]:
    """Return the lines to log: for each number the median and the minimum with their limits, and the worst image."""
    lines = [f"canary: {len(matches)} images of {name} extracted anew"]
    lines.append(f"{'':8}{'median':>10}{'limit':>8}{'minimum':>10}{'limit':>8}  worst image")
    for number, limit, median, worst, image_id in _summaries(matches):
        lines.append(f"{number:8}{median:10.5f}{limit.median:8}{worst:10.5f}{limit.every:8}  {image_id}")
    return lines


def _drift(matches: Sequence[Match]) -> list[str]:
    """Return a phrase for each number that is below a limit."""
    return [
        f"{number} {worst:.4f} in the worst image {image_id!r} (at least {limit.every}), {median:.4f} in the median "
        f"(at least {limit.median})"
        for number, limit, median, worst, image_id in _summaries(matches)
        if median < limit.median or worst < limit.every
    ]


def _summaries(matches: Sequence[Match]) -> Iterator[tuple[str, Limit, float, float, str]]:
    """Yield each number that some image has, its limit, its median, its minimum, and the image of the minimum."""
    for number, limit in LIMITS.items():
        values = {match.image_id: getattr(match, number) for match in matches}
        known = {image_id: value for image_id, value in values.items() if not np.isnan(value)}
        if known:
            worst = min(known, key=known.__getitem__)
            yield number, limit, float(np.median(list(known.values()))), known[worst], worst


def _partners(then: np.ndarray, now: np.ndarray) -> list[tuple[int, int]]:
    """Return the pairs (row in `then`, row in `now`) that are the same region."""
    overlap = box_iou(then, now, inclusive=True).round(3)  # inclusive: a box without area overlaps itself
    rows, columns = np.nonzero(overlap >= MATCH_IOU)
    order = np.argsort(-overlap[rows, columns], kind="stable")
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in pairs and column not in taken:
            pairs[row] = column
            taken.add(column)
    return list(pairs.items())
