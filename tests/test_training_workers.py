"""Trainings on a Ray cluster of two nodes. One training with several workers: kills, signals and errors, whereas
test_ray_job.py has its losses. Sweeps: trainings side by side."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from deadly_task import DEADLY
from ray_calls import dies, waits_for_a_signal
from small_device_task import SMALL, TOKENS
from test_training import recipe, steps, weights  # noqa: F401  (recipe is a fixture)
from test_training_sweeps import Write, keys, record, run, write  # noqa: F401  (keys and write are fixtures)

from visualbert_core.engine.calls import Lost, on_ray, side_by_side
from visualbert_core.engine.ray_session import LOCAL_ENVIRONMENT, start_ray
from visualbert_core.errors import ClusterError, ConfigError, TrainingError, UnfinishedError
from visualbert_core.models.visualbert.trainable import VisualBertTrainable
from visualbert_core.provenance import digest_file
from visualbert_core.training import TrainConfig, ray_workers, sweeps, train
from visualbert_core.training.folder import read_validations

pytestmark = [pytest.mark.usefixtures("two_nodes"), pytest.mark.slow]
Recipe = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[None]:
    """Start a head that does no work, and two nodes of one CPU each, and let trainings join them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in LOCAL_ENVIRONMENT.items():
            if name not in os.environ:
                patch.setenv(name, value)
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        from ray.cluster_utils import Cluster

        # Ray accepts no object store below 75 MB. Port 0 lets every node's agent take a free port.
        options: dict[str, Any] = {"object_store_memory": 80 << 20, "dashboard_agent_listen_port": 0}
        head = options | {"num_cpus": 0, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            cluster.add_node(wait=False, num_cpus=1, **options)
        cluster.wait_for_nodes()
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield
        cluster.shutdown()


def test_a_killed_worker_is_replaced_and_a_signal_saves_first(recipe: Recipe, tmp_path: Path) -> None:  # noqa: F811
    """Three workers are asked for, and two begin, because there is room for two. After one was ended by SIGKILL all go
    on from the last checkpoint. Then SIGTERM to the driver saves in the first worker and ends as UnfinishedError,
    although Ray has set its own handlers. The same line goes on. Every loss and weight is that of a run without kill
    and signal, bit for bit, with dropout. A batch of one example leaves a worker without a share."""
    annotations = Path(shutil.copytree(recipe().annotations, tmp_path / "annotations"))
    options = {"task_name": "deadly_task:DeadlyVqa", "annotations": annotations, "batch_size": 11}
    options |= {"workers": 3, "min_workers": 2}
    options |= {"steps": 30, "save_every": 4, "validate_split": "val", "own_image_only": True}
    train(recipe("vqa", "whole", **options))
    (annotations / DEADLY).touch()
    config, room = recipe("vqa", "killed", **options), ray_workers._room

    def interrupted(ray: Any, config: TrainConfig) -> Any:
        if not (annotations / DEADLY).exists():  # all are about to start again
            signal.raise_signal(signal.SIGTERM)
        return room(ray, config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_workers, "_room", interrupted)  # the driver calls it before it starts the workers
        with pytest.raises(
            UnfinishedError, match=r"stopped \(SIGTERM\) after \d+ of 30 steps; run the same line again"
        ):
            train(config)
    assert not (annotations / DEADLY).exists(), "no worker was killed"
    assert 0 < len(steps(config.folder)) < 30
    done = train(config)
    assert steps(config.folder) == steps(tmp_path / "whole")
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert done.record["validation"]["scores"]["accuracy"] > 50
    assert not (config.folder / ".ray").exists()


def test_errors_of_workers_are_those_of_one_process(recipe: Recipe) -> None:  # noqa: F811
    """A loss that is not finite names the step and the examples, and is not tried again."""
    with pytest.raises(TrainingError, match=r"step \d+: the loss is .* the batch has 6 examples \(") as caught:
        train(recipe(workers=2, learning_rate=1e30))
    assert "\n" not in str(caught.value)


def told_to_stop(*arguments: Any) -> Any:
    """Call `side_by_side` after a SIGTERM."""
    signal.raise_signal(signal.SIGTERM)
    return side_by_side(*arguments)


def test_a_cluster_trains_side_by_side_to_the_weights_of_one_after_the_other(write: Write, tmp_path: Path) -> None:  # noqa: F811
    """On two nodes, trainings have the weights of trainings one after the other, and one that fails is a row.

    Before, a SIGTERM ends the sweep with exit code 6, although Ray has replaced the handlers of signals.
    """
    lists = {"seed": [0, 1], "frozen": [["lstm"], ["pooler"]], "validate_split": None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeps, "side_by_side", told_to_stop)
        assert run(write(**lists), "--out", tmp_path / "tasks") == 6
    for name, words in (("turns", ("--parallel", "1")), ("tasks", ())):
        assert run(write(**lists), "--out", tmp_path / name, *words) == 2
    turns, tasks = record(tmp_path / "turns"), record(tmp_path / "tasks")
    assert tasks["trainings"] == turns["trainings"]
    assert [each["status"] for each in tasks["trainings"]] == ["failed", "failed", "finished", "finished"]
    for each in tasks["trainings"][2:]:
        place = Path(each["name"]) / "checkpoints" / each["checkpoint"] / "model.safetensors"
        assert digest_file(tmp_path / "tasks" / place) == digest_file(tmp_path / "turns" / place)


def test_a_call_that_dies_is_made_again_and_a_signal_ends_it(tmp_path: Path) -> None:
    """A call whose process ends four times has the reason in place of a result. Once the sweep stops, a call that runs
    gets a signal and hands back what it has, and calls that wait are not made."""
    began = tmp_path / "began"
    with on_ray():
        ((_, lost),) = side_by_side(dies, [tmp_path / "deaths"], None, 1, "cpu", lambda: False)
        ended = dict(side_by_side(waits_for_a_signal, [began, began], 1, 1, "cpu", began.exists))
    assert isinstance(lost, Lost)
    assert "process ended: WorkerCrashedError" in lost.reason
    assert (tmp_path / "deaths").read_text() == "x" * 4
    assert ended == {0: "SIGINT"}


@pytest.fixture
def losses_stay() -> Iterator[None]:
    """Put the losses of this process back after the test: the driver opens the task, too."""
    real = VisualBertTrainable.losses
    yield
    VisualBertTrainable.losses = real  # type: ignore[method-assign]


@pytest.mark.usefixtures("losses_stay")
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


def test_workers_without_room_are_refused(
    recipe: Recipe,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without room for the fewest workers the training is refused on one machine, and so is a fewest above the most."""
    with pytest.raises(ConfigError, match="min_workers 3 is more than workers 2"):
        recipe(workers=2, min_workers=3)
    start_ray()
    monkeypatch.delenv("RAY_ADDRESS")  # as where Ray was started on this machine alone
    with pytest.raises(ClusterError, match="3 workers need 3 CPUs, and there are 2: lower --workers"):
        train(recipe(workers=3))
    import ray

    ray.shutdown()
