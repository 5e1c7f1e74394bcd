"""The parity canary: does this detector give the features of that store? Some images extracted anew, and compared.

Owns what counts as the same. The images go the way of every extraction (decoding, detector and encoding on a worker of
the pool), but their part comes back to the driver, which holds it against the store region by region. Nothing of it is
written to the store's root.

Regions are matched by their boxes: greedily, the best overlap first, each region once; overlaps that are equal to three
digits in the order of the regions, so that boxes that come twice meet their own twins.

The limits let rounding through, as of another CPU or GPU. With the embedded world's detector, weights that are off by
0.1 % or rounded to bfloat16 pass; BGR, a side shorter by 2 %, a suppression at 0.6 in place of 0.7, refined boxes in
place of proposals and another mean are stopped. A setting that changes no region of these images goes unseen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from visualbert_core.engine.pool import Pool
from visualbert_core.engine.shards import FileDigest, Marker, Part, Shard, ShardFolder
from visualbert_core.engine.worker_process import Worker
from visualbert_core.errors import DriftError, InputError
from visualbert_core.features.store import FeatureStore
from visualbert_core.metrics.recall import box_iou
from visualbert_core.schema import Regions

INGREDIENT = "features"

_LOG = logging.getLogger(__name__)

MATCH_IOU = 0.9
"""Least overlap of two boxes that count as one region."""


class Limit(NamedTuple):
    """What the median image and every image must reach."""

    median: float
    every: float


LIMITS = {
    "matched": Limit(0.95, 0.5),
    "cosine": Limit(0.995, 0.95),
    "length": Limit(0.98, 0.9),
    "labels": Limit(0.9, 0.5),
}
"""For each number of a `Match`."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Match:
    """How far the regions of one image are those of the store: all of it is 1; NaN where there is nothing to hold
    against each other."""

    image_id: str
    matched: float
    """Regions that have a partner, of the larger of the two numbers of regions."""
    cosine: float
    """Mean over the partners of the cosine between their features."""
    length: float
    """Mean over the partners of the shorter over the longer of their features."""
    labels: float
    """Share of the partners with equal labels, of those for which the store has one."""


class Extractor(Protocol):
    """The worker of an extraction, as far as it matters here: it commits to `folder`."""

    folder: ShardFolder

    def run(self, shard: Any) -> Marker: ...


@dataclass(frozen=True)
class Extraction:
    """What would be run: shards of some of its images, workers for them, and the fingerprint of their features."""

    images: Collection[str]
    plan: Callable[[Sequence[str]], Sequence[Shard]]
    make_worker: Callable[[], Worker[Any]]
    """Of a `DryRunWorker`."""
    fingerprint: dict[str, Any]


def check(store: FeatureStore, number: int, extraction: Extraction, pool: Pool) -> None:
    """Extract `number` images of `store`, spread over its ids, anew and log how they compare.

    Raises DriftError where the features are not the store's, InputError where files of images are not what they were,
    or where there is nothing to compare.
    """
    name, here = str(store.folder), extraction.images
    known = [image_id for image_id in store.image_ids if image_id in here]
    if not known or number < 1:
        raise InputError(f"the canary has nothing to compare: {number} of {len(known)} images that {name} has of these")
    if gone := [image_id for image_id in store.image_ids if image_id not in here]:
        counts = f"{len(gone):,} of the {len(store):,} images of {name}"
        _LOG.warning("canary: %s are not in this corpus, the first %r", counts, gone[0])
    size = extraction.fingerprint["feature_size"]
    if size != store.feature_size:
        raise DriftError(f"the detector gives {size}-d features, {name} holds {store.feature_size}-d ones")
    with TemporaryDirectory() as folder:
        again = _extract(extraction, spread(known, number), pool, ShardFolder(folder))
        unreadable = again.failures()
        pairs = list(zip(store.fetch_many(again.image_ids), again.scan(), strict=True))
    changed = [now.image_id for then, now in pairs if then.image_digest not in ("", now.image_digest)]
    matches = [compare(then, now) for then, now in pairs if now.image_id not in changed]
    if matches:
        for line in table(matches, name):
            _LOG.info(line)
    if drift := _drift(matches):
        raise DriftError(f"the detector does not give the features of {name}: {'; '.join(drift)}")
    if changed:
        others = f" and {len(changed) - 1} more of {len(pairs)}" if changed[1:] else ""
        raise InputError(
            f"the file of image {changed[0]!r}{others} has changed since {name} was made (its digest differs): "
            "bring it back, or delete the store"
        )
    if unreadable:
        first = unreadable[0]
        raise InputError(f"image {first.item_id!r}, which is in {name}, has no features now: {first.message}")


