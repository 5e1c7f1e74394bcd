"""Several workers whose devices are too small: all begin anew with smaller passes, and give the same losses."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_device_task import SMALL, TOKENS
from test_training import recipe, steps  # noqa: F401  (recipe is a fixture)
from test_training_workers import two_nodes  # noqa: F401  (a fixture)

from visualbert_core.errors import ConfigError
from visualbert_core.models.visualbert.trainable import VisualBertTrainable
from visualbert_core.training import TrainConfig, train
from visualbert_core.training.step import Group, PassSize, Prepared, ShortMemoryError, SmallerPassesError

Recipe = Callable[..., TrainConfig]


@pytest.fixture
def losses_stay() -> Iterator[None]:
    """Put the losses of this process back after the test: the driver opens the task, too."""
    real = VisualBertTrainable.losses
    yield
    VisualBertTrainable.losses = real  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.usefixtures("losses_stay", "two_nodes")
def test_several_workers_take_smaller_passes(
    recipe: Recipe,  # noqa: F811
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A pass that does not fit in one worker makes it smaller in all. The losses are those of a device that is large
    enough; run.json has the size; no restart is counted."""
    annotations = Path(shutil.copytree(recipe().annotations, tmp_path / "annotations"))
    options: dict[str, Any] = {"task_name": "small_device_task:SmallDeviceVqa", "annotations": annotations}
    options |= {"dropout": 0.0, "restarts": 0, "steps": 6, "learning_rate": 1e-4}
    train(recipe("vqa", "large", **options))
    (annotations / SMALL).touch()
    done = train(recipe("vqa", "small", workers=2, **options))
    assert done.record["tokens_per_pass"] <= TOKENS
    said = [line.message for line in caplog.records if "all workers start again" in line.message]
    assert said
    assert all("do not fit into the memory of the device; from here on a pass has at most" in line for line in said)
    for a, b in zip(steps(tmp_path / "large"), steps(tmp_path / "small"), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)


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
