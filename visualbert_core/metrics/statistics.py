"""Scores of units → metrics with intervals, and tests whether two runs differ. Everything is clustered by image.

Questions about one image share its difficulties, so they are not independent draws. Images are. The mean is the ratio
estimator over clusters: the sum of values divided by the number of units. Its variance is the linearised one (Cochran,
Sampling Techniques, 3rd ed. 1977, chapters 6 and 9A). This equals the sandwich estimator of an intercept, with the
usual factor G / (G - 1).

Two runs over the same units are compared by the sums of their differences in each cluster:

    sign_flip        the test
    holm             p values adjusted for many tests (Holm 1979)
    smallest_drop    the smallest drop that the test would probably find
    excess_noise     how much reruns vary beyond what the test allows for

A metric is a mean over units, or a function of sums over units (`metrics.sums`), in percent or in its scale. All other
values are shares, not percent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum, inf, nan, sqrt
from statistics import NormalDist

import numpy as np

from visualbert_core.metrics.sums import is_settled, linear_shares, value_of_sums
from visualbert_core.schema import Score

Z95 = 1.959964  # the 97.5 % quantile of the normal distribution
EXACT = 16
"""Up to this many changed clusters, every pattern of signs is tried: at most 65,536."""
RERUNS = 5
"""The fewest reruns from which noise is estimated."""
PERCENT = 100.0
"""What the value 1 is shown as, for a metric that `Task.scales` does not name."""


# ---------------------------------------------------------------------------------------------------------------------
# one mean


@dataclass(frozen=True)
class Mean:
    """A mean over `n` units in `clusters` clusters, and its standard error (nan with a single cluster)."""

    value: float
    standard_error: float
    n: int
    clusters: int


def clustered_mean(values: Iterable[float], clusters: Sequence[str] | np.ndarray) -> Mean:
    """Return the mean of one or more values, with its clustered standard error.

    `clusters[i]` names the cluster of `values[i]`. Values are any real numbers, so they may be differences. Raise
    ValueError for NaN and infinity, because a mean over them is not a number, but would look like a score.
    """
    y = np.fromiter(values, np.float64)
    if not np.isfinite(y).all():
        raise ValueError(f"value {int(np.flatnonzero(~np.isfinite(y))[0])} is not a finite number")
    sums, units = _totals(y, clusters)
    G, n = len(units), len(y)
    mean = fsum(y) / n
    if G == 1:
        return Mean(mean, nan, n, G)
    residuals = sums - mean * units  # [G]
    return Mean(mean, sqrt(G / (G - 1) * fsum(residuals**2)) / n, n, G)


def interval(mean: Mean) -> tuple[float, float]:
    """Return the 95 % interval of a mean of values in [0, 1], clipped to [0, 1]; (nan, nan) for a single cluster."""
    if mean.clusters == 1:
        return nan, nan
    # Where all units are right, or all are wrong, the standard error is 0 and says nothing. The interval is then the
    # exact binomial one (Clopper and Pearson 1934), with a cluster as one trial: 100 % of 100 images → [96.4, 100].
    if mean.value in (0.0, 1.0):
        reach = _unseen(mean.clusters)
        return (0.0, reach) if mean.value == 0.0 else (1.0 - reach, 1.0)
    reach = Z95 * mean.standard_error
    return max(0.0, mean.value - reach), min(1.0, mean.value + reach)


# ---------------------------------------------------------------------------------------------------------------------
# the metrics of a run


@dataclass(frozen=True)
class Metric:
    """Holds a metric over n units, and its 95 % interval clustered by image; all are in percent or in its scale."""

    name: str
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Summary:
    """Summarises a set of scores.

    `metrics` keeps the order in which the task yields the metrics. `breakdown` is kind of group → group → metric →
    (percent, number of units), with kinds and groups sorted. A unit in several groups of a kind counts in every group.
    """

    metrics: dict[str, Metric]
    breakdown: dict[str, dict[str, dict[str, tuple[float, int]]]]


def summarize(scores: Iterable[Score], scales: Mapping[str, float] | None = None) -> Summary:
    """Return every metric with its interval, and every metric in every group. `scales` is that of the task."""
    shown = scales or {}
    by_metric: defaultdict[str, list[Score]] = defaultdict(list)
    by_group: defaultdict[tuple[str, str, str], list[Score]] = defaultdict(list)
    for score in scores:
        by_metric[score.metric].append(score)
        for kind, groups in score.groups.items():
            for group in groups:
                by_group[kind, group, score.metric].append(score)
    breakdown: dict[str, dict[str, dict[str, tuple[float, int]]]] = {}
    for (kind, group, metric), units in sorted(by_group.items(), key=lambda item: item[0][:2]):
        share = (_value(units, shown.get(metric, PERCENT)), len(units))
        breakdown.setdefault(kind, {}).setdefault(group, {})[metric] = share
    metrics = {name: _metric(name, units, shown.get(name, PERCENT)) for name, units in by_metric.items()}
    return Summary(metrics, breakdown)


def _value(units: Sequence[Score], scale: float) -> float:
    if units[0].counts is None:
        return scale * fsum(unit.value for unit in units) / len(units)
    return scale * value_of_sums(*_counts(units))


def _metric(name: str, units: Sequence[Score], scale: float) -> Metric:
    clusters = [unit.cluster for unit in units]
    if units[0].counts is None:
        mean = clustered_mean([unit.value for unit in units], clusters)
        low, high = interval(mean)
        return Metric(name, scale * mean.value, scale * low, scale * high, mean.n)
    counts = _counts(units)
    value = value_of_sums(*counts)
    # Official programs add 1e-9 to what they divide by, so a full score is a hair below 1.
    full = 1.0 if value > 1 - 1e-6 else value
    mean = replace(clustered_mean(linear_shares(*counts).tolist(), clusters), value=full)
    low, high = interval(mean) if is_settled(value) else (nan, nan)
    return Metric(name, scale * value, scale * low, scale * high, mean.n)


def _counts(units: Sequence[Score]) -> tuple[str, np.ndarray]:
    """Return the function of a metric, and the counts of its units: float64 [n, k]."""
    found = [unit.counts for unit in units if unit.counts is not None]
    return found[0].function, np.array([each.values for each in found])


# ---------------------------------------------------------------------------------------------------------------------
# two runs over the same units


@dataclass(frozen=True)
class Paired:
    """The comparison of two runs over the same units."""

    difference: Mean
    """After minus before."""
    low: float
    high: float
    """The 95 % interval of the difference, from `low` to `high`."""
    p: float
    """Two-sided, for the hypothesis that there is no difference."""
    p_drop: float
    """One-sided, for the hypothesis that there is no drop."""
    spread: float
    """The standard error of the difference where the true difference is 0."""
    changed: int
    """The number of clusters whose sum changed."""
    step: float = 1.0
    """How far a unit that changes moves, as `smallest_drop` takes it."""


def paired(before: np.ndarray, after: np.ndarray, clusters: Sequence[str] | np.ndarray) -> Paired:
    """Compare two runs by values in [0, 1] of the same units [n >= 1] in the same order, and by the units' clusters.

    Equal runs have difference 0 and p = 1. The interval is the normal one. It is too narrow for fewer than about thirty
    clusters, where p is still right. For a single cluster it is (nan, nan).
    """
    return paired_differences(np.asarray(after, np.float64) - np.asarray(before, np.float64), clusters)


def paired_differences(values: np.ndarray, clusters: Sequence[str] | np.ndarray) -> Paired:
    """Compare two runs as `paired` does, by the differences of their units: float64 [n]."""
    difference = clustered_mean(values, clusters)
    sums, _ = _totals(values, clusters)
    low = high = nan
    if difference.clusters > 1:
        # Where all clusters differ by the same amount, mostly by 0, the standard error is 0 and says nothing. Clusters
        # of a different kind may exist that the G draws missed. The interval reaches as far as the largest share of
        # these that G draws miss with probability 2.5 %: 3.6 points for 100 images.
        same = difference.standard_error < 1e-12
        reach = _unseen(difference.clusters) if same else Z95 * difference.standard_error
        low, high = max(-1.0, difference.value - reach), min(1.0, difference.value + reach)
    p, p_drop = sign_flip(sums)
    spread = sqrt(fsum(sums**2)) / len(values)
    return Paired(difference, low, high, p, p_drop, spread, int(np.count_nonzero(_rounded(sums))))


def sign_flip(totals: np.ndarray) -> tuple[float, float]:
    """Return p of "no difference" (two-sided) and p of "no drop" (one-sided). `totals` are the clusters' sums [G].

    Under the hypothesis, the two runs could be exchanged in any image. So every pattern of signs of the sums is as
    likely as the observed one (Fisher 1935). A cluster-robust t test would need sums that are normal, or many images.
    This test needs neither: it allows images of different sizes, few changes, and values of any scale.

    Where at most 16 clusters changed, all patterns are tried. Where more did, the total is taken as normal with its
    exact variance, and moved towards 0 by the smallest sum, as a continuity correction. With one 0/1 unit in an image,
    these two are McNemar's tests: the exact one, and the one with Edwards' correction (1948). With other units the
    correction may be too large, but not too small. The variance is also right where only the means are equal. So with
    many images p is right for this weaker hypothesis, too.
    """
    sums = _rounded(totals)
    sums = sums[sums != 0]
    if len(sums) == 0:
        return 1.0, 1.0
    observed = fsum(sums)
    if len(sums) <= EXACT:
        patterns = np.zeros(1)
        for total in sums:
            patterns = np.concatenate([patterns - total, patterns + total])
        hair = 1e-9 * fsum(abs(sums))  # patterns that tie with the observed one must count, whatever the rounding
        return (
            float(np.mean(np.abs(patterns) >= abs(observed) - hair)),
            float(np.mean(patterns <= observed + hair)),
        )
    deviation, step = sqrt(fsum(sums**2)), float(abs(sums).min())
    return 2 * _upper(max(0.0, abs(observed) - step) / deviation), _upper(-(observed + step) / deviation)


def holm(p: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p values, in the given order.

    Reject all hypotheses with an adjusted p under α: the probability of even one false rejection is then at most α.
    """
    adjusted, largest = [1.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted


def usual_step(values: np.ndarray) -> float:
    """Return how far a unit that changes moves, for units that are not just right or wrong: at most 1.

    `values` are the differences of the units. Where each unit moves by s, n s² of squares come with a drop of n s. So
    the step is the sum of squares divided by the sum of sizes. It is 1 where nothing changed.
    """
    sizes = np.abs(values)
    return min(1.0, fsum(sizes**2) / total) if (total := fsum(sizes)) else 1.0


def smallest_drop(spread: float, n: int, alpha: float, power: float = 0.8, step: float = 1.0) -> float:
    """Return the drop that a one-sided test at `alpha` finds with probability `power`.

    `spread` is the standard error without a drop, `n` the number of units. A unit that changes moves by `step`,
    which is 1 for units that are right or wrong. The drop is infinite where the test would not even find the loss of
    everything. Two equal runs do not mean that one changed answer would be found: with α = 1 % it takes c² = 10 changed
    answers (c is defined below).
    """
    # A drop δ needs δn units that were right and are now wrong. A unit that is alone in its image adds 1 to the sum of
    # squares. So δ is the positive root of δ² = c² (spread² + δ / n), with c = z(1 - α) + z(power). With a smaller
    # step, the same drop needs more units, but each adds only the square of the step.
    normal = NormalDist()
    c2 = (normal.inv_cdf(1 - alpha) + normal.inv_cdf(power)) ** 2
    of_units = c2 * step / n
    drop = (of_units + sqrt(of_units**2 + 4 * c2 * spread**2)) / 2
    return drop if drop <= 1 else inf


def excess_noise(differences: Sequence[float], spreads: Sequence[float]) -> float:
    """Return the standard deviation of reruns of the same cell, beyond what their changed answers explain.

    The test already allows for single answers that flip. It does not allow for a rerun that moves many images in one
    direction, as a different GPU may do. The estimate is by moments, as in DerSimonian and Laird (1986):
    sqrt(mean(difference² - spread²)), at least 0. It is 0 for fewer than five reruns, which are too few to learn from.
    """
    if len(differences) < RERUNS:
        return 0.0
    squares = np.square(differences) - np.square(spreads)
    return sqrt(max(0.0, float(squares.mean())))


def p_drop_with_noise(difference: float, spread: float, noise: float, p_drop: float) -> float:
    """Return `p_drop` where reruns have no noise. Otherwise return the normal p with the noise added to the spread."""
    return p_drop if noise == 0.0 else _upper(-difference / sqrt(spread**2 + noise**2))


def _totals(values: np.ndarray, clusters: Sequence[str] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of values and the number of units of each cluster: float64 [G], int64 [G]."""
    codes = np.unique(np.asarray(clusters), return_inverse=True)[1]
    return np.bincount(codes, weights=values), np.bincount(codes)


def _rounded(totals: np.ndarray) -> np.ndarray:
    """Round away float errors: a cluster whose sum is 0.1 + 0.2 - 0.3 did not change."""
    return np.round(np.asarray(totals, np.float64), 9)


# SciPy is imported where a tail is computed. Its import takes 0.4 s, which scoring without a comparison does not need.


def _unseen(clusters: int) -> float:
    """Return the largest share of clusters of a different kind that this many draws miss with probability 2.5 %.

    This is the upper limit of the exact binomial interval for no success (Clopper and Pearson 1934).
    """
    from scipy.special import betaincinv

    return float(betaincinv(1, clusters, 0.975))


def _upper(z: float) -> float:
    """Return P(Z > z) of the normal distribution. It is accurate far out in the tail, too."""
    from scipy.special import ndtr

    return float(ndtr(-z))
