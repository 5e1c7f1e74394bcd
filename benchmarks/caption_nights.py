"""Simulated nights of captions for gate_power.py: made-up captions, scored as the task `captions` scores them.

An image has a subject, an action, an object and a place, from word lists of unequal frequencies. A person names most of
them, sometimes by a synonym. A model does the same and gets some of them wrong, more of them on hard images. Each night
has images of its own, so the word weights of CIDEr are drawn anew, too. BLEU is no mean over images; CIDEr is one only
for given word weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from visualbert_core.metrics.captions import CIDER_BEST, Cider, Tokens, bleu_counts, caption
from visualbert_core.metrics.statistics import (
    Paired,
    clustered_mean,
    interval,
    paired_differences,
    smallest_drop,
    usual_step,
)
from visualbert_core.metrics.sums import linear_differences, linear_shares, value_of_sums

SCALES = {"BLEU-4": 100.0, "CIDEr-D": 100 * CIDER_BEST}
REFERENCES = 5
SIZES = (300, 60, 400, 40)  # subjects, actions, objects, places
NAMED = (0.95, 0.8, 0.8, 0.5)  # how often a caption names each
SYNONYM = 0.35


@dataclass(frozen=True)
class Captions:
    """One caption for each image, scored: counts of BLEU-4, float64 [n, 10], and CIDEr-D in [0, 1], float64 [n]."""

    counts: np.ndarray
    cider: np.ndarray

    def where(self, chosen: np.ndarray, other: Captions) -> Captions:
        """Return `other` where `chosen`, bool [n], and these captions elsewhere."""
        counts = np.where(chosen[:, None], other.counts, self.counts)
        return Captions(counts, np.where(chosen, other.cider, self.cider))

    def values(self) -> dict[str, float]:
        """Return metric → its value in [0, 1]."""
        return {"BLEU-4": value_of_sums("bleu", self.counts), "CIDEr-D": float(self.cider.mean())}

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Return metric → its 95 % interval, as scores.json has it."""
        shares = {"BLEU-4": linear_shares("bleu", self.counts), "CIDEr-D": self.cider}
        return {name: interval(clustered_mean(each.tolist(), np.arange(len(each)))) for name, each in shares.items()}

    def since(self, before: Captions) -> dict[str, tuple[Paired, float]]:
        """Return metric → the paired comparison of the gate, and the step of a changed image."""
        shares = {
            "BLEU-4": linear_differences("bleu", before.counts, self.counts),
            "CIDEr-D": self.cider - before.cider,
        }
        return {
            name: (paired_differences(each, np.arange(len(each))), usual_step(each)) for name, each in shares.items()
        }


@dataclass(frozen=True)
class Night:
    """One set of images with three captions of a model: tonight's, drawn anew, and about nothing in the image."""

    first: Captions
    again: Captions
    lost: Captions


def draw_night(rng: np.random.Generator, images: int) -> Night:
    """Draw images and captions, and score them with the word weights of these images."""
    topics = _topics(rng, images)
    ease = rng.beta(2, 1, images)
    references = [[_caption(rng, topic, 1.0) for _ in range(REFERENCES)] for topic in topics]
    weights = Cider(references)

    def scored(texts: Sequence[Tokens]) -> Captions:
        counts = np.array([bleu_counts(*pair) for pair in zip(texts, references, strict=True)])
        return Captions(counts, weights.scores(texts, references) / CIDER_BEST)

    models = [[_caption(rng, *pair) for pair in zip(topics, ease, strict=True)] for _ in range(2)]
    lost = [_caption(rng, topic, 1.0) for topic in _topics(rng, images)]
    return Night(*map(scored, (*models, lost)))


def changed(rng: np.random.Generator, night: Night, share: float, metric: str = "", drop: float = 0.0) -> Captions:
    """Return the captions of a second run: a share is drawn anew, and captions are lost until `metric` drops."""
    n = len(night.first.cider)
    second = night.first.where(rng.random(n) < share, night.again)
    if not drop:
        return second
    # BLEU falls by less at first than in proportion to the lost captions, so the share is read from its curve.
    shares = np.linspace(0, 1, 21)
    mixed = [_between(second, night.lost, each).values()[metric] for each in shares]
    return second.where(rng.random(n) < np.interp(drop, mixed[0] - np.array(mixed), shares), night.lost)


def _between(one: Captions, other: Captions, share: float) -> Captions:
    """Return what is expected where a share of the captions is that of `other`."""
    return Captions((1 - share) * one.counts + share * other.counts, (1 - share) * one.cider + share * other.cider)


def visible(pair: tuple[Paired, float], alpha: float, power: float) -> float:
    """Return the smallest drop that the gate says it sees, in [0, 1]."""
    result, step = pair
    return smallest_drop(result.spread, result.difference.n, alpha, power, step)


def _topics(rng: np.random.Generator, images: int) -> np.ndarray:
    """Return the number of the subject, action, object and place of each image: int [n, 4]; small ones are common."""
    found = []
    for size in SIZES:
        chances = 1 / np.arange(1, size + 1)
        found.append(rng.choice(size, images, p=chances / chances.sum()))
    return np.stack(found, axis=1)


def _caption(rng: np.random.Generator, topic: np.ndarray, ease: float) -> Tokens:
    return caption(" ".join(_words(rng, topic, ease)))


def _words(rng: np.random.Generator, topic: np.ndarray, ease: float) -> Iterator[str]:
    for kind, (number, named) in enumerate(zip(topic.tolist(), NAMED, strict=True)):
        if rng.random() < named:
            said = number if rng.random() < ease else int(rng.integers(SIZES[kind]))
            yield from ("a",) if kind in (0, 2) else ("in", "the") if kind == 3 else ("is",)
            yield f"word{kind}-{said}-{int(rng.integers(1, 3)) if rng.random() < SYNONYM else 0}"
