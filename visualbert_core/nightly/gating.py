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
from visualbert_core.comparison.gate import Watched, judge_night
from visualbert_core.comparison.history import History, Row, Timing
from visualbert_core.config import CellConfig, NightlyConfig, run_name
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
    extraction: Timing | None = None

    @property
    def name(self) -> str:
        """Return the name of the cell, which is that of its run folder. It is the same every night."""
        return run_name(self.config.model, self.config.task, self.config.split)

    @property
    def run(self) -> Run | None:
        """Return the run if it has a score, otherwise None."""
        run = self.shown.run
        return run if run is not None and run.scores is not None else None


def history_of(config: NightlyConfig) -> History:
    """Return the history that a matrix reads and writes."""
    return History(config.out / "history" / config.name)


def judge_cells(
    config: NightlyConfig, night: str, cells: Sequence[CellResult], missed: Mapping[str, Sequence[str]]
) -> GatedNight:
    """Compare and judge all cells of a night, write the verdict, and add the night to the history.

    `missed` maps a cell to lines about its scores outside their bounds. Such a cell has failed, whatever its comparison
    says, and no later night uses it as a baseline. Raise InputError if the history is damaged.
    """
    assert config.gate is not None
    history = history_of(config)
    baselines = {cell.name: history.baseline(cell.name, night, config.gate.baseline) for cell in cells}
    compared = {cell.name: _compare(config, cell, baselines[cell.name]) for cell in cells}
    comparisons = {name: found for name, found in compared.items() if isinstance(found, Comparison)}
    watched: list[Watched] = []
    for cell in cells:
        watched += _watched(config, cell, baselines[cell.name], compared[cell.name], history, night)
    gate = judge_night(night, config.gate, watched, [line for lines in missed.values() for line in lines])
    for cell in cells:
        if cell.run is not None and cell.name in comparisons:
            _publish_json(cell.run.folder / "comparison.json", asdict(comparisons[cell.name]))
    folder = config.out / "runs" / config.name / night
    _publish_json(folder / "gate.json", asdict(gate))
    publish(folder / "junit.xml", junit(config.name, gate))
    publish(folder / "summary.md", markdown(config.name, gate, comparisons).encode(errors="replace"))
    shown = []
    for cell in cells:
        comparison = comparisons.get(cell.name)
        if cell.run is not None:
            verdict = "fail" if missed.get(cell.name) else gate.cell_verdict(cell.name)
            history.add(_row(config, night, cell, cell.run, verdict, comparison, baselines[cell.name]))
        rows = tuple(row for row in history.rows(cell.name) if row.night <= night)
        shown.append(CellNight(cell.name, comparison, rows))
    return GatedNight(gate, tuple(shown))


def _compare(config: NightlyConfig, cell: CellResult, baseline: Row | None) -> Comparison | str:
    """Compare a cell with its baseline, or say why that is not possible."""
    if cell.run is None:
        return cell.shown.places.hide(f"no score tonight: {cell.shown.error}")
    if baseline is None:
        fixed = config.gate.baseline if config.gate else None
        return (
            f"night {fixed} has no score of this cell" if fixed else "no earlier night; the next night can use this one"
        )
    assert cell.shown.task is not None
    # The history has only the digest of the earlier annotations. If they differ, the annotations of this night judge
    # the predictions of both nights.
    tasks = {cell.run.record["provenance"]["annotations"]: cell.shown.task}
    try:
        return compare(read_run(config.out / baseline.run), cell.run, tasks)
    except VisualBertCoreError as error:
        return cell.shown.places.hide(f"cannot be compared: {error}")


def _watched(
    config: NightlyConfig, cell: CellResult, baseline: Row | None, found: Comparison | str, history: History, night: str
) -> list[Watched]:
    """Return what is watched of a cell: the metrics of its `drops`, or else the headline with the drop of the gate; and
    the share of parsed texts where the cell has an `unparsed_rise`.

    A rise of the unparsed texts is a drop of the parsed ones, so that one rule judges both.
    """
    assert config.gate is not None
    drops = cell.config.drops or {cell.shown.task.headline if cell.shown.task else "score": config.gate.drop}
    if cell.config.unparsed_rise is not None:
        drops = drops | {PARSED: cell.config.unparsed_rise}
    against = baseline.night if baseline else None
    watched = []
    for metric, drop in drops.items():
        change, reason = None, found
        if isinstance(found, Comparison):
            change = _changes(found).get(metric)
            reason = "the model writes no text" if metric == PARSED else f"no metric {metric!r}"
        noise = history.noise(cell.name, metric, night)
        watched.append(Watched(cell.name, metric, drop, against, change, noise, "" if change else str(reason)))
    return watched


def _changes(comparison: Comparison) -> dict[str, Change]:
    return comparison.metrics | ({PARSED: comparison.parsed} if comparison.parsed is not None else {})


def _row(
    config: NightlyConfig,
    night: str,
    cell: CellResult,
    run: Run,
    verdict: str,
    comparison: Comparison | None,
    baseline: Row | None,
) -> Row:
    scores = run.scores
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
        changes={name: [c.difference, c.spread] for name, c in _changes(comparison).items()} if comparison else {},
        generated=scores.get("generated", {}),
        corpus=cell.config.corpus,
        extraction=cell.extraction,
        evaluation=cell.shown.timing,
    )


def _publish_json(path: Path, value: Any) -> None:
    publish(path, (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())
