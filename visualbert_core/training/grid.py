"""The grid of a sweep, and the table of its trainings: the mean and the deviation of each setting over its seeds.

A key whose own value is a list, such as `frozen`, has a list of lists in a grid. The folder of a training has the name
of its values: OUT/learning_rate=1e-05,warmup=0.1/seed=0. All seeds of a setting lie in one folder, so that two settings
can be compared by their folders.

The score of a training is the score of its best checkpoint, on the split that validates it. The best checkpoint is
chosen on that split, and so is the best setting. So both scores are too high by what the choice gains. Another split
gives a fair score.
"""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, get_args, get_origin

from upath import UPath

from visualbert_core.config import nearest
from visualbert_core.config_mapping import from_mapping
from visualbert_core.errors import ConfigError, InputError
from visualbert_core.evaluation.run_folder import TRAINED, Run, read_run
from visualbert_core.io.documents import brief, read_json
from visualbert_core.training.recipe import FREE, TrainConfig

INGREDIENT = None

Grid = Mapping[str, Sequence[Any]]
"""Key of a recipe → the values that it takes in turn."""
SEED = "seed"
_SAME_RESULT = ("out", "threads", "validate_annotations", "validate_features", *FREE)
"""Keys that are no setting. Another number of threads changes the last bits only."""
WAITING, FINISHED, FAILED, UNFINISHED = "waiting", "finished", "failed", "unfinished"
_SEED = re.compile(r"seed=(\d+)", re.ASCII)


def split_lists(values: Any, where: str, absent: Any) -> tuple[Any, dict[str, tuple[Any, ...]]]:
    """Split the keys of a recipe into a recipe with the first value of each list, and the grid of all values.

    `absent` stands for missing keys while the values are checked. Raise ConfigError, which names the key, where a value
    is wrong, and where a key has a list that does not decide results.
    """
    if not isinstance(values, Mapping):
        return values, {}
    hints = typing.get_type_hints(TrainConfig)
    swept = [key for key, value in values.items() if key in hints and _is_swept(hints[key], value)]
    for key in swept:
        if not values[key]:
            raise ConfigError(f"{where}: {key} is an empty list: give it a value, or leave the key out")
    first = {**values, **{key: values[key][0] for key in swept}}
    grid = {
        key: tuple(
            getattr(from_mapping(TrainConfig, {**first, key: value}, where, absent), key) for value in values[key]
        )
        for key in swept
    }
    try:
        check_grid(grid)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return first, grid


def _is_swept(hint: Any, value: Any) -> bool:
    """Return whether a value is a list of values. A key that holds a list itself has a list of lists then."""
    if not isinstance(value, list):
        return False
    held = any(get_origin(each) is tuple for each in (hint, *get_args(hint)))
    return not held or (len(value) > 0 and all(isinstance(each, list) for each in value))


def check_grid(grid: Grid) -> None:
    """Raise ConfigError where a key is unknown or does not decide results, and where two values look alike."""
    known = [each.name for each in fields(TrainConfig)]
    for key, values in grid.items():
        if key not in known:
            raise ConfigError(f"unknown key {brief(key)}{nearest(key, known)}")
        if key in _SAME_RESULT:
            raise ConfigError(f"{key}: a list makes a sweep, and {key} does not decide results: give it one value")
        if not values:
            raise ConfigError(f"{key} has no values: give it one")
        names = [_text(value) for value in values]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"{key}: two values are called {twice[0]!r}, which names their folders: change one")


def points(grid: Grid) -> list[Row]:
    """Return the trainings of a grid, which wait. The first key changes slowest, and seeds change fastest."""
    keys = [key for key in grid if key != SEED]
    found = []
    for combination in product(*(grid[key] for key in keys)):
        values = dict(zip(keys, combination, strict=True))
        setting = ",".join(f"{key}={_text(value)}" for key, value in values.items())
        if SEED not in grid:
            found.append(Row(setting, setting, values))
        for seed in grid.get(SEED, ()):
            found.append(Row("/".join(filter(None, (setting, f"{SEED}={seed}"))), setting, {**values, SEED: seed}))
    return found


