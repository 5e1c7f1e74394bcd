"""How far the floats of a network may lie from a golden value or from another way to compute them, on any CPU.

A float32 is rounded by up to 2⁻²⁴ of its size in every operation, and a CPU, a library and a number of threads each add
up in an order of their own. So numbers differ in proportion to the largest values that are added (not to their own
size: a small one may be the difference of two large ones) and to the number of products that follow each other. From
SSE4.1 to AVX-512, with one thread and two, detectors of some 50 convolutions came out within 160 roundings (1e-5) of
their largest value, networks of two layers within 35 (2e-6). What is allowed here is ten times that; a wrong resize,
crop, mask or channel order moves them by hundreds of times more.

Integers and texts stay exact, and so does an order of numbers that are further apart than this.
"""

from __future__ import annotations

from typing import Any

import numpy as np

ROUNDING = 2.0**-24  # of a float32, relative
PER_PRODUCT = 32  # roundings that one matrix product or convolution may add
DEEP = 50  # products one after the other in a detector
SHALLOW = 14  # in a VisualBERT of two or three layers: four products each, before and behind them a few
LOGITS = 10.0  # size of the logits behind the probabilities that are compared
DIGITS = 1e-6  # golden values are written with six digits or more behind the point
MASKED = 1e30  # a masked logit is the smallest float32: it says nothing about the size of the others


def relative(products: int = DEEP) -> float:
    """What may be between two results of a network, as a share of its largest value."""
    return PER_PRODUCT * ROUNDING * products


def rounding(values: Any, products: int = DEEP) -> float:
    """The same as a number, for values such as these."""
    sizes = np.abs(np.asarray(values, np.float64))
    return relative(products) * float(sizes[sizes < MASKED].max(initial=0.0)) + DIGITS


def close(found: Any, expected: Any, products: int = DEEP) -> None:
    """Assert that numbers out of a network are equal up to rounding."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=rounding(expected, products))


def doubt(probabilities: Any, products: int = DEEP) -> np.ndarray:
    """By how much each probability may be off: dp ≤ p (1 - p) · (the errors of two logits), and behind a softmax the
    logits' errors are a share of the logits' size, whatever p is."""
    p = np.asarray(probabilities, np.float64)
    return np.asarray(2 * LOGITS * relative(products) * p * (1 - p) + DIGITS)


def likely(found: Any, expected: Any, products: int = DEEP) -> None:
    """Assert that probabilities behind a softmax are equal up to the rounding of its logits."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    excess = np.abs(found - expected) - doubt(expected, products)
    assert (excess <= 0).all(), f"off by {np.abs(found - expected).max():.1e}, {excess.max():.1e} more than rounding"


def paired(boxes: Any, scores: Any, expected: Any) -> tuple[list[int], list[int]]:
    """Rows of `boxes` and, in the same order, those of `expected` that are the same regions.

    Both are rankings of one length by descending score, cut at that length. Asserts that they are equal but for what
    rounding decides: a region may stand in another place only where the scores of both places tie, and may be a
    different one only where the score in its place ties with the lowest, at which the ranking is cut.
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
