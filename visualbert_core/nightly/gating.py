"""Compares a night with an earlier one: compares each cell, judges all together, writes the verdict and the history.

<run folder>/comparison.json    what changed, on which examples, and why (comparison.compare)
runs/NAME/NIGHT/gate.json       the verdict for programs
runs/NAME/NIGHT/junit.xml       the verdict for CI
runs/NAME/NIGHT/summary.md      the verdict for readers
history/NAME/NIGHT/CELL.json    a row of the history
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from visualbert_core.comparison.compare import PARSED, Change, Comparison, compare
from visualbert_core.comparison.gate import Gate, Watched, judge_night
from visualbert_core.comparison.history import History, Row, Timing
from visualbert_core.config import CellConfig, GateConfig, NightlyConfig, run_name
from visualbert_core.engine.shards import publish
from visualbert_core.errors import VisualBertCoreError
from visualbert_core.evaluation.run_folder import Run, made_of, read_run
from visualbert_core.provenance import INGREDIENTS, changed, digest_json
from visualbert_core.report import ReportCell
from visualbert_core.report.ci import junit, markdown
from visualbert_core.report.gate_section import CellNight, GatedNight


@dataclass(frozen=True)
class CellResult:
    """The result of one cell of the matrix."""

    config: CellConfig
    shown: ReportCell
    extraction: Timing | None
    evaluation: Timing | None

    @property
    def name(self) -> str:
        """Return the name of the cell, which is that of its run folder. It is the same every night."""
        return run_name(self.config.model, self.config.task, self.config.split)

    @property
    def run(self) -> Run | None:
        """Return the run if it has a score, otherwise None."""
        run = self.shown.run
        return run if run is not None and run.scores is not None else None


@dataclass(frozen=True)
class GateResult:
    """The verdict on a night, and the comparison of each cell that could be compared."""

    gate: Gate
    comparisons: Mapping[str, Comparison]


def history_of(config: NightlyConfig) -> History:
    """Return the history that a matrix reads and writes."""
    return History(config.out / "history" / config.name)


def judge_cells(
    config: NightlyConfig, night: str, cells: Sequence[CellResult], missed: Mapping[str, Sequence[str]]
) -> GateResult:
    """Compare and judge all cells of a night, write the verdict, and add the night to the history.

    `missed` maps a cell to lines about its scores outside their bounds. Such a cell has failed, whatever its comparison
    says, and no later night uses it as a baseline. Raise InputError if the history is damaged.
    """
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
    """Return what the page shows of a judged night: verdict, comparisons, and the history up to this night."""
    history = history_of(config)
    shown = []
    for cell in cells:
        rows = tuple(row for row in history.rows(cell.name) if row.night <= judged.gate.night)
        shown.append(CellNight(cell.name, judged.comparisons.get(cell.name), rows))
    return GatedNight(judged.gate, tuple(shown))


class _NothingToCompareError(Exception):
    """A cell has nothing to compare. The message is the reason for its verdict "cannot tell"."""


def _compare(config: NightlyConfig, cell: CellResult, baseline: Row | None) -> Comparison:
    """Compare a cell with its baseline. Raise _NothingToCompareError if one of the two has no score."""
    if cell.run is None:
        raise _NothingToCompareError(f"no score tonight: {cell.shown.error}")
    if baseline is None:
        fixed = config.gate.baseline if config.gate else None
        raise _NothingToCompareError(
            f"night {fixed} has no score of this cell" if fixed else "no earlier night; the next night can use this one"
        )
    assert cell.shown.task is not None
    # The history has only the digest of the earlier annotations. If they differ, the annotations of this night judge
    # the predictions of both nights.
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
    """Return what is watched of a cell: the metrics of its `drops`, or else the headline with the drop of the gate; and
    the share of parsed texts where the cell has an `unparsed_rise`.

    A rise of the unparsed texts is a drop of the parsed ones, so that one rule judges both.
    """
    headline = cell.shown.task.headline if cell.shown.task else "score"
    against = baseline.night if baseline else None
    found = []
    drops = cell.config.drops or {headline: gate.drop}
    if cell.config.unparsed_rise is not None:
        drops = drops | {PARSED: cell.config.unparsed_rise}
    changes = _changes(comparisons.get(cell.name))
    for metric, drop in drops.items():
        change = changes.get(metric)
        reason = reasons.get(cell.name, "the model writes no text" if metric == PARSED else f"no metric {metric!r}")
        noise = history.noise(cell.name, metric, night)
        found.append(Watched(cell.name, metric, drop, against, change, noise, "" if change else reason))
    return found


def _changes(comparison: Comparison | None) -> dict[str, Change]:
    """Return the change of everything that can be watched, by its name."""
    if comparison is None:
        return {}
    return comparison.metrics | ({PARSED: comparison.parsed} if comparison.parsed is not None else {})


def _write(config: NightlyConfig, night: str, judged: GateResult, cells: Sequence[CellResult]) -> None:
    for cell in cells:
        if cell.run is not None and cell.name in judged.comparisons:
            _publish_json(cell.run.folder / "comparison.json", asdict(judged.comparisons[cell.name]))
    folder = config.out / "runs" / config.name / night
    _publish_json(folder / "gate.json", asdict(judged.gate))
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
    parts = changed({}, made_of(run))
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
        changes={name: [each.difference, each.spread] for name, each in _changes(comparison).items()},
        generated=scores.get("generated", {}),
        corpus=cell.config.corpus,
        extraction=cell.extraction,
        evaluation=cell.evaluation,
    )


def _publish_json(path: Path, value: Any) -> None:
    publish(path, (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())
