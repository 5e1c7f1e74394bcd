"""Send a night to experiment trackers: `trackers: [mlflow]` in the matrix, `pip install visualbert-core[mlflow]`.

    mlflow        a run for each night, in an experiment named after the matrix     https://mlflow.org
    wandb         a run for each night, in a project named after the matrix         https://docs.wandb.ai
    tensorboard   a step for each night, in OUT/tensorboard/NAME                    https://www.tensorflow.org/tensorboard

Each tracker gets the scores of every cell with their intervals. MLflow and W&B also get the digests of the ingredients,
the verdict of the gate, and the page. The tracker's own environment variables name its server and the credentials
(MLFLOW_TRACKING_URI, WANDB_API_KEY, WANDB_MODE=offline, …). If the same night is sent again, MLflow and W&B replace its
run, and TensorBoard gets a second point at its step. Nothing is read back from a tracker, except which runs to replace.
"""

from __future__ import annotations

import importlib.util
import os
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


def check_trackers(names: Sequence[str], where: str) -> None:
    """Raise ConfigError for a tracker that is unknown or not installed, before the night is computed."""
    for name in names:
        if name not in _TRACKERS:
            raise ConfigError(f"{where}: trackers: unknown tracker {name!r}{nearest(name, _TRACKERS)}")
        package, _ = _TRACKERS[name]
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"{where}: trackers: {name} is not installed: pip install 'visualbert-core[{name}]'")


def track(tracker: str, night: TrackedNight) -> None:
    """Send a night. Raise TrackerError where that fails. The night is on disk by then."""
    _TRACKERS[tracker][1](night)


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
            mlflow.log_metrics(night.metrics())
            mlflow.log_artifact(str(night.report))
    except (MlflowException, OSError) as error:
        raise TrackerError(f"mlflow: {_line(error, mlflow.get_tracking_uri())}") from error


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


def _line(error: Exception, where: str | Path) -> str:
    """Return the error as one line, with the place that was written to: the system does not name a full disk."""
    line = " ".join(str(error).split())
    return f"{line}: {where}" if isinstance(error, OSError) and error.filename is None else line


_TRACKERS: dict[str, tuple[str, Callable[[TrackedNight], None]]] = {
    "mlflow": ("mlflow", _mlflow),
    "wandb": ("wandb", _wandb),
    "tensorboard": ("tensorboardX", _tensorboard),
}
