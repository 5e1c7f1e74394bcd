"""Boxes: intersection over union, recall@k, pointing, and what a random ranking would get.

Two ways to measure a box are in use. By default areas are (x2 - x1)(y2 - y1): BAN, VisualBERT and
`Flickr30kEntitiesRecallEvaluator` of github.com/ashkamath/mdetr at ea09acc4, against which it is tested. `inclusive`
takes x2 and y2 for the last pixel inside and adds 1 to every side: `getIOU.m` of github.com/BryanPlummer/pl-clc at
41ee4934. Either way a candidate is a hit if its IoU with *any* of the gold boxes it is given is at least 0.5.
"""

from __future__ import annotations

from math import comb

import numpy as np

IOU_THRESHOLD = 0.5


def box_iou(boxes: np.ndarray, others: np.ndarray, inclusive: bool = False) -> np.ndarray:
    """[N, 4] and [M, 4] xyxy → [N, M] float64.

    Boxes without area and inverted ones meet nothing: 0. Where the union comes to 0, too (two boxes without area),
    it is nan as in MDETR; `inclusive`, as in pl-clc, it is 0.
    """
    boxes, others = np.asarray(boxes, np.float64), np.asarray(others, np.float64)
    extra = float(inclusive)
    with np.errstate(all="ignore"):
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
    """The smallest box around all of [B, 4], B >= 1: [1, 4]."""
    return np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])[None]


def overlaps(ranked: np.ndarray, gold: np.ndarray, inclusive: bool = False) -> np.ndarray:
    """Each candidate's IoU with the gold box [M, 4], M >= 1, that it covers best: [N, 4] → float64 [N]."""
    return np.asarray(box_iou(ranked, gold, inclusive).max(axis=1))


def hits(ranked: np.ndarray, gold: np.ndarray, inclusive: bool = False) -> np.ndarray:
    """Which of the ranked candidates [N, 4] match any of the gold boxes [M, 4]: bool [N]. Exactly 0.5 is a hit."""
    return overlaps(ranked, gold, inclusive) >= IOU_THRESHOLD


def points(ranked: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Which of the candidates [N, 4] have their centre in any of the gold boxes [M, 4], edges included: bool [N]."""
    with np.errstate(all="ignore"):
        centre = (ranked[:, None, :2] + ranked[:, None, 2:]) / 2  # [N, 1, 2]
    return np.asarray(((gold[:, :2] <= centre) & (centre <= gold[:, 2:])).all(axis=2).any(axis=1))


def recall(overlap: np.ndarray, k: int | None) -> float:
    """1.0 if one of the first k `overlaps` is a hit (k None: any of them, the upper bound), else 0.0.

    It is their maximum that counts, so that a nan among the first k makes a miss of all, as in MDETR.
    """
    first = overlap[:k]
    return float(len(first) > 0 and first.max() >= IOU_THRESHOLD)


def chance_recall(hit: np.ndarray, k: int) -> float:
    """Expected `recall` at k if the same candidates were ranked at random: 1 - C(misses, k) / C(N, k)."""
    k = min(k, len(hit))
    return 1.0 - comb(len(hit) - int(hit.sum()), k) / comb(len(hit), k)
