"""What several workers of a training share: smaller passes where one has too little memory, and the validation."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from small_device_task import SMALL, TOKENS
from test_training import recipe, steps  # noqa: F401  (recipe is a fixture)
from test_training_workers import two_nodes  # noqa: F401  (a fixture)

from visualbert_core.config import PoolConfig
from visualbert_core.engine.shards import FileDigest, Marker, Shard
from visualbert_core.errors import ConfigError
from visualbert_core.models.visualbert.trainable import VisualBertTrainable
from visualbert_core.training import TrainConfig, train
from visualbert_core.training.folder import read_validations
from visualbert_core.training.step import Group, PassSize, Prepared, ShortMemoryError, SmallerPassesError
from visualbert_core.training.validation import _NotFirstError, _SharedPool

Recipe = Callable[..., TrainConfig]


@pytest.fixture
def losses_stay() -> Iterator[None]:
    """Put the losses of this process back after the test: the driver opens the task, too."""
    real = VisualBertTrainable.losses
    yield
    VisualBertTrainable.losses = real  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.usefixtures("losses_stay", "two_nodes")
def test_workers_share_smaller_passes_and_the_validation(
    recipe: Recipe,  # noqa: F811
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A pass that does not fit in one worker makes it smaller in all. The losses are those of a device that is large
    enough; run.json has the size; no restart is counted. The validation of the parent has the bytes of one worker."""
    annotations = Path(shutil.copytree(recipe().annotations, tmp_path / "annotations"))
    options: dict[str, Any] = {"task_name": "small_device_task:SmallDeviceVqa", "annotations": annotations}
    options |= {"dropout": 0.0, "restarts": 0, "steps": 6, "learning_rate": 1e-4, "validate_split": "val"}
    train(recipe("vqa", "large", **options))
    (annotations / SMALL).touch()
    done = train(recipe("vqa", "small", workers=2, **options))
    assert done.record["tokens_per_pass"] <= TOKENS
    said = [line.message for line in caplog.records if "all workers start again" in line.message]
    assert said
    assert all("do not fit into the memory of the device; from here on a pass has at most" in line for line in said)
    for a, b in zip(steps(tmp_path / "large"), steps(tmp_path / "small"), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
    one, two = (tmp_path / name / "validation" / "step-00000000" for name in ("large", "small"))
    files = {path.relative_to(one) for path in one.rglob("*") if path.is_file()}
    assert len([name for name in files if name.name == "scores.json"]) == 2
    assert files == {path.relative_to(two) for path in two.rglob("*") if path.is_file()}
    assert [str(name) for name in files if (one / name).read_bytes() != (two / name).read_bytes()] == []
    assert len(read_validations(done.folder)) == 2


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
