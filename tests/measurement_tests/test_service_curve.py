"""Service curves from runs whose law is known."""

from __future__ import annotations

import numpy as np
import pytest

from objectives.measurement.service_curve import FEWEST_RUNS, OutsideRangeError, Runs, ServiceCurve
from spaces.serialization import from_plain, to_plain


def runs(count: int, others: int = 0, noise: float = 0.1) -> Runs:
    """Times of 100 us and 1 us a row; 50 us more for an idle replica; each busy neighbour adds a tenth."""
    random = np.random.default_rng(0)
    rows, idle, busy = (
        random.integers(50, 500, count),
        random.random(count) < 0.5,
        random.integers(0, others + 1, count),
    )
    ns = (100_000 + 1000 * rows + 50_000 * idle) * (1 + 0.1 * busy) * np.exp(random.normal(0, noise, count))
    return Runs(rows, ns.astype(np.int64), np.where(idle, 20_000, -20_000), busy)


def test_the_lines_are_those_of_the_law() -> None:
    curve = ServiceCurve.fit(runs(4000, others=1))
    for rows in (80, 200, 400):
        assert curve.alone(rows) == pytest.approx(100_000 + 1000 * rows, rel=0.05)
        assert curve.crowded(rows) == pytest.approx(1.1 * (100_000 + 1000 * rows), rel=0.05)
        assert curve.idle(rows) == pytest.approx(150_000 + 1000 * rows, rel=0.05)
    assert (curve.others, curve.least_rows, curve.most_rows) == (1, 50, 499)


@pytest.mark.parametrize("seed", range(3))
def test_the_largest_requests_take_as_long_as_the_law_says(seed: int) -> None:
    """The largest eighth of log-normal sizes has a median of half the largest; a p95 is made of these."""
    random = np.random.default_rng(seed)
    rows = np.minimum(np.exp(random.normal(np.log(200), 0.6, 800)), 1000).astype(np.int64)
    ns = (100_000 + 1000 * rows) * np.exp(random.normal(0, 0.1, 800))
    curve = ServiceCurve.fit(Runs(rows, ns.astype(np.int64), np.full(800, -1), np.zeros(800, np.int64)))
    for size in (rows.min(), 400, 800, rows.max()):
        assert curve.alone(size) == pytest.approx(100_000 + 1000 * size, rel=0.1)
    draw = curve.sampler(seed)
    drawn = np.array([draw(size, None, 0) for size in rows])
    assert np.quantile(drawn, 0.95) == pytest.approx(np.quantile(ns, 0.95), rel=0.1)


def test_draws_have_the_median_and_spread_of_the_runs() -> None:
    draw = ServiceCurve.fit(runs(4000)).sampler(1)
    drawn = np.log([draw(200, None, 0) for _ in range(4000)])
    assert np.median(drawn) == pytest.approx(np.log(300_000), abs=0.05)
    assert drawn.std() == pytest.approx(0.1, rel=0.1)
    again = ServiceCurve.fit(runs(4000)).sampler(1)
    assert [again(200, None, 0) for _ in range(5)] == pytest.approx(np.exp(drawn[:5]))


def test_neighbours_count_in_proportion() -> None:
    draw = ServiceCurve.fit(runs(6000, others=2, noise=0.0)).sampler(1)
    alone, one, two, more = (np.median([draw(200, None, busy) for _ in range(500)]) for busy in (0, 1, 2, 5))
    assert one / alone == pytest.approx(1.1, rel=0.03)
    assert two / alone == pytest.approx(1.2, rel=0.03)
    assert more == pytest.approx(two, rel=0.01)


def test_neighbours_prolong_the_run_of_an_idle_replica() -> None:
    """Two replicas: beside a busy one all runs take half as long again, and no replica is kept busy alone."""
    some = runs(4000, others=1, noise=0.0)
    idle = some.idle_ns >= 0
    busy = np.where(idle, some.busy, 1)
    ns = (100_000 + 1000 * some.rows + 50_000 * idle) * (1 + 0.5 * busy)
    curve = ServiceCurve.fit(Runs(some.rows, ns.astype(np.int64), some.idle_ns, busy))
    assert curve.slowdown == pytest.approx(0.5, rel=0.02)
    draw = curve.sampler(0)
    drawn = [np.median([draw(200, 20_000, busy) for _ in range(500)]) for busy in (0, 1, 5)]
    np.testing.assert_allclose(drawn, 350_000 * np.array([1.0, 1.5, 1.5]), rtol=0.03)
    assert np.median([draw(200, None, 1) for _ in range(500)]) == pytest.approx(450_000, rel=0.03)
    assert ServiceCurve.fit(runs(400)).slowdown is None
    assert from_plain(ServiceCurve, to_plain(curve)) == curve
    assert (curve.scaled(2.0).slowdown, curve.scaled(2.0).slowed_by) == (curve.slowdown, curve.slowed_by)


