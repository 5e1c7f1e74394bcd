"""What a recipe may say about each task that is learnt beside the first one, over the same trunk.

Several tasks at once follow 12-in-1 (Lu et al. 2020, arXiv:1912.02315): a step takes a batch of one task.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from visualbert_core.config import check_range, check_values
from visualbert_core.errors import ConfigError
from visualbert_core.io.locations import Locations

PATHS = ("annotations", "features", "model", "answers")
"""The keys that say where something lies."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class AlsoTask:
    """A further task of a training. Keys that are not here are those of the recipe."""

    task: str | None = None
    """The benchmark, as the key `task` of the recipe. Default: the name of this entry."""
    checkpoint_task: str | None = None
    """The benchmark that its checkpoints answer, where the data to learn from are another class. Default: TASK."""
    split: str
    """The split to learn."""
    annotations: Path
    """Folder of its files."""
    features: Locations
    """Feature store, or several, with the regions of its images."""
    weight: float = 1.0
    """How many steps it gets for each step of the first task."""
    batch_size: int | None = None
    """Examples of one of its steps. Default: as in the recipe."""
    model: Path | None = None
    """Checkpoint folder whose head it starts from. Default: a new head."""
    answers: Path | None = None
    """List of the answers of a new head for questions."""
    grounding: float = 0.0
    """Weight of its term `grounding`."""

    def __post_init__(self) -> None:
        check_values(self)
        check_range(self, 1, None, "batch_size")
        check_range(self, 0, None, "grounding")
        if self.weight <= 0:
            raise ConfigError(f"weight is {self.weight:g}: it must be above 0")

    def ingredients(self) -> dict[str, Any]:
        """Return the keys that change a result, as JSON values."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in PATHS}


def first_name(task: str) -> str:
    """Return the name of the first task among the others: that of its benchmark or class."""
    return task.rpartition(":")[2].rpartition(".")[2].lower()


def check_names(names: Iterable[str], task: str) -> None:
    """Raise ConfigError for a name that cannot be a folder of a checkpoint, or that the first task has."""
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"also: {name!r} becomes a folder: use small letters, digits, - and _")
        if name == first_name(task):
            raise ConfigError(f"also: {name!r} is the first task: give this entry another name, with the key task")
