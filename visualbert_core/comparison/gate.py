"""Did it get worse? A verdict a watched metric, and one for the night.

    fail          a drop that reruns of the same thing would show with a probability under `false_alarms`, over all
                  metrics of the night together (Holm's correction of one-sided p)
    pass          no such drop, and the test could have seen one that matters; or nothing changed at all
    cannot tell   no such drop, but one that matters could have escaped; or there was nothing to compare with

The noise of reruns, where a cell's history holds enough of them, widens the test (`statistics.excess_noise`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import hypot, inf
from typing import Any, Literal

from visualbert_core.comparison.compare import Change
from visualbert_core.config import GateConfig
from visualbert_core.metrics.statistics import holm, p_drop_with_noise, smallest_drop

Verdict = Literal["pass", "fail", "cannot tell"]

EXIT_CODES: dict[Verdict, int] = {"pass": 0, "fail": 4, "cannot tell": 5}


@dataclass(frozen=True)
class Watched:
    """A metric of a cell, what it is compared with and how it changed; `change` is None where `reason` says why."""

    cell: str
    metric: str
    drop: float
    """Points that matter."""
    compared_with: str | None = None
    change: Change | None = None
    noise: float = 0.0
    """Points, of reruns."""
    reason: str = ""


@dataclass(frozen=True)
class Check:
    """The verdict on one metric. `p` is that of no drop with noise, `p_holm` corrected for the night; `visible` is the
    smallest drop, in points, that would have been found with the power asked for, None where none would."""

    watched: Watched
    verdict: Verdict
    reason: str
    p: float | None = None
    p_holm: float | None = None
    visible: float | None = None

    @property
    def change(self) -> Change | None:
        return self.watched.change


@dataclass(frozen=True)
class Gate:
    """A night's verdict and how it came about; `missed` are scores under their floors and the like."""

    night: str
    verdict: Verdict
    checks: tuple[Check, ...]
    missed: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]

    def cell_verdict(self, cell: str) -> Verdict:
        """The worst of a cell's."""
        return _worst([check.verdict for check in self.checks if check.watched.cell == cell])

    def document(self) -> dict[str, Any]:
        """JSON values only."""
        return asdict(self)


def judge_night(night: str, config: GateConfig, watched: Sequence[Watched], missed: Sequence[str] = ()) -> Gate:
    """Judge all metrics of a night together: the more there are, the more each must show."""
    p = {
        index: p_drop_with_noise(change.difference / 100, change.spread / 100, each.noise / 100, change.p_drop)
        for index, each in enumerate(watched)
        if (change := each.change) is not None
    }
    corrected = dict(zip(p, holm(list(p.values())), strict=True))
    alpha = config.false_alarms / max(1, len(p))
    checks = []
    for index, each in enumerate(watched):
        if each.change is None:
            checks.append(Check(each, "cannot tell", each.reason))
        else:
            checks.append(_check(each, each.change, config, alpha, p[index], corrected[index]))
    verdict: Verdict = "fail" if missed else _worst([check.verdict for check in checks])
    return Gate(night, verdict, tuple(checks), tuple(missed))


def _check(each: Watched, change: Change, config: GateConfig, alpha: float, p: float, p_holm: float) -> Check:
    spread = hypot(change.spread, each.noise) / 100
    visible = 100 * smallest_drop(spread, change.n, alpha, config.power)
    numbers = (p, p_holm, None if visible == inf else visible)
    moved = f"{change.difference:+.2f} points, p {p_holm:.4f}"
    if p_holm < config.false_alarms and change.difference < 0:
        return Check(each, "fail", f"{moved} < {config.false_alarms}", *numbers)
    if change.images_changed == 0:
        return Check(each, "pass", f"not one of {change.n:,} units changed", *numbers)
    could = f"a drop of {visible:.2f} points" if visible < inf else "a drop of any size"
    if visible > each.drop:
        return Check(each, "cannot tell", f"{moved}, but {could} might escape, and {each.drop:g} matters", *numbers)
    return Check(each, "pass", f"{moved}; {could} would have shown", *numbers)


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    order: tuple[Verdict, ...] = ("fail", "cannot tell", "pass")
    return next((verdict for verdict in order if verdict in verdicts), "cannot tell")
