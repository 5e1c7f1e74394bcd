"""Send nights and trainings to experiment trackers: `trackers: [mlflow]` in the matrix or the recipe.

    mlflow        a run for each night, in an experiment named after the matrix     https://mlflow.org
    wandb         a run for each night, in a project named after the matrix         https://docs.wandb.ai
    tensorboard   a step for each night, in OUT/tensorboard/NAME                    https://www.tensorflow.org/tensorboard

A tracker is installed with `pip install visualbert-core[mlflow]`. A training is one run, in the experiment or project
`visualbert-train`, or in OUT/tensorboard. It is sent at its checkpoints, with a point for each step.
Each tracker gets the scores of every cell with their intervals. MLflow and W&B also get the digests of the ingredients,
the verdict of the gate, and the page. The tracker's own environment variables name its server and the credentials
(MLFLOW_TRACKING_URI, WANDB_API_KEY, WANDB_MODE=offline, …). If the same night is sent again, MLflow and W&B replace its
run, and TensorBoard gets a second point at its step. Nothing is read back from a tracker, except which runs to replace.
"""

from __future__ import annotations

import importlib.util
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from visualbert_core.config import nearest
from visualbert_core.errors import ConfigError, TrackerError
from visualbert_core.evaluation.run_folder import Run, made_of
from visualbert_core.provenance import INGREDIENTS, changed, digest_json


@dataclass(frozen=True)
class TrackedNight:
    """What a tracker gets. `runs` are the runs with a score, by the name of their cell."""

    name: str
    night: str
    runs: Mapping[str, Run]
    verdict: str | None
    report: Path
    out: Path

    def metrics(self) -> dict[str, float]:
        """Return CELL/METRIC → percent, and CELL/METRIC.low and .high → the ends of its interval."""
        found = {}
        for cell, run in self.runs.items():
            assert run.scores is not None
            for metric, score in run.scores["scores"].items():
                found[f"{cell}/{metric}"] = score
                ends = zip(("low", "high"), run.scores["intervals"].get(metric, ()), strict=False)
                found |= {f"{cell}/{metric}.{name}": end for name, end in ends if end is not None}
        return found

    def ingredients(self) -> dict[str, str]:
        """Return CELL/INGREDIENT → digest, as the history has it."""
        parts = {cell: changed({}, made_of(run)) for cell, run in self.runs.items()}
        return {f"{cell}/{name}": digest_json(of.get(name, [])) for cell, of in parts.items() for name in INGREDIENTS}


@dataclass(frozen=True)
class TrackedTraining:
    """What a tracker gets at a checkpoint of a training."""

    name: str
    identity: str
    """Names the run. A training that goes on has the same one."""
    settings: Mapping[str, str]
    """The recipe."""
    points: Sequence[tuple[int, Mapping[str, float]]]
    """(step, name → value) in the order of the steps: the losses and scores that were not sent before."""
    out: Path
    page: Path | None
    """The page of a finished training."""


PROJECT = "visualbert-train"
_IDENTITY = "visualbert_core.training"
_BATCH = 1000  # values in one request to MLflow, which allows no more


def check_trackers(names: Sequence[str], where: str) -> None:
    """Raise ConfigError for a tracker that is unknown or not installed, before the night is computed."""
    for name in names:
        if name not in _TRACKERS:
            raise ConfigError(f"{where}: trackers: unknown tracker {name!r}{nearest(name, _TRACKERS)}")
        package = _TRACKERS[name].package
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"{where}: trackers: {name} is not installed: pip install 'visualbert-core[{name}]'")


def track(tracker: str, night: TrackedNight) -> None:
    """Send a night. Raise TrackerError where that fails. The night is on disk by then."""
    _TRACKERS[tracker].night(night)


def track_training(tracker: str, training: TrackedTraining) -> None:
    """Send what is new of a training. Raise TrackerError where that fails. The log is on disk by then."""
    _TRACKERS[tracker].training(training)


def _mlflow(night: TrackedNight) -> None:
    import mlflow
    from mlflow.exceptions import MlflowException

    tags = {"visualbert_core.night": night.night} | ({"verdict": night.verdict} if night.verdict else {})
    try:
        experiment = mlflow.set_experiment(night.name)
        earlier = mlflow.search_runs(
            [experiment.experiment_id],
            f"tags.`visualbert_core.night` = '{night.night}'",
            output_format="list",
        )
        for run in earlier:
            mlflow.delete_run(run.info.run_id)
        with mlflow.start_run(run_name=night.night, tags=tags):
            mlflow.log_params(night.ingredients())
            mlflow.log_metrics({_mlflow_name(name): value for name, value in night.metrics().items()})
            mlflow.log_artifact(str(night.report))
    except (MlflowException, OSError) as error:
        raise TrackerError(f"mlflow: {_line(error, mlflow.get_tracking_uri())}") from error


