"""Intersection over union, coverage, and the clustered interval, checked against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visualbert_core.metrics.coverage import check_coverage
from visualbert_core.metrics.recall import box_iou, chance_recall, hits, recall
from visualbert_core.metrics.statistics import Z95, clustered_mean, interval

# ---------------------------------------------------------------------------------------------------------------------
# boxes

corner = st.integers(0, 12)
box = st.tuples(corner, corner, st.integers(1, 8), st.integers(1, 8)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@given(st.lists(box, min_size=1, max_size=4), st.lists(box, min_size=1, max_size=4))
def test_iou_counts_pixels(first: list[tuple[int, ...]], second: list[tuple[int, ...]]) -> None:
    """With whole coordinates, intersection over union is the ratio of the counts of painted cells."""

    def cells(b: tuple[int, ...]) -> set[tuple[int, int]]:
        return {(x, y) for x in range(b[0], b[2]) for y in range(b[1], b[3])}

    painted = [[len(cells(a) & cells(b)) / len(cells(a) | cells(b)) for b in second] for a in first]
    np.testing.assert_allclose(box_iou(np.array(first), np.array(second)), painted, rtol=0, atol=1e-12)


def test_hit_at_exactly_one_half() -> None:
    """An overlap of exactly one half is a hit, and the next smaller overlap is a miss."""
    gold = np.array([[0.0, 0.0, 10.0, 10.0]])
    assert hits(np.array([[0.0, 0.0, 20.0, 10.0], [0.0, 0.0, 20.001, 10.0]]), gold).tolist() == [True, False]


def test_degenerate_boxes_miss() -> None:
    """Inverted boxes and boxes without area are misses, and do not change the result of the other candidates."""
    gold = np.array([[5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 4.0, 4.0]])
    candidates = np.array([[5.0, 5.0, 5.0, 5.0], [4.0, 4.0, 0.0, 0.0], [0.0, 0.0, 4.0, 4.0]])
    assert hits(candidates, gold).tolist() == [False, False, True]


def test_recall_at_k() -> None:
    """Recall at k counts a hit among the first k boxes, and the upper bound counts a hit among all boxes."""
    hit = np.array([False, False, True])
    assert [recall(hit, k) for k in (1, 2, 3, 10, None)] == [0.0, 0.0, 1.0, 1.0, 1.0]
    assert recall(np.zeros(0, bool), None) == 0.0


@pytest.mark.parametrize(
    ("hit", "k", "expected"), [([1, 0, 0, 0], 1, 0.25), ([1, 1, 0, 0], 2, 5 / 6), ([0], 9, 0), ([1], 9, 1)]
)
def test_chance_recall(hit: list[int], k: int, expected: float) -> None:
    """Chance recall draws k of N boxes without replacement, and draws all of them where k exceeds N."""
    assert chance_recall(np.array(hit, bool), k) == pytest.approx(expected)


# ---------------------------------------------------------------------------------------------------------------------
# coverage


def test_complete_coverage_is_any_order() -> None:
    """A split with exactly one prediction per example may be scored, in any order."""
    coverage = check_coverage(["a", "b"], iter(["b", "a"]))
    assert coverage.complete
    assert coverage.message() == "2 predictions for 2 examples: complete"


@pytest.mark.parametrize("predicted", [["a"], ["a", "b", "b"], ["a", "b", "x"], ["a", "x"], []])
def test_incomplete_coverage(predicted: list[str]) -> None:
    """One missing, double or unknown prediction is enough to forbid a score."""
    assert not check_coverage(["a", "b"], predicted).complete


def test_coverage_message_counts_and_names() -> None:
    """The message gives the counts of each fault and at most five ids, in order."""
    coverage = check_coverage([f"q{i}" for i in range(2000)], ["q7", "q7", "x"])
    assert (coverage.expected, coverage.predicted, len(coverage.missing)) == (2000, 3, 1999)
    assert coverage.message() == (
        "3 predictions for 2,000 examples: 1,999 missing (q0, q1, q2, q3, q4, …); 1 duplicate (q7); 1 unknown (x)"
    )


def test_coverage_as_counts_and_as_a_table() -> None:
    """Coverage gives five numbers for a document, and a table of five lines with the first ids of each fault."""
    coverage = check_coverage([f"q{i}" for i in range(1200)], ["q7", "q7", "x"])
    assert coverage.counts() == {"expected": 1200, "predicted": 3, "missing": 1199, "duplicate": 1, "unknown": 1}
    assert coverage.table().splitlines() == [
        "  expected      1,200",
        " predicted          3",
        "   missing      1,199  q0, q1, q2, q3, q4, …",
        " duplicate          1  q7",
        "   unknown          1  x",
    ]


@pytest.mark.parametrize(("name", "shown"), [("a\nb", r"'a\nb'"), ("", "''"), ("\ud800", r"'\ud800'"), ("a b", "a b")])
def test_any_id_fits_into_a_line(name: str, shown: str) -> None:
    """An id from a file is printed on one line: line breaks and control characters are escaped, and a long id is
    cut."""
    assert check_coverage(["q"], ["q", name]).message().endswith(f"1 unknown ({shown})")
    assert len(check_coverage(["q"], ["q", name + "x" * 9999]).message()) < 120


def test_unknown_id_given_twice_is_unknown_only() -> None:
    """An id outside the split is one unknown id, however often it occurs."""
    coverage = check_coverage(["a"], ["a", "x", "x"])
    assert (coverage.duplicate, coverage.unknown) == ((), ("x",))


# ---------------------------------------------------------------------------------------------------------------------
# means with intervals


def test_interval_agrees_with_a_cluster_bootstrap() -> None:
    """The standard error equals a bootstrap's over clusters of unequal size, and is far from the error of independent
    units."""
    rng = np.random.default_rng(7)
    sizes = rng.integers(1, 12, size=250)
    values = [np.clip(rng.beta(1, 1) + rng.normal(0, 0.1, size), 0, 1) for size in sizes]
    names = [f"image {i}" for i, size in enumerate(sizes) for _ in range(size)]
    mean = clustered_mean(np.concatenate(values), names)
    sums = np.array([v.sum() for v in values])
    draws = rng.integers(0, 250, size=(4000, 250))
    bootstrap = sums[draws].sum(axis=1) / sizes[draws].sum(axis=1)
    naive = np.concatenate(values).std() / math.sqrt(mean.n)
    assert mean.value == pytest.approx(np.concatenate(values).mean())
    assert mean.standard_error == pytest.approx(bootstrap.std(), rel=0.05)
    # Else the bootstrap could not tell a clustered error from a plain one.
    assert mean.standard_error > 1.8 * naive
    assert interval(mean) == pytest.approx(np.quantile(bootstrap, [0.025, 0.975]), abs=0.006)


def test_singleton_clusters_are_the_textbook_mean() -> None:
    """With one unit per cluster the standard error is s / √n, where s divides by n - 1."""
    values = [0.0, 1.0, 1.0, 0.3, 0.6]
    mean = clustered_mean(values, list("abcde"))
    assert mean.standard_error == pytest.approx(np.std(values, ddof=1) / math.sqrt(5))
    low, high = interval(mean)
    assert (low + high) / 2 == pytest.approx(mean.value)
    assert high - low == pytest.approx(2 * Z95 * mean.standard_error)


def test_repeating_every_unit_adds_no_information() -> None:
    """Repeating each unit five times in its own cluster does not change the interval."""
    values = [0.0, 1.0, 1.0, 0.3, 0.6]
    once = clustered_mean(values, list("abcde"))
    often = clustered_mean(values * 5, list("abcde") * 5)
    assert often.standard_error == pytest.approx(once.standard_error)
    assert (often.n, often.clusters) == (25, 5)


def test_differences_may_be_negative() -> None:
    """The mean takes negative numbers too, because paired differences use it."""
    mean = clustered_mean([-1.0, 0.0, 0.0, 1.0, -1.0], list("aabbc"))
    assert mean.value == pytest.approx(-0.2)


def test_one_cluster_has_no_interval() -> None:
    """The values of one image alone give no interval."""
    low, high = interval(clustered_mean([0.0, 1.0], ["a", "a"]))
    assert math.isnan(low)
    assert math.isnan(high)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_right_or_all_wrong_still_has_a_width(value: float) -> None:
    """When all clusters are right, the lower bound is the rate at which G clusters in a row are right with probability
    2.5 %; all wrong is the mirror image."""
    names = [f"{i // 2}" for i in range(200)]  # 100 clusters of two units
    low, high = interval(clustered_mean([value] * 200, names))
    probability = 1 - high if value == 0.0 else low
    assert probability**100 == pytest.approx(0.025)
    assert (low if value == 0.0 else high) == value


def test_interval_is_clipped() -> None:
    """An interval stays inside [0, 1]."""
    low, high = interval(clustered_mean([1.0, 1.0, 0.9], ["a", "b", "c"]))
    assert high == 1.0
    assert low < 0.97
