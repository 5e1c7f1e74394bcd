"""How sure a mean is, and whether two runs differ: everything clustered by image.

Questions about one image share its difficulties, so they are not independent draws; images are. The mean is the ratio
estimator over clusters, sum of values / number of units, with its linearised variance (Cochran, Sampling Techniques,
3rd ed. 1977, chapters 6 and 9A; the sandwich estimator of an intercept, with the usual G / (G - 1)).

Two runs over the same units are compared by their differences, cluster by cluster: `sign_flip` is the test, `holm`
what becomes of many of them (Holm 1979), `smallest_drop` what such a test would have seen, `excess_noise` what reruns
of one and the same thing add to it. Shares, not percent, throughout.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import fsum, inf, nan, sqrt
from statistics import NormalDist

import numpy as np

Z95 = 1.959964  # 97.5 % quantile of the normal distribution
EXACT = 16
"""Clusters that changed, up to which every pattern of signs is tried."""
RERUNS = 5
"""Reruns that a measurement of noise takes at least."""


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
    """`clusters[i]` names the cluster of `values[i]`; at least one value, any real numbers (so differences, too).

    Raises ValueError for NaN and infinity: a mean over them would be no number either, and look like a score.
    """
    y = np.fromiter(values, np.float64)
    if not np.isfinite(y).all():
        raise ValueError(f"value {int(np.flatnonzero(~np.isfinite(y))[0])} is no finite number")
    sums, units = _totals(y, clusters)
    G, n = len(units), len(y)
    mean = fsum(y) / n
    if G == 1:
        return Mean(mean, nan, n, G)
    residuals = sums - mean * units  # [G]
    return Mean(mean, sqrt(G / (G - 1) * fsum(residuals**2)) / n, n, G)


def interval(mean: Mean) -> tuple[float, float]:
    """95 % interval of a mean of values in [0, 1], clipped to it; (nan, nan) with a single cluster.

    Where every unit is right (or wrong) the standard error is 0 and says nothing: there the interval is the exact
    binomial one (Clopper-Pearson) with a whole cluster as one trial, e.g. 100 % of 100 images → [96.4, 100].
    """
    if mean.clusters == 1:
        return nan, nan
    if mean.value in (0.0, 1.0):
        reach = _unseen(mean.clusters)
        return (0.0, reach) if mean.value == 0.0 else (1.0 - reach, 1.0)
    reach = Z95 * mean.standard_error
    return max(0.0, mean.value - reach), min(1.0, mean.value + reach)


# ---------------------------------------------------------------------------------------------------------------------
# two runs over the same units


@dataclass(frozen=True)
class Paired:
    """`difference` is after - before, with its 95 % interval; `p` that of no difference, two-sided; `p_drop` that of
    no drop. `spread` is the standard error that the difference has if there is none. `changed` counts clusters."""

    difference: Mean
    low: float
    high: float
    p: float
    p_drop: float
    spread: float
    changed: int


def paired(before: np.ndarray, after: np.ndarray, clusters: Sequence[str] | np.ndarray) -> Paired:
    """Compare two runs: values in [0, 1] of the same units [n >= 1] in the same order, and the units' clusters.

    Equal runs differ by 0 with p = 1. The interval is the normal one, too narrow below some thirty clusters, where p
    is still right; (nan, nan) with a single cluster. Where all clusters differ by the same (mostly by nothing), the
    standard error is 0 and says nothing: then it reaches as far as clusters unlike all of these can be as common as
    one in G draws misses with probability 2.5 %, which is 3.6 points for 100 images.
    """
    values = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    difference = clustered_mean(values, clusters)
    sums, _ = _totals(values, clusters)
    low = high = nan
    if difference.clusters > 1:
        same = difference.standard_error < 1e-12
        reach = _unseen(difference.clusters) if same else Z95 * difference.standard_error
        low, high = max(-1.0, difference.value - reach), min(1.0, difference.value + reach)
    p, p_drop = sign_flip(sums)
    spread = sqrt(fsum(sums**2)) / len(values)
    return Paired(difference, low, high, p, p_drop, spread, int(np.count_nonzero(_rounded(sums))))


def sign_flip(totals: np.ndarray) -> tuple[float, float]:
    """p of "no difference" (two-sided) and of "no drop", from each cluster's total of differences [G].

    If nothing changed, either run could as well have been the other, image by image: every pattern of signs of the
    totals is as likely as the one seen (Fisher 1935). Chosen over a cluster-robust t test because it needs neither
    normal totals nor many images: images of different sizes, few changes, and values of any scale are all right. Where
    up to 16 clusters changed all patterns are tried. Beyond, their sum is taken as normal with its exact variance, and
    moved by the smallest total towards 0: with one 0/1 unit an image the two are McNemar's tests, the exact one and
    Edwards' (1948), and with others the move is too large, if anything. As that variance is also right where only the
    means are equal, p is then right for that weaker claim, too, when there are many images.
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
        hair = 1e-9 * fsum(abs(sums))  # patterns that tie with the one seen must count
        return (
            float(np.mean(np.abs(patterns) >= abs(observed) - hair)),
            float(np.mean(patterns <= observed + hair)),
        )
    deviation, step = sqrt(fsum(sums**2)), float(abs(sums).min())
    return 2 * _upper(max(0.0, abs(observed) - step) / deviation), _upper(-(observed + step) / deviation)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p, in the order given: to act on those under α errs at all with probability α at most."""
    adjusted, largest = [1.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted


def smallest_drop(spread: float, n: int, alpha: float, power: float = 0.8) -> float:
    """The drop that a one-sided test at `alpha` finds with probability `power`; inf where even the loss of everything
    would escape it.

    `spread` is the standard error without a drop. A drop δ needs δn units that were right and are wrong now, each of
    which, alone in its image, adds 1 to the sum of squares: the root of δ² = c² (spread² + δ / n) with c = z(1 - α) +
    z(power). So two equal runs do not promise to show one changed answer: c² of them it takes, 10 at α = 1 %.
    """
    normal = NormalDist()
    c2 = (normal.inv_cdf(1 - alpha) + normal.inv_cdf(power)) ** 2
    drop = (c2 / n + sqrt((c2 / n) ** 2 + 4 * c2 * spread**2)) / 2
    return drop if drop <= 1 else inf


def excess_noise(differences: Sequence[float], spreads: Sequence[float]) -> float:
    """Standard deviation that reruns of one and the same thing have beyond what their changed answers explain.

    Answers that flip here and there are in the test already; a rerun that moves many images one way, as another GPU
    may, is not. By moments, as DerSimonian and Laird (1986) take it: sqrt(mean(difference² - spread²)), at least 0;
    and 0 with fewer than five reruns, from which nothing can be learnt.
    """
    if len(differences) < RERUNS:
        return 0.0
    squares = np.square(differences) - np.square(spreads)
    return sqrt(max(0.0, float(squares.mean())))


def p_drop_with_noise(difference: float, spread: float, noise: float, p_drop: float) -> float:
    """`p_drop` of a comparison, or, where reruns have noise of their own, p with that added to the spread."""
    return p_drop if noise == 0.0 else _upper(-difference / sqrt(spread**2 + noise**2))


def _totals(values: np.ndarray, clusters: Sequence[str] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of units of each cluster: float64 [G], int64 [G]."""
    codes = np.unique(np.asarray(clusters), return_inverse=True)[1]
    return np.bincount(codes, weights=values), np.bincount(codes)


def _rounded(totals: np.ndarray) -> np.ndarray:
    """0.1 + 0.2 - 0.3 is a cluster that did not change."""
    return np.round(np.asarray(totals, np.float64), 9)


# SciPy is imported where a tail is computed: it takes 0.4 s, which a score without a comparison need not wait for.


def _unseen(clusters: int) -> float:
    """Return the largest share of clusters of another kind of which this many draws may well show none (2.5 %).

    This is the upper limit of the exact binomial interval for no success (Clopper and Pearson 1934).
    """
    from scipy.special import betaincinv

    return float(betaincinv(1, clusters, 0.975))


def _upper(z: float) -> float:
    """Return P(Z > z) of the normal distribution, right far out, too."""
    from scipy.special import ndtr

    return float(ndtr(-z))
