"""The gate's verdicts: what fails, what passes, what cannot be told, and how CI shows them."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats

from visualbert_core.comparison.compare import Change
from visualbert_core.comparison.gate import Watched, judge_night
from visualbert_core.comparison.history import History, Row, Timing
from visualbert_core.config import GateConfig
from visualbert_core.errors import InputError
from visualbert_core.metrics.statistics import paired
from visualbert_core.report.ci import junit, markdown

CONFIG = GateConfig(false_alarms=0.01, drop=1.0)


def change(worse: int, better: int, n: int) -> Change:
    """Return the change between two runs over n images with one question each, of which `worse` and `better`
    changed."""
    before = np.array([1.0] * worse + [0.0] * better + [1.0] * (n - worse - better))
    after = np.array([0.0] * worse + [1.0] * better + [1.0] * (n - worse - better))
    result = paired(before, after, np.arange(n))
    return Change(
        before=100 * before.mean(),
        after=100 * after.mean(),
        difference=100 * result.difference.value,
        low=100 * result.low,
        high=100 * result.high,
        p=result.p,
        p_drop=result.p_drop,
        spread=100 * result.spread,
        n=n,
        images=n,
        images_changed=result.changed,
    )


def watched(*changes: Change | None, noise: float = 0.0) -> list[Watched]:
    return [
        Watched(f"cell{i}", "accuracy", 1.0, "night 1", each, noise, "" if each else "no earlier night")
        for i, each in enumerate(changes)
    ]


def verdicts(*changes: Change | None, noise: float = 0.0) -> list[str]:
    return [check.verdict for check in judge_night("n", CONFIG, watched(*changes, noise=noise)).checks]


def test_the_three_verdicts() -> None:
    """A clear drop fails, a small one in a large set passes, the same in a small set cannot be told, and a rise
    passes."""
    assert verdicts(change(60, 10, 9000)) == ["fail"]
    assert verdicts(change(22, 20, 9000)) == ["pass"]
    assert verdicts(change(6, 4, 90)) == ["cannot tell"]
    assert verdicts(change(10, 60, 9000)) == ["pass"]


def test_nothing_changed_passes_however_few() -> None:
    """Ten equal answers pass, and the reason says how many units were compared."""
    (check,) = judge_night("n", CONFIG, watched(change(0, 0, 10))).checks
    assert (check.verdict, check.p_holm, check.visible) == ("pass", 1.0, None)
    assert check.reason == "not one of 10 units changed"


def test_many_cells_must_each_show_more() -> None:
    """A drop that fails alone may pass among ten cells, where each cell must show a larger drop."""
    drop = change(22, 7, 9000)
    assert verdicts(drop)[0] == "fail"
    among = judge_night("n", CONFIG, watched(drop, *[change(9, 9, 9000)] * 9))
    assert among.checks[0].verdict == "pass"
    alone = judge_night("n", CONFIG, watched(drop)).checks[0]
    assert alone.visible is not None
    assert among.checks[0].visible is not None
    assert among.checks[0].visible > alone.visible


def test_noise_of_reruns_counts() -> None:
    """Noise between reruns makes a drop uncertain that fails without it."""
    drop = change(60, 10, 9000)
    assert verdicts(drop, noise=0.0) == ["fail"]
    assert verdicts(drop, noise=0.5) == ["cannot tell"]


def test_a_night_is_as_bad_as_its_worst_cell() -> None:
    """The night has the worst verdict of its cells, a missed floor fails it, and the exit codes are 4, 5 and 0."""
    fine, bad = change(2, 2, 9000), change(60, 10, 9000)
    for changes, verdict, code in (
        ((fine, None, bad), "fail", 4),
        ((fine, None), "cannot tell", 5),
        ((fine, fine), "pass", 0),
    ):
        gate = judge_night("n", CONFIG, watched(*changes))
        assert (gate.verdict, gate.exit_code) == (verdict, code)
    gate = judge_night("n", CONFIG, watched(fine), missed=["accuracy is 3.00, which is below 85"])
    assert (gate.verdict, gate.exit_code) == ("fail", 4)
    assert gate.cell_verdict("cell0") == "pass"


def test_false_alarms_of_whole_nights_are_configured() -> None:
    """On nights of five unchanged cells, the share of failed nights lies in the binomial interval of the configured
    rate, and so not far below it, because a gate that never fails is useless."""
    rng = np.random.default_rng(21)
    config, nights, failed = GateConfig(false_alarms=0.1, drop=50), 250, 0
    for _ in range(nights):
        cells = []
        for _ in range(5):
            images = np.repeat(np.arange(120), rng.integers(1, 6, 120))
            worth = rng.choice([0.3, 0.6, 0.9, 1.0], len(images))
            runs = [worth * (rng.random(len(images)) < 0.7) for _ in range(2)]
            result = paired(*runs, images)
            shift, spread = 100 * result.difference.value, 100 * result.spread
            cells.append(Change(0, shift, shift, 0, 0, result.p, result.p_drop, spread, len(images), 120, 120))
        failed += judge_night("n", config, watched(*cells)).verdict == "fail"
    low, high = stats.binom.ppf([0.025, 0.975], nights, 0.1)
    assert low <= failed <= high


# CI output, history and baseline.


def test_ci_gets_every_verdict() -> None:
    """JUnit has failures, errors and successes, and characters that XML or Markdown cannot hold do no harm."""
    cells = watched(change(60, 10, 9000), None, change(0, 0, 9000))
    cells[0] = Watched("evil | <b>\x00", "accuracy", 1.0, "night 1", cells[0].change)
    gate = judge_night("2026-02-03", CONFIG, cells, missed=["q_to_ar is 3.00"])
    (suite,) = ElementTree.fromstring(junit("my nights", gate))
    counts = {"tests": "4", "failures": "2", "errors": "1", "skipped": "0", "time": "0"}
    assert dict(suite.attrib) == {"name": "my nights 2026-02-03"} | counts
    assert [case[0].tag for case in suite] == ["failure", "error", "system-out", "failure"]
    text = markdown("my nights", gate, {})
    assert text.startswith("## ❌ my nights, 2026-02-03: fail\n")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert "evil \\| \\<b\\>" in text
    assert len(rows) == 1 + len(cells)
    assert "❓ **cell1** accuracy: no earlier night" in text


def row(night: str, verdict: str = "pass", **changes: object) -> Row:
    values: dict[str, object] = {"night": night, "cell": "c", "verdict": verdict, "run": "r", "headline": "accuracy"}
    values |= {"scores": {"accuracy": 50.0}, "intervals": {"accuracy": [40.0, None]}, "units": {"accuracy": 9}}
    return Row(**(values | {"ingredients": {}} | changes))  # type: ignore[arg-type]


def test_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Rows come back equal and in the order of their nights, and a broken row is named, not skipped."""
    history = History(tmp_path)
    rows = [row("2026-02-0" + str(day), evaluation=Timing(items=3, seconds=0.5)) for day in (3, 1, 2)]
    for each in rows:
        history.add(each)
    assert history.rows("c") == sorted(rows, key=lambda each: each.night)
    assert [each.night for each in history.rows("c", before="2026-02-03")] == ["2026-02-01", "2026-02-02"]
    assert history.rows("other") == []
    path = tmp_path / "2026-02-02" / "c.json"
    path.write_text(json.dumps({"night": "x"}))
    with pytest.raises(InputError, match=r"2026-02-02.c\.json is not a row of the history"):
        history.rows("c")


