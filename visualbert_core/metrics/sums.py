"""Metrics that are no mean over units, but a function of sums over units. BLEU is one.

Such a metric has counts for each unit, and its value is `FUNCTIONS[name]` of their sums. To first order, a unit moves
the value by the gradient of the function times the unit's counts (the delta method). So the value has linear shares,
one for each unit. All of `metrics.statistics` applies to them: the interval clustered by image, and the paired test.

Two runs are compared along the straight line from the sums of one to the sums of the other. The gradient is averaged
over that line (Aumann and Shapley 1974). So the shares of the units add up to the difference of the two values, and a
unit with equal counts has share 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

_TINY, _SMALL = 1e-15, 1e-9  # the official program adds these, so that nothing is divided by 0


def bleu(sums: np.ndarray) -> tuple[float, np.ndarray]:
    """Return BLEU-N in [0, 1] of sums, float64 [2 N + 2], and its gradient of the same shape.

    The sums are N numbers of matches, N numbers of n-grams, the words of the candidates, and the words of the closest
    references (Papineni et al. 2002).
    """
    longest = len(sums) // 2 - 1
    matches, guesses = sums[:longest] + _TINY, sums[longest:-2] + _SMALL
    words, closest = sums[-2] + _TINY, sums[-1] + _SMALL
    ratio = words / closest
    value = float(np.exp(np.log(matches / guesses).mean() + min(0.0, 1 - 1 / ratio)))
    of_length = (closest / words**2, -1 / words) if ratio < 1 else (0.0, 0.0)
    logarithmic = np.concatenate([1 / (longest * matches), -1 / (longest * guesses), of_length])
    return value, value * logarithmic


FUNCTIONS: Mapping[str, Callable[[np.ndarray], tuple[float, np.ndarray]]] = {"bleu": bleu}
"""Name, as units.parquet has it → function of sums that returns the metric in [0, 1] and its gradient."""

# Nodes and weights of a Gauss-Legendre quadrature over [0, 1].
_NODES, _WEIGHTS = (np.polynomial.legendre.leggauss(16)[0] + 1) / 2, np.polynomial.legendre.leggauss(16)[1] / 2


def value_of_sums(function: str, counts: np.ndarray) -> float:
    """Return the metric of units with these counts, float64 [n, k]."""
    return FUNCTIONS[function](counts.sum(axis=0))[0]


def linear_shares(function: str, counts: np.ndarray) -> np.ndarray:
    """Return values of the units, float64 [n], whose mean is the metric and whose spread is that of the metric."""
    sums = counts.sum(axis=0)
    value, gradient = FUNCTIONS[function](sums)
    return value + (counts * len(counts) - sums) @ gradient


def linear_differences(function: str, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the share of each unit, float64 [n], in the change of the metric; their mean is the change.

    `before` and `after` are the counts [n, k] of the same units in two runs.
    """
    first, last = before.sum(axis=0), after.sum(axis=0)
    gradient = sum(
        weight * FUNCTIONS[function](first + node * (last - first))[1]
        for node, weight in zip(_NODES, _WEIGHTS, strict=True)
    )
    return np.asarray(len(before) * ((after - before) @ gradient))
