"""The mean of units that come in clusters, with its standard error and 95 % interval.

Questions about one image share its difficulties, so they are not independent draws; images are. The mean is the ratio
estimator over clusters, sum of values / number of units, with its linearised variance (Cochran, Sampling Techniques,
3rd ed. 1977, chapters 6 and 9A; the sandwich estimator of an intercept, with the usual G / (G - 1)).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import fsum, nan, sqrt

import numpy as np

Z95 = 1.959964  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Mean:
    """A mean over `n` units in `clusters` clusters, and its standard error (nan with a single cluster)."""

    value: float
    standard_error: float
    n: int
    clusters: int


def clustered_mean(values: Iterable[float], clusters: Sequence[str]) -> Mean:
    """`clusters[i]` names the cluster of `values[i]`; at least one value, any real numbers (so differences, too)."""
    y = np.fromiter(values, np.float64)
    codes = np.unique(np.asarray(clusters), return_inverse=True)[1]
    units = np.bincount(codes)  # [G]
    G, n = len(units), len(y)
    mean = fsum(y) / n
    if G == 1:
        return Mean(mean, nan, n, G)
    residuals = np.bincount(codes, weights=y) - mean * units  # [G]
    return Mean(mean, sqrt(G / (G - 1) * fsum(residuals**2)) / n, n, G)


def interval(mean: Mean) -> tuple[float, float]:
    """95 % interval of a mean of values in [0, 1], clipped to it; (nan, nan) with a single cluster.

    Where every unit is right (or wrong) the standard error is 0 and says nothing: there the interval is the exact
    binomial one (Clopper-Pearson) with a whole cluster as one trial, e.g. 100 % of 100 images → [96.4, 100].
    """
    if mean.clusters == 1:
        return nan, nan
    if mean.value in (0.0, 1.0):
        reach = 1.0 - 0.025 ** (1 / mean.clusters)
        return (0.0, reach) if mean.value == 0.0 else (1.0 - reach, 1.0)
    reach = Z95 * mean.standard_error
    return max(0.0, mean.value - reach), min(1.0, mean.value + reach)
