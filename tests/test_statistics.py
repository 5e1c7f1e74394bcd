"""Comparisons of runs: exact where possible, equal to SciPy and statsmodels, and calibrated by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.api import OLS
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import normal_power

from visualbert_core.metrics.statistics import (
    EXACT,
    Mean,
    clustered_mean,
    excess_noise,
    holm,
    interval,
    p_drop_with_noise,
    paired,
    sign_flip,
    smallest_drop,
)


def binary(better: int, worse: int, same: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Draw 0/1 values of two runs, with one unit per image."""
    before = np.array([0] * better + [1] * worse + [1] * same)
    after = np.array([1] * better + [0] * worse + [1] * same)
    return before, after, [str(i) for i in range(len(before))]


def clustered(rng: np.random.Generator, images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw values of two equally good runs over images with one to nine similar questions each."""
    names = np.repeat(np.arange(images), rng.integers(1, 10, images))
    hard = rng.beta(1, 1, images)[names]
    values = [(rng.random(len(names)) < hard) * rng.choice([0.3, 0.6, 0.9, 1.0], len(names)) for _ in range(2)]
    return values[0], values[1], names


# ---------------------------------------------------------------------------------------------------------------------
# compared with published programs


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_mean_is_of_numbers(value: float) -> None:
    """NaN among the values is refused, because a comparison with NaN is false without a message."""
    with pytest.raises(ValueError, match="value 1 is not a finite number"):
        clustered_mean([1.0, value], ["a", "b"])
    with pytest.raises(ValueError, match="value 1 is not a finite number"):
        paired(np.zeros(2), np.array([0.0, value]), ["a", "b"])


def test_standard_error_is_the_cluster_robust_one() -> None:
    """The standard error equals statsmodels' clustered error of an intercept to nine digits, because statsmodels
    inverts a matrix."""
    before, after, names = clustered(np.random.default_rng(1), 200)
    fit = OLS(after - before, np.ones(len(names))).fit(cov_type="cluster", cov_kwds={"groups": names})
    result = paired(before, after, names)
    assert result.difference.standard_error == pytest.approx(fit.bse[0], rel=1e-9)
    assert (result.low, result.high) == pytest.approx(tuple(fit.conf_int()[0]), rel=1e-6)


@pytest.mark.parametrize(("better", "worse"), [(0, 1), (3, 3), (2, 9), (16, 0), (5, 11)])
def test_few_changes_are_mcnemars_exact_test(better: int, worse: int) -> None:
    """With one 0/1 unit per image, p is statsmodels' exact binomial p, and SciPy's p for one side."""
    before, after, names = binary(better, worse, 40)
    result = paired(before, after, names)
    assert result.p == pytest.approx(mcnemar([[40, worse], [better, 0]], exact=True).pvalue)
    assert result.p_drop == pytest.approx(stats.binomtest(better, better + worse, alternative="less").pvalue)
    assert result.changed == better + worse


@pytest.mark.parametrize(("better", "worse"), [(10, 7), (30, 60), (400, 300)])
def test_many_changes_are_mcnemars_corrected_test(better: int, worse: int) -> None:
    """With many changes, p is statsmodels' with Edwards' correction, and within 15 % of the exact p."""
    before, after, names = binary(better, worse, 10)
    result = paired(before, after, names)
    table = [[10, worse], [better, 0]]
    assert result.p == pytest.approx(mcnemar(table, exact=False, correction=True).pvalue)
    assert result.p == pytest.approx(mcnemar(table, exact=True).pvalue, rel=0.15)


def test_clusters_are_flipped_as_wholes() -> None:
    """p equals SciPy's exact permutation test of paired totals per image, for two sides and for one."""
    rng = np.random.default_rng(2)
    before, after, names = clustered(rng, 12)
    totals = [np.bincount(names, weights=values) for values in (before, after)]
    result = paired(before, after, names)
    for p, alternative in ((result.p, "two-sided"), (result.p_drop, "less")):
        exact = stats.permutation_test(
            totals[::-1],
            lambda b, a, axis: (b - a).mean(axis=axis),
            permutation_type="samples",
            n_resamples=np.inf,
            alternative=alternative,
        )
        assert p == pytest.approx(exact.pvalue)


def test_the_normal_tail_meets_the_exact_one() -> None:
    """Just above the number of clusters with an exact p, p agrees with sampled signs for clusters of unequal size."""
    rng = np.random.default_rng(3)
    totals = rng.normal(0.4, 1, EXACT + 8)
    signs = rng.choice([-1.0, 1.0], (200_000, len(totals)))
    sampled = np.abs(signs @ totals) >= abs(totals.sum()) - 1e-9
    assert sign_flip(totals)[0] == pytest.approx(sampled.mean(), rel=0.1)


@pytest.mark.parametrize("z", [-8.0, -1.96, 0.0, 0.3, 1.0, 2.576, 6.0, 12.0, 30.0])
def test_the_normal_tail_is_right_far_out(z: float) -> None:
    """The tail equals the standard library's error function to twelve digits, also where 1 - P would be 0."""
    assert p_drop_with_noise(-z, 0.0, 1.0, 0.5) == pytest.approx(math.erfc(z / math.sqrt(2)) / 2, rel=1e-12)


@pytest.mark.parametrize("clusters", [2, 3, 10, 100, 1000, 10_000])
def test_the_exact_interval_is_clopper_and_pearsons(clusters: int) -> None:
    """Where every unit is right or wrong, the interval equals SciPy's exact one and the closed form to twelve
    digits."""
    wrong, right = (interval(Mean(value, 0.0, clusters, clusters)) for value in (0.0, 1.0))
    exact = stats.binomtest(0, clusters).proportion_ci(method="exact")
    assert wrong == pytest.approx((0.0, exact.high), rel=1e-12)
    assert wrong[1] == pytest.approx(1 - 0.025 ** (1 / clusters), rel=1e-12)
    assert right == (1 - wrong[1], 1.0)


def test_holm_is_statsmodels() -> None:
    """Adjusted p-values equal statsmodels', in the order given, with ties and ones."""
    p = [0.04, 0.001, 0.04, 1.0, 0.2, 0.0]
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert holm([]) == []
    assert holm([0.3]) == [0.3]


def test_smallest_drop_is_found_with_the_power_named() -> None:
    """With very many units, statsmodels' power of a z test at the smallest drop is 80 %."""
    drop = smallest_drop(spread=0.004, n=10**9, alpha=0.01)
    assert normal_power(drop, 1, 0.01, alternative="larger", sigma=0.004) == pytest.approx(0.8, abs=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# edges


def test_equal_runs_do_not_differ() -> None:
    """Equal runs have difference 0, p = 1, and an interval that is wide for few images."""
    before, _, names = binary(3, 4, 93)
    result = paired(before, before, names)
    assert (result.difference.value, result.p, result.p_drop, result.changed, result.spread) == (0, 1, 1, 0, 0)
    assert (result.low, result.high) == pytest.approx((-(1 - 0.025**0.01), 1 - 0.025**0.01))


def test_a_rounding_error_is_no_change() -> None:
    """Values that cancel within an image up to the last bit count as unchanged."""
    result = paired(np.array([0.3, 0.0, 0.0]), np.array([0.0, 0.1, 0.2]), ["a", "a", "a"])
    assert (result.p, result.changed) == (1, 0)


def test_one_image_cannot_tell() -> None:
    """A single cluster has no interval, and its two signs are equally likely."""
    result = paired(np.array([1.0, 1.0]), np.array([0.0, 0.0]), ["a", "a"])
    assert math.isnan(result.low)
    assert math.isnan(result.high)
    assert (result.p, result.p_drop) == (1.0, 0.5)


def test_the_same_difference_everywhere_has_a_width() -> None:
    """Ten images that all got worse by the same amount have a small p, and an interval of positive width."""
    result = paired(np.ones(10), np.full(10, 0.5), [str(i) for i in range(10)])
    assert result.low == pytest.approx(-0.5 - (1 - 0.025**0.1))
    assert result.high == pytest.approx(-0.5 + (1 - 0.025**0.1))
    assert result.p == pytest.approx(2 / 2**10)


def test_swapping_the_runs_swaps_the_signs() -> None:
    """Swapping the runs mirrors the difference, and the two one-sided p-values add up to 1 or more."""
    before, after, names = clustered(np.random.default_rng(4), 60)
    one, other = paired(before, after, names), paired(after, before, names)
    assert one.difference.value == -other.difference.value
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    assert one.p == other.p
    assert one.p_drop + other.p_drop >= 1


def test_few_units_can_lose_everything_unseen() -> None:
    """Three images cannot show any drop, and 214,354 equal answers would show a drop of ten questions."""
    assert smallest_drop(0, 3, 0.01) == math.inf
    assert smallest_drop(0, 214_354, 0.01) == pytest.approx(10.0 / 214_354, rel=0.01)
    assert smallest_drop(0.01, 1000, 0.01) > smallest_drop(0.001, 1000, 0.01) > smallest_drop(0.001, 9000, 0.01)


def test_noise_is_what_flips_do_not_explain() -> None:
    """Reruns that vary as their changed answers predict have no excess noise, reruns that also jump have the jump as
    noise, and too few reruns give none."""
    rng = np.random.default_rng(5)
    spreads = np.full(400, 0.002)
    assert excess_noise([0.0] * 9, [0.0] * 9) == 0
    assert excess_noise([0.1] * 4, [0.0] * 4) == 0
    assert excess_noise(rng.normal(0, 0.002, 400).tolist(), spreads.tolist()) < 0.0008
    jumping = rng.normal(0, math.hypot(0.002, 0.01), 400)
    assert excess_noise(jumping.tolist(), spreads.tolist()) == pytest.approx(0.01, rel=0.15)


# ---------------------------------------------------------------------------------------------------------------------
# calibration: nights on which nothing changed, and nights on which something did


def rerun(rng: np.random.Generator, images: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a run, and a rerun with one answer in eight drawn again. With probability |shift| an answer also turns wrong
    (shift < 0) or right (shift > 0)."""
    names = np.repeat(np.arange(images), rng.integers(1, 10, images))
    worth = np.array([0.3, 0.6, 0.9, 1.0])[rng.integers(0, 4, len(names))]
    right = rng.random(len(names)) < 0.7
    again = np.where(rng.random(len(names)) < 0.125, rng.random(len(names)) < 0.7, right)
    jump = rng.random(len(names)) < abs(shift)
    again = again & ~jump if shift < 0 else again | jump
    return right * worth, again * worth, names


def alarms(rng: np.random.Generator, nights: int, cells: int, images: int, alpha: float) -> int:
    """Count the nights without a change on which Holm's correction of `cells` cells finds a drop."""
    found = 0
    for _ in range(nights):
        p = [paired(*rerun(rng, images)).p_drop for _ in range(cells)]
        found += min(holm(p)) < alpha
    return found


@pytest.mark.parametrize(("cells", "images", "alpha"), [(1, 150, 0.1), (4, 150, 0.1)])
def test_false_alarms_come_at_the_rate_asked_for(cells: int, images: int, alpha: float) -> None:
    """On nights without a change, the share of failures lies in the binomial interval of the configured rate."""
    nights = 1500 // cells
    count = alarms(np.random.default_rng(11), nights, cells, images, alpha)
    low, high = stats.binom.ppf([0.025, 0.975], nights, alpha)
    assert low <= count <= high, (count, low, high)


def test_noise_of_reruns_would_raise_false_alarms_were_it_not_measured() -> None:
    """Reruns that move a whole split give far too many alarms, unless the gate knows their noise."""
    rng = np.random.default_rng(12)
    results = [paired(*rerun(rng, 300, shift)) for shift in rng.normal(0, 0.02, 400)]
    noise = excess_noise([r.difference.value for r in results[:200]], [r.spread for r in results[:200]])
    unaware, aware = (
        np.mean([p_drop_with_noise(r.difference.value, r.spread, tau, r.p_drop) < 0.05 for r in results[200:]])
        for tau in (0.0, noise)
    )
    assert unaware > 0.12
    assert aware < 0.09


def test_the_smallest_drop_is_found_four_times_in_five() -> None:
    """At the reported smallest drop the test finds it in 80 % of simulated runs, within the error of the simulation."""
    rng = np.random.default_rng(13)
    trials = [paired(*rerun(rng, 400)) for _ in range(20)]
    drop = float(np.mean([smallest_drop(r.spread, r.difference.n, 0.05) for r in trials]))
    share = drop / 0.49  # a right answer is worth 0.7 on average and 0.7 of the answers are right: 0.49 a unit
    found = np.mean([paired(*rerun(rng, 400, -share)).p_drop < 0.05 for _ in range(500)])
    assert 0.74 < found < 0.86
