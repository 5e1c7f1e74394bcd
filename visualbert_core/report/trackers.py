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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from visualbert_core.config import nearest
from visualbert_core.errors import ConfigError, TrackerError
from visualbert_core.evaluation.run_folder import Run, made_of
from visualbert_core.provenance import INGREDIENTS, changed, digest_json

PROJECT = "visualbert-train"
_BATCH = 1000  # values in one request to MLflow, which allows no more


@dataclass(frozen=True)
class Tracked:
    """What a tracker gets: a whole night, or what is new of a training."""

    project: str
    """The experiment or project."""
    name: str
    identity: str
    """Names the run. A night replaces the run of the same identity, and a training goes on with it."""
    settings: Mapping[str, str]
    """The ingredients of a night, or the recipe of a training."""
    points: Sequence[tuple[int, Mapping[str, float]]]
    """(step, name → value) in the order of the steps: what was not sent before."""
    out: Path
    page: Path | None
    """The page of a night or of a finished training."""
    training: bool = True
    verdict: str | None = None
    """The verdict of the gate."""


def tracked_night(
    name: str, night: str, runs: Mapping[str, Run], verdict: str | None, page: Path, out: Path
) -> Tracked:
    """Return a night of the matrix `name`. `runs` are the runs with a score, by the name of their cell.

    Its settings are CELL/INGREDIENT → digest, as the history has it. Its values are CELL/METRIC → percent, and
    CELL/METRIC.low and .high → the ends of its interval.
    """
    digests: dict[str, str] = {}
    values: dict[str, float] = {}
    for cell, run in runs.items():
        assert run.scores is not None
        parts = changed({}, made_of(run))
        digests |= {f"{cell}/{ingredient}": digest_json(parts.get(ingredient, [])) for ingredient in INGREDIENTS}
        for metric, score in run.scores["scores"].items():
            values[f"{cell}/{metric}"] = score
            ends = zip(("low", "high"), run.scores["intervals"].get(metric, ()), strict=False)
            values |= {f"{cell}/{metric}.{end}": value for end, value in ends if value is not None}
    return Tracked(name, night, night, digests, [(0, values)], out, page, training=False, verdict=verdict)


def check_trackers(names: Sequence[str], where: str) -> None:
    """Raise ConfigError for a tracker that is unknown or not installed, before the night is computed."""
    for name in names:
        if name not in _TRACKERS:
            raise ConfigError(f"{where}: trackers: unknown tracker {name!r}{nearest(name, _TRACKERS)}")
        package, _ = _TRACKERS[name]
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"{where}: trackers: {name} is not installed: pip install 'visualbert-core[{name}]'")


def track(tracker: str, sent: Tracked) -> None:
    """Send a night or a training. Raise TrackerError where that fails. Everything is on disk by then."""
    _, send = _TRACKERS[tracker]
    send(sent)


def _mlflow(sent: Tracked) -> None:
    import mlflow
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

    now, tag = int(time.time() * 1000), f"visualbert_core.{'training' if sent.training else 'night'}"
    tags = {tag: sent.identity} | ({"verdict": sent.verdict} if sent.verdict else {})
    values = [
        Metric(_mlflow_name(name), value, now, step) for step, found in sent.points for name, value in found.items()
    ]
    try:
        experiment = mlflow.set_experiment(sent.project)
        wanted = f"tags.`{tag}` = '{sent.identity}'"
        held = mlflow.search_runs([experiment.experiment_id], wanted, output_format="list")
        for earlier in () if sent.training else held:
            mlflow.delete_run(earlier.info.run_id)
        known = held[0].info.run_id if held and sent.training else None
        with mlflow.start_run(known, run_name=sent.name, tags=None if known else tags) as run:
            if known is None:
                mlflow.log_params(dict(sent.settings))
            for start in range(0, len(values), _BATCH):
                mlflow.MlflowClient().log_batch(run.info.run_id, values[start : start + _BATCH])
            if sent.page is not None:
                mlflow.log_artifact(str(sent.page))
    except (MlflowException, OSError) as error:
        raise TrackerError(f"mlflow: {_line(error, mlflow.get_tracking_uri())}") from error


def _mlflow_name(name: str) -> str:
    """Return a name that MLflow accepts: it refuses the @ of recall@1."""
    return re.sub(r"[^/\w.\- :]", "_", name)


def _wandb(sent: Tracked) -> None:
    import wandb

    folder = os.environ.get("WANDB_DIR", sent.out)
    try:
        with wandb.init(
            project=sent.project,
            name=sent.name,
            id=sent.identity if sent.training else f"{sent.project}-{sent.identity}",
            resume="allow" if sent.training else None,
            dir=folder,
            config=dict(sent.settings) | ({} if sent.training else {"verdict": sent.verdict}),
            settings=wandb.Settings(silent=True),
        ) as run:
            for step, found in sent.points:
                run.log(dict(found), step=step)
            if sent.page is not None:
                run.save(sent.page, base_path=sent.page.parent, policy="now")
    except (wandb.Error, OSError) as error:
        raise TrackerError(f"wandb: {_line(error, folder)}") from error


def _tensorboard(sent: Tracked) -> None:
    from tensorboardX import SummaryWriter

    if not sent.points:
        return
    first = 0 if sent.training else _day(sent.name)
    folder = sent.out / "tensorboard" / ("" if sent.training else sent.project)
    try:
        # Without the step in its name, a file replaces the one that was written in the same second.
        with SummaryWriter(str(folder), filename_suffix=f".{first + sent.points[0][0]}") as writer:
            for step, found in sent.points:
                for name, value in found.items():
                    writer.add_scalar(name, value, first + step)
    except OSError as error:
        raise TrackerError(f"tensorboard: {_line(error, folder)}") from error


def _day(night: str) -> int:
    """Return the step of a night: its date, or today where the user named it otherwise."""
    try:
        return date.fromisoformat(night).toordinal()
    except ValueError:
        return datetime.now(UTC).toordinal()


def _line(error: Exception, where: str | Path) -> str:
    """Return the error as one line, with the place that was written to: the system does not name a full disk."""
    line = " ".join(str(error).split())
    return f"{line}: {where}" if isinstance(error, OSError) and error.filename is None else line


_TRACKERS = {"mlflow": ("mlflow", _mlflow), "wandb": ("wandb", _wandb), "tensorboard": ("tensorboardX", _tensorboard)}
"""Tracker → its package, and the function that sends to it."""
