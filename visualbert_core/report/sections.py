"""What the page shows for one cell: its rows of the score table, and a section.

The section has the failures, the breakdowns by group, the cost, the examples, and the provenance of the run.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from visualbert_core.comparison.compare import Change, Comparison
from visualbert_core.comparison.history import Row
from visualbert_core.errors import VisualBertCoreError
from visualbert_core.evaluation.run_folder import Run
from visualbert_core.evaluation.score import what_came
from visualbert_core.provenance import leaves
from visualbert_core.report import ReportCell, ReportInfo
from visualbert_core.report.curves import trend
from visualbert_core.report.example_gallery import shown_examples
from visualbert_core.report.gate_section import CellNight
from visualbert_core.report.scores import Estimate, in_order, label, reason, score_lines, scores_of, warnings
from visualbert_core.schema import Failure

_SHOWN = 5  # failures that are not folded
_LISTED = 200  # failures at most
_OPEN_ROWS = 12  # longer breakdowns are folded
_SURE = 0.05  # a group whose change has a smaller p, corrected for all groups, is marked


Section = Mapping[str, Any]
"""Everything that the page shows for a cell, by name."""


def section(info: ReportInfo, cell: ReportCell, night: CellNight | None) -> Section:
    """Return the section of a cell. `night` is what a gate knows of it."""
    hide, comparison = cell.places.hide, night.comparison if night else None
    lines, scores = score_lines(cell), scores_of(cell.run) or {}
    texts, examples, no_examples = None, None, ""
    try:
        texts, examples = shown_examples(cell, info.examples)
    except VisualBertCoreError as error:
        no_examples = hide(str(error))
    return {
        "title": cell.title,
        "about": " · ".join(_about(cell)),
        "lines": lines,
        "regions": cell.run is not None and "images" not in cell.run.record["provenance"],  # whether it reads regions
        "texts": list(what_came(scores)),
        "warnings": [hide(line) for line in warnings(cell, info.synthetic)],
        "reason": hide(reason(cell)) if cell.error or not lines else "",
        "comparison": comparison,
        "trend": trend(night.rows, cell.task) if night and night.rows else None,
        "failures": list(_failures(cell)),
        "breakdowns": list(_breakdowns(cell, comparison)),
        "cost": _cost(info, cell, night.rows[-1]) if scores and night and night.rows else None,
        "written": texts,
        "gallery": examples,
        "no_examples": no_examples,
        "provenance": _provenance(cell, cell.run, comparison) if cell.run else None,
    }


def _about(cell: ReportCell) -> Iterator[str]:
    """Yield the network, how it was asked and scored, and how many examples have a prediction."""
    if cell.run is None:
        return
    record = cell.run.record
    yield from (record[name] for name in ("network", "answering") if record.get(name))
    yield record["provenance"]["protocol"]
    if coverage := record.get("coverage"):
        faults = (f"{coverage[kind]:,} {kind}" for kind in ("missing", "duplicate", "unknown") if coverage[kind])
        yield ", ".join([f"{coverage['predicted']:,} of {coverage['expected']:,} predicted", *faults])


def _failures(cell: ReportCell) -> Iterator[dict[str, Any]]:
    """Yield the images without features, and the examples without a prediction."""
    if cell.store and (quarantined := cell.store.failures()):
        total = len(quarantined)
        yield _failure_list(cell, f"{plural(total, 'image')} in quarantine", quarantined, total)
    if cell.run and (failed := cell.run.record.get("failed")):
        # The record keeps the first of them only; its coverage has their number.
        missing = cell.run.record["coverage"]["missing"]
        failures = [Failure(**row) for row in failed]
        yield _failure_list(cell, f"{plural(missing, 'example')} without a prediction", failures, missing)


def _failure_list(cell: ReportCell, what: str, failures: Sequence[Failure], total: int) -> dict[str, Any]:
    listed = [replace(failure, message=cell.places.hide(failure.message)) for failure in failures[:_LISTED]]
    return {"what": what, "shown": listed[:_SHOWN], "folded": listed[_SHOWN:], "unlisted": total - len(listed)}


def _breakdowns(cell: ReportCell, comparison: Comparison | None) -> Iterator[dict[str, Any]]:
    """Yield a table for each kind of group and each metric: the changes since the earlier night, or else the scores.

    A short table of the headline metric is shown at once; others are folded.
    """
    own, other = scores_of(cell.run), scores_of(cell.baseline)
    if own is None:
        return
    wrong: Mapping[str, Mapping[str, Any]] = other["breakdown"] if other else {}
    kinds: Mapping[str, Mapping[str, Any]] = comparison.groups if comparison else own["breakdown"]
    for kind, groups in kinds.items():
        for metric in in_order({metric for values in groups.values() for metric in values}, own["headline"]):
            found = {name: values[metric] for name, values in groups.items() if metric in values}
            others = {name: values[metric] for name, values in wrong.get(kind, {}).items() if metric in values}
            yield {
                "kind": kind,
                "metric": label(metric, cell.task),
                "at_once": metric == own["headline"] and len(found) <= _OPEN_ROWS,
                "changes": _group_changes(found) if comparison else (),
                "scores": () if comparison else _group_scores(found, others),
            }


def _group_scores(found: Mapping[str, Any], wrong_image: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each group. Both mappings hold (percent, units) of the groups."""
    rows = []
    for name, (value, units) in found.items():
        other, _ = wrong_image.get(name, (None, 0))
        estimate = None if other is None else Estimate(other)
        rows.append({"name": name, "own": Estimate(value), "wrong_image": estimate, "units": units})
    return rows


