"""Trains by a recipe: checks it, opens it, claims the folder, and starts the workers.

One worker takes the steps in this process and needs no Ray. Several take them together on Ray, see `ray_workers`.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from visualbert_core.engine.calls import on_ray
from visualbert_core.engine.hardware import set_threads
from visualbert_core.engine.stopping import Stop
from visualbert_core.errors import InputError
from visualbert_core.io.hub import with_folder
from visualbert_core.report.trackers import check_trackers
from visualbert_core.training.data import total_steps
from visualbert_core.training.folder import Training, alone, claim, opened, workplace
from visualbert_core.training.log import Live
from visualbert_core.training.ray_workers import train_on_ray
from visualbert_core.training.recipe import TrainConfig
from visualbert_core.training.run import Run
from visualbert_core.training.sources import open_tasks
from visualbert_core.training.validation import check_validation


def train(config: TrainConfig) -> Training:
    """Train a model by a recipe, or go on with a training that stopped. A finished training is only read.

    Raise InputError where the recipe does not fit its data, or where OUT holds a training by another recipe. Raise
    CoverageError where images have no features. Raise TrainingError where a loss or gradient is not finite. Raise
    ClusterError where Ray does not start, or workers end again and again. Raise UnfinishedError after SIGTERM, SIGINT
    or `max_hours`, when everything is saved.
    """
    config = with_folder(config)
    if isinstance(config.out, Path) and config.out.absolute() == config.model.absolute():
        raise InputError(f"out: {config.out} is the checkpoint to start from: name another folder")
    check_validation(config)
    check_trackers(config.trackers, "recipe")
    before = set_threads(config.threads)
    try:
        lessons = open_tasks(config)
        provenance = lessons.provenance(config)
        with workplace(config) as (config, copy), alone(config.folder):
            record = claim(config, provenance, lessons)
            if record["status"] != "finished":
                several = config.workers > 1
                total = total_steps(config, lessons.order(config))
                live = Live(f"training on {config.task} {config.split}", total, config.log_seconds)
                # Ray replaces the handlers of signals, so they are set after it has started.
                with on_ray() if several else nullcontext(), Stop(config.max_hours) as stop, live:
                    if several:
                        train_on_ray(config, record, stop.reason, live.show)
                    else:
                        saved = copy.send if copy else None
                        Run(config, lessons, record, stop.reason, saved=saved).go(live.show, live.paused)
            return copy.placed(opened(config.folder)) if copy else opened(config.folder)
    finally:
        if before is not None:
            set_threads(before)
