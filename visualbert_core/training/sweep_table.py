"""The table of a sweep: a row for each training, and for each setting the mean and the deviation over its seeds.

The score of a training is the score of its best checkpoint, on the split that validates it. The best checkpoint is
chosen on that split, and so is the best setting. So both scores are too high by what the choice gains. Another split
gives a fair score.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from visualbert_core.training.grid import SEED, Grid

INGREDIENT = None

WAITING, FINISHED, FAILED, UNFINISHED = "waiting", "finished", "failed", "unfinished"


@dataclass(frozen=True)
class Row:
    """One training of a sweep."""

    name: str
    setting: str
    values: Mapping[str, Any]
    status: str
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
        """Return the mean of the scores, or None without any."""
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
        """Return the name of the headline metric, or None where no training has a score."""
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
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


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
