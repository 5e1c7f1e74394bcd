"""Several tasks of one recipe: each is opened as a recipe of its own, and a mixture says whose turn a step is.

The examples of all tasks have one numbering, those of the first task first. The tasks take turns by their weights
alone, so neither the number of steps nor an interruption changes whose turn a step is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

import numpy as np

from visualbert_core.models.together import Member, Together
from visualbert_core.provenance import outside_code
from visualbert_core.training.also import AlsoTask, first_name
from visualbert_core.training.order import Order
from visualbert_core.training.recipe import TrainConfig
from visualbert_core.training.sources import Lessons, metadata_task, open_recipe


@dataclass(frozen=True)
class Mixture:
    """The order of the examples of several tasks. Each has an order of its own, and a share of the steps."""

    orders: tuple[Order, ...]
    weights: tuple[float, ...]
    """Steps of each task for one step of the first."""

    @property
    def seed(self) -> int:
        """Return the seed of all orders."""
        return self.orders[0].seed

    @property
    def examples(self) -> int:
        """Return the number of examples of the first task, which counts the epochs."""
        return self.orders[0].examples

    @property
    def batch_size(self) -> int:
        """Return the batch size of the first task."""
        return self.orders[0].batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of steps in which the first task has an epoch."""
        return self.total(self.orders[0].steps_per_epoch)

    def total(self, steps: int) -> int:
        """Return the number of steps in which the first task has `steps` of them."""
        return round(steps * sum(self.weights) / self.weights[0])

    def batch(self, step: int) -> tuple[int, list[int]]:
        """Return the epoch of the task whose turn step number `step` is, and the numbers of its examples."""
        tasks, places = _turns(self.weights, 1 << max(step, 1023).bit_length())
        task = int(tasks[step])
        epoch, indices = self.orders[task].batch(int(places[step]))
        before = sum(order.examples for order in self.orders[:task])
        return epoch, [before + index for index in indices]


@lru_cache(maxsize=2)
def _turns(weights: tuple[float, ...], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for each of `count` steps the task whose turn it is, and how many steps it had before: int64.

    The n-th step of a task lies in the middle of the n-th of equal spans, so the tasks alternate as evenly as they can.
    """
    own = np.arange(count)
    times = np.concatenate([(own + 0.5) / weight for weight in weights])
    chosen = np.argsort(times, kind="stable")[:count]
    return chosen // count, chosen % count


@dataclass(frozen=True)
class SeveralLessons(Lessons):
    """The lessons of the first task, with those of all tasks. `examples` holds the examples of all."""

    parts: tuple[Lessons, ...] = ()
    entries: tuple[AlsoTask, ...] = ()

    def order(self, config: TrainConfig) -> Mixture:  # type: ignore[override]
        """Return the order of the examples of all tasks."""
        sizes = (config.batch_size, *(entry.batch_size or config.batch_size for entry in self.entries))
        orders = (part.order(replace(config, batch_size=size)) for part, size in zip(self.parts, sizes, strict=True))
        return Mixture(tuple(orders), (1.0, *(entry.weight for entry in self.entries)))

    def of(self, indices: Sequence[int]) -> Lessons:
        """Return the lessons of the task whose examples have these numbers."""
        place = indices[0]
        for part in self.parts:
            if place < len(part.examples):
                return part
            place -= len(part.examples)
        raise IndexError(indices[0])

    def provenance(self, config: TrainConfig) -> dict[str, Any]:
        """Return what the training is made of, without paths. The data of further tasks are under `also`."""
        about = super().provenance(config)
        rest = dict(zip(config.also, self.parts[1:], strict=True))
        about["data"]["also"] = {name: part.data() for name, part in rest.items()}
        for part in rest.values():
            about["code"] |= outside_code("task", part.benchmark)
        return about


def open_tasks(config: TrainConfig) -> Lessons:
    """Open a recipe with all of its tasks. Raise what `open_recipe` raises, and ConfigError where the networks of two
    tasks cannot share a trunk."""
    first = open_recipe(config)
    if not config.also:
        return first
    configs = [config, *(as_recipe(config, name) for name in config.also)]
    parts = [first, *map(open_recipe, configs[1:])]
    names = [first_name(config.validate_task or config.task), *config.also]
    together = Together(
        [
            Member(name, part.model, metadata_task(one), part.store.space)
            for name, part, one in zip(names, parts, configs, strict=True)
        ]
    )
    parts = [replace(part, model=cast(Any, model)) for part, model in zip(parts, together.parts(), strict=True)]
    remarks = first.remarks | {"also": {name: part.remarks for name, part in zip(names[1:], parts[1:], strict=True)}}
    examples = [example for part in parts for example in part.examples]
    return SeveralLessons(
        first.task,
        first.store,
        cast(Any, together),  # its parts make the items
        examples,
        first.masked,
        remarks,
        grounding=first.grounding,
        parts=tuple(parts),
        entries=tuple(config.also.values()),
    )


def as_recipe(config: TrainConfig, name: str) -> TrainConfig:
    """Return a further task of a recipe as a recipe of its own."""
    entry = config.also[name]
    weights = config.weights
    if weights != "random":
        weights = "new-head" if entry.model is None else "checkpoint"
    return replace(
        config,
        task=entry.task or name,
        split=entry.split,
        annotations=entry.annotations,
        features=entry.features,
        model=entry.model or config.model,
        weights=weights,
        answers=entry.answers,
        grounding=entry.grounding,
        validate_task=entry.checkpoint_task,
        also={},
        epochs=None,
    )
