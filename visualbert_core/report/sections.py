"""What the page shows for one cell: its rows of the score table, and a section.

The section has the failures, the breakdowns by group, the cost, the examples, and the provenance of the run.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from visualbert_core.comparison.compare import Change, Comparison
from visualbert_core.comparison.history import Timing
from visualbert_core.errors import VisualBertCoreError
from visualbert_core.evaluation.beside import what_came
from visualbert_core.evaluation.run_folder import Run
from visualbert_core.report import ReportCell, ReportInfo
from visualbert_core.report.example_gallery import Gallery, gallery
from visualbert_core.report.gate_section import CellNight
from visualbert_core.report.places import Places
from visualbert_core.report.scores import Estimate, ScoreLine, in_order, label, reason, score_lines, scores_of, warnings
from visualbert_core.report.trend import Trend, trend
from visualbert_core.report.written import Written, written
from visualbert_core.schema import Failure
from visualbert_core.tasks import Task

_SHOWN = 5  # failures that are not folded
_LISTED = 200  # failures at most
_OPEN_ROWS = 12  # longer breakdowns are folded
_SURE = 0.05  # a group whose change has a smaller p, corrected for all groups, is marked


@dataclass(frozen=True)
class FailureList:
    """Failures of one kind: the first are shown, more are folded, and `unlisted` counts the rest."""

    what: str
    shown: Sequence[Failure]
    folded: Sequence[Failure]
    unlisted: int


@dataclass(frozen=True)
class GroupScore:
    """The score of one group of a breakdown."""

    name: str
    own: Estimate
    wrong_image: Estimate | None
    units: int


@dataclass(frozen=True)
class GroupChange:
    """The change of one group of a breakdown since the earlier night."""

    name: str
    change: Change
    p: float

    @property
    def now(self) -> Estimate:
        return Estimate(self.change.after)

    @property
    def surely(self) -> str:
        """Return "worse" or "better" where the change is significant, else nothing."""
        return ("worse" if self.change.difference < 0 else "better") if self.p < _SURE else ""


@dataclass(frozen=True)
class Breakdown:
    """A metric by groups of one kind. A short table of the headline metric is shown at once; others are folded."""

    kind: str
    metric: str
    at_once: bool
    scores: Sequence[GroupScore] = ()
    changes: Sequence[GroupChange] = ()


@dataclass(frozen=True)
class Cost:
    """Seconds, items and price of the night. Cells of one corpus share its extraction, and each shows it."""

    extraction: Timing | None
    evaluation: Timing | None
    corpus: str
    store: tuple[int, int] | None
    """Images and bytes of the feature store; None for a model that reads pixels."""
    gpu_hour: float | None

    @property
    def price(self) -> float | None:
        """Return the price of the GPU time; None without GPUs, or without a price of an hour."""
        timings = (self.extraction, self.evaluation)
        gpu_seconds = sum(timing.gpus * timing.seconds for timing in timings if timing is not None)
        return gpu_seconds / 3600 * self.gpu_hour if self.gpu_hour is not None and gpu_seconds else None


@dataclass(frozen=True)
class Provenance:
    """What a run is made of, the commands that made it, and how it differs from the earlier run."""

    rows: Sequence[tuple[str, str]]
    commands: str
    before: str | None
    differs: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Section:
    """Everything that the page shows for a cell. Without a score, `lines` is empty and `reason` says why."""

    title: str
    about: str
    lines: Sequence[ScoreLine]
    regions: bool
    """Whether the model reads regions."""
    texts: Sequence[str]
    """The shares of texts without an answer, and of what was cut; and the numbers that the benchmark puts beside."""
    warnings: Sequence[str]
    reason: str
    comparison: Comparison | None
    trend: Trend | None
    failures: Sequence[FailureList]
    breakdowns: Sequence[Breakdown]
    cost: Cost | None
    written: Written | None
    gallery: Gallery | None
    no_examples: str
    provenance: Provenance | None


def section(info: ReportInfo, cell: ReportCell, night: CellNight | None) -> Section:
    """Return the section of a cell. `night` is what a gate knows of it."""
    hide, comparison = cell.places.hide, night.comparison if night else None
    lines = score_lines(cell)
    texts, examples, no_examples = None, None, ""
    try:
        texts, examples = written(cell), gallery(cell, info.examples)
    except VisualBertCoreError as error:
        no_examples = hide(str(error))
    return Section(
        title=cell.title,
        about=" · ".join(_about(cell)),
        lines=lines,
        regions=cell.run is not None and "images" not in cell.run.record["provenance"],
        texts=list(what_came(scores_of(cell.run) or {})),
        warnings=[hide(line) for line in warnings(cell, info.synthetic)],
        reason=hide(reason(cell)) if cell.error or not lines else "",
        comparison=comparison,
        trend=trend(night.rows, cell.task) if night and night.rows else None,
        failures=list(_failures(cell)),
        breakdowns=list(_changes(comparison, cell.task) if comparison else _breakdowns(cell)),
        cost=cost(info, cell, night) if night else None,
        written=texts,
        gallery=examples,
        no_examples=no_examples,
        provenance=_provenance(cell, cell.run, comparison) if cell.run else None,
    )


def _about(cell: ReportCell) -> Iterator[str]:
    """Yield the network, how it was asked and scored, and how many examples have a prediction."""
    if cell.run is None:
        return
    record = cell.run.record
    yield from (record[name] for name in ("network", "answering") if record.get(name))
    yield record["provenance"]["protocol"]
    coverage = cell.run.record.get("coverage")
    if coverage:
        faults = (f"{coverage[kind]:,} {kind}" for kind in ("missing", "duplicate", "unknown") if coverage[kind])
        yield ", ".join([f"{coverage['predicted']:,} of {coverage['expected']:,} predicted", *faults])


def _failures(cell: ReportCell) -> Iterator[FailureList]:
    """Yield the images without features, and the examples without a prediction."""
    if cell.store and (quarantined := cell.store.failures()):
        total = len(quarantined)
        yield _failure_list(f"{plural(total, 'image')} in quarantine", quarantined, total, cell.places)
    if cell.run and (failed := cell.run.record.get("failed")):
        # The record keeps the first of them only; its coverage has their number.
        missing = cell.run.record["coverage"]["missing"]
        what = f"{plural(missing, 'example')} without a prediction"
        yield _failure_list(what, [Failure(**row) for row in failed], missing, cell.places)


def _failure_list(what: str, failures: Sequence[Failure], total: int, places: Places) -> FailureList:
    listed = [replace(failure, message=places.hide(failure.message)) for failure in failures[:_LISTED]]
    return FailureList(what, listed[:_SHOWN], listed[_SHOWN:], total - len(listed))


def _breakdowns(cell: ReportCell) -> Iterator[Breakdown]:
    """Yield a table for each kind of group and each metric."""
    own, other = scores_of(cell.run), scores_of(cell.baseline)
    if own is None:
        return
    for kind, groups in own["breakdown"].items():
        others = other["breakdown"].get(kind, {}) if other else {}
        for metric in in_order({metric for values in groups.values() for metric in values}, own["headline"]):
            rows = [
                GroupScore(
                    name, Estimate(values[metric][0]), _estimate(others.get(name, {}).get(metric)), values[metric][1]
                )
                for name, values in groups.items()
                if metric in values
            ]
            at_once = metric == own["headline"] and len(groups) <= _OPEN_ROWS
            yield Breakdown(kind, label(metric, cell.task), at_once, scores=rows)


def _estimate(found: tuple[float | None, int] | None) -> Estimate | None:
    return None if found is None or found[0] is None else Estimate(found[0])


def _changes(comparison: Comparison, task: Task | None) -> Iterator[Breakdown]:
    """Yield the same tables with before and now. The groups that fell most come first."""
    for kind, groups in comparison.groups.items():
        for metric in in_order({metric for changes in groups.values() for metric in changes}, comparison.headline):
            found = [(name, changes[metric]) for name, changes in groups.items() if metric in changes]
            rows = [GroupChange(name, each, each.p if each.p_holm is None else each.p_holm) for name, each in found]
            rows.sort(key=lambda row: (row.change.difference, row.name))
            at_once = metric == comparison.headline and len(rows) <= _OPEN_ROWS
            yield Breakdown(kind, label(metric, task), at_once, changes=rows)


def cost(info: ReportInfo, cell: ReportCell, night: CellNight) -> Cost | None:
    """Return the cost of the night; None for a cell without a score, which has no row in the history."""
    if scores_of(cell.run) is None or not night.rows:
        return None
    row, store = night.rows[-1], None
    if cell.store is not None:
        manifest = cell.store.manifest
        store = manifest.rows, sum(shard.part.size for shard in manifest.shards)
    return Cost(row.extraction, row.evaluation, row.corpus, store, info.gpu_hour)


def _provenance(cell: ReportCell, run: Run, comparison: Comparison | None) -> Provenance:
    runs = {"run folder": run, "wrong image": cell.baseline, "no image": cell.no_image}
    pairs = [(name, str(each.folder)) for name, each in runs.items() if each]
    pairs += leaves(run.record["provenance"])
    return Provenance(
        rows=[(name, cell.places.hide(text)) for name, text in pairs],
        commands="\n".join(command(cell, each) for each in runs.values() if each),
        before=cell.places.hide(comparison.before["folder"]) if comparison else None,
        differs=comparison.differs if comparison else {},
    )


def leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (name, text) of everything in a provenance, in the order of the names."""
    for name, leaf in sorted(value.items()):
        if isinstance(leaf, Mapping):
            yield from leaves(leaf, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", leaf if isinstance(leaf, str) else json.dumps(leaf)


def command(cell: ReportCell, run: Run) -> str:
    """Return the command that made the run, with words in place of the folders of this machine."""
    spec, hide = run.record["spec"], cell.places.hide
    options = {
        "task": spec["task"],
        "split": spec["split"],
        "annotations": hide(str(cell.task.annotation_files()[0].parent)) if cell.task else "ANNOTATIONS",
        **_read(cell, run),
        "model": f"MODELS/{spec['model']}",
        "out": hide(str(run.folder.parent)),
        "visual": spec["visual"],
        "batch-size": spec["batch_size"],
        "shard-size": spec["shard_size"],
        "precision": spec["precision"],
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    words += ["--feature-space", spec["feature_space"]] if "feature_space" in spec else []
    words += [word for name, value in spec.get("answering", {}).items() for word in _flag(name, value)]
    return shlex.join(
        ["visualbert", "evaluate", *words, *["--allow-feature-space-mismatch"] * spec["allow_feature_space_mismatch"]]
    )


def _flag(name: str, value: Any) -> list[str]:
    return [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]


def _read(cell: ReportCell, run: Run) -> dict[str, str]:
    """Return the flag for what the model read: a feature store or a corpus of images."""
    if "images" in run.record["provenance"]:
        return {"images": "IMAGES"} | ({"features": "FEATURES"} if "features" in run.record["provenance"] else {})
    return {"features": cell.places.hide(str(cell.store.folder)) if cell.store else "FEATURES"}


def plural(count: int, noun: str) -> str:
    """Write a number with its noun: "1 image", "1,200 images"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
