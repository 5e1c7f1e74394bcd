"""Decides whether a night got worse: one verdict for each watched metric, and one for the night.

    fail          there is a drop. Without a real change, such a drop would occur on some metric of the night with a
                  probability below `false_alarms` (one-sided p with Holm's correction; Holm 1979)
    pass          there is no such drop, and the test would have found one that matters; or nothing changed at all
    cannot tell   there is no such drop, but the test could have missed one that matters; or there is nothing to compare

Beside metrics, the share of texts in which an answer was found can be watched: a rise of the unparsed texts is a drop
of the parsed ones.

Reruns of the same thing differ by noise. If the history of a cell holds enough reruns, their noise widens the test
(`statistics.excess_noise`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, inf
from typing import Literal

from visualbert_core.comparison.compare import Change, p_value
from visualbert_core.config import GateConfig
from visualbert_core.metrics.statistics import holm, p_drop_with_noise, smallest_drop

Verdict = Literal["pass", "fail", "cannot tell"]

EXIT_CODES: dict[Verdict, int] = {"pass": 0, "fail": 4, "cannot tell": 5}


@dataclass(frozen=True)
class Watched:
    """A watched metric of a cell, or its share of parsed texts; the night it is compared with, and the change, or the
    `reason` why there is none to judge."""

    cell: str
    metric: str
    drop: float
    """The smallest drop that matters, in points."""
    compared_with: str | None = None
    change: Change | None = None
    noise: float = 0.0
    """The noise of reruns, as a standard deviation in points."""
    reason: str = ""


@dataclass(frozen=True)
class Check:
    """The verdict on one metric.

    `p` is the one-sided p-value of "there is no drop", with the noise of reruns. `p_holm` is `p` corrected for all
    metrics of the night. `visible` is the smallest drop, in points, that the test finds with the configured power. None
    if it finds no drop of any size.
    """

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
    """The verdict on a night and its reasons. `missed` holds a line for each score outside its bounds."""

    night: str
    verdict: Verdict
    checks: tuple[Check, ...]
    missed: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]

    def cell_verdict(self, cell: str) -> Verdict:
        """Return the worst verdict among the metrics of a cell."""
        return _worst([check.verdict for check in self.checks if check.watched.cell == cell])


def judge_night(night: str, config: GateConfig, watched: Sequence[Watched], missed: Sequence[str] = ()) -> Gate:
    """Judge all metrics of a night together. The more metrics there are, the more evidence each drop needs."""
    p = {
        index: p_drop_with_noise(change.difference / 100, change.spread / 100, each.noise / 100, change.p_drop)
        for index, each in enumerate(watched)
        if (change := each.change) is not None
    }
    corrected = dict(zip(p, holm(list(p.values())), strict=True))
    # Holm's first and strictest step is Bonferroni's. A drop that passes this step is found in any case.
    alpha = config.false_alarms / max(1, len(p))
    checks = [
        _check(each, each.change, config, alpha, p[index], corrected[index])
        if each.change is not None
        else Check(each, "cannot tell", each.reason)
        for index, each in enumerate(watched)
    ]
    verdict: Verdict = "fail" if missed else _worst([check.verdict for check in checks])
    return Gate(night, verdict, tuple(checks), tuple(missed))


def _check(each: Watched, change: Change, config: GateConfig, alpha: float, p: float, p_holm: float) -> Check:
    spread = hypot(change.spread, each.noise) / change.scale
    visible = change.scale * smallest_drop(spread, change.n, alpha, config.power, change.step)
    numbers = (p, p_holm, None if visible == inf else visible)
    moved = f"{change.difference:+.2f} points, p {p_value(p_holm)}"
    if p_holm < config.false_alarms and change.difference < 0:
        return Check(each, "fail", f"{moved} < {config.false_alarms}", *numbers)
    if change.images_changed == 0:
        return Check(each, "pass", f"not one of {change.n:,} units changed", *numbers)
    could = f"a drop of {visible:.2f} points" if visible < inf else "a drop of any size"
    if visible > each.drop:
        return Check(each, "cannot tell", f"{moved}, but {could} might stay unseen; {each.drop:g} matters", *numbers)
    return Check(each, "pass", f"{moved}; {could} would have shown", *numbers)


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    order: tuple[Verdict, ...] = ("fail", "cannot tell", "pass")
    return next((verdict for verdict in order if verdict in verdicts), "cannot tell")