def _mlflow_training(training: TrackedTraining) -> None:
    import mlflow
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

    now, tags = int(time.time() * 1000), {_IDENTITY: training.identity}
    values = [
        Metric(_mlflow_name(name), value, now, step) for step, found in training.points for name, value in found.items()
    ]
    try:
        experiment = mlflow.set_experiment(PROJECT)
        wanted = f"tags.`{_IDENTITY}` = '{training.identity}'"
        held = mlflow.search_runs([experiment.experiment_id], wanted, output_format="list")
        known = held[0].info.run_id if held else None
        with mlflow.start_run(known, run_name=training.name, tags=None if known else tags) as run:
            if known is None:
                mlflow.log_params(dict(training.settings))
            for start in range(0, len(values), _BATCH):
                mlflow.MlflowClient().log_batch(run.info.run_id, values[start : start + _BATCH])
            if training.page is not None:
                mlflow.log_artifact(str(training.page))
    except (MlflowException, OSError) as error:
        raise TrackerError(f"mlflow: {_line(error, mlflow.get_tracking_uri())}") from error


def _mlflow_name(name: str) -> str:
    """Return a name that MLflow accepts: it refuses the @ of recall@1."""
    return re.sub(r"[^/\w.\- :]", "_", name)


def _wandb(night: TrackedNight) -> None:
    import wandb

    folder = os.environ.get("WANDB_DIR", night.out)
    try:
        with wandb.init(
            project=night.name,
            name=night.night,
            id=f"{night.name}-{night.night}",
            dir=folder,
            config=night.ingredients() | {"verdict": night.verdict},
            settings=wandb.Settings(silent=True),
        ) as run:
            run.log(night.metrics())
            run.save(night.report, base_path=night.report.parent, policy="now")
    except (wandb.Error, OSError) as error:
        raise TrackerError(f"wandb: {_line(error, folder)}") from error


def _wandb_training(training: TrackedTraining) -> None:
    import wandb

    folder = os.environ.get("WANDB_DIR", training.out)
    try:
        with wandb.init(
            project=PROJECT,
            name=training.name,
            id=training.identity,
            resume="allow",
            dir=folder,
            config=dict(training.settings),
            settings=wandb.Settings(silent=True),
        ) as run:
            for step, found in training.points:
                run.log(dict(found), step=step)
            if training.page is not None:
                run.save(training.page, base_path=training.page.parent, policy="now")
    except (wandb.Error, OSError) as error:
        raise TrackerError(f"wandb: {_line(error, folder)}") from error


def _tensorboard(night: TrackedNight) -> None:
    from tensorboardX import SummaryWriter

    try:
        day = date.fromisoformat(night.night)
    except ValueError:  # the user may name a night with any word
        day = datetime.now(UTC).date()
    folder = night.out / "tensorboard" / night.name
    try:
        with SummaryWriter(str(folder)) as writer:
            for name, value in night.metrics().items():
                writer.add_scalar(name, value, day.toordinal())
    except OSError as error:
        raise TrackerError(f"tensorboard: {_line(error, folder)}") from error


def _tensorboard_training(training: TrackedTraining) -> None:
    from tensorboardX import SummaryWriter

    if not training.points:
        return
    folder = training.out / "tensorboard"
    try:
        # Without the step in its name, a file replaces the one that was written in the same second.
        with SummaryWriter(str(folder), filename_suffix=f".{training.points[0][0]}") as writer:
            for step, found in training.points:
                for name, value in found.items():
                    writer.add_scalar(name, value, step)
    except OSError as error:
        raise TrackerError(f"tensorboard: {_line(error, folder)}") from error


def _line(error: Exception, where: str | Path) -> str:
    """Return the error as one line, with the place that was written to: the system does not name a full disk."""
    line = " ".join(str(error).split())
    return f"{line}: {where}" if isinstance(error, OSError) and error.filename is None else line


@dataclass(frozen=True)
class _Tracker:
    """The package of a tracker, and the functions that send to it."""

    package: str
    night: Callable[[TrackedNight], None]
    training: Callable[[TrackedTraining], None]


_TRACKERS = {
    "mlflow": _Tracker("mlflow", _mlflow, _mlflow_training),
    "wandb": _Tracker("wandb", _wandb, _wandb_training),
    "tensorboard": _Tracker("tensorboardX", _tensorboard, _tensorboard_training),
}
