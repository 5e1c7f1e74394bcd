"""How far the floats of a network may differ from a golden value or from a second computation, on any CPU.

Each float32 operation rounds by up to 2⁻²⁴ of the size of its result. Each CPU, library and number of threads adds in
its own order. So two results differ in proportion to the largest values that are added, and to the number of products
in a row. They do not differ in proportion to their own size, because a small value may be the difference of two large
ones. From SSE4.1 to AVX-512, with one thread and two, detectors of about 50 convolutions came out within 160 roundings
(1e-5) of their largest value, and networks of two layers within 35 (2e-6). This module allows ten times as much. A
wrong resize, crop, mask or channel order moves values by hundreds of times more.

Integers and texts must be equal, and so must the order of numbers that differ by more than this.
"""

from __future__ import annotations

from typing import Any

import numpy as np

ROUNDING = 2.0**-24  # relative rounding of a float32
PER_PRODUCT = 32  # roundings that one matrix product or convolution may add
DEEP = 50  # products in a row in a detector
SHALLOW = 14  # products in a row in a VisualBERT of two or three layers: four per layer, a few before and after
LOGITS = 10.0  # size of the logits behind the probabilities that are compared
DIGITS = 1e-6  # golden values are written with six or more decimals
MASKED = 1e30  # a masked logit is the smallest float32, which says nothing about the size of the others


def relative(products: int = DEEP) -> float:
    """Return how far two results of a network may differ, as a share of its largest value."""
    return PER_PRODUCT * ROUNDING * products


def rounding(values: Any, products: int = DEEP) -> float:
    """Return the allowed difference for these values, as a number."""
    sizes = np.abs(np.asarray(values, np.float64))
    return relative(products) * float(sizes[sizes < MASKED].max(initial=0.0)) + DIGITS


def close(found: Any, expected: Any, products: int = DEEP) -> None:
    """Assert that results of a network are equal up to rounding."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=rounding(expected, products))


def doubt(probabilities: Any, products: int = DEEP) -> np.ndarray:
    """Return how far each probability may differ: dp ≤ p (1 - p) · (the errors of two logits). The logits' errors are a
    share of the logits' size, whatever p is."""
    p = np.asarray(probabilities, np.float64)
    return np.asarray(2 * LOGITS * relative(products) * p * (1 - p) + DIGITS)


def likely(found: Any, expected: Any, products: int = DEEP) -> None:
    """Assert that softmax probabilities are equal up to the rounding of their logits."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    excess = np.abs(found - expected) - doubt(expected, products)
    assert (excess <= 0).all(), f"off by {np.abs(found - expected).max():.1e}, {excess.max():.1e} more than rounding"


def paired(boxes: Any, scores: Any, expected: Any) -> tuple[list[int], list[int]]:
    """Return the rows of `boxes` and the rows of `expected` that are the same regions, in the same order.

    Both are rankings of one length by descending score, cut at that length. The function asserts that they differ only
    by rounding. A region may have another place only where the scores of both places tie. A region may be another one
    only where its score ties with the lowest score, at which the ranking is cut.
    """
    boxes, scores, expected = (np.asarray(values, np.float64) for values in (boxes, scores, expected))
    assert boxes.shape == expected.shape
    off = np.abs(boxes[:, None] - expected[None]).max(-1)
    near = off <= rounding(expected)
    mine: list[int] = []
    theirs: list[int] = []
    for row in range(len(expected)):
        places = [place for place in np.flatnonzero(near[:, row]).tolist() if place not in mine]
        if not places:
            assert _tie(scores, row, len(scores) - 1), (
                f"region {row} is missing: nothing is nearer than {off[:, row].min()}"
            )
            continue
        place = row if row in places else places[0]
        assert _tie(scores, row, place), f"region {row} stands in place {place}, where the scores are not equal"
        mine.append(place)
        theirs.append(row)
    for place in set(range(len(scores))) - set(mine):
        assert _tie(scores, place, len(scores) - 1), f"the region in place {place} is none of those expected"
    return mine, theirs


def _tie(scores: np.ndarray, one: int, other: int) -> bool:
    return bool(abs(scores[one] - scores[other]) <= doubt(scores[one]) + doubt(scores[other]))
