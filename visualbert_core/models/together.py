"""Several models with one trunk, trained together: each has the head of its task (12-in-1, Lu et al. 2020,
arXiv:1912.02315).

Together they keep the `Trainable` contract. A batch holds examples of one task. The terms of the other tasks count
nothing in it. A checkpoint is the folder of the first task. It holds a folder for each further task, so that each of
them is a checkpoint like every other; the weights of the trunk are in each.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visualbert_core.errors import ConfigError
from visualbert_core.models.trainable import Item, Trainable
from visualbert_core.schema import CaptionPair, Example, NamedRegions, Target

INGREDIENT = "training"


@dataclass(frozen=True)
class Member:
    """The model of one task, and what its checkpoints are trained on."""

    name: str
    model: Trainable[Any]
    task: str | None
    space: str | None


@dataclass(frozen=True)
class Part:
    """The model of one task, whose items count the terms of all tasks."""

    model: Any
    at: int  # the place of the task
    before: int  # how many terms come before those of the model
    after: int

    def has_target(self, target: Target) -> bool:
        return bool(self.model.has_target(target))

    def encode(
        self, example: Example | CaptionPair, visual: tuple[Any, ...], target: Target, draws: random.Random
    ) -> Item:
        return self._widened(self.model.encode(example, visual, target, draws))

    def ground(self, item: Item, example: Example | CaptionPair, named: NamedRegions) -> Item:
        return self._widened(self.model.ground(_inner([item])[1][0], example, named))

    def _widened(self, item: Item) -> Item:
        counts = (0,) * self.before + item.counts + (0,) * self.after
        return replace(item, counts=counts, content=(self.at, item))


class Together:
    """The models of several tasks as one model. The first gives its trunk to the others."""

    def __init__(self, members: Sequence[Member]) -> None:
        """Share the trunk of the first model. Raise ConfigError where a model cannot take it."""
        self._members = tuple(members)
        first = members[0]
        for at, member in enumerate(members[1:], start=1):
            if not hasattr(member.model, "share"):
                raise ConfigError(f"also.{member.name}: a {type(member.model).__name__} cannot share its trunk")
            for earlier in members[:at]:
                member.model.share(earlier.model)
        self.reads = first.model.reads
        self.network: nn.Module = nn.ModuleDict({member.name: member.model.network for member in members})
        self.terms = tuple(f"{member.name} {term}" for member in members for term in member.model.terms)
        counts = [len(member.model.terms) for member in members]
        self.parts = [
            Part(member.model, at, sum(counts[:at]), sum(counts[at + 1 :])) for at, member in enumerate(members)
        ]

    def fingerprint(self) -> dict[str, Any]:
        """Return name of a task → what its model starts from."""
        return {member.name: member.model.fingerprint() for member in self._members}

    def prepare(self, items: Sequence[Item]) -> tuple[int, Any]:
        at, inner = _inner(items)
        return at, self._members[at].model.prepare(inner)

    def padded(self, items: Sequence[Item]) -> dict[str, Tensor]:
        at, inner = _inner(items)
        return self._members[at].model.padded(inner)

    def losses(self, prepared: tuple[int, Any]) -> Tensor:
        """Compute one pass: the sums of the terms of its task, and 0 for the others."""
        at, inner = prepared
        part = self.parts[at]
        sums = part.model.losses(inner)
        return torch.cat((sums.new_zeros(part.before), sums, sums.new_zeros(part.after)))

    def save(self, folder: Path, task: str | None, space: str | None) -> None:
        """Write the checkpoint of the first task into `folder`, and those of the others into folders inside."""
        for at, member in enumerate(self._members):
            place = self._place(folder, at)
            place.mkdir(exist_ok=True)
            member.model.save(place, member.task, member.space)

    def saved_weights(self, folder: Path) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {}
        for at, member in enumerate(self._members):
            weights = member.model.saved_weights(self._place(folder, at))
            found |= {f"{member.name}.{name}": value for name, value in weights.items()}
        return found

    def _place(self, folder: Path, at: int) -> Path:
        return folder / self._members[at].name if at else folder


def _inner(items: Sequence[Item]) -> tuple[int, list[Item]]:
    """Return the place of the task of some items, and the items as its own model made them."""
    return items[0].content[0], [item.content[1] for item in items]
