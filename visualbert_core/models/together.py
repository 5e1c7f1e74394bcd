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

    def parts(self) -> list[Part]:
        """Return each model as one that makes items for all."""
        return [Part(self, at) for at in range(len(self._members))]

    def place(self, at: int) -> tuple[int, int]:
        """Return how many terms come before those of model `at`, and after them."""
        before = sum(len(member.model.terms) for member in self._members[:at])
        return before, len(self.terms) - before - len(self.model(at).terms)

    def model(self, at: int) -> Trainable[Any]:
        """Return the model of a task by its place."""
        return self._members[at].model

    def fingerprint(self) -> dict[str, Any]:
        """Return name of a task → what its model starts from."""
        return {member.name: member.model.fingerprint() for member in self._members}

    def prepare(self, items: Sequence[Item]) -> tuple[int, Any]:
        """Turn the items of one task into the tensors of one pass."""
        at, inner = _inner(items)
        return at, self.model(at).prepare(inner)

    def padded(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Turn the items of one task into padded tensors with labels."""
        at, inner = _inner(items)
        return self.model(at).padded(inner)

    def losses(self, prepared: tuple[int, Any]) -> Tensor:
        """Compute one pass: the sums of the terms of its task, and 0 for the others."""
        at, inner = prepared
        sums = self.model(at).losses(inner)
        before, after = self.place(at)
        return torch.cat((sums.new_zeros(before), sums, sums.new_zeros(after)))

    def save(self, folder: Path, task: str | None, space: str | None) -> None:
        """Write the checkpoint of the first task into `folder`, and those of the others into folders inside."""
        for at, member in enumerate(self._members):
            place = self._place(folder, at)
            place.mkdir(exist_ok=True)
            member.model.save(place, member.task, member.space)

    def saved_weights(self, folder: Path) -> Mapping[str, Tensor]:
        """Return the weights of a checkpoint that `save` wrote, by the names of the network's parameters."""
        found: dict[str, Tensor] = {}
        for at, member in enumerate(self._members):
            weights = member.model.saved_weights(self._place(folder, at))
            found |= {f"{member.name}.{name}": value for name, value in weights.items()}
        return found

    def _place(self, folder: Path, at: int) -> Path:
        return folder / self._members[at].name if at else folder


@dataclass(frozen=True)
class Part:
    """The model of one task, whose items count the terms of all tasks."""

    together: Together
    at: int

    @property
    def _model(self) -> Any:
        return self.together.model(self.at)

    def has_target(self, target: Target) -> bool:
        """Return whether anything can be learnt from this target."""
        return bool(self._model.has_target(target))

    def encode(
        self, example: Example | CaptionPair, visual: tuple[Any, ...], target: Target, draws: random.Random
    ) -> Item:
        """Turn an example of this task into an item."""
        return self._widened(self._model.encode(example, visual, target, draws))

    def ground(self, item: Item, example: Example | CaptionPair, named: NamedRegions) -> Item:
        """Add to an item which regions its words name."""
        return self._widened(self._model.ground(_inner([item])[1][0], example, named))

    def _widened(self, item: Item) -> Item:
        before, after = self.together.place(self.at)
        return replace(item, counts=(0,) * before + item.counts + (0,) * after, content=(self.at, item))


def _inner(items: Sequence[Item]) -> tuple[int, list[Item]]:
    """Return the place of the task of some items, and the items as its own model made them."""
    return items[0].content[0], [item.content[1] for item in items]
