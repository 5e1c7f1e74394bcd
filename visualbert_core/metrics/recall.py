"""Intersection over union (IoU) of boxes, recall@k, pointing, and the recall that a random ranking would have.

Two definitions of the area of a box are in use. By default it is (x2 - x1)(y2 - y1), as in BAN, in VisualBERT, and in
`Flickr30kEntitiesRecallEvaluator` of github.com/ashkamath/mdetr at ea09acc4. With `inclusive`, x2 and y2 are the last
pixel inside, so every side is longer by 1, as in `getIOU.m` of github.com/BryanPlummer/pl-clc at 41ee4934. Tests
compare this file with the output of the programs of MDETR and pl-clc. In both definitions a candidate is a hit where
its IoU with *any* given gold box is at least 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np

IOU_THRESHOLD = 0.5


def box_iou(boxes: np.ndarray, others: np.ndarray, inclusive: bool = False) -> np.ndarray:
    """Return the IoU, float64 [N, M], of boxes [N, 4] and others [M, 4], both xyxy.

    A box without area and an inverted box overlap nothing: their IoU is 0. Where the union is 0, too, as for two boxes
    without area, it is NaN as in MDETR. With `inclusive` it is then 0, as in pl-clc.
    """
    boxes, others = np.asarray(boxes, np.float64), np.asarray(others, np.float64)
    extra = float(inclusive)
    with np.errstate(all="ignore"):  # a division by zero gives the NaN of MDETR, without NumPy's warning
        top_left = np.maximum(boxes[:, None, :2], others[None, :, :2])
        bottom_right = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
        intersection = (bottom_right - top_left + extra).clip(min=0).prod(axis=2)
        union = _area(boxes, extra)[:, None] + _area(others, extra)[None, :] - intersection
        iou: np.ndarray = intersection / union
    return np.where(intersection > 0, iou, 0.0) if inclusive else iou


def _area(boxes: np.ndarray, extra: float) -> np.ndarray:
    width_height = boxes[:, 2:] - boxes[:, :2] + extra
    return np.asarray(width_height.prod(axis=1))


def enclosing(boxes: np.ndarray) -> np.ndarray:
    """Return the smallest box around all of boxes [B, 4], B >= 1, as [1, 4]."""
    return np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])[None]


def overlaps(ranked: np.ndarray, gold: np.ndarray, inclusive: bool = False) -> np.ndarray:
    """Return the best IoU, float64 [N], of each candidate [N, 4] with any gold box [M, 4], M >= 1."""
    return np.asarray(box_iou(ranked, gold, inclusive).max(axis=1))


def hits(ranked: np.ndarray, gold: np.ndarray, inclusive: bool = False) -> np.ndarray:
    """Return which ranked candidates [N, 4] match any gold box [M, 4]: bool [N]. An IoU of exactly 0.5 is a hit."""
    return overlaps(ranked, gold, inclusive) >= IOU_THRESHOLD


def region_shares(regions: np.ndarray, gold: Sequence[np.ndarray]) -> np.ndarray:
    """Return the target of a phrase grounding: float32 [K, R], for K phrases with `gold` boxes [M, 4] each.

    Row k gives the same share of 1 to each of the `regions` [R, 4] that hits phrase k. A row without a hit is zero.
    """
    rows = np.zeros((len(gold), len(regions)), np.float32)
    for row, boxes in zip(rows, gold, strict=True):
        if len(regions) and len(boxes):
            hit = hits(regions, np.asarray(boxes, np.float64).reshape(-1, 4))
            row[:] = hit / np.float32(max(int(hit.sum()), 1))
    return rows


def points(ranked: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Return which of the candidates [N, 4] have their centre in any gold box [M, 4], or on its edge: bool [N]."""
    with np.errstate(all="ignore"):
        centre = (ranked[:, None, :2] + ranked[:, None, 2:]) / 2  # [N, 1, 2]
    return np.asarray(((gold[:, :2] <= centre) & (centre <= gold[:, 2:])).all(axis=2).any(axis=1))


def recall(overlap: np.ndarray, k: int | None) -> float:
    """Return 1.0 where one of the first k `overlaps` is a hit, or else 0.0. With k None all count: the upper bound."""
    # As in MDETR, the maximum counts. It is NaN where one of the first k is NaN, and then there is no hit.
    first = overlap[:k]
    return float(len(first) > 0 and first.max() >= IOU_THRESHOLD)


def chance_recall(hit: np.ndarray, k: int) -> float:
    """Return the expected `recall` at k of the same candidates in random order: 1 - C(misses, k) / C(N, k)."""
    k = min(k, len(hit))
    return 1.0 - comb(len(hit) - int(hit.sum()), k) / comb(len(hit), k)
