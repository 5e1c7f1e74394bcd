"""The canary: compares the features of images that were extracted again with those in a store.

Owns which differences count as drift. `drift.py` extracts the images.

Regions are matched by their boxes: greedily, the largest overlap first, and each region once. Overlaps that are equal
to three digits are matched in the order of the regions, so that the copies of a repeated box are matched in order.

The limits accept rounding, as between two CPUs or GPUs. With the detector of the synthetic data, weights that are off
by 0.1 % or rounded to bfloat16 pass. These changes fail: BGR in place of RGB, a side shorter by 2 %, suppression at 0.6
in place of 0.7, refined boxes in place of proposals, and another mean of the pixels. A setting that changes no region
of these images is not noticed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from visualbert_core.metrics.recall import box_iou
from visualbert_core.schema import Regions

INGREDIENT = "features"

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

Item = TypeVar("Item")


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


def spread(items: Sequence[Item], number: int) -> list[Item]:
    """Return `number` of the items at equal distances, or all items where there are fewer."""
    count = min(number, len(items))
    return [items[(2 * position + 1) * len(items) // (2 * count)] for position in range(count)]


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


def table(matches: Sequence[Match], name: str) -> list[str]:
    """Return the lines to log: for each number the median and the minimum with their limits, and the worst image."""
    lines = [f"canary: {len(matches)} images of {name} extracted anew"]
    lines.append(f"{'':8}{'median':>10}{'limit':>8}{'minimum':>10}{'limit':>8}  worst image")
    for number, limit, median, worst, image_id in _summaries(matches):
        lines.append(f"{number:8}{median:10.5f}{limit.median:8}{worst:10.5f}{limit.every:8}  {image_id}")
    return lines


def drift(matches: Sequence[Match]) -> list[str]:
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
