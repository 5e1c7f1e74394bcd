"""What one worker of a training does: it takes the steps, and resumes where an earlier run stopped.

The first worker also writes the log and the checkpoints, and validates. A training without Ray has only this worker.
The same call again goes on from the newest checkpoint, and is the uninterrupted run bit for bit on a CPU: the order of
the data, the masks and dropout depend on the seed and the number of the step alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from visualbert_core.errors import ClusterError, ConfigError, TrainingError, UnfinishedError
from visualbert_core.io.hub import checkpoint_name
from visualbert_core.printable import logger
from visualbert_core.training.data import ahead, passes, read_portion, total_steps
from visualbert_core.training.folder import (
    read_validations,
    write_record,
    write_validations,
)
from visualbert_core.training.log import Step, StepLog
from visualbert_core.training.optimizers import (
    OPTIMIZERS,
    Averages,
    Moments,
    Optimizer,
    Schedule,
    decay_groups,
)
from visualbert_core.training.order import Mixture, Order
from visualbert_core.training.recipe import EPOCHS, TrainConfig
from visualbert_core.training.sources import Lessons, metadata_task
from visualbert_core.training.state import Checkpoints, moments_of, restore
from visualbert_core.training.step import ALONE, Group, PassSize, Prepared, Stepper
from visualbert_core.training.validation import Validation, best, is_over, validate, validate_parent
from visualbert_core.training.watch import Watch

_LOG = logger(__name__)
_AGAIN = "run the same line again to go on from here"


class Run:
    """The part of a training that one worker takes."""

    def __init__(
        self,
        config: TrainConfig,
        lessons: Lessons,
        record: dict[str, Any],
        stop: Callable[[], str | None],
        group: Group = ALONE,
        saved: Callable[[], None] | None = None,
        tokens: int | None = None,
    ) -> None:
        """Take what `train` has opened. `saved` is called when checkpoints or run.json were written or removed.

        `tokens` is the size of passes that an earlier attempt came to.
        """
        self.config, self.lessons, self.record, self.stop, self.group = config, lessons, record, stop, group
        self.saved = saved or (lambda: None)
        self.order = lessons.order(config)
        self.total = total_steps(config, self.order)
        self.network = lessons.model.network.to(_device(group.device or config.device))
        self.optimizer = _optimizer(config, self.order, self.total, lessons)
        self.stepper = Stepper(lessons.model, self.optimizer, config, group)
        self.averages = Averages(self.optimizer, config.ema)
        self.size = PassSize(config, group, tokens)
        self.checkpoints = Checkpoints(config.folder)
        self.history: list[Validation] = []

    def go(self, show: Callable[[Step], None], paused: Callable[[], AbstractContextManager[None]]) -> None:
        """Take the steps that are left, and write run.json. `show` gets every step, and is `paused` in a validation.

        Raise UnfinishedError in the first worker where it was told to stop. The other workers only return.
        """
        step, watch = self._resume(), None
        parent = validate_parent(self.config, self.group)
        if self.group.first:
            self.record["parent"] = None if parent is None else asdict(parent)
            watch = Watch(self.config, self.total, parent)
        log = StepLog(self.config.folder / "steps.jsonl", step) if self.group.first else None
        try:
            over = self._validate_if_due(step)
            coming = ahead(self._prepared, range(step, self.total), self.config.readers, self.config.read_ahead)
            with closing(coming):
                while step < self.total and not over:
                    step = self._step(coming, log, show)
                    reason = self.stop() if self.group.first else None
                    stopped = self.group.from_first(reason is not None)
                    if log is not None and (stopped or self._due(step)):
                        self._save(step, log)
                    if stopped and watch is not None:
                        watch.update(self.record, self.history)
                        raise UnfinishedError(f"stopped ({reason}) after {step:,} of {self.total:,} steps; {_AGAIN}")
                    if stopped:
                        return
                    if self._due(step):
                        with paused():
                            over = self._validate_if_due(step)
                        self._prune()
                        if watch is not None and step < self.total and not over:
                            watch.update(self.record, self.history)
        finally:
            if log is not None:
                log.close()
        if watch is not None:
            self._finish(step, watch)

    def _resume(self) -> int:
        """Return the step to go on from, with weights, moments and validations as they were then."""
        state = self.checkpoints.newest()
        step = 0 if state is None else state.step
        if step != (expected := self.group.from_first(step)):
            raise ClusterError(
                f"worker {self.group.rank + 1} finds the checkpoint of step {step:,} in {self.config.folder} and "
                f"worker 1 that of step {expected:,}: name an --out that all nodes share"
            )
        if state is None:
            return 0
        restore(state, self.optimizer, self.lessons.model)
        self.averages.exchange()
        self.stepper.skipped = state.about["skipped"]
        self.size.tokens = min(self.size.tokens, state.about["tokens_per_pass"])
        self.history = read_validations(self.config.folder, state.step)
        if self.group.first:
            _LOG.info("%s: going on after step %s of %s", self.config.folder, f"{step:,}", f"{self.total:,}")
        return step

    def _prepared(self, step: int) -> Prepared:
        """Return the tensors of a step. Threads call this ahead of the steps."""
        portion, model = read_portion(self.lessons, self.order, step, self.group), self.lessons.model
        cut = passes(portion.items, self.size.tokens)
        counted = () if portion.stand_in else portion.items
        counts = tuple(sum(item.counts[term] for item in counted) for term in range(len(model.terms)))
        return Prepared(
            step,
            portion.epoch,
            portion.example_ids,
            tuple(model.prepare(items) for items in cut),
            counts,
            sum(item.tokens for item in counted),
            portion.stand_in,
        )

    def _step(self, coming: Iterator[Prepared], log: StepLog | None, show: Callable[[Step], None]) -> int:
        """Take one step, log it, and return the number of steps that are done."""
        began = time.monotonic()
        batch = next(coming)
        waited = time.monotonic() - began
        outcome = self.size.take(batch, self.stepper, self._prepared)
        if outcome.rate is not None:
            self.averages.update()
        if log is not None:
            kept = outcome.rate is not None
            counted = {name: mean for (name, mean), n in zip(outcome.terms.items(), outcome.counts, strict=True) if n}
            found = Step(
                step=batch.step + 1,
                epoch=batch.epoch,
                loss=outcome.loss if kept else None,
                terms=counted if kept else None,
                rate=outcome.rate,
                norm=outcome.norm if kept else None,
                examples=len(batch.example_ids),
                tokens=outcome.tokens,
                counts=outcome.counts,
                seconds=round(time.monotonic() - began, 4),
                waiting=round(waited, 4),
                left_out=() if kept else batch.example_ids,
            )
            log.add(found)
            show(found)
        return batch.step + 1

    def _due(self, step: int) -> bool:
        return step == self.total or step % (self.config.save_every or self.order.steps_per_epoch) == 0

    def _save(self, step: int, log: StepLog) -> None:
        self._check_weights(step)
        log.sync()  # before the checkpoint: a resumed run finds every line up to it
        task = metadata_task(self.config)
        save = partial(self.lessons.model.save, task=task, space=self.lessons.store.space)
        about = {
            "model": checkpoint_name(self.config.model),
            "skipped": self.stepper.skipped,
            "tokens_per_pass": self.size.tokens,
            "provenance": self.record["provenance"],
        }
        with self.averages.shown():
            self.checkpoints.write(step, save, moments_of(self.optimizer, self.network), about)
        self.saved()

    def _check_weights(self, step: int) -> None:
        """Raise TrainingError where the weights have run away, which the loss tells only at the next step."""
        with torch.no_grad():
            length = torch.nn.utils.get_total_norm(self.network.parameters())
        if not torch.isfinite(length):
            raise TrainingError(f"step {step}: the weights have grown without bound: lower the learning rate")

    def _validate_if_due(self, step: int) -> bool:
        """Evaluate the checkpoint of this step if that is due and was not done. Return whether the training is over."""
        if self.config.validate_split is None:
            return False
        lacking = step > 0 and self._due(step) and all(each.step != step for each in self.history)
        if self.group.from_first(lacking):  # the others do not keep the history
            found = validate(self.config, self.checkpoints.folder(step), step, self.group)
            if found is not None:
                self.history.append(found)
                write_validations(self.config.folder, self.history)
        return bool(self.group.from_first(is_over(self.history, self.config.patience)))

    def _prune(self) -> None:
        if not self.group.first:
            return
        every = self.checkpoints.steps()
        kept = set(every[-self.config.keep_last :])
        kept |= {each.step for each in best(self.history, self.config.keep_best)}
        if self.config.keep_every is not None:
            kept |= {step for step in every if step % self.config.keep_every == 0}
        self.checkpoints.prune(kept)
        self.saved()

    def _finish(self, step: int, watch: Watch) -> None:
        found = best(self.history)
        there = [each for each in found if self.checkpoints.folder(each.step).exists()]
        self.record |= {
            "status": "finished",
            "steps": step,
            "skipped": self.stepper.skipped,
            "tokens_per_pass": self.size.tokens,
            "last": self.checkpoints.folder(step).name,
            "best": self.checkpoints.folder(there[0].step).name if there else None,
            "validation": asdict(found[0]) if found else None,
        }
        watch.update(self.record, self.history)  # before run.json, after which the same call only reads
        write_record(self.config.folder / "run.json", self.record)
        self.saved()


def _device(name: str | None) -> str:
    """Return the device to compute on. Raise ConfigError where this machine has none of that name."""
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch that was built without CUDA
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"device: {name!r} cannot be used here: name another, such as cpu ({reason})") from None
    return name


def _optimizer(config: TrainConfig, order: Order | Mixture, total: int, lessons: Lessons) -> Optimizer:
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
        steps = order.planned(config.epochs or EPOCHS, round_down=True)
        if steps == 0:
            raise ConfigError(f"planned_steps authors: there are fewer examples than one batch of {config.batch_size}")
    schedule = Schedule(config.schedule, steps, config.warmup, config.cycles)
    moments = Moments(config.learning_rate, (config.beta1, config.beta2), config.epsilon, config.weight_decay)
    return OPTIMIZERS[config.optimizer](groups, moments, schedule)
