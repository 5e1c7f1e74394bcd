"""The grid of a sweep: which keys of a recipe have lists of values, and the trainings that these values make.

A key whose own value is a list, such as `frozen`, has a list of lists in a grid. The folder of a training has the name
of its values: OUT/learning_rate=1e-05,warmup=0.1/seed=0. All seeds of a setting lie in one folder, so that two settings
can be compared by their folders.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any, get_args, get_origin

from upath import UPath

from visualbert_core.config import nearest
from visualbert_core.config_mapping import from_mapping
from visualbert_core.errors import ConfigError
from visualbert_core.io.documents import brief
from visualbert_core.training.recipe import FREE, TrainConfig

INGREDIENT = None

Grid = Mapping[str, Sequence[Any]]
"""Key of a recipe → the values that it takes in turn."""
SEED = "seed"
_SAME_RESULT = ("out", "validate_annotations", "validate_features", *FREE)


@dataclass(frozen=True)
class Point:
    """One training of a sweep: its values, and the name of its folder below OUT."""

    name: str
    setting: str
    """The name without the seed; "" where only seeds differ."""
    values: Mapping[str, Any]


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


def points(grid: Grid) -> list[Point]:
    """Return the trainings of a grid. The first key changes slowest, and seeds change fastest."""
    keys = [key for key in grid if key != SEED]
    found = []
    for combination in product(*(grid[key] for key in keys)):
        values = dict(zip(keys, combination, strict=True))
        setting = ",".join(f"{key}={_text(value)}" for key, value in values.items())
        if SEED not in grid:
            found.append(Point(setting, setting, values))
        for seed in grid.get(SEED, ()):
            found.append(Point("/".join(filter(None, (setting, f"{SEED}={seed}"))), setting, {**values, SEED: seed}))
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
