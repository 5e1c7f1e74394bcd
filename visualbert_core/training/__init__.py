"""Trains models on the examples of a benchmark and the regions of a feature store, in one process.

    recipe.py       what a training may set, and every default: one declaration for YAML, flags and help
    schedules.py    the learning rate at each step
    optimizers.py   AdamW and BertAdam, decay exclusions, clipping
    order.py        which examples each step takes: a seeded permutation, cut into batches
    row_groups.py   regions by whole row groups, for a store larger than memory
    data.py         examples and their regions, read ahead, as tensors: `batches(...)` for a loop of your own
    sources.py      the examples and targets of a recipe, checked before the first step
    also.py         what a recipe says about each further task
    several.py      several tasks over one trunk, and whose turn a step is
    step.py         one step of the optimiser over several passes
    state.py        checkpoints with the training state beside them, written whole or not at all
    bucket.py       OUT in an object store: a folder of this machine and its copy
    log.py          the file of all steps, and the live line
    validation.py   the evaluation of a checkpoint, the best checkpoint, early stopping
    curves.py       the curves of the log, for plots and as Parquet
    page.py         training.html
    watch.py        writes the page, the curves and to trackers, at every checkpoint
    run.py          `train(...)`: the order of all this, the log, resuming, signals
    grid.py         the lists of a recipe → the runs of a sweep
    sweeps.py       `sweep(...)`: these runs, in turn or side by side
    sweep_table.py  their scores, with mean and deviation over seeds
    seed_runs.py    the runs of one recipe over several seeds

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
    from visualbert_core.training.sweeps import sweep

INGREDIENT = "training"

__all__ = ["TrainConfig", "batches", "sweep", "train"]

_MODULES = {"TrainConfig": "recipe", "batches": "data", "sweep": "sweeps", "train": "launch"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
