"""`visualbert train`: a recipe → checkpoints that `visualbert evaluate` opens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import tyro

from visualbert_core.commands.declarations import Flat
from visualbert_core.config import nearest
from visualbert_core.config_mapping import from_mapping
from visualbert_core.errors import ConfigError
from visualbert_core.io.documents import read_yaml
from visualbert_core.io.hub import with_folder
from visualbert_core.io.locations import absolute_paths
from visualbert_core.printable import say_result
from visualbert_core.training.grid import Grid, split_lists
from visualbert_core.training.recipe import TrainConfig, shipped


@dataclass(frozen=True, kw_only=True)
class Command:
    """Train a model on a benchmark, from a feature store, by a recipe.

    RECIPE is a YAML file whose keys are the flags below, or the name of a shipped recipe: authors-vqa, authors-coco, …
    A flag replaces the key of the file. Without a RECIPE the flags say everything. Writes checkpoints below OUT; each
    is a folder that `visualbert evaluate` and Hugging Face transformers open. The same line again goes on from the
    newest checkpoint, bit for bit on a CPU. Exit code 1: a loss or gradient is not finite. 3: images have no features.
    6: SIGTERM, Ctrl-C or --max-hours stopped the training, and it was saved first.

    A key with a list of values, such as learning_rate: [1e-5, 2e-5] and seed: [0, 1, 2], makes a sweep: a training for
    each combination, and one table with mean and deviation over seeds.

        visualbert train recipe.yaml --out /shared/training
        visualbert train recipe.yaml --out /shared/training-2 --learning-rate 5e-5 --seed 2
        visualbert train authors-vqa --annotations vqa --features STORE --model FOLDER --out /shared/vqa
        ray job submit --working-dir . -- python jobs/train.py recipe.yaml --out /shared/training
    """

    recipe: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="RECIPE")] = None
    """YAML file with the keys of the training, or the name of a shipped recipe."""
    training: Flat[TrainConfig]
    parallel: int | None = None
    """Trainings of a sweep that run at once, as Ray tasks: each with a GPU, or with THREADS CPUs where there are none.
    Default: one after the other; on a cluster in RAY_ADDRESS, as many as it has room for."""
    grid: tyro.conf.Suppress[tyro.conf.Fixed[Grid]] = field(default_factory=dict)
    json: bool = False
    """Print one JSON object."""

    def run(self) -> int:
        from visualbert_core.training import train

        if self.grid:
            return self._sweep()
        if self.parallel is not None:
            raise ConfigError("--parallel is for a sweep, and no key of this recipe has a list of values: leave it out")
        done = train(absolute_paths(with_folder(self.training)))
        scores = (done.record["validation"] or {}).get("scores") or {}
        lines = [f"WARNING: {warning}" for warning in done.record["warnings"]]
        lines += [f"{name:>14} {score:6.2f}" for name, score in scores.items()]
        lines += [f"best: {done.best}"] if done.best is not None else []
        lines += [f"last: {done.last}", f"page: {done.folder / 'training.html'}"]
        say_result(self.json, done.record | {"folder": str(done.folder)}, lines)
        return 0

    def _sweep(self) -> int:
        from visualbert_core.training.grid import describe
        from visualbert_core.training.sweeps import sweep

        found = sweep(absolute_paths(with_folder(self.training)), self.grid, self.parallel)
        lines = (*describe(found), f"page: {found.folder / 'sweep.html'}")
        say_result(self.json, found.document() | {"folder": str(found.folder)}, lines)
        return found.code


def defaults(words: Sequence[str]) -> Any:
    """Return the command as the recipe among `words` fills it, or None where there is no recipe.

    The recipe is the first word. A file of that name comes before a shipped recipe. Keys that the recipe leaves out and
    that have no default must be flags. A flag also replaces a list of values.
    """
    if not words or words[0].startswith("-"):
        return None
    path = Path(words[0])
    if not path.suffix and not path.exists():
        if words[0] not in shipped():
            raise ConfigError(
                f"no file and no shipped recipe is called {words[0]!r}{nearest(words[0], shipped())} (shipped: "
                f"{', '.join(shipped())})"
            )
        path = shipped()[words[0]]
    recipe, grid = split_lists(read_yaml(path) or {}, str(path), absent=tyro.MISSING)
    given = _flags(words)
    return Command(
        recipe=path,
        training=from_mapping(TrainConfig, recipe, str(path), absent=tyro.MISSING),
        grid={key: values for key, values in grid.items() if key not in given},
    )


def _flags(words: Sequence[str]) -> set[str]:
    """Return the keys that flags among `words` replace."""
    names = {word.removeprefix("--").partition("=")[0].replace("-", "_") for word in words if word.startswith("--")}
    switched_off = {name.removeprefix("no_") for name in names}
    return (names | switched_off) & {each.name for each in fields(TrainConfig)}