def test_the_baseline_is_the_last_good_night(tmp_path: Path) -> None:
    """The baseline is the last earlier night that did not fail, unless the user fixes a night."""
    history = History(tmp_path)
    for night, verdict in (("1", "pass"), ("2", "cannot tell"), ("3", "fail"), ("5", "pass")):
        history.add(row(night, verdict))

    def baseline(before: str, fixed: str | None = None) -> str | None:
        found = history.baseline("c", before, fixed)
        return found.night if found else None

    assert baseline("4") == "2"
    assert baseline("6") == "5"
    assert baseline("1") is None
    assert baseline("6", "1") == "1"
    assert baseline("6", "4") is None


def test_noise_is_measured_from_reruns_only(tmp_path: Path) -> None:
    """Noise is measured from at least five reruns with equal ingredients, less the part that changed answers
    explain."""
    history = History(tmp_path)
    for night in range(5):
        history.add(row(str(night), rerun=True, changes={"accuracy": [(-1) ** night * 2.0, 0.1]}))
    history.add(row("8", changes={"accuracy": [40.0, 0.1]}))
    assert history.noise("c", "accuracy", "9") == pytest.approx((2.0**2 - 0.1**2) ** 0.5)
    assert history.noise("c", "accuracy", "4") == 0
    assert history.noise("c", "recall@1", "9") == 0