def spread(items: Sequence[Item], number: int) -> list[Item]:
    """`number` of the items at equal distances; all where they are fewer."""
    count = min(number, len(items))
    return [items[(2 * position + 1) * len(items) // (2 * count)] for position in range(count)]


def compare(then: Regions, now: Regions) -> Match:
    """The same image in the store and extracted anew."""
    pairs = _partners(then.boxes, now.boxes)
    most = max(then.num_regions, now.num_regions)
    matched = len(pairs) / most if most else 1.0
    if not pairs:
        return Match(then.image_id, matched, np.nan, np.nan, np.nan)
    ours, theirs = np.array(pairs).T
    a, b = then.features[ours].astype(np.float64), now.features[theirs].astype(np.float64)
    lengths = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    both_zero = (lengths[0] == 0) & (lengths[1] == 0)
    with np.errstate(invalid="ignore"):
        cosines = np.where(both_zero, 1, np.nan_to_num((a * b).sum(1) / (lengths[0] * lengths[1])))
        ratios = np.where(both_zero, 1, np.minimum(*lengths) / np.maximum(*lengths))
    labelled = then.labels[ours] >= 0
    equal = (then.labels[ours] == now.labels[theirs])[labelled]
    labels = float(equal.mean()) if labelled.any() else np.nan
    return Match(then.image_id, matched, float(cosines.mean()), float(ratios.mean()), labels)


def table(matches: Sequence[Match], name: str) -> list[str]:
    """What is logged: of each number the median, the minimum, their limits and the worst image."""
    lines = [f"canary: {len(matches)} images of {name} extracted anew"]
    lines.append(f"{'':8}{'median':>10}{'limit':>8}{'minimum':>10}{'limit':>8}  worst image")
    for number, limit in LIMITS.items():
        if (found := _summary(matches, number)) is not None:
            median, worst, image_id = found
            lines.append(f"{number:8}{median:10.5f}{limit.median:8}{worst:10.5f}{limit.every:8}  {image_id}")
    return lines


def _drift(matches: Sequence[Match]) -> list[str]:
    """A phrase for each number that is under a limit."""
    found = []
    for number, limit in LIMITS.items():
        median, worst, image_id = _summary(matches, number) or (1.0, 1.0, "")
        if median < limit.median or worst < limit.every:
            found.append(
                f"{number} {worst:.4f} in the worst image {image_id!r} (at least {limit.every}), {median:.4f} in the "
                f"median (at least {limit.median})"
            )
    return found


def _summary(matches: Sequence[Match], number: str) -> tuple[float, float, str] | None:
    """Median, minimum and its image; None where no image has this number."""
    values = {match.image_id: getattr(match, number) for match in matches}
    known = {image_id: value for image_id, value in values.items() if not np.isnan(value)}
    if not known:
        return None
    worst = min(known, key=known.__getitem__)
    return float(np.median(list(known.values()))), known[worst], worst


def _partners(then: np.ndarray, now: np.ndarray) -> list[tuple[int, int]]:
    """Rows of the one and the other that are the same region."""
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


# ---------------------------------------------------------------------------------------------------------------------
# the way there and back


@dataclass(frozen=True)
class MarkerWithPart(Marker):
    """A marker that has the part itself with it."""

    content: Part


class InMemoryFolder(ShardFolder):
    """Where a worker's part is handed back instead of being published."""

    def commit(self, shard: Shard, part: Part) -> Marker:
        return MarkerWithPart(shard.shard_id, part.rows, part.failed, FileDigest.of(part.data), None, part)


class DryRunWorker:
    """A worker that publishes nothing."""

    def __init__(self, make_worker: Callable[[], Extractor]) -> None:
        self.worker = make_worker()
        self.worker.folder = InMemoryFolder(self.worker.folder.root)

    def run(self, shard: Shard) -> Marker:
        return self.worker.run(shard)


def _extract(extraction: Extraction, image_ids: Sequence[str], pool: Pool, folder: ShardFolder) -> FeatureStore:
    """A store of these images in `folder`."""
    shards = extraction.plan(image_ids)
    by_id = {shard.shard_id: shard for shard in shards}
    for marker in pool.run(extraction.make_worker, shards, "canary"):
        assert isinstance(marker, MarkerWithPart)
        folder.commit(by_id[marker.shard_id], marker.content)
    folder.finish(shards, {"fingerprint": extraction.fingerprint})
    return FeatureStore.open(folder.root)
