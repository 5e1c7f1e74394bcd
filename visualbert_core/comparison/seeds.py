"""Two recipes over several seeds → the change of every metric, with an interval that counts seeds and images.

Run is compared with run of the same seed, unit by unit, under the same annotations. `metrics/seeds.py` has the method.
All scores are in percent, and all differences in points. Nothing here imports torch or Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from visualbert_core.comparison.compare import Side, unit_differences, unit_ids
from visualbert_core.errors import InputError, NotComparableError
from visualbert_core.evaluation.run_folder import TRAINED, Run, made_of
from visualbert_core.evaluation.units import Values
from visualbert_core.metrics.seeds import over_seeds
from visualbert_core.metrics.statistics import PERCENT
from visualbert_core.provenance import differences

_CHECKPOINT = ("model.weights: ", "spec.model: ")  # which differ from seed to seed

Seeds = Mapping[int, Run]
"""Seed → the run of the checkpoint that was trained with it."""


@dataclass(frozen=True)
class SeedsChange:
    """The change of one metric over seeds and units.

    `before` and `after` are means over seeds, in percent or in the metric's own scale. `difference` is after - before.
    `low` and `high` are its 95 % interval, None if there is only one image. `deviation` is the sample deviation of the
    differences of the seeds, and `seeds` has them. `p` is two-sided, and `degrees` are the degrees of freedom of both,
    None where seeds do not differ.
    """

    before: float
    after: float
    difference: float
    low: float | None
    high: float | None
    p: float
    deviation: float
    seeds: dict[int, float]
    degrees: float | None
    n: int
    images: int


@dataclass(frozen=True)
class SeedsComparison:
    """Two recipes compared over the same seeds. `differs` has a line for each ingredient that differs."""

    task: str
    split: str
    headline: str
    metrics: dict[str, SeedsChange]
    differs: tuple[str, ...]


def compare_seeds(before: Seeds, after: Seeds) -> SeedsComparison:
    """Compare two recipes by the runs of their checkpoints over the same seeds, two or more.

    Raise NotComparableError where seeds, task, split, annotations or examples differ. Raise InputError where a run has
    no score, and for a single seed.
    """
    lacking = {"RUN_A": after.keys() - before.keys(), "RUN_B": before.keys() - after.keys()}
    if before.keys() != after.keys():
        only = [f"{name} has no seed {', '.join(map(str, sorted(those)))}" for name, those in lacking.items() if those]
        raise NotComparableError(f"the seeds differ: {'; '.join(only)}; train these, or compare groups of equal seeds")
    if len(before) < 2:
        raise InputError("one seed says nothing about others: train a second one, or compare the two run folders")
    seeds = sorted(before)
    pairs = [(Side(before[seed]), Side(after[seed])) for seed in seeds]
    first = pairs[0][1]
    for side in (side for pair in pairs for side in pair):
        _check_same(first, side)
    names = [name for name in first.units if all(name in side.units for pair in pairs for side in pair)]
    made = ([{**made_of(side.run), **side.run.record.get(TRAINED, {})} for side in pair] for pair in pairs)
    differs = {line for one, other in made for line in differences(one, other)}
    return SeedsComparison(
        task=first.scores["task"],
        split=first.scores["split"],
        headline=first.scores["headline"],
        metrics={name: _change(name, seeds, pairs, first.scores.get("scales", {})) for name in names},
        differs=tuple(sorted(line for line in differs if not line.startswith(_CHECKPOINT))),
    )


def _check_same(first: Side, other: Side) -> None:
    """Raise NotComparableError where two runs do not judge the same units in the same way."""
    one, two = first.scores, other.scores
    why = [f"{name}: {one[name]} → {two[name]}" for name in ("task", "split") if one[name] != two[name]]
    one, two = first.provenance, other.provenance
    why += [f"their {name} differ" for name in ("annotations", "protocol") if one[name] != two[name]]
    both = [] if why else [metric for metric in first.units if metric in other.units]
    why += [f"their units of {m} differ" for m in both if unit_ids(first.units[m]) != unit_ids(other.units[m])]
    if why:
        runs = f"{first.run.folder} and {other.run.folder}"
        raise NotComparableError(f"{runs} are not comparable: {why[0]}; evaluate both on the same examples")


def _change(metric: str, seeds: list[int], pairs: list[tuple[Side, Side]], scales: Mapping[str, float]) -> SeedsChange:
    shown = scales.get(metric, PERCENT)
    values = [(Values.of(a.units[metric]), Values.of(b.units[metric])) for a, b in pairs]
    clusters = [unit.cluster for unit in pairs[0][1].units[metric]]
    found = over_seeds(np.stack([unit_differences(a, b) for a, b in values]), clusters)
    return SeedsChange(
        before=shown * float(np.mean([a.value for a, _ in values])),
        after=shown * float(np.mean([b.value for _, b in values])),
        difference=shown * found.difference,
        low=None if found.low is None else shown * found.low,
        high=None if found.high is None else shown * found.high,
        p=found.p,
        deviation=shown * found.deviation,
        seeds={seed: shown * each for seed, each in zip(seeds, found.each, strict=True)},
        degrees=None if np.isinf(found.degrees) else found.degrees,
        n=found.n,
        images=found.images,
    )