def _group_changes(found: Mapping[str, Change]) -> list[dict[str, Any]]:
    """Return a row for each group. The groups that fell most come first."""
    rows = []
    for name, change in sorted(found.items(), key=lambda pair: (pair[1].difference, pair[0])):
        p = change.p if change.p_holm is None else change.p_holm
        surely = "" if p >= _SURE else "worse" if change.difference < 0 else "better"
        rows.append({"name": name, "change": change, "now": Estimate(change.after), "p": p, "surely": surely})
    return rows


def _cost(info: ReportInfo, cell: ReportCell, row: Row) -> dict[str, Any]:
    """Return the time, the disk space and the price of the night.

    Cells of one corpus share its extraction, and each shows it. A model that reads pixels has no store.
    """
    timings = (row.extraction, row.evaluation)
    gpu_seconds = sum(timing.gpus * timing.seconds for timing in timings if timing is not None)
    manifest = cell.store.manifest if cell.store else None
    return {
        "extraction": row.extraction,
        "evaluation": row.evaluation,
        "corpus": row.corpus,
        "store": (manifest.rows, sum(shard.part.size for shard in manifest.shards)) if manifest else None,
        "gpu_hour": info.gpu_hour,
        "price": gpu_seconds / 3600 * info.gpu_hour if info.gpu_hour is not None and gpu_seconds else None,
    }


def _provenance(cell: ReportCell, run: Run, comparison: Comparison | None) -> dict[str, Any]:
    """Return what a run is made of, the commands that made it, and how it differs from the earlier run."""
    runs = {"run folder": run, "wrong image": cell.baseline, "no image": cell.no_image}
    pairs = [(name, str(each.folder)) for name, each in runs.items() if each]
    pairs += leaves(run.record["provenance"])
    return {
        "rows": [(name, cell.places.hide(text)) for name, text in pairs],
        "commands": "\n".join(command(cell, each) for each in runs.values() if each),
        "before": cell.places.hide(comparison.before["folder"]) if comparison else None,
        "differs": comparison.differs if comparison else {},
    }


def command(cell: ReportCell, run: Run) -> str:
    """Return the command that made the run, with words in place of the folders of this machine."""
    spec, hide, made_of = run.record["spec"], cell.places.hide, run.record["provenance"]
    if "images" in made_of:
        read = {"images": "IMAGES"} | ({"features": "FEATURES"} if "features" in made_of else {})
    else:
        read = {"features": hide(str(cell.store.folder)) if cell.store else "FEATURES"}
    options = {
        "task": spec["task"],
        "split": spec["split"],
        "annotations": hide(str(cell.task.annotation_files()[0].parent)) if cell.task else "ANNOTATIONS",
        **read,
        "model": f"MODELS/{spec['model']}",
        "out": hide(str(run.folder.parent)),
        **{name: spec[name] for name in ("visual", "batch_size", "shard_size", "precision")},
        **({"feature_space": spec["feature_space"]} if "feature_space" in spec else {}),
        **spec.get("answering", {}),
        **({"allow_feature_space_mismatch": True} if spec["allow_feature_space_mismatch"] else {}),
    }
    words = ["visualbert", "evaluate"]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join(words)


def plural(count: int, noun: str) -> str:
    """Write a number with its noun: "1 image", "1,200 images"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
