"""Tonight against an earlier night: compare each cell, judge them together, write the verdict, and enter the history.

<run folder>/comparison.json    what changed, on which examples, because of what (comparison.compare)
runs/NAME/NIGHT/gate.json  junit.xml  summary.md    the verdict, for programs, for CI and for people
history/NAME/NIGHT/CELL.json    a row of the history
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visualbert_core.comparison.compare import Comparison, compare
from visualbert_core.comparison.gate import Gate, Watched, judge_night
from visualbert_core.comparison.history import History, Row, Timing
from visualbert_core.config import CellConfig, GateConfig, NightlyConfig, run_name
from visualbert_core.engine.shards import publish
from visualbert_core.errors import VisualBertCoreError
from visualbert_core.evaluation.run_folder import Run, read_run
from visualbert_core.provenance import INGREDIENTS, changed, digest_json
from visualbert_core.report import ReportCell
from visualbert_core.report.ci import junit, markdown
from visualbert_core.report.gate_section import CellNight, GatedNight


@dataclass(frozen=True)
class CellResult:
    """One cell of the matrix as it came out."""

    config: CellConfig
    shown: ReportCell
    extraction: Timing | None
    evaluation: Timing | None

    @property
    def name(self) -> str:
        """Of the cell, the same every night: that of its run folder."""
        return run_name(self.config.model, self.config.task, self.config.split)

    @property
    def run(self) -> Run | None:
        """With a score, or None."""
        run = self.shown.run
        return run if run is not None and run.scores is not None else None


@dataclass(frozen=True)
class GateResult:
    """A night's verdict, and the comparison of each cell that had one."""

    gate: Gate
    comparisons: Mapping[str, Comparison]


def history_of(config: NightlyConfig) -> History:
    """The history that a matrix reads and writes."""
    return History(config.out / "history" / config.name)


def judge_cells(
    config: NightlyConfig, night: str, cells: Sequence[CellResult], missed: Mapping[str, Sequence[str]]
) -> GateResult:
    """Compare, judge, write. `missed` are each cell's scores out of their bounds: such a cell failed, whatever else it
    shows, and is no baseline for a later night. Raises InputError where the history is damaged."""
    assert config.gate is not None
    history = history_of(config)
    baselines = {cell.name: history.baseline(cell.name, night, config.gate.baseline) for cell in cells}
    comparisons: dict[str, Comparison] = {}
    reasons: dict[str, str] = {}
    for cell in cells:
        try:
            comparisons[cell.name] = _compare(config, cell, baselines[cell.name])
        except _NothingToCompareError as error:
            reasons[cell.name] = cell.shown.places.hide(str(error))
        except VisualBertCoreError as error:
            reasons[cell.name] = cell.shown.places.hide(f"cannot be compared: {error}")
    watched = [
        each
        for cell in cells
        for each in _watched(config.gate, cell, baselines[cell.name], comparisons, reasons, history, night)
    ]
    lines = [line for found in missed.values() for line in found]
    judged = GateResult(judge_night(night, config.gate, watched, lines), comparisons)
    _write(config, night, judged, cells)
    for cell in cells:
        if cell.run is not None:
            verdict = "fail" if missed.get(cell.name) else judged.gate.cell_verdict(cell.name)
            history.add(_row(config, night, cell, cell.run, verdict, judged, baselines[cell.name]))
    return judged


def for_page(config: NightlyConfig, cells: Sequence[CellResult], judged: GateResult) -> GatedNight:
    """What the page shows of a judged night: verdict, comparisons, and the nights up to this one."""
    history = history_of(config)
    shown = []
    for cell in cells:
        rows = tuple(row for row in history.rows(cell.name) if row.night <= judged.gate.night)
        shown.append(CellNight(cell.name, judged.comparisons.get(cell.name), rows))
    return GatedNight(judged.gate, tuple(shown))


class _NothingToCompareError(Exception):
    """The message is the reason why a cell cannot tell."""


def _compare(config: NightlyConfig, cell: CellResult, baseline: Row | None) -> Comparison:
    if cell.run is None:
        raise _NothingToCompareError(f"no score tonight: {cell.shown.error}")
    if baseline is None:
        fixed = config.gate.baseline if config.gate else None
        raise _NothingToCompareError(
            f"night {fixed} has no score of this cell" if fixed else "no earlier night; the next can use this one"
        )
    assert cell.shown.task is not None
    # Of last night's annotations only the digest is known; tonight's can judge last night's predictions.
    tasks = {cell.run.record["provenance"]["annotations"]: cell.shown.task}
    return compare(read_run(config.out / baseline.run), cell.run, tasks)


def _watched(
    gate: GateConfig,
    cell: CellResult,
    baseline: Row | None,
    comparisons: Mapping[str, Comparison],
    reasons: Mapping[str, str],
    history: History,
    night: str,
) -> list[Watched]:
    headline = cell.shown.task.headline if cell.shown.task else "score"
    against = baseline.night if baseline else None
    found = []
    for metric, drop in (cell.config.drops or {headline: gate.drop}).items():
        comparison = comparisons.get(cell.name)
        change = comparison.metrics.get(metric) if comparison else None
        reason = reasons.get(cell.name, f"no metric {metric!r}")
        noise = history.noise(cell.name, metric, night)
        found.append(Watched(cell.name, metric, drop, against, change, noise, "" if change else reason))
    return found


def _write(config: NightlyConfig, night: str, judged: GateResult, cells: Sequence[CellResult]) -> None:
    for cell in cells:
        if cell.run is not None and cell.name in judged.comparisons:
            _publish_json(cell.run.folder / "comparison.json", judged.comparisons[cell.name].document())
    folder = config.out / "runs" / config.name / night
    _publish_json(folder / "gate.json", judged.gate.document())
    publish(folder / "junit.xml", junit(config.name, judged.gate))
    summary = markdown(config.name, judged.gate, judged.comparisons)
    publish(folder / "summary.md", summary.encode(errors="replace"))


def _row(
    config: NightlyConfig,
    night: str,
    cell: CellResult,
    run: Run,
    verdict: str,
    judged: GateResult,
    baseline: Row | None,
) -> Row:
    comparison, scores = judged.comparisons.get(cell.name), run.scores
    assert scores is not None
    parts = changed({}, run.record["provenance"])
    return Row(
        night=night,
        cell=cell.name,
        verdict=verdict,
        run=run.folder.relative_to(config.out).as_posix(),
        headline=scores["headline"],
        scores=scores["scores"],
        intervals=scores["intervals"],
        units=scores["units"],
        ingredients={name: digest_json(parts.get(name, [])) for name in INGREDIENTS},
        compared_with=baseline.night if baseline and comparison else None,
        rerun=comparison is not None and not comparison.differs,
        changes={m: [c.difference, c.spread] for m, c in comparison.metrics.items()} if comparison else {},
        corpus=cell.config.corpus,
        extraction=cell.extraction,
        evaluation=cell.evaluation,
    )


def _publish_json(path: Path, value: Any) -> None:
    publish(path, (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())