def test_each_neighbour_of_an_idle_replica_counts_alike() -> None:
    curve = ServiceCurve.fit(runs(6000, others=3, noise=0.0))
    assert (curve.slowdown, curve.slowed_by) == (pytest.approx(0.1, rel=0.03), 3)
    faster = runs(6000, others=3, noise=0.0)
    idle = faster.idle_ns >= 0
    ns = np.where(idle, 150_000 + 1000 * faster.rows - 100 * faster.busy, faster.ns)
    assert ServiceCurve.fit(Runs(faster.rows, ns, faster.idle_ns, faster.busy)).slowdown == 0.0


def test_the_idle_time_before_a_run_is_none_of_the_slowdown() -> None:
    """A run of 300 us takes 100 us more after 2 ms than after 20 us; beside another a fifth longer, after 2 ms only."""
    rows, long = np.full(400, 200), np.arange(400) % 4 == 0
    busy = np.where(long, 1, 0)
    ns = np.where(long, 1.2 * 400_000, 300_000.0).astype(np.int64)
    rested = Runs(rows, np.full(400, 400_000), np.full(400, 2_000_000), np.zeros(400, np.int64))
    curve = ServiceCurve.fit(Runs(rows, ns, np.where(long, 2_000_000, 20_000), busy), rested)
    assert curve.slowdown == pytest.approx(0.2, rel=0.01)
    draw = curve.sampler(0)
    drawn = [draw(200, idle_ns, busy) for idle_ns, busy in ((20_000, 0), (2_000_000, 0), (20_000, 1), (2_000_000, 1))]
    np.testing.assert_allclose(drawn, [300_000, 400_000, 360_000, 480_000], rtol=0.01)


def test_beside_other_instance_groups_the_times_of_busy_replicas_count() -> None:
    """An idle replica was measured beside one other; kept busy, beside one, and beside three, which take twice."""
    some = runs(4000, noise=0.0)
    idle, place = some.idle_ns >= 0, np.arange(4000)
    busy = np.where(idle, place % 2, np.where(place % 2, 1, 3))
    for slower in (1.0, 1.2):
        times = np.where(idle, np.where(busy == 1, slower, 1.0), np.where(busy == 3, 2.0, 1.0))
        ns = ((100_000 + 1000 * some.rows + 50_000 * idle) * times).astype(np.int64)
        curve = ServiceCurve.fit(Runs(some.rows, ns, some.idle_ns, busy))
        assert (curve.fewest, curve.others, curve.slowed_by) == (1, 3, 1)
        assert curve.slowdown == pytest.approx(slower - 1, abs=0.01)
        draw = curve.sampler(0)
        drawn = [np.median([draw(200, 20_000, busy) for _ in range(500)]) for busy in (0, 1, 2, 3)]
        one = 350_000 * slower
        np.testing.assert_allclose(drawn, [350_000, one, one + 150_000, one + 300_000], rtol=0.03)


def test_the_first_runs_of_requests_that_come_at_once_are_none_of_idle_replicas() -> None:
    some = runs(400, noise=0.0)
    burst = Runs(
        np.append(some.rows, [200] * 40),
        np.append(some.ns, [900_000] * 40),
        np.append(some.idle_ns, range(40)),
        np.append(some.busy, [3] * 40),
    )
    assert ServiceCurve.fit(burst).slowdown is None


def test_replicas_that_are_never_alone_count_from_the_fewest_that_are_beside_them() -> None:
    """Two replicas that are kept busy, by themselves and then beside two of another instance group: 1 or 3 others."""
    two = runs(2000, noise=0.0)
    busy = np.where(np.arange(2000) < 1000, 1, 3)
    beside = Runs(two.rows, (two.ns * (1 + 0.1 * busy)).astype(np.int64), np.where(two.idle_ns < 0, -1, 20_000), busy)
    curve = ServiceCurve.fit(beside)
    assert (curve.fewest, curve.others) == (1, 3)
    draw = curve.sampler(0)
    drawn = [np.median([draw(200, None, busy) for _ in range(500)]) for busy in (0, 1, 2, 3, 4)]
    np.testing.assert_allclose(drawn, 300_000 * np.array([1.1, 1.1, 1.2, 1.3, 1.3]), rtol=0.03)


@pytest.mark.parametrize("rows", [40, 600])
def test_a_size_that_was_not_measured_is_not_simulated(rows: int) -> None:
    draw = ServiceCurve.fit(runs(200)).sampler(1)
    with pytest.raises(OutsideRangeError, match=str(rows)):
        draw(rows, 20_000, 0)


def test_a_condition_of_few_runs_takes_the_nearest_line() -> None:
    many = runs(400)
    busy = Runs(many.rows, many.ns, np.full(400, -1), many.busy)
    curve = ServiceCurve.fit(busy)
    assert curve.idle is curve.alone and curve.crowded is not None
    with pytest.raises(ValueError, match=str(FEWEST_RUNS)):
        runs(FEWEST_RUNS - 1)


def test_one_size_has_the_median_of_all_its_runs() -> None:
    ns = np.concatenate([np.full(20, 5000), np.full(60, 1000)])
    same = Runs(np.full(80, 7), ns, np.full(80, -1), np.zeros(80, np.int64))
    curve = ServiceCurve.fit(same)
    assert curve.alone(7) == 1000
    draw = curve.sampler(0)
    assert np.mean([draw(7, None, 0) == 5000 for _ in range(2000)]) == pytest.approx(0.25, abs=0.04)
