"""Boxes: intersection over union, hits under the any-box protocol, recall@k, and what a random ranking would get.

The any-box protocol (BAN, VisualBERT, MDETR's "separate"): a candidate is a hit if its IoU with *any* gold box of the
phrase is at least 0.5; areas are (x2 - x1)(y2 - y1), without + 1. Tested against `Flickr30kEntitiesRecallEvaluator` of
github.com/ashkamath/mdetr at ea09acc4.
"""

from __future__ import annotations

from math import comb

import numpy as np

IOU_THRESHOLD = 0.5


def box_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[N, 4] and [M, 4] xyxy → [N, M] float64. Boxes without area meet nothing: 0, or nan against another such box."""
    boxes, others = np.asarray(boxes, np.float64), np.asarray(others, np.float64)
    top_left = np.maximum(boxes[:, None, :2], others[None, :, :2])
    bottom_right = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    intersection = (bottom_right - top_left).clip(min=0).prod(axis=2)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou: np.ndarray = intersection / (_area(boxes)[:, None] + _area(others)[None, :] - intersection)
    return iou


def _area(boxes: np.ndarray) -> np.ndarray:
    width_height = boxes[:, 2:] - boxes[:, :2]
    return np.asarray(width_height.prod(axis=1))


def hits(ranked: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Which of the ranked candidates [N, 4] match any of the gold boxes [M, 4]: bool [N]. Exactly 0.5 is a hit."""
    return np.asarray((box_iou(ranked, gold) >= IOU_THRESHOLD).any(axis=1))


def recall(hit: np.ndarray, k: int | None) -> float:
    """1.0 if one of the first k candidates is a hit (k None: any of them, the upper bound), else 0.0."""
    return float(hit[:k].any())


def chance_recall(hit: np.ndarray, k: int) -> float:
    """Expected `recall` at k if the same candidates were ranked at random: 1 - C(misses, k) / C(N, k)."""
    k = min(k, len(hit))
    return 1.0 - comb(len(hit) - int(hit.sum()), k) / comb(len(hit), k)
