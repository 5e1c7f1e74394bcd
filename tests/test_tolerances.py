"""Which differences of regions and probabilities count as rounding, and which do not."""

from __future__ import annotations

import numpy as np
import pytest
from tolerances import close, doubt, likely, paired

BOXES = np.array([[0, 0, 100, 90], [10, 5, 60, 70], [30, 40, 80, 100], [2, 2, 20, 30]], float)
SCORES = np.array([0.9, 0.7, 0.4, 0.1])
TIED = np.array([0.9, 0.7, 0.7 - doubt(0.7) / 2, 0.1])


def test_values_are_off_in_proportion_to_the_largest() -> None:
    """A difference of a hundred-thousandth of the largest value is rounding, in a small value too; a thousandth is
    not."""
    close([100.001, 0.001], [100, 0])
    with pytest.raises(AssertionError):
        close([100, 0.1], [100, 0])


def test_sure_probabilities_are_hardly_off() -> None:
    """Rounding of the logits may move a probability of 0.5 more than one of 0.999."""
    likely([0.5003, 0.999001], [0.5, 0.999])
    for wrong, right in ((0.502, 0.5), (0.99905, 0.999)):
        with pytest.raises(AssertionError, match="more than rounding"):
            likely([wrong], [right])


def test_equal_rankings_are_paired_row_by_row() -> None:
    """A box that moves by a thousandth of a pixel is the same box, and one that moves by a pixel is not."""
    assert paired(BOXES + 0.001, SCORES, BOXES) == ([0, 1, 2, 3], [0, 1, 2, 3])
    with pytest.raises(AssertionError, match="region 0 is missing"):
        paired(BOXES + 1, SCORES, BOXES)


def test_only_regions_whose_scores_tie_change_places() -> None:
    """Neighbours in the ranking may change places only where their scores are equal up to rounding."""
    swapped = BOXES[[0, 2, 1, 3]]
    assert paired(swapped, TIED, BOXES) == ([0, 2, 1, 3], [0, 1, 2, 3])
    with pytest.raises(AssertionError, match="region 1 stands in place 2"):
        paired(swapped, SCORES, BOXES)


def test_only_what_ties_with_the_lowest_may_be_another_region() -> None:
    """The last region may be another one with an equal score; a region further up may not."""
    last, second = BOXES.copy(), BOXES.copy()
    last[3], second[1] = (50, 50, 60, 60), (50, 50, 60, 60)
    assert paired(last, SCORES, BOXES) == ([0, 1, 2], [0, 1, 2])
    with pytest.raises(AssertionError, match="region 1 is missing"):
        paired(second, SCORES, BOXES)
    with pytest.raises(AssertionError):
        paired(BOXES[:3], SCORES[:3], BOXES)
