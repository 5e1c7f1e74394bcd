"""The results of every night: one small JSON file for each night and cell. Trends, noise and baselines come from them.

    OUT/history/NAME/NIGHT/CELL.json

A file appears whole or not at all. Running a night again writes the same file. Nights are ordered by their names, so
names that are dates are in the right order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from visualbert_core.engine.shards import publish
from visualbert_core.errors import InputError
from visualbert_core.io.documents import parse_json
from visualbert_core.metrics.statistics import excess_noise


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The seconds of a stage, the number of items computed in this time (0 if every item was there already), and the
    GPUs that its workers held."""

    items: int
    seconds: float
    gpus: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """The results of one cell on one night."""

    night: str
    cell: str
    verdict: str
    run: str
    """The run folder, relative to OUT."""
    headline: str
    scores: Mapping[str, float]
    """Metric → percent."""
    intervals: Mapping[str, list[float | None]]
    units: Mapping[str, int]
    ingredients: Mapping[str, str]
    """Ingredient → digest. Equal digests mean equal ingredients."""
    compared_with: str | None = None
    """The earlier night that this one was compared with."""
    rerun: bool = False
    """True if no ingredient differs from that earlier night."""
    changes: Mapping[str, list[float]] = field(default_factory=dict)
    """Metric → [difference, spread] to that earlier night, in points."""
    generated: Mapping[str, int] = field(default_factory=dict)
    """How many texts the model wrote, how many held no answer and how many were cut; empty for a model with a head."""
    corpus: str = ""
    extraction: Timing | None = None
    evaluation: Timing | None = None


class History:
    """The rows of all nights of one matrix."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, row: Row) -> None:
        """Write a row to its file, whole or not at all."""
        publish(self._path(row.night, row.cell), (json.dumps(asdict(row), indent=1, sort_keys=True) + "\n").encode())

    def rows(self, cell: str, before: str | None = None) -> list[Row]:
        """Return the rows of a cell before a night, the first night first. Raise InputError naming a damaged file."""
        nights = sorted(path.name for path in self.root.glob("*") if path.is_dir())
        paths = [self._path(night, cell) for night in nights if before is None or night < before]
        return [_read(path) for path in paths if path.exists()]

    def baseline(self, cell: str, before: str, fixed: str | None) -> Row | None:
        """Return the row to compare with: that of the night `fixed`, or else the last one before that did not fail."""
        rows = reversed(self.rows(cell, before))
        return next((row for row in rows if (row.night == fixed if fixed else row.verdict != "fail")), None)

    def noise(self, cell: str, metric: str, before: str) -> float:
        """Return the noise of reruns of this cell in points, beyond what their changed answers explain."""
        changes = [row.changes[metric] for row in self.rows(cell, before) if row.rerun and metric in row.changes]
        return 100 * excess_noise([d / 100 for d, _ in changes], [spread / 100 for _, spread in changes])

    def _path(self, night: str, cell: str) -> Path:
        return self.root / night / f"{cell}.json"


def _read(path: Path) -> Row:
    try:
        values: dict[str, Any] = parse_json(path.read_bytes())
        timings = {name: values[name] and Timing(**values[name]) for name in ("extraction", "evaluation")}
        return Row(**values | timings)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a row of the history ({error}): restore it or delete it") from None
