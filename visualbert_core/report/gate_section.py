"""The verdict of a night, at the top of the page: what got worse, by how much, how surely, and why.

Also owns what a gate adds to the input of a page, and how points and p are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from visualbert_core.comparison.compare import Change, Comparison
from visualbert_core.comparison.gate import Gate
from visualbert_core.comparison.history import Row
from visualbert_core.report import ReportCell

ORDER = ("fail", "cannot tell", "pass")
"""Order of verdicts on the page: failures come first."""


@dataclass(frozen=True)
class CellNight:
    """What a night with a gate knows of a cell.

    `name` is its name in the gate and the history. `comparison` is None where there was no earlier night. `rows` are
    its nights up to this one, the first night first.
    """

    name: str
    comparison: Comparison | None
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class GatedNight:
    """A verdict, and what the night knows of each cell, in the order of the page."""

    gate: Gate
    cells: tuple[CellNight, ...]


def verdict(night: GatedNight, cells: Sequence[ReportCell]) -> dict[str, Any]:
    """Return what the section of the verdict shows: a story for each cell, failures first."""
    gate = night.gate
    stories: list[dict[str, Any]] = []
    for number, (each, cell) in enumerate(zip(night.cells, cells, strict=True), start=1):
        checks = [check for check in gate.checks if check.watched.cell == each.name]
        passed = all(check.verdict == "pass" for check in checks)
        story = {
            "number": number,
            "title": cell.title,
            "task": cell.task,
            "verdict": gate.cell_verdict(each.name),
            "checks": checks,
            "comparison": each.comparison,
            # The page shows only the name of a cell that passed and in which nothing changed.
            "unchanged": passed and each.comparison is not None and not each.comparison.causes,
        }
        stories.append(story)
    verdicts = [check.verdict for check in gate.checks]
    return {
        "gate": gate,
        "counts": [(verdicts.count(name), name) for name in ORDER if name in verdicts],
        "stories": sorted(stories, key=lambda story: ORDER.index(story["verdict"])),
        "cells": {each.name: cell for each, cell in zip(night.cells, cells, strict=True)},
    }


def points(value: float) -> str:
    """Write points with a sign and a true minus: "−1.25"."""
    return f"{value:+.2f}".replace("-", "−")


def reach(change: Change) -> str:
    """Write the interval of a change: "[−2.50, +0.10]". Return nothing for a single image, which gives no interval."""
    if change.low is None or change.high is None:
        return ""
    return f"[{points(change.low)}, {points(change.high)}]"
