"""Runs a training: opens the recipe, takes the steps, saves, validates, and resumes where an earlier run stopped.

The same call again goes on from the newest checkpoint, and is the uninterrupted run bit for bit on a CPU: the order of
the data, the masks and dropout depend on the seed and the number of the step alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from visualbert_core.engine.worker_process import set_threads
from visualbert_core.errors import ConfigError, UnfinishedError
from visualbert_core.printable import logger
from visualbert_core.training.data import ahead, passes, read_portion, total_steps
from visualbert_core.training.folder import (
    Training,
    alone,
    claim,
    opened,
    read_validations,
    write_record,
    write_validations,
)
from visualbert_core.training.log import Live, Pace, StepLog
from visualbert_core.training.optimizers import OPTIMIZERS, Moments, Optimizer, decay_groups
from visualbert_core.training.order import Order
from visualbert_core.training.recipe import EPOCHS, TrainConfig
from visualbert_core.training.schedules import Schedule, planned_steps
from visualbert_core.training.sources import Lessons, metadata_task, open_recipe, out_of_place
from visualbert_core.training.state import Checkpoints, moments_of, restore
from visualbert_core.training.step import Outcome, Prepared, Stepper
from visualbert_core.training.stopping import Stop, listening
from visualbert_core.training.validation import Validation, best, check_validation, is_over, validate

_LOG = logger(__name__)
_AGAIN = "run the same line again to go on from here"


def train(config: TrainConfig) -> Training:
    """Train a model by a recipe, or go on with a training that stopped. A finished training is only read.

    Raise InputError where the recipe does not fit its data, or where OUT holds a training by another recipe. Raise
    CoverageError where images have no features. Raise TrainingError where a loss or gradient is not finite. Raise
    UnfinishedError after SIGTERM, SIGINT or `max_hours`, when everything is saved.
    """
    out_of_place(config)
    check_validation(config)
    before = set_threads(config.threads)
    try:
        lessons = open_recipe(config)
        provenance = lessons.provenance(config)
        with alone(config.out), listening() as stop:
            record = claim(config, provenance, lessons)
            if record["status"] == "finished":
                return opened(config.out, record)
            return _Run(config, lessons, provenance, record, stop).go()
    finally:
        if before is not None:
            set_threads(before)


class _Run:
    """A training in this process."""

    def __init__(
        self,
        config: TrainConfig,
        lessons: Lessons,
        provenance: dict[str, Any],
        record: dict[str, Any],
        stop: Stop,
    ) -> None:
        self.config, self.lessons, self.provenance, self.record, self.stop = config, lessons, provenance, record, stop
        self.order = Order(len(lessons.examples), config.batch_size, config.seed)
        self.total = total_steps(config, self.order)
        network = lessons.model.network.to(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.optimizer = _optimizer(config, self.order, self.total, lessons)
        self.network = network
        self.stepper = Stepper(lessons.model, self.optimizer, config)
        self.checkpoints = Checkpoints(config.out)
        self.history: list[Validation] = []

    def go(self) -> Training:
        """Take the steps that are left."""
        step = self._resume()
        log = StepLog(self.config.out / "steps.jsonl", step)
        label = f"training on {self.config.task} {self.config.split}"
        try:
            over = self._validate_if_due(step)
            coming = ahead(self._prepared, range(step, self.total), self.config.readers, self.config.read_ahead)
            with closing(coming), Live(label, self.total, self.config.log_seconds) as live:
                while step < self.total and not over:
                    step = self._step(coming, log, live)
                    if reason := self.stop.reason(self.config.max_hours):
                        self._save(step, log)
                        raise UnfinishedError(f"stopped ({reason}) after {step:,} of {self.total:,} steps; {_AGAIN}")
                    if self._due(step):
                        self._save(step, log)
                        over = self._validate_if_due(step)
                        self._prune()
        finally:
            log.close()
        return self._finish(step)

    def _resume(self) -> int:
        """Return the step to go on from, with weights, moments and validations as they were then."""
        state = self.checkpoints.newest()
        if state is None:
            return 0
        restore(state, self.optimizer, self.network)
        self.stepper.skipped = state.about["skipped"]
        self.history = read_validations(self.config.out, state.step)
        _LOG.info("%s: going on after step %s of %s", self.config.out, f"{state.step:,}", f"{self.total:,}")
        return state.step

    def _prepared(self, step: int) -> Prepared:
        """Return the tensors of a step. Threads call this ahead of the steps."""
        portion, model = read_portion(self.lessons, self.order, step), self.lessons.model
        cut = passes(portion.items, self.config.tokens_per_pass)
        counts = tuple(sum(item.counts[term] for item in portion.items) for term in range(len(model.terms)))
        return Prepared(
            step,
            portion.epoch,
            tuple(item.example_id for item in portion.items),
            tuple(model.prepare(items) for items in cut),
            counts,
            sum(item.tokens for item in portion.items),
        )

    def _step(self, coming: Iterator[Prepared], log: StepLog, live: Live) -> int:
        """Take one step, log it, and return the number of steps that are done."""
        began = time.monotonic()
        batch = next(coming)
        waited = time.monotonic() - began
        try:
            outcome = self.stepper(batch)
        except torch.OutOfMemoryError:
            raise ConfigError(
                f"step {batch.step + 1}: {self.config.tokens_per_pass:,} tokens at once do not fit into the memory of "
                "the device: lower --tokens-per-pass; the results stay the same"
            ) from None
        pace = Pace(len(batch.example_ids), time.monotonic() - began, waited)
        log.add(_line(batch, outcome, pace))
        loss = None if outcome.rate is None else outcome.loss
        live.show(batch.step + 1, batch.epoch, loss, outcome.rate, outcome.norm, pace)
        return batch.step + 1

    def _due(self, step: int) -> bool:
        """Return whether a checkpoint belongs after this step."""
        return step == self.total or step % (self.config.save_every or self.order.steps_per_epoch) == 0

    def _save(self, step: int, log: StepLog) -> None:
        log.sync()  # before the checkpoint: a resumed run finds every line up to it
        task = metadata_task(self.config)
        save = partial(self.lessons.model.save, task=task, space=self.lessons.store.space)
        about = {"model": self.config.model.name, "skipped": self.stepper.skipped, "provenance": self.provenance}
        self.checkpoints.write(step, save, moments_of(self.optimizer, self.network), about)

    def _validate_if_due(self, step: int) -> bool:
        """Evaluate the checkpoint of this step if that is due and was not done. Return whether the training is over."""
        if self.config.validate_split is None:
            return False
        if step and self._due(step) and all(each.step != step for each in self.history):
            found = validate(self.config, self.checkpoints.folder(step), step)
            self.history.append(found)
            write_validations(self.config.out, self.history)
        return is_over(self.history, self.config.patience)

    def _prune(self) -> None:
        every = self.checkpoints.steps()
        kept = set(every[-self.config.keep_last :])
        kept |= {each.step for each in best(self.history, self.config.keep_best)}
        if self.config.keep_every is not None:
            kept |= {step for step in every if step % self.config.keep_every == 0}
        self.checkpoints.prune(kept)

    def _finish(self, step: int) -> Training:
        found = best(self.history)
        there = [each for each in found if self.checkpoints.folder(each.step).exists()]
        self.record |= {
            "status": "finished",
            "steps": step,
            "skipped": self.stepper.skipped,
            "last": self.checkpoints.folder(step).name,
            "best": self.checkpoints.folder(there[0].step).name if there else None,
            "validation": asdict(found[0]) if found else None,
        }
        write_record(self.config.out / "run.json", self.record)
        return opened(self.config.out, self.record)


def _line(batch: Prepared, outcome: Outcome, pace: Pace) -> dict[str, Any]:
    """Return the line of steps.jsonl. A batch that was left out has neither loss nor rate."""
    kept = outcome.rate is not None
    return {
        "step": batch.step + 1,
        "epoch": batch.epoch,
        "loss": outcome.loss if kept else None,
        "terms": outcome.terms if kept else None,
        "rate": outcome.rate,
        "norm": outcome.norm if kept else None,
        "examples": len(batch.example_ids),
        "tokens": batch.tokens,
        "counts": list(batch.counts),
        "seconds": round(pace.seconds, 4),
        "waiting": round(pace.waiting, 4),
    }


def _optimizer(config: TrainConfig, order: Order, total: int, lessons: Lessons) -> Optimizer:
    """Freeze what the recipe freezes, and return the optimiser of the rest."""
    named = list(lessons.model.network.named_parameters())
    for part in config.frozen:
        if not any(part in name for name, _ in named):
            raise ConfigError(f"frozen: the name of no tensor contains {part!r}, such as {named[0][0]!r}")
    for name, parameter in named:
        parameter.requires_grad_(not any(part in name for part in config.frozen))
    groups = decay_groups(named, config.weight_decay, config.no_decay)
    if not groups:
        raise ConfigError("frozen: all tensors are frozen, so there is nothing to train")
    steps = total
    if config.planned_steps == "authors" and config.steps is None:
        steps = planned_steps(order.examples, order.batch_size, config.epochs or EPOCHS, round_down=True)
        if steps == 0:
            raise ConfigError(
                f"planned_steps authors: {order.examples} examples are fewer than one batch of {order.batch_size}"
            )
    schedule = Schedule(config.schedule, steps, config.warmup, config.cycles)
    moments = Moments(config.learning_rate, (config.beta1, config.beta2), config.epsilon, config.weight_decay)
    return OPTIMIZERS[config.optimizer](groups, moments, schedule)
