"""Two recipes over several seeds → the change of every metric, with an interval that counts seeds and images.

Run is compared with run of the same seed, unit by unit, under the same annotations. `metrics/seeds.py` has the method.
All scores are in percent, and all differences in points. Nothing here imports torch or Ray.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from visualbert_core.comparison.compare import Side, p_value, unit_differences
from visualbert_core.errors import InputError, NotComparableError
from visualbert_core.evaluation.run_folder import TRAINED, Run, made_of
from visualbert_core.metrics.seeds import OverSeeds, over_seeds
from visualbert_core.metrics.statistics import PERCENT
from visualbert_core.printable import printable
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

    def document(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        return asdict(self)


def compare_seeds(before: Seeds, after: Seeds) -> SeedsComparison:
    """Compare two recipes by the runs of their checkpoints over the same seeds, two or more.

    Raise NotComparableError where seeds, task, split, annotations or examples differ. Raise InputError where a run has
    no score, and for a single seed.
    """
    if before.keys() != after.keys():
        only = [f"{name} has no seed {_listed(other - own)}" for name, own, other in _lacking(before, after)]
        raise NotComparableError(f"the seeds differ: {'; '.join(only)}; train these, or compare groups of equal seeds")
    if len(before) < 2:
        raise InputError("one seed says nothing about others: train a second one, or compare the two run folders")
    seeds = sorted(before)
    pairs = [(Side(before[seed]), Side(after[seed])) for seed in seeds]
    first = pairs[0][1]
    for side in (side for pair in pairs for side in pair):
        _check_same(first, side)
    names = [name for name in first.units if all(name in side.units for pair in pairs for side in pair)]
    differs = {line for a, b in pairs for line in differences(_made_of(a.run), _made_of(b.run))}
    return SeedsComparison(
        task=first.scores["task"],
        split=first.scores["split"],
        headline=first.scores["headline"],
        metrics={name: _change(name, seeds, pairs, first.scores.get("scales", {})) for name in names},
        differs=tuple(sorted(line for line in differs if not line.startswith(_CHECKPOINT))),
    )


def _made_of(run: Run) -> dict[str, Any]:
    """Return what a run was made of, with the recipe of its training where that is known."""
    return {**made_of(run), **run.record.get(TRAINED, {})}


def _lacking(before: Seeds, after: Seeds) -> Iterator[tuple[str, set[int], set[int]]]:
    """Yield (side, its seeds, the seeds of the other side) where the other side has more."""
    sides = (("RUN_A", set(before)), ("RUN_B", set(after)))
    for (name, own), (_, other) in (sides, sides[::-1]):
        if other - own:
            yield name, own, other


def _listed(seeds: set[int]) -> str:
    return ", ".join(map(str, sorted(seeds)))


def _check_same(first: Side, other: Side) -> None:
    """Raise NotComparableError where two runs do not judge the same units in the same way."""
    for name in ("task", "split"):
        if first.scores[name] != other.scores[name]:
            raise NotComparableError(_refused(first, other, f"{name}: {first.scores[name]} → {other.scores[name]}"))
    for name in ("annotations", "protocol"):
        if first.provenance[name] != other.provenance[name]:
            raise NotComparableError(_refused(first, other, f"their {name} differ"))
    for metric, units in first.units.items():
        if metric in other.units and units.unit_ids != other.units[metric].unit_ids:
            raise NotComparableError(_refused(first, other, f"their units of {metric} differ"))


def _refused(first: Side, other: Side, why: str) -> str:
    return f"{first.run.folder} and {other.run.folder} are not comparable: {why}; evaluate both on the same examples"


def _change(metric: str, seeds: list[int], pairs: list[tuple[Side, Side]], scales: Mapping[str, float]) -> SeedsChange:
    """Compare the units of one metric."""
    shown = scales.get(metric, PERCENT)
    units = [(a.units[metric].worth, b.units[metric].worth) for a, b in pairs]
    rows = np.stack([unit_differences(a, b) for a, b in units])
    found: OverSeeds = over_seeds(rows, pairs[0][1].units[metric].clusters)
    return SeedsChange(
        before=shown * float(np.mean([a.value for a, _ in units])),
        after=shown * float(np.mean([b.value for _, b in units])),
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


def describe_seeds(comparison: SeedsComparison) -> Iterator[str]:
    """Yield the lines that show a comparison over seeds in a terminal."""
    seeds = comparison.metrics[comparison.headline].seeds
    yield f"{comparison.task} {comparison.split}: {len(seeds)} seeds, paired by seed and unit"
    yield "the interval counts seeds and images (Obuchowski and Rockette 1995, Hillis 2007)"
    yield ""
    yield f"{'metric':<14} {'before':>7} {'after':>7} {'points':>7}  {'95 % interval':<16} {'p':>8} {'n':>9}  each seed"
    for metric, change in comparison.metrics.items():
        reach = "" if change.low is None else f"[{change.low:+.2f}, {change.high:+.2f}]"
        each = " ".join(f"{value:+.2f}" for value in change.seeds.values())
        yield (
            f"{printable(metric):<14} {change.before:7.2f} {change.after:7.2f} {change.difference:+7.2f}  {reach:<16} "
            f"{p_value(change.p):>8} {change.n:>9,}  {each}"
        )
    yield from ("", "what differs:")
    yield from (f"  {printable(line)}" for line in comparison.differs)
