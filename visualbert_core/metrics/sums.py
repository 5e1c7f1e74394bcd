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
_LEAST = 1e-3  # without a match, BLEU-4 is at most (1e-15 / n-grams) ** 0.25


def bleu(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return BLEU-N in [0, 1], float64 [...], of sums, float64 [..., 2 N + 2], and its gradient in the same shape.

    The sums are N numbers of matches, N numbers of n-grams, the words of the candidates, and the words of the closest
    references (Papineni et al. 2002).
    """
    longest = sums.shape[-1] // 2 - 1
    matches, guesses = sums[..., :longest] + _TINY, sums[..., longest:-2] + _SMALL
    words, closest = sums[..., -2:-1] + _TINY, sums[..., -1:] + _SMALL
    ratio = words / closest
    value = np.exp(np.log(matches / guesses).mean(axis=-1, keepdims=True) + np.minimum(0.0, 1 - 1 / ratio))
    short = ratio < 1
    of_length = np.where(short, closest / words**2, 0.0), np.where(short, -1 / words, 0.0)
    logarithmic = np.concatenate([1 / (longest * matches), -1 / (longest * guesses), *of_length], axis=-1)
    return value[..., 0], value * logarithmic


FUNCTIONS: Mapping[str, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]] = {"bleu": bleu}
"""Name, as units.parquet has it → function of sums that returns the metric in [0, 1] and its gradient."""

# Many places on the line, because BLEU has a kink where candidates and references are equally long.
_PLACES = (np.arange(1000)[:, None] + 0.5) / 1000


def value_of_sums(function: str, counts: np.ndarray) -> float:
    """Return the metric of units with these counts, float64 [n, k]."""
    return float(FUNCTIONS[function](counts.sum(axis=0))[0])


def is_settled(value: float) -> bool:
    """Return whether the linear shares say how far the value may be off.

    They do not where there is no match at all, for instance no common 4-gram. There the gradient has no bound.
    """
    return value > _LEAST


def linear_shares(function: str, counts: np.ndarray) -> np.ndarray:
    """Return values of the units, float64 [n], whose mean is the metric and whose spread is that of the metric."""
    sums = counts.sum(axis=0)
    value, gradient = FUNCTIONS[function](sums)
    return np.asarray(value + (counts * len(counts) - sums) @ gradient)


def linear_differences(function: str, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the share of each unit, float64 [n], in the change of the metric; their mean is the change.

    `before` and `after` are the counts [n, k] of the same units in two runs.
    """
    first, last = before.sum(axis=0), after.sum(axis=0)
    gradient = FUNCTIONS[function](first + _PLACES * (last - first))[1].mean(axis=0)
    return np.asarray(len(before) * ((after - before) @ gradient))
