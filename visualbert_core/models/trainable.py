"""The contract that a model keeps to be trained: examples and targets become items, items become sums of losses.

Two further members are optional. `share(other)` takes the trunk of another model, for a training on several tasks. With
`Start.grounding` above 0, `ground(item, example, named)` adds to an item which regions the words of its example name,
and a term `grounding` is the last of the terms.

A loss is a sum of terms, such as masked words and sentence-image pairs. Each term is a sum over what the model counts,
divided by that count over the whole batch. So a model returns sums and counts, never means: the result then does not
depend on how a batch is cut into passes or shared between workers (huggingface/transformers#34373 tells what means do).
Nothing outside `models/` asks for the type of a model.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from torch import Tensor, nn

from visualbert_core.models.base import ReadsPixels, ReadsRegions
from visualbert_core.schema import CaptionPair, Example, Pixels, Regions, Target

INGREDIENT = "training"


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a training begins with, and the choices that belong to the model.

    Every default is the authors' choice, except `pair_cut` and `answer_letters`, where their code has slips. With
    `dropout` None the numbers of config.json stay.
    """

    weights: Literal["checkpoint", "new-head", "random"] = "checkpoint"
    seed: int = 0
    dropout: float | None = None
    answers: Path | None = None
    objective: Literal["task", "masked-words"] = "task"
    own_caption_label: int = 1
    answer_letters: bool = False
    pair_cut: Literal["longer-first", "authors"] = "longer-first"
    features: tuple[int, str] | None = None
    """Size and space of the features, for a start that has never seen any, such as a BERT."""
    label_smoothing: float = 0.0
    gradient_checkpointing: bool = False
    grounding: float = 0.0


@dataclass(frozen=True, eq=False)
class Item:
    """One example, ready for a batch."""

    example_id: str
    tokens: int
    """How many positions the network computes for this example."""
    counts: tuple[int, ...]
    """For each term of the loss, how many it counts in this example: 1 question, or 7 masked words."""
    content: Any
    """What the model itself put there."""


Visual_contra = TypeVar("Visual_contra", bound=Regions | Pixels, contravariant=True)


class Trainable(Protocol[Visual_contra]):
    """What training needs from a model. `training/` uses these members and no others."""

    reads: ReadsRegions | ReadsPixels
    network: nn.Module
    """The network, whose parameters have the names of the checkpoint."""
    terms: tuple[str, ...]
    """The names of the terms of the loss."""

    def fingerprint(self) -> dict[str, Any]:
        """Return what the training starts from, as JSON values: weights digest, class, layout of the inputs."""

    def has_target(self, target: Target) -> bool:
        """Return whether anything can be learnt from this target."""

    def encode(
        self,
        example: Example | CaptionPair,
        visual: tuple[Visual_contra, ...],
        target: Target,
        draws: random.Random,
    ) -> Item:
        """Turn an example into an item, on the CPU. Threads may call this at once."""

    def prepare(self, items: Sequence[Item]) -> Any:
        """Turn items into the tensors of one pass, on the CPU."""

    def padded(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Turn items into padded tensors with labels, named as the arguments of the network's forward."""

    def losses(self, prepared: Any) -> Tensor:
        """Compute one pass: for each term the sum of its losses, float32 [terms], with gradients.

        The network's mode decides about dropout, whose draws come from torch's global generator.
        """

    def saved_weights(self, folder: Path) -> Mapping[str, Tensor]:
        """Return the weights of a checkpoint that `save` wrote, by the names of the network's parameters."""

    def save(self, folder: Path, task: str | None, space: str | None) -> None:
        """Write a checkpoint that `load_model` opens. `task` and `space` are what it was trained on."""
