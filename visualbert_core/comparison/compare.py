"""Two run folders → what changed, how certain that is, on which examples, and why.

Runs are compared unit by unit under one set of annotations. If their annotations differ, the stored predictions of both
are scored again under one of them, if the caller gives its folder. The change that remains comes from the predictions.
The rest comes from the annotations. Causes that cannot be separated are named together. All scores are in percent, and
all differences in points. Nothing here imports torch or Ray.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from visualbert_core.comparison.attribution import Cause, causes, scored_here
from visualbert_core.comparison.flips import Flips, flips
from visualbert_core.errors import CoverageError, InputError, NotComparableError
from visualbert_core.evaluation.run_folder import ANSWERING, Run, made_of
from visualbert_core.evaluation.units import Units, Values, by_metric, read_units
from visualbert_core.evaluation.worker import read_predictions
from visualbert_core.metrics.statistics import PERCENT, holm, paired_differences, usual_step
from visualbert_core.metrics.sums import linear_differences
from visualbert_core.provenance import changed
from visualbert_core.schema import Prediction, Score
from visualbert_core.tasks import Task, judge

SHOWN = 100
"""The largest number of flips listed as worse, and as better."""

PARSED = "parsed texts"
"""How the share of texts with an answer is called beside the metrics."""

Tasks = Mapping[str, Task]
"""Digest of annotations → the task opened with them."""


@dataclass(frozen=True)
class Change:
    """The change of one metric over the units that both runs have, overall or in a group.

    `before` and `after` are percent, or in the metric's own `scale`, which is what the value 1 is shown as.
    `difference` is after - before in points. `low` and `high` are its 95 % interval, None if there is only one image.
    `p` is two-sided. `p_drop` is one-sided: the p-value of "there is no drop". `p_holm` is `p` corrected for all groups
    of the metric. `spread` is the standard error under "nothing changed". `step` is how far a unit that changed moved,
    as a share of the scale; it is 1 for units that are right or wrong.
    """

    before: float
    after: float
    difference: float
    low: float | None
    high: float | None
    p: float
    p_drop: float
    spread: float
    n: int
    images: int
    images_changed: int
    p_holm: float | None = None
    scale: float = PERCENT
    step: float = 1.0


@dataclass(frozen=True)
class Comparison:
    """The result of comparing two runs. `basis` says how the scores came about, and `differs` lists the ingredients."""

    before: dict[str, Any]
    after: dict[str, Any]
    headline: str
    basis: str
    warnings: tuple[str, ...]
    metrics: dict[str, Change]
    groups: dict[str, dict[str, dict[str, Change]]]  # kind → group → metric
    examples: int
    answers_changed: int
    flips: dict[str, Flips]
    causes: tuple[Cause, ...]
    differs: dict[str, list[str]]
    parsed: Change | None = None
    """The change of the share of texts in which an answer was found; None where neither model writes text."""


class Side:
    """One of the two runs. Its files are read on first use."""

    def __init__(self, run: Run) -> None:
        """Take `run`. Raise InputError if it has no score."""
        if run.scores is None:
            raise InputError(
                f"{run.folder} has no score ({run.record['status']}): only complete runs can be compared; give "
                "a run with a score"
            )
        self.run, self.scores = run, run.scores
        self.provenance: dict[str, Any] = run.record["provenance"]
        self.annotations: str = self.provenance["annotations"]

    @cached_property
    def units(self) -> Units:
        """Return all units, as the run scored them."""
        return read_units(self.run.folder)

    @cached_property
    def predictions(self) -> dict[str, Prediction]:
        found, _ = read_predictions(self.run.folder / "predictions")
        return {prediction.example_id: prediction for prediction in found}

    @property
    def about(self) -> dict[str, Any]:
        spec = self.run.record["spec"]
        return {
            "folder": str(self.run.folder),
            "scores": self.scores["scores"],
            **{name: spec[name] for name in ("model", "task", "split", "visual")},
        }

    def rescored(self, task: Task) -> Units:
        """Score the stored predictions under other annotations. Raise CoverageError if these ask other questions."""
        return by_metric(judge(task, self.predictions.values()))


def compare(before: Run, after: Run, tasks: Tasks | None = None, force: bool = False, shown: int = SHOWN) -> Comparison:
    """Compare two runs of the same task and split.

    `tasks` are the annotations that the caller has, by digest. If the annotations of the runs differ, both runs are
    scored under one of these. With `force`, runs with different questions are compared too, on the units whose ids both
    have; a warning says so. Raise NotComparableError naming what differs. Raise InputError if a run has no score or is
    damaged.
    """
    a, b, tasks = Side(before), Side(after), tasks or {}
    _check_questions(a, b, force)
    if foreign := tasks.keys() - {a.annotations, b.annotations}:
        raise InputError(
            f"the annotations given belong to neither run: their digest is {', '.join(sorted(foreign))}; give those of "
            f"{a.run.folder} or {b.run.folder}"
        )
    own, basis, warnings = _under_one(a, b, tasks, force)
    aligned = {metric: _aligned(*own, metric) for metric in own[1] if metric in own[0]}
    scales: Mapping[str, float] = b.scores.get("scales", {})
    metrics = {
        metric: _change(Values.of(first), Values.of(second), [unit.cluster for unit in second], scales.get(metric))
        for metric, (first, second) in aligned.items()
    }
    differs = _differs(a, b)
    common = [(a.predictions[name].answer, p.answer) for name, p in b.predictions.items() if name in a.predictions]
    answers_changed = sum(one != other for one, other in common)
    headline = b.scores["headline"]
    total = b.scores["scores"][headline] - a.scores["scores"][headline]
    pixels = "images" in a.provenance, "images" in b.provenance
    of_judge = partial(_of_judge, a, b, tasks, headline)
    return Comparison(
        before=a.about,
        after=b.about,
        headline=headline,
        basis=basis,
        warnings=tuple(warnings),
        metrics=metrics,
        groups=_groups(aligned, scales),
        examples=len(b.predictions),
        answers_changed=answers_changed,
        flips={
            metric: found
            for metric, (first, second) in aligned.items()
            if (found := flips(first, second, shown, scales.get(metric))) is not None
        },
        causes=tuple(causes(total, of_judge, answers_changed > 0, differs, pixels)),
        differs=differs,
        parsed=_parsed(a, b),
    )


def _differs(a: Side, b: Side) -> dict[str, list[str]]:
    """Return the lines of each ingredient that differs, without how a model was asked where one run does not say it."""
    before, after = made_of(a.run), made_of(b.run)
    if ANSWERING in before.keys() ^ after.keys():  # a run of an older version
        before, after = a.provenance, b.provenance
    return changed(before, after)


def _parsed(a: Side, b: Side) -> Change | None:
    """Return the change of the share of texts with an answer, over the examples that both runs answer."""
    common = [name for name in b.predictions if name in a.predictions]
    if not any(side.predictions[name].generated for side in (a, b) for name in common):
        return None
    before, after = (Values(np.array([_share_parsed(side.predictions[name]) for name in common])) for side in (a, b))
    return _change(before, after, [b.predictions[name].image_id for name in common], None)


def _share_parsed(prediction: Prediction) -> float:
    texts = prediction.generated
    return sum(text.parsed for text in texts) / len(texts) if texts else 1.0  # a head always gives an answer


def _check_questions(a: Side, b: Side, force: bool) -> None:
    """Raise NotComparableError if the task differs, or if the split differs and `force` is not set."""
    for name in ("task", "split"):
        one, other = a.scores[name], b.scores[name]
        if one != other and (name == "task" or not force):
            raise NotComparableError(
                f"{a.run.folder} and {b.run.folder} are not comparable: {name}: {one} → {other}"
                + ("; give two runs of one task" if name == "task" else "; --force compares the units that both have")
            )


def _under_one(a: Side, b: Side, tasks: Tasks, force: bool) -> tuple[tuple[Units, Units], str, list[str]]:
    """Return the units of both runs under one set of annotations, how they came about, and warnings."""
    if a.annotations == b.annotations and a.provenance["protocol"] == b.provenance["protocol"]:
        return (a.units, b.units), "scores as stored", []
    side, name = (b, "after") if b.annotations in tasks else (a, "before")
    if (task := tasks.get(side.annotations)) is not None:
        try:
            under = a.rescored(task), b.rescored(task)
            return under, f"both scored under the annotations of `{name}`, as theirs differ", []
        except CoverageError as error:
            if not force:
                why = "the annotations of the two runs ask different questions"
                raise NotComparableError(f"{why}: {error}; --force compares the units that both have") from None
    differing = changed(a.provenance, b.provenance)
    lines = differing.get("annotations", []) + differing.get("scorer", [])
    if not force:
        raise NotComparableError(
            f"{a.run.folder} and {b.run.folder} are not comparable: {'; '.join(lines)}; give --annotations of one run "
            "to score both under them, or --force"
        )
    return (a.units, b.units), "scores as stored, though judged differently", [f"not comparable: {'; '.join(lines)}"]


def _aligned(first: Units, second: Units, metric: str) -> tuple[Sequence[Score], Sequence[Score]]:
    """Return the units that both runs have, in the order of the second run."""
    if unit_ids(first[metric]) == unit_ids(second[metric]):
        return first[metric], second[metric]
    before = {unit.unit_id: unit for unit in first[metric]}
    both = [unit for unit in second[metric] if unit.unit_id in before]
    if not both:
        raise NotComparableError(f"the runs have no unit of {metric} in common: compare runs of one split")
    return [before[unit.unit_id] for unit in both], both


def unit_ids(units: Sequence[Score]) -> list[str]:
    return [unit.unit_id for unit in units]


def _change(before: Values, after: Values, clusters: Sequence[str] | np.ndarray, scale: float | None) -> Change:
    """Compare the units of two runs. `scale` is None for a metric in percent."""
    shares = unit_differences(before, after)
    result = paired_differences(shares, clusters)
    right_or_wrong = scale is None and after.function is None
    shown = PERCENT if scale is None else scale
    # An interval clustered by image needs two images; `paired` returns NaN for one. JSON has no NaN.
    one_image = math.isnan(result.low)
    return Change(
        before=shown * before.value,
        after=shown * after.value,
        difference=shown * result.difference.value,
        low=None if one_image else shown * result.low,
        high=None if one_image else shown * result.high,
        p=result.p,
        p_drop=result.p_drop,
        spread=shown * result.spread,
        n=result.difference.n,
        images=result.difference.clusters,
        images_changed=result.changed,
        scale=shown,
        step=result.step if right_or_wrong else usual_step(shares),
    )


def unit_differences(before: Values, after: Values) -> np.ndarray:
    """Return the share of each unit in the change of a metric, float64 [n]. Their mean is the change."""
    if before.counts is not None and after.counts is not None and after.function is not None:
        return linear_differences(after.function, before.counts, after.counts)
    return np.asarray(after.values - before.values, np.float64)


def _groups(
    aligned: Mapping[str, tuple[Sequence[Score], Sequence[Score]]], scales: Mapping[str, float]
) -> dict[str, dict[str, dict[str, Change]]]:
    """Return every metric in every group. Kinds and groups are sorted, and `p_holm` covers all groups of a metric.

    Many groups are tested at once, so Holm's correction keeps the chance of one false alarm among them in bounds.
    """
    found: dict[str, dict[str, dict[str, Change]]] = {}
    for metric, (first, second) in aligned.items():
        before, after = Values.of(first), Values.of(second)
        images = np.unique([unit.cluster for unit in second], return_inverse=True)[1]
        rows_of: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        for row, unit in enumerate(second):
            for kind, names in unit.groups.items():
                for name in names:
                    rows_of[kind, name].append(row)
        changes = {
            group: _change(before.take(rows), after.take(rows), images[rows], scales.get(metric))
            for group, rows in rows_of.items()
        }
        corrected = holm([change.p for change in changes.values()])
        for ((kind, group), change), p in zip(changes.items(), corrected, strict=True):
            found.setdefault(kind, {}).setdefault(group, {})[metric] = replace(change, p_holm=p)
    return {kind: dict(sorted(groups.items())) for kind, groups in sorted(found.items())}


def _of_judge(a: Side, b: Side, tasks: Tasks, headline: str) -> list[float]:
    """Return the points that the judge caused: how far each run moves when it is judged as the other one was.

    Only the scorer of this installation can run. A run is left out where another scorer judged the other run, or where
    the annotations of the other run are not given or ask other questions.
    """
    points = []
    for own, other, sign in ((a, b, 1), (b, a, -1)):
        task = tasks.get(other.annotations)
        if task is None or not scored_here(other.provenance, task):
            continue
        try:
            swapped = task.scales.get(headline, PERCENT) * Values.of(own.rescored(task)[headline]).value
        except CoverageError:
            continue
        points.append(sign * (swapped - own.scores["scores"][headline]))
    return points


def p_value(p: float) -> str:
    """Write a p-value: "< 0.0001" or "0.0312"."""
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"
