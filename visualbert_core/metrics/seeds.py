"""The difference of two recipes over several seeds: a mean, and an interval that counts both seeds and images.

Both recipes are trained with the same seeds and judged on the same units. So each pair (seed, unit) has one difference.
Seeds and images are both draws: another seed gives other weights, and other images give other questions. So do studies
with several readers and several cases, and their method is used here, with seeds as readers and images as cases:

    Obuchowski and Rockette 1995, Communications in Statistics – Simulation and Computation 24(2): the variance
    Hillis 2007, Statistics in Medicine 26(3), doi:10.1002/sim.2532: its degrees of freedom

A bootstrap over both (Owen 2007, Annals of Applied Statistics 1(2), arXiv:0712.1111) needs more seeds than people
train: the seeds of a resample of three vary by two thirds of what seeds vary. All values are shares, not percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np

from visualbert_core.metrics.statistics import paired_differences

INGREDIENT = None


@dataclass(frozen=True)
class OverSeeds:
    """The mean difference over seeds and units, after minus before."""

    difference: float
    low: float | None
    high: float | None
    """The 95 % interval; None where all units are of one image."""
    p: float
    """Two-sided, for the hypothesis that the recipes are equally good over all seeds and images."""
    deviation: float
    """Sample deviation of the differences of the seeds."""
    each: tuple[float, ...]
    """The difference of each seed."""
    degrees: float
    """Degrees of freedom of the interval: few where seeds differ, infinite where images alone decide."""
    n: int
    images: int


def over_seeds(differences: np.ndarray, clusters: Sequence[str] | np.ndarray) -> OverSeeds:
    """Compare two recipes by the differences of their units: float64 [S, n], for S >= 2 seeds and n units.

    `clusters[i]` names the image of unit i.
    """
    y = np.asarray(differences, np.float64)
    S, n = y.shape
    codes = np.unique(np.asarray(clusters), return_inverse=True)[1]
    images = int(codes.max()) + 1
    means = y.mean(axis=1)  # [S]
    mean, seeds = float(means.mean()), float(means.var(ddof=1))
    if images == 1:
        return OverSeeds(mean, None, None, 1.0, sqrt(seeds), tuple(means.tolist()), S - 1.0, n, images)
    residuals = np.stack([np.bincount(codes, weights=row) for row in y - means[:, None]])  # [S, images]
    covariances = images / (images - 1) * residuals @ residuals.T / n**2  # of the seeds' means, by their images [S, S]
    of_images = float(covariances.mean())  # the variance of the mean over these very seeds
    shared = (float(covariances.sum()) - float(np.trace(covariances))) / (S * (S - 1))
    # What seeds vary, and what all seeds share because they see the same images. The second term of Obuchowski and
    # Rockette is cut at 0, as theirs is. By chance two or three seeds may agree too well. So the variance is never
    # below the variance that the images alone give.
    variance = max(seeds / S + max(shared, 0.0), of_images)
    degrees = inf if seeds == 0 else (S - 1) * (variance / (seeds / S)) ** 2
    deviation, each = sqrt(seeds), tuple(means.tolist())
    if variance < 1e-24:  # all units differ alike, mostly by 0: the rule for a single pair of runs is right for many
        alike = paired_differences(y[0], codes)
        low, high, p = alike.low, alike.high, alike.p
    else:
        reach, p = _quantile(degrees) * sqrt(variance), _two_sided(abs(mean) / sqrt(variance), degrees)
        low, high = max(-1.0, mean - reach), min(1.0, mean + reach)
    return OverSeeds(mean, low, high, p, deviation, each, degrees, n, images)


# SciPy is imported where a tail is computed, as in `statistics`.


def _quantile(degrees: float) -> float:
    """Return the 97.5 % quantile of Student's t."""
    from scipy.special import ndtri, stdtrit

    return float(ndtri(0.975) if degrees == inf else stdtrit(degrees, 0.975))


def _two_sided(t: float, degrees: float) -> float:
    from scipy.special import ndtr, stdtr

    return 2 * float(ndtr(-t) if degrees == inf else stdtr(degrees, -t))
