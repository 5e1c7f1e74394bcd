"""Pre-training on pairs of captions goes on where it stopped, bit for bit: masks, second captions, dropout."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from test_training import Recipe, captions, recipe, steps, stop_after, weights  # noqa: F401  (two are fixtures)

from visualbert_core.errors import UnfinishedError
from visualbert_core.training import train


@pytest.mark.parametrize("number", [2, 5, 8])
def test_a_stopped_pre_training_ends_like_an_uninterrupted_one(recipe: Recipe, captions: Path, number: int) -> None:  # noqa: F811
    """Stopped before a checkpoint, between two and in the last step, weights and losses are those without a stop."""
    options = {"annotations": captions, "weights": "random", "tokens_per_pass": 120}
    train(recipe("caption-pairs", "whole", **options))
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, number, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(UnfinishedError):
            train(recipe("caption-pairs", **options))
    train(recipe("caption-pairs", **options))
    assert steps(recipe().out) == steps(recipe(out="whole").out)
    assert weights(recipe().out) == weights(recipe(out="whole").out)