def _text(value: Any) -> str:
    """Return a value as a part of the name of a folder."""
    if value is None or value == ():
        return "none"
    if isinstance(value, tuple | list):
        return "+".join(map(_text, value))
    if isinstance(value, Path | UPath):
        value = value.name
    return re.sub(r"[^\w.+-]+", "-", f"{value:g}" if isinstance(value, float) else str(value))


@dataclass(frozen=True)
class Row:
    """One training of a sweep."""

    name: str
    """The name of its folder below OUT."""
    setting: str
    """The name without the seed; "" where only seeds differ."""
    values: Mapping[str, Any]
    status: str = WAITING
    reason: str | None = None
    """Why it failed or is unfinished, in one line."""
    code: int = 0
    """The exit code of `visualbert train` for this training."""
    steps: int | None = None
    checkpoint: str | None = None
    """Name of the best checkpoint; of the last one where nothing was validated."""
    validation: Mapping[str, Any] | None = None
    """The scores of the best checkpoint, as validations.jsonl has them."""

    def __str__(self) -> str:
        score = self.score()
        said = self.reason if score is None else f"{self.headline} {score:.2f}"
        return f"{self.status}, {said}" if said else self.status

    @property
    def headline(self) -> str | None:
        """Return the name of the headline metric, or None without a validation."""
        return None if self.validation is None else self.validation["headline"]

    def score(self, kind: str = "scores") -> float | None:
        """Return the headline metric, on its own images or with `wrong_image`."""
        found = None if self.validation is None else self.validation[kind]
        return None if found is None else float(found[self.headline])


@dataclass(frozen=True)
class Setting:
    """All trainings of a sweep that differ in their seeds only."""

    name: str
    rows: tuple[Row, ...]

    @property
    def values(self) -> dict[str, Any]:
        """Return the values that all these trainings share."""
        return {key: value for key, value in self.rows[0].values.items() if key != SEED}

    @property
    def scores(self) -> list[float]:
        """Return the scores of the trainings that have one."""
        return [score for row in self.rows if (score := row.score()) is not None]

    @property
    def mean(self) -> float | None:
        return fmean(self.scores) if self.scores else None

    @property
    def deviation(self) -> float | None:
        """Return the sample deviation of the scores (n - 1 below), or None for fewer than two."""
        return stdev(self.scores) if len(self.scores) > 1 else None

    @property
    def wrong_image(self) -> float | None:
        """Return the mean with wrong images."""
        found = [score for row in self.rows if (score := row.score("wrong_image")) is not None]
        return fmean(found) if found else None

    @property
    def seeds(self) -> str:
        """Return how many trainings have a score: "3", or "2 of 3"."""
        scored, planned = len(self.scores), len(self.rows)
        return str(scored) if scored == planned else f"{scored} of {planned}"


@dataclass(frozen=True)
class Sweep:
    """A sweep as far as it has come."""

    folder: Path
    grid: Grid
    split: str | None
    """The split that the trainings validate on."""
    rows: tuple[Row, ...]

    @cached_property
    def settings(self) -> tuple[Setting, ...]:
        """Return the settings in the order of the grid."""
        names = dict.fromkeys(row.setting for row in self.rows)
        return tuple(Setting(name, tuple(row for row in self.rows if row.setting == name)) for name in names)

    @property
    def headline(self) -> str | None:
        return next((row.headline for row in self.rows if row.headline), None)

    @property
    def code(self) -> int:
        """Return the exit code: 6 where trainings are left, otherwise that of the first training that failed, or 0."""
        if any(row.status in (WAITING, UNFINISHED) for row in self.rows):
            return 6
        return next((row.code for row in self.rows if row.code), 0)

    def document(self) -> dict[str, Any]:
        """Return the table as JSON values."""
        return {
            "grid": {key: [_plain(value) for value in values] for key, values in self.grid.items()},
            "split": self.split,
            "headline": self.headline,
            "settings": [
                {
                    "name": each.name,
                    "values": _plain(each.values),
                    "mean": each.mean,
                    "deviation": each.deviation,
                    "wrong_image": each.wrong_image,
                    "seeds": len(each.scores),
                    "trainings": len(each.rows),
                }
                for each in self.settings
            ],
            "trainings": [{**vars(row), "values": _plain(row.values)} for row in self.rows],
        }


