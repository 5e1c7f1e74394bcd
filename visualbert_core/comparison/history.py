"""What every night came to: one small JSON file a night and cell, from which trends, noise and baselines are read.

    OUT/history/NAME/NIGHT/CELL.json

A file appears whole or not at all; the same night again writes the same file. Nights follow each other in the order of
their names, which dates do.
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
    """Seconds of a stage, the items that were computed in them (none where all was there already), and the GPUs that
    its workers held."""

    items: int
    seconds: float
    gpus: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One cell of one night."""

    night: str
    cell: str
    verdict: str
    run: str
    """The run folder, relative to OUT."""
    headline: str
    scores: Mapping[str, float]
    """metric → percent."""
    intervals: Mapping[str, list[float | None]]
    units: Mapping[str, int]
    ingredients: Mapping[str, str]
    """Ingredient → digest: two nights with another one were made of something else."""
    compared_with: str | None = None
    """The night."""
    rerun: bool = False
    """Whether that night was made of the same in everything."""
    changes: Mapping[str, list[float]] = field(default_factory=dict)
    """metric → [difference, spread] to that night, in points."""
    corpus: str = ""
    extraction: Timing | None = None
    evaluation: Timing | None = None


class History:
    """All nights of one matrix."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, row: Row) -> None:
        """Publish a row."""
        publish(self._path(row.night, row.cell), (json.dumps(asdict(row), indent=1, sort_keys=True) + "\n").encode())

    def rows(self, cell: str, before: str | None = None) -> list[Row]:
        """A cell's rows, first night first; only nights before that one. Raises InputError naming a damaged file."""
        nights = sorted(path.name for path in self.root.glob("*") if path.is_dir())
        paths = [self._path(night, cell) for night in nights if before is None or night < before]
        return [_read(path) for path in paths if path.exists()]

    def baseline(self, cell: str, before: str, fixed: str | None) -> Row | None:
        """What a night is compared with: that of a fixed night, or the last one that did not fail."""
        rows = self.rows(cell, before)
        good = (row for row in reversed(rows) if (row.night == fixed if fixed else row.verdict != "fail"))
        return next(good, None)

    def noise(self, cell: str, metric: str, before: str) -> float:
        """Points by which reruns of this cell scatter beyond their changed answers."""
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
        raise InputError(f"{path} is not a row of the history ({error}): restore or delete it") from None
