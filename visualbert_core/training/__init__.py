"""Trains models on the examples of a benchmark and the regions of a feature store.

    recipe.py       what a training may set, and every default: one declaration for YAML, flags and help
    optimizers.py   AdamW and BertAdam, the rate at each step, decay exclusions, clipping, averages of the weights
    order.py        which examples each step takes: a seeded permutation, cut into batches; whose turn a step is
    sources.py      the tasks, examples and targets of a recipe, checked before the first step
    visuals.py      pixels of a corpus, and regions by whole row groups of a store larger than memory
    data.py         examples and their regions, read ahead, as tensors: `batches(...)` for a loop of your own
    step.py         one step of the optimiser over several passes and workers
    state.py        checkpoints with the training state beside them, written whole or not at all
    folder.py       OUT: who may write to it, which training it holds, and its copy in an object store
    log.py          the file of all steps, the live line, and the curves
    validation.py   the evaluation of a checkpoint, the best checkpoint, early stopping
    page.py         training.html
    watch.py        writes the page, the curves and to trackers, at every checkpoint
    run.py          what one worker does: it takes the steps, saves, validates, and resumes
    ray_workers.py  several workers of one training, on Ray Train
    board.py        an actor through which these workers and the driver speak
    launch.py       `train(...)`: the order of all this
    grid.py         the lists of a recipe → the trainings of a sweep, and their table over seeds
    sweep_page.py   sweep.html
    sweeps.py       `sweep(...)`: these trainings, in turn or side by side

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
