"""Validation during a training is the evaluation; the best checkpoint stays, and patience ends a training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_training import Recipe, recipe, steps, weights  # noqa: F401  (recipe is a fixture)

from visualbert_core.config import EvaluateConfig, PoolConfig
from visualbert_core.engine.pool import Pool
from visualbert_core.evaluation.run import evaluate
from visualbert_core.training import train
from visualbert_core.training.validation import Validation, best, is_over


def test_validation_is_the_evaluation_and_disturbs_nothing(recipe: Recipe, tmp_path: Path) -> None:  # noqa: F811
    """With validations the weights are those of the run without; a score is what `evaluate` gives for that folder."""
    train(recipe(out="without"))
    config = recipe(validate_split="val", keep_last=9)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    done = train(config)
    assert torch.equal(torch.get_rng_state(), before)
    assert weights(config.out) == weights(recipe(out="without").out)
    lines = [json.loads(line) for line in (config.out / "validations.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 8]
    top = max(lines, key=lambda line: line["scores"]["accuracy"])
    assert done.record["validation"] == top
    assert done.best == config.out / "checkpoints" / f"step-{top['step']:08d}"
    assert done.best is not None
    again = EvaluateConfig(
        task="vqa",
        split="val",
        annotations=config.annotations,
        features=config.features,
        model=done.best,
        out=tmp_path / "runs",
    )
    with Pool(PoolConfig(inline=True)) as pool:
        scores = evaluate(again, pool).scores
    assert scores is not None
    assert scores["scores"] == top["scores"]
    assert top["wrong_image"]["accuracy"] < top["scores"]["accuracy"]


def test_an_interrupted_validation_is_made_up_for(recipe: Recipe) -> None:  # noqa: F811
    """A run that ended between a checkpoint and its validation validates that checkpoint before its next step."""
    config = recipe(validate_split="val", own_image_only=True)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("visualbert_core.training.run.validate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    train(config)
    lines = [json.loads(line) for line in (config.out / "validations.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 8]


def test_best_and_patience() -> None:
    """The earlier of equal scores is better, and patience counts the validations since the best one."""
    history = [Validation(n, "m", {"m": score}, None) for n, score in enumerate((1.0, 3.0, 3.0, 2.0))]
    assert [each.step for each in best(history, 2)] == [1, 2]
    assert [is_over(history, patience) for patience in (None, 1, 2, 3)] == [False, True, True, False]
    assert not is_over([], 1)


def test_an_early_stop_keeps_best_and_last(recipe: Recipe, caplog: pytest.LogCaptureFixture) -> None:  # noqa: F811
    """With a rate of 0 no validation is better than the first, so patience ends the run; the best is still there. That
    the training split is evaluated is logged once."""
    config = recipe(validate_split="val", learning_rate=0.0, save_every=1, patience=2, keep_last=1, own_image_only=True)
    done = train(config)
    assert done.record["steps"] == 3
    assert caplog.text.count("evaluated on the training split") == 1
    assert done.best is not None
    assert (done.best.name, done.last.name) == ("step-00000001", "step-00000003")
    assert sorted(path.name for path in (config.out / "checkpoints").iterdir()) == [done.best.name, done.last.name]
