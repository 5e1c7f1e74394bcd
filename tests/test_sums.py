"""Metrics that are functions of sums: their interval covers, their paired test does not cry wolf, and both add up.

The counts are those of the golden captions, so nights are drawn from real distributions of matches and lengths.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from captions_golden import golden

from visualbert_core.metrics.captions import bleu_counts, caption
from visualbert_core.metrics.ptb_tokenizer import tokenize
from visualbert_core.metrics.statistics import clustered_mean, interval, paired_differences, smallest_drop, usual_step
from visualbert_core.metrics.sums import bleu, linear_differences, linear_shares, value_of_sums


@cache
def counts(name: str, longest: int = 4) -> np.ndarray:
    """Return the counts of BLEU of each golden image for one set of candidates: float64 [300, 2 longest + 2]."""
    references: dict[int, list[str]] = {image["id"]: [] for image in golden("references")["images"]}
    for annotation in golden("references")["annotations"]:
        references[annotation["image_id"]].append(annotation["caption"])
    candidates = {row["image_id"]: row["caption"] for row in golden(f"candidates_{name}")}
    found = [
        bleu_counts(caption(tokenize([candidates[image_id]])[0]), [caption(text) for text in tokenize(texts)])
        for image_id, texts in references.items()
    ]
    return np.array(found)[:, [*range(longest), *range(4, 4 + longest), 8, 9]]


def test_gradient_is_the_slope() -> None:
    """The gradient is the slope of BLEU in each of its sums, with candidates that are too short and too long."""
    for sums in (counts("good").sum(axis=0), counts("good").sum(axis=0) * [1, 1, 1, 1, 1, 1, 1, 1, 1, 1.2]):
        steps = np.eye(10) * 1e-4
        slopes = (bleu(sums + steps)[0] - bleu(sums - steps)[0]) / 2e-4
        assert bleu(sums)[1] == pytest.approx(slopes, rel=1e-5, abs=1e-12)


def test_shares_add_up() -> None:
    """The mean of the units' shares is the metric, and the mean of their differences is the change of the metric."""
    before, after = counts("good"), counts("edge")
    assert linear_shares("bleu", before).mean() == pytest.approx(value_of_sums("bleu", before), abs=1e-12)
    change = value_of_sums("bleu", after) - value_of_sums("bleu", before)
    shares = linear_differences("bleu", before, after)
    assert shares.mean() == pytest.approx(change, abs=1e-4)
    assert not shares[(before == after).all(axis=1)].any()  # an image with equal counts has no part in the change


@pytest.mark.parametrize(("longest", "name"), [(1, "good"), (4, "good"), (4, "edge")])
def test_interval_covers(longest: int, name: str) -> None:
    """A 95 % interval of BLEU holds the BLEU of the population in 95 % of 1,000 samples, here within two points."""
    population, rng = counts(name, longest), np.random.default_rng(longest)
    truth, held = value_of_sums("bleu", population), 0
    for _ in range(1000):
        sample = population[rng.integers(0, 300, 200)]
        low, high = interval(clustered_mean(linear_shares("bleu", sample).tolist(), np.arange(200)))
        held += low <= truth <= high
    assert 0.93 <= held / 1000 <= 0.97


def test_nights_without_a_change_raise_no_alarm() -> None:
    """Where two sets of captions are exchanged at random in each image, one night in twenty has p < 0.05."""
    rng, alarms = np.random.default_rng(5), 0
    for _ in range(1000):
        rows, swap = rng.integers(0, 300, 200), rng.random((200, 1)) < 0.5
        one, other = counts("good")[rows], counts("edge")[rows]
        shares = linear_differences("bleu", np.where(swap, one, other), np.where(swap, other, one))
        alarms += paired_differences(shares, np.arange(200)).p < 0.05
    assert 0.03 <= alarms / 1000 <= 0.065


def test_a_drop_that_should_be_seen_is_seen() -> None:
    """A drop of the size that the gate promises to find with probability 0.8 is found about that often, or more."""
    rng, alpha = np.random.default_rng(6), 0.01
    night = counts("good")[rng.integers(0, 300, 1000)]
    worse = counts("wrong_image")[rng.integers(0, 300, 1000)]
    whole = value_of_sums("bleu", night) - value_of_sums("bleu", worse)

    def shares(part: float) -> np.ndarray:
        changed = rng.random((1000, 1)) < part
        return linear_differences("bleu", night, np.where(changed, worse, night))

    drop = float(np.mean([smallest_drop(0.0, 1000, alpha, step=usual_step(shares(0.05))) for _ in range(300)]))
    found = sum(paired_differences(shares(drop / whole), np.arange(1000)).p_drop < alpha for _ in range(500))
    assert 0.6 <= found / 500 <= 0.95
    assert drop < smallest_drop(0.0, 1000, alpha) / 2  # captions change by parts, so smaller drops show


def test_no_match_has_no_interval_and_no_surprise() -> None:
    """Two runs without a common 4-gram differ by nothing, and one match more is a rise."""
    none = counts("wrong_image").copy()
    none[:, 3] = 0
    assert value_of_sums("bleu", none) < 1e-3
    one = none.copy()
    one[7, 3] = 1
    assert not linear_differences("bleu", none, none).any()
    assert linear_differences("bleu", none, one)[7] > 0
