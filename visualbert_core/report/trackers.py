"""A night sent to experiment trackers: `trackers: [mlflow]` in the matrix, `pip install visualbert-core[mlflow]`.

    mlflow        a run a night, in an experiment named after the matrix     https://mlflow.org
    wandb         a run a night, in a project named after the matrix         https://docs.wandb.ai
    tensorboard   a step a night, in OUT/tensorboard/NAME                    https://www.tensorflow.org/tensorboard

Each gets every cell's scores with their intervals; the first two also what each cell was made of, the gate's verdict
and the page. Where a tracker's server is and who may write there, its own environment says (MLFLOW_TRACKING_URI,
WANDB_API_KEY, WANDB_MODE=offline, …). In MLflow and W&B the same night again replaces its run; TensorBoard gets a
second point at that night's step. Nothing is read back from a tracker.
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
from visualbert_core.evaluation.run_folder import Run
from visualbert_core.provenance import INGREDIENTS, changed, digest_json


@dataclass(frozen=True)
class TrackedNight:
    """What trackers are told. `runs` are the scored ones, by name of their cell."""

    name: str
    night: str
    runs: Mapping[str, Run]
    verdict: str | None
    report: Path
    out: Path

    def metrics(self) -> dict[str, float]:
        """CELL/METRIC, and .low and .high of its interval, in percent."""
        found = {}
        for cell, run in self.runs.items():
            assert run.scores is not None
            for metric, score in run.scores["scores"].items():
                found[f"{cell}/{metric}"] = score
                ends = zip(("low", "high"), run.scores["intervals"].get(metric, ()), strict=False)
                found |= {f"{cell}/{metric}.{name}": end for name, end in ends if end is not None}
        return found

    def ingredients(self) -> dict[str, str]:
        """CELL/INGREDIENT → digest, the history's."""
        parts = {cell: changed({}, run.record["provenance"]) for cell, run in self.runs.items()}
        return {f"{cell}/{name}": digest_json(of.get(name, [])) for cell, of in parts.items() for name in INGREDIENTS}


def check_trackers(names: Sequence[str], where: str) -> None:
    """Raises ConfigError for a tracker that there is not, or that is not installed, before a night is computed."""
    for name in names:
        if name not in _TRACKERS:
            raise ConfigError(f"{where}: trackers: unknown tracker {name!r}{nearest(name, _TRACKERS)}")
        package, _ = _TRACKERS[name]
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"{where}: trackers: {name} is not installed: pip install 'visualbert-core[{name}]'")


def track(tracker: str, night: TrackedNight) -> None:
    """Send a night. Raises TrackerError where that fails; the night itself lies on disk by then."""
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
    except ValueError:  # a night may have any name
        day = datetime.now(UTC).date()
    folder = night.out / "tensorboard" / night.name
    try:
        with SummaryWriter(str(folder)) as writer:
            for name, value in night.metrics().items():
                writer.add_scalar(name, value, day.toordinal())
    except OSError as error:
        raise TrackerError(f"tensorboard: {_line(error, folder)}") from error


def _line(error: Exception, where: str | Path) -> str:
    """The error as one line, with the place that was written to: of a full disk the system does not say it."""
    line = " ".join(str(error).split())
    return f"{line}: {where}" if isinstance(error, OSError) and error.filename is None else line


_TRACKERS: dict[str, tuple[str, Callable[[TrackedNight], None]]] = {
    "mlflow": ("mlflow", _mlflow),
    "wandb": ("wandb", _wandb),
    "tensorboard": ("tensorboardX", _tensorboard),
}
