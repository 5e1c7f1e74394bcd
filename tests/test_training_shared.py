"""What several workers of a training share, without Ray: passes, and the shards of a validation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from test_training import recipe  # noqa: F401  (recipe is a fixture)

from visualbert_core.config import PoolConfig
from visualbert_core.engine.shards import FileDigest, Marker, Shard
from visualbert_core.errors import ConfigError
from visualbert_core.training import TrainConfig
from visualbert_core.training.step import Group, PassSize, Prepared, ShortMemoryError, SmallerPassesError
from visualbert_core.training.validation import _NotFirstError, _SharedPool

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


class Counter:
    """A worker that notes the shards that it was given."""

    taken: ClassVar[list[str]] = []

    def run(self, shard: Shard) -> Marker:
        """Note a shard."""
        self.taken.append(shard.shard_id)
        return Marker(shard.shard_id, len(shard.items), 0, FileDigest.of(b""), None)


def test_each_shard_of_a_validation_has_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three workers take all shards, none twice, whatever each finds done already. Only the first goes on to score."""
    waited = list[int]()
    monkeypatch.setattr(Group, "wait", lambda group: waited.append(group.rank))
    shards = [Shard(f"{number:032x}", (str(number),)) for number in range(40)]
    taken = list[str]()
    monkeypatch.setattr(Counter, "taken", taken)
    for rank in range(3):
        with _SharedPool(PoolConfig(inline=True), Group(rank, 3)) as pool:
            left = [shard for shard in shards if shard.shard_id not in taken]
            if rank == 0:
                assert len(pool.run(Counter, left, "shards")) == len(taken) > 5
            else:
                with pytest.raises(_NotFirstError):
                    pool.run(Counter, left, "shards")
    assert sorted(taken) == [shard.shard_id for shard in shards]
    assert waited == [0, 1, 2]
