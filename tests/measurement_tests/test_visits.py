"""Intervals over visits: against the t distribution, simulated visits, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from objectives.measurement.visits import DRIFT, VisitNoise, pooled_noise, ratio_over_visits

RATIOS = st.floats(0.01, 10)


@given(st.lists(RATIOS, min_size=2, max_size=8))
def test_without_earlier_benchmarks_it_is_the_t_interval_of_the_logarithms(ratios: list[float]) -> None:
    point, (low, high) = ratio_over_visits(ratios, [0.0] * len(ratios))
    logs = np.log(ratios)
    assert point == pytest.approx(stats.gmean(ratios))
    error = stats.sem(logs)
    if error > 1e-9:
        expected = stats.t.interval(0.95, len(ratios) - 1, loc=logs.mean(), scale=error)
        assert np.log([low, high]) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_one_visit_has_the_interval_of_its_own_blocks() -> None:
    point, (low, high) = ratio_over_visits([0.5], [0.04])
    assert point == pytest.approx(0.5)
    assert (low, high) == pytest.approx((0.5 * math.exp(-1.959964 * 0.2), 0.5 * math.exp(1.959964 * 0.2)))


def test_a_few_blocks_know_their_own_variance_no_better() -> None:
    """The bootstrap's variance of five blocks is 4/5 of the unbiased one; t of 4 at 0.975 is 2.7764."""
    _, (low, high) = ratio_over_visits([0.5], [0.04], blocks=5)
    assert math.log(high / low) / 2 == pytest.approx(2.7764 * 0.2 * math.sqrt(5 / 4), rel=1e-4)
    _, (low, high) = ratio_over_visits([0.5, 0.5], [0.0, 0.0], VisitNoise(0.09, 5), blocks=5)
    assert math.log(high / low) / 2 == pytest.approx(2.4469 * math.sqrt(0.075 / 2), rel=1e-4), "visits tell more"


def test_one_visit_is_as_unsure_as_the_visits_of_earlier_benchmarks_differ() -> None:
    """The variance is 0.09 with 5 degrees of freedom; t of 5 at 0.975 is 2.5706."""
    _, (low, high) = ratio_over_visits([0.5], [0.0001], VisitNoise(0.09, 5))
    assert math.log(high / low) / 2 == pytest.approx(2.5706 * 0.3, rel=1e-4)


def test_the_variance_is_moderated_by_that_of_earlier_benchmarks() -> None:
    """Two visits that agree by chance: (5 x 0.09 + 0) / (5 + 1), t of 6 is 2.4469."""
    _, (low, high) = ratio_over_visits([0.5, 0.5], [0.0, 0.0], VisitNoise(0.09, 5))
    assert math.log(high / low) / 2 == pytest.approx(2.4469 * math.sqrt(0.075 / 2), rel=1e-4)


@given(st.lists(st.lists(RATIOS, min_size=1, max_size=5), max_size=6))
def test_pooled_noise_is_the_pooled_variance(benchmarks: list[list[float]]) -> None:
    found = pooled_noise(benchmarks)
    several = [np.log(one) for one in benchmarks if len(one) > 1]
    assert found.degrees == sum(len(one) - 1 for one in several)
    if several:
        expected = sum((len(one) - 1) * np.var(one, ddof=1) for one in several) / found.degrees
        assert found.variance == pytest.approx(expected, abs=1e-12)


def test_no_rate_under_the_slo_in_any_visit_is_a_ratio_of_zero() -> None:
    assert ratio_over_visits([0.0, 0.0], [0.0, 0.0]) == (0.0, (0.0, 0.0))
    point, (low, high) = ratio_over_visits([0.0, 0.3, 0.3], [0.0] * 3)
    expected = stats.t.interval(0.95, 2, loc=0.2, scale=stats.sem([0.0, 0.3, 0.3]))
    assert (point, low, high) == pytest.approx((0.2, 0.0, expected[1]))


@pytest.mark.parametrize("visits", [1, 3, 6])
def test_the_interval_covers_the_long_run_ratio_as_often_as_it_says(visits: int) -> None:
    """Visits that differ by 20% and have an error of 10% of their own; earlier benchmarks of the same study."""
    random, covered, runs = np.random.default_rng(visits), 0, 2000
    for _ in range(runs):
        earlier = pooled_noise(np.exp(random.normal(0, math.hypot(0.2, 0.1), (2, 4))).tolist())
        ratios = np.exp(random.normal(math.log(0.3), math.hypot(0.2, 0.1), visits))
        _, (low, high) = ratio_over_visits(ratios.tolist(), [0.01] * visits, earlier)
        covered += low <= 0.3 <= high
    # 95%, within four standard errors.
    assert covered / runs == pytest.approx(0.95, abs=0.02)


def test_blocks_alone_would_not_cover_the_long_run_ratio() -> None:
    """The planted difference: without the variance between visits, 95% intervals cover 62%."""
    random = np.random.default_rng(0)
    ratios = np.exp(random.normal(0, math.hypot(0.2, 0.1), 2000))
    covered = [low <= 1 <= high for low, high in (ratio_over_visits([r], [0.01])[1] for r in ratios)]
    assert np.mean(covered) == pytest.approx(2 * stats.norm.cdf(1.96 * 0.1 / math.hypot(0.2, 0.1)) - 1, abs=0.04)


@pytest.mark.parametrize("true", [0.25, 1.0, 2.0])
def test_the_interval_holds_for_another_hour(true: float) -> None:
    """Hours change the logarithm by 3% of itself; equal deployments drift together."""
    random, covered, naive, runs = np.random.default_rng(3), 0, 0, 4000
    for _ in range(runs):
        hour = random.normal(math.log(true), 0.03 * abs(math.log(true)))
        ratios = np.exp(random.normal(hour, 0.02, 3)).tolist()
        for drift in (DRIFT, 0.0):
            _, (low, high) = ratio_over_visits(ratios, [0.0] * 3, VisitNoise(0.0004, 40), drift=drift)
            if drift:
                covered += low <= true <= high
            else:
                naive += low <= true <= high
    assert covered / runs == pytest.approx(0.955, abs=0.02)
    assert true != 0.25 or naive / runs < 0.6, "the visits of one hour do not show it"


def test_an_interval_that_reaches_zero_has_no_logarithm_to_drift() -> None:
    alone, drifting = (ratio_over_visits([0.0, 0.3], [0.0] * 2, drift=drift) for drift in (0.0, DRIFT))
    assert alone == drifting
