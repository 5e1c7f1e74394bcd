"""Examples with their regions or images as batches, read ahead by threads.

`batches(config)` is for a training loop of your own: it yields padded tensors with labels, as the heads of this
package and of Hugging Face transformers take them. The loop of `visualbert train` takes the same items, packed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from torch import Tensor

from visualbert_core.io.hub import with_folder
from visualbert_core.models.trainable import Item
from visualbert_core.training.order import Mixture, Order, draws
from visualbert_core.training.recipe import EPOCHS, TrainConfig
from visualbert_core.training.sources import Lessons, open_tasks
from visualbert_core.training.step import ALONE, Group

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Batch:
    """The examples of one step, as tensors."""

    step: int
    """The number of the step, from 0."""
    epoch: int
    """How often each example has been seen before."""
    example_ids: tuple[str, ...]
    tensors: dict[str, Tensor]
    """The keyword arguments of the head's forward, with `labels`, on the CPU. They are padded."""


@dataclass(frozen=True, eq=False)
class Portion:
    """A worker's items of one step, before they become tensors."""

    epoch: int
    items: tuple[Item, ...]
    example_ids: tuple[str, ...]
    """The examples of the whole batch."""
    stand_in: bool
    """Whether the batch has fewer examples than there are workers, and the item is of another worker."""


def batches(config: TrainConfig, first_step: int = 0) -> Iterator[Batch]:
    """Yield the batches of a recipe in order, from number `first_step` on, for a loop of your own.

    The same recipe gives the same batches, also after an interruption: pass the number of steps that are done as
    `first_step`. A batch has `config.batch_size` examples; the last one of an epoch may have fewer. Read the features
    of the next `config.read_ahead` batches in threads. Keys that concern the optimiser have no effect.

    Raise InputError where task, features and model do not fit together, CoverageError where images have no features.

        for batch in batches(TrainConfig(task="vqa", split="train", …)):
            loss = model(**batch.tensors).loss
    """
    lessons = open_tasks(with_folder(config))
    order = lessons.order(config)

    def make(step: int) -> Batch:
        portion = read_portion(lessons, order, step)
        return Batch(step, portion.epoch, portion.example_ids, lessons.model.padded(portion.items))

    yield from ahead(make, range(first_step, total_steps(config, order)), config.readers, config.read_ahead)


def total_steps(config: TrainConfig, order: Order | Mixture) -> int:
    return config.steps or order.planned(config.epochs or EPOCHS)


def read_portion(lessons: Lessons, order: Order | Mixture, step: int, group: Group = ALONE) -> Portion:
    """Make a worker's examples of a step, fetch their regions or images, and encode them."""
    epoch, indices = order.batch(step)
    batch = [lessons.examples[index] for index in indices]
    lessons = lessons.of(indices)
    share = group.share(batch)
    examples = share or batch[:1]
    drawings = [draws(order.seed, epoch, example.example_id) for example in examples]
    # First drawn: what is shown at this visit may have other images than the example in the list.
    seen: list[Any] = [lessons.task.drawn(cast(Any, e), d) for e, d in zip(examples, drawings, strict=True)]
    items = []
    for example, visual, drawing in zip(seen, lessons.visuals(seen), drawings, strict=True):
        items.append(lessons.item(example, visual, drawing))
    return Portion(epoch, tuple(items), tuple(example.example_id for example in batch), not share)


def passes(items: Sequence[Item], tokens: int) -> list[list[Item]]:
    """Cut the items of a step into passes of at most `tokens` tokens, in order. A longer item has its own pass."""
    found: list[list[Item]] = []
    held = tokens + 1
    for item in items:
        if held + item.tokens > tokens:
            found.append([])
            held = 0
        found[-1].append(item)
        held += item.tokens
    return found


def ahead(make: Callable[[int], T], steps: Iterable[int], threads: int, depth: int) -> Generator[T, None, None]:
    """Yield `make(step)` for every step in order, and make the next `depth` of them in threads."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="reader")
    waiting: deque[Future[T]] = deque()
    try:
        for step in steps:
            waiting.append(pool.submit(make, step))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
