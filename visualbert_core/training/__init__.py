"""Trains models on the examples of a benchmark and the regions of a feature store, in one process.

    recipe.py       what a training may set, and every default: one declaration for YAML, flags and help
    schedules.py    the learning rate at each step
    optimizers.py   AdamW and BertAdam, decay exclusions, clipping
    order.py        which examples each step takes: a seeded permutation, cut into batches
    data.py         examples and their regions, read ahead, as tensors: `batches(...)` for a loop of your own
    sources.py      the examples and targets of a recipe, checked before the first step
    also.py         what a recipe says about each further task
    several.py      several tasks over one trunk, and whose turn a step is
    step.py         one step of the optimiser over several passes
    state.py        checkpoints with the training state beside them, written whole or not at all
    log.py          the file of all steps, and the live line
    validation.py   the evaluation of a checkpoint, the best checkpoint, early stopping
    run.py          `train(...)`: the order of all this, the log, resuming, signals

The authors' recipes and their results are in Li et al. 2019 (arXiv:1908.03557) and github.com/uclanlp/visualbert at
2a9e8bd58a20. A name below is imported at its first use, so that flags and help need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visualbert_core.training.data import batches
    from visualbert_core.training.launch import train
    from visualbert_core.training.recipe import TrainConfig

INGREDIENT = "training"

__all__ = ["TrainConfig", "batches", "train"]

_MODULES = {"TrainConfig": "recipe", "batches": "data", "train": "launch"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
