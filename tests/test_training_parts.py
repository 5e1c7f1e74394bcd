"""Trainings of one part of VCR, as the authors train: the answers alone, or the rationales alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from test_training import recipe, steps  # noqa: F401  (recipe is a fixture)

from visualbert_core.errors import ConfigError
from visualbert_core.training import TrainConfig, batches, train

Recipe = Callable[..., TrainConfig]


@pytest.mark.parametrize(("part", "metric"), [("answer", "q_to_a"), ("rationale", "qa_to_r")])
def test_a_part_is_learnt_alone_and_chosen_by_its_metric(recipe: Recipe, part: str, metric: str) -> None:  # noqa: F811
    """Only examples of the part are learnt, half of all. Its metric names the score of every validation, and the best
    checkpoint has the highest."""
    every = train(recipe("vcr", "both", steps=1, save_every=1)).record["examples"]["examples"]
    options: dict[str, Any] = {"validate_split": "val", "own_image_only": True, "keep_best": 1}
    config = recipe("vcr", "part", part=part, steps=4, save_every=2, **options)
    assert {name.rpartition("/")[2] for batch in batches(config) for name in batch.example_ids} == {part}
    done = train(config)
    assert 2 * done.record["examples"]["examples"] == every
    assert done.record["validation"]["headline"] == metric
    assert done.record["provenance"]["recipe"]["part"] == part
    assert f"{metric}, in percent" in (config.folder / "training.html").read_text()


def test_a_part_that_is_not_there_is_refused(recipe: Recipe) -> None:  # noqa: F811
    """An unknown part names the known ones; a benchmark without parts is named. Both before the first step."""
    with pytest.raises(ConfigError, match="unknown part of vcr 'answers'; known: answer, rationale"):
        train(recipe("vcr", part="answers"))
    with pytest.raises(ConfigError, match="part: vqa has no parts: leave part out"):
        train(recipe("vqa", part="answer"))
