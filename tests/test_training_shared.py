"""What several workers of a training share, without Ray: passes, and the shards of a validation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from test_training import recipe  # noqa: F401  (recipe is a fixture)

from visualbert_core.engine.shards import Shard
from visualbert_core.errors import ConfigError
from visualbert_core.evaluation.run import Share
from visualbert_core.training import TrainConfig
from visualbert_core.training.step import Group, PassSize, Prepared, ShortMemoryError, SmallerPassesError
from visualbert_core.training.validation import validate

Recipe = Callable[..., TrainConfig]


def test_a_worker_counts_its_own_share(recipe: Recipe) -> None:  # noqa: F811
    """The second of two workers has three of seven examples: in two passes they can be cut further, in three they
    cannot, and the error is one line."""

    def step(batch: Prepared) -> Any:
        raise ShortMemoryError(of_host=False)

    def take(passes: int) -> None:
        batch = Prepared(0, 0, tuple("abcdefg"), tuple(range(passes)), (1,), 60)
        size = PassSize(recipe(gradient_checkpointing=True), Group(rank=1, size=2))
        size.take(batch, step, lambda _: batch)

    with pytest.raises(SmallerPassesError) as caught:
        take(passes=2)
    assert caught.value.tokens == 30
    with pytest.raises(ConfigError, match="of the device: a pass has one example, so it needs more memory"):
        take(passes=3)


def test_each_shard_of_a_validation_has_one_worker() -> None:
    """Three workers take all shards, none twice, whatever each finds done already."""
    shards = [Shard(f"{number:032x}", (str(number),)) for number in range(40)]
    taken = list[Shard]()
    for rank in range(3):
        own = Share(rank, 3, lambda: None).own([shard for shard in shards if shard not in taken])
        assert len(own) > 5
        taken += own
    assert sorted(shard.shard_id for shard in taken) == [shard.shard_id for shard in shards]


def test_only_the_first_worker_scores(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """The second of two workers predicts its share, waits for the other, and neither scores nor finishes the run."""
    config, waited = recipe(validate_split="val", own_image_only=True), list[int]()
    monkeypatch.setattr(Group, "wait", lambda group: waited.append(group.rank))
    assert validate(config, config.model, 0, Group(1, 2)) is None
    found = validate(config, config.model, 0, Group(0, 2))
    assert waited == [1, 0]
    assert found is not None
    assert found == validate(config, config.model, 0)