def _plain(value: Any) -> Any:
    """Return a value of a recipe as a JSON value."""
    return json.loads(json.dumps(value, default=str))


def columns(found: Sweep) -> tuple[list[str], list[list[str]]]:
    """Return the names of the columns, and a row of texts for each setting."""
    keys = [key for key in found.grid if key != SEED]
    names = [*keys, "mean", "deviation", "seeds", "wrong image"]
    names += [f"{SEED} {seed}" for seed in found.grid.get(SEED, ())]
    rows = []
    for each in found.settings:
        values = [str(_plain(each.values[key])) for key in keys]
        row = [*values, _number(each.mean), _number(each.deviation), each.seeds, _number(each.wrong_image)]
        if SEED in found.grid:
            row += [_number(row.score()) if row.score() is not None else row.status for row in each.rows]
        rows.append(row)
    return names, rows


def describe(found: Sweep) -> Iterator[str]:
    """Yield the lines that show a sweep in a terminal."""
    if found.headline:
        yield f"{found.headline} on {found.split}, best checkpoints; mean and sample deviation over seeds"
    names, rows = columns(found)
    widths = [max(len(row[place]) for row in (names, *rows)) for place in range(len(names))]
    yield from (_line(row, widths) for row in (names, *rows))
    for reason in dict.fromkeys(row.reason for row in found.rows if row.reason):
        first, *others = (row for row in found.rows if row.reason == reason)
        more = f" and {len(others)} more" if others else ""
        yield f"{first.name}{more} {first.status}: {reason}"
    yield f"{found.folder}"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def read_seeds(folder: Path) -> dict[int, Run]:
    """Return seed → run of a group; {} where the folder holds no seed=N, so that it is no group.

    A folder seed=N is a training, whose best checkpoint was evaluated when it was validated; or a run folder; or a
    folder with one run folder, which is where `visualbert evaluate --out GROUP/seed=N` writes the run of another split.

    The `record` of a training's run has what the training was made of beside the keys of run.json, as `TRAINED`.
    Raise InputError where a seed has no run, or several.
    """
    children = folder.iterdir() if folder.is_dir() else ()
    found = {int(match[1]): path for path in children if (match := _SEED.fullmatch(path.name))}
    return {seed: _run(found[seed]) for seed in sorted(found)}


def _run(folder: Path) -> Run:
    """Return the run of one seed, with its own images."""
    record = read_json(folder / "run.json", InputError) if (folder / "run.json").exists() else {}
    if "spec" in record:
        return read_run(folder)
    root, trained = folder, {}
    if "parent" in record.get("provenance", {}):  # a training
        trained = {TRAINED: {name: record["provenance"][name] for name in ("recipe", "data", "parent")}}
        if not record.get("validation"):
            raise InputError(
                f"{folder} has no validation of its best checkpoint: finish the training with validate_split, or "
                "evaluate its checkpoints into folders seed=N elsewhere"
            )
        root = folder / "validation" / f"step-{record['validation']['step']:08d}"
    runs = [read_run(path.parent) for path in sorted(root.glob("*/run.json"))]
    own = [run for run in runs if run.record["spec"]["visual"] == "own"]
    if len(own) != 1:
        names = ", ".join(run.folder.name for run in own) or "none"
        raise InputError(f"{root} must hold one run folder, and holds {names}: name folders with one run for each seed")
    return replace(own[0], record=own[0].record | trained)
