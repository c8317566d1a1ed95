"""The rate under an SLO against queues and curves whose answer is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from objectives.measurement.arrivals import Traffic
from objectives.measurement.latency import Load, Window
from objectives.measurement.load_generator import Arrivals, typical_requests
from objectives.measurement.statistics import percentile
from objectives.measurement.throughput import (
    Probe,
    RateSearch,
    contradicted_rate,
    counted,
    measure_capacity,
    next_rate,
    probe,
    rate_under_slo,
    resampled_rates,
    search_rates,
)
from objectives.records import rows_of
from tests.measurement_tests.simulated import QuietMonitor, SimulatedTarget, requests_of

Floats = NDArray[np.float64]
ONE = requests_of([1])
LOAD = Load(Traffic(), 0.4, 95, None)


def _window(probes: int, least: int) -> Window:
    return Window(probes=probes, probe_requests=least)


def exponential(mean_ms: float, seed: int = 99) -> SimulatedTarget:
    random = np.random.default_rng(seed)
    return SimulatedTarget(lambda requests: random.exponential(mean_ms, len(requests)))


def begun(capacity: float, service_ms: Floats | None = None, *probes: Probe) -> RateSearch:
    service = np.full((20, 5), 0.1) if service_ms is None else service_ms
    return RateSearch(tuple(probes), np.full(5, capacity), service)


def at(rate: float, latency_ms: float) -> Probe:
    return Probe(rate, np.full((5, 40), latency_ms))


@pytest.mark.parametrize("slo_ms", [4.0, 10.0, 30.0])
def test_the_rate_of_an_mm1_queue_is_that_of_its_law(slo_ms: float) -> None:
    """The time in the system is exponential with rate mu - lambda, so its p95 is -ln(0.05) / (mu - lambda)."""
    service = np.random.default_rng(1).exponential(1.0, (200, 50))
    (found,) = search_rates(
        [exponential(1.0)], [begun(1000.0, service)], ONE, LOAD, slo_ms, _window(6, 60_000), 0, monitor=QuietMonitor
    )
    assert rate_under_slo(found, slo_ms, 95) == pytest.approx(1000 + 1000 * math.log(0.05) / slo_ms, rel=0.02)
    drawn = resampled_rates(found, np.full(200, slo_ms), 95, 0)
    assert drawn.shape == (200,)
    assert np.quantile(drawn, 0.025) <= rate_under_slo(found, slo_ms, 95) <= np.quantile(drawn, 0.975)


@given(st.floats(100, 5000), st.floats(0.05, 0.95), st.lists(st.floats(0.02, 0.98), min_size=1, max_size=5))
def test_the_curve_of_mm1_is_crossed_exactly(capacity: float, place: float, tried: list[float]) -> None:
    """The inverse of its percentile falls linearly with the rate, so any probes at all give the rate."""

    def p95(utilisation: float) -> float:
        return 3000 / (capacity * (1 - utilisation))

    service = np.full((20, 5), p95(0.0))
    search = begun(capacity, service, *(at(capacity * u, p95(u)) for u in sorted(set(tried))))
    assert rate_under_slo(search, p95(place), 95) == pytest.approx(place * capacity, rel=1e-6)


CURVES = st.lists(
    st.tuples(st.floats(1, 999), st.floats(0.01, 100)), min_size=1, max_size=7, unique_by=lambda pair: pair[0]
)


@given(CURVES, st.floats(0.01, 100), st.floats(1, 3), st.floats(1, 1200))
def test_a_looser_slo_never_lowers_the_rate_and_no_rate_is_above_capacity(
    curve: list[tuple[float, float]], slo_ms: float, looser: float, capacity: float
) -> None:
    search = begun(capacity, None, *(at(*each) for each in sorted(curve)))
    tight, loose = rate_under_slo(search, slo_ms, 95), rate_under_slo(search, looser * slo_ms, 95)
    assert 0 <= tight <= loose * (1 + 1e-9) and loose <= capacity * (1 + 1e-9)


def test_percentiles_that_fall_with_load_are_levelled_by_their_samples() -> None:
    """3 ms at 200/s of 400 samples and 1 ms at 400/s of 200: together 3^(2/3), by scikit-learn's kind of regression."""
    service = np.full((20, 5), 0.5)
    probes = (Probe(200.0, np.full((5, 80), 3.0)), Probe(400.0, np.full((5, 40), 1.0)), at(800.0, 9.0))
    level = 3 ** (2 / 3)
    search = begun(1000.0, service, *probes)
    assert rate_under_slo(search, level * 0.999, 95) < 200
    share = (1 / level - 1 / (level * 1.5)) / (1 / level - 1 / 9)
    assert rate_under_slo(search, level * 1.5, 95) == pytest.approx(400 + share * 400)


def test_a_deployment_whose_requests_alone_break_the_slo_has_no_rate() -> None:
    search = begun(1000.0, np.full((20, 5), 5.0), at(400.0, 7.0))
    assert rate_under_slo(search, 4.0, 95) == 0
    assert not resampled_rates(search, np.full(20, 4.0), 95, 0).any()
    assert next_rate(search, 4.0, 95, 130) == pytest.approx(100), "the lowest that could tell otherwise"


def test_no_new_rate_below_a_tenth_of_the_capacity_is_tried() -> None:
    """Where one request at a time keeps the SLO and the lowest rate breaks it, that is tried again.

    So is an earlier one below it, which is that of the load.
    """
    search = begun(1000.0, np.full((20, 5), 1.0), at(300.0, 9.0))
    assert next_rate(search, 1.05, 95, 130) == pytest.approx(100)
    assert next_rate(search.with_probes([at(100.0, 5.0)]), 1.05, 95, 130) == pytest.approx(100)
    assert next_rate(search.with_probes([at(50.0, 5.0)]), 1.05, 95, 130) == pytest.approx(50), "that of the load"
    slow = begun(10.0, np.full((20, 5), 100.0), at(6.0, 900.0))
    assert next_rate(slow, 105.0, 95, 130) == pytest.approx(130 / 30), "half a minute, where a tenth takes two"


def test_a_rate_that_is_tried_again_has_other_arrivals() -> None:
    """All requests alone keep the SLO, and no rate does: the lowest one is tried again and again."""
    search = begun(1000.0, np.full((20, 5), 1.0), at(300.0, 9.0))
    slow = SimulatedTarget(lambda requests: np.full(len(requests), 3.0))
    (found,) = search_rates([slow], [search], ONE, LOAD, 1.05, _window(3, 50), 0, monitor=QuietMonitor)
    tried = [one.latency_ms.tobytes() for one in found.probes if one.rate_rps == pytest.approx(100)]
    assert len(tried) >= 3 and len(set(tried)) == len(tried)


def test_infinite_percentiles_are_crossed_at_the_last_rate_that_kept_the_slo() -> None:
    """Refusals are only known to begin between two rates."""
    with np.errstate(all="raise"):
        search = begun(1000.0, None, at(100.0, 1.0), at(200.0, np.inf))
        assert 100 < rate_under_slo(search, 2.0, 95) < 200


@pytest.mark.parametrize("first_ms", [1.0, np.inf])
def test_a_machine_that_refuses_all_when_saturated_answers_no_rate(first_ms: float) -> None:
    search = RateSearch((at(100.0, first_ms),), np.zeros(5), np.full((20, 5), np.inf))
    with np.errstate(all="raise"):
        (found,) = search_rates([exponential(1.0)], [search], ONE, LOAD, 2.0, _window(4, 50), 0, monitor=QuietMonitor)
        assert rate_under_slo(found, 2.0, 95) == 0
        assert not resampled_rates(found, np.full(20, 2.0), 95, 0).any()


def test_a_probe_that_refuses_some_is_over_the_slo_only_if_its_percentile_is() -> None:
    latency = np.ones((5, 40))
    latency[:, 0] = np.inf  # 2.5%
    search = begun(1000.0, np.full((20, 5), 0.9), Probe(200.0, latency), at(400.0, np.inf))
    assert rate_under_slo(search, 2.0, 95) > 200
    assert rate_under_slo(search, 2.0, 99) < 200


def test_where_every_probe_kept_the_slo_the_rate_lies_between_the_highest_and_capacity() -> None:
    """The inverse of the percentile goes on linearly to 0 at capacity: half way at twice the last."""
    search = begun(800.0, np.full((20, 5), 0.5), at(500.0, 1.0))
    assert rate_under_slo(search, 2.0, 95) == pytest.approx(650)


def test_the_resamples_see_how_far_the_bursts_differ() -> None:
    bursts = np.array([800.0, 900.0, 1000.0, 1100.0, 1200.0])
    search = RateSearch((at(100.0, 1e-3),), bursts, np.full((20, 5), 1e-3))
    drawn = resampled_rates(search, np.full(2000, 1e6), 95, 0)
    assert drawn.std() == pytest.approx(bursts.std() / math.sqrt(5), rel=0.15)


@given(st.floats(100, 3000), st.floats(0.2, 20), st.integers(1, 7))
def test_the_bracket_closes_around_a_step(capacity: float, step: float, probes: int) -> None:
    """A deployment that keeps the SLO up to some rate below its capacity and not beyond."""
    edge = capacity * step / (1 + step)
    search = begun(capacity)
    tried: list[float] = []
    for _ in range(probes):
        rate = next_rate(search, 3.0, 95, 130)
        tried.append(rate)
        done = tuple(sorted((*search.probes, at(rate, 1.0 if rate <= edge else 90.0)), key=lambda one: one.rate_rps))
        search = RateSearch(done, search.capacity_rps, search.service_ms)
    assert len(set(tried)) == probes and all(0 < rate < capacity for rate in tried)
    low, high = max([0.0, *(r for r in tried if r <= edge)]), min([capacity, *(r for r in tried if r > edge)])
    assert low <= rate_under_slo(search, 3.0, 95) <= high
    assert (high - low) / capacity <= 0.97 * 0.9 ** (probes - 1) + 1e-9


def test_the_probe_that_its_neighbours_contradict_is_repeated() -> None:
    agreeing = begun(1000.0, None, at(100.0, 1.0), at(400.0, 2.0), at(800.0, 5.0))
    assert contradicted_rate(agreeing, 95) is None
    dipping = begun(1000.0, None, at(100.0, 1.0), at(400.0, 8.0), Probe(500.0, np.full((5, 200), 2.0)), at(800.0, 9.0))
    assert contradicted_rate(dipping, 95) == 400.0
    (found,) = search_rates([exponential(1.0)], [dipping], ONE, LOAD, 3.0, _window(0, 50), 0, monitor=QuietMonitor)
    assert [one.rate_rps for one in found.probes] == [100, 400, 400, 500, 800]


def test_both_deployments_are_probed_in_turn_as_often() -> None:
    """The same arrivals and requests for both, scaled to the rate."""
    played: list[tuple[int, NDArray[np.int64]]] = []

    class Watched(SimulatedTarget):
        def __init__(self, number: int) -> None:
            super().__init__(lambda requests: np.full(len(requests), 1.0))
            self.number = number

        def open_loop(self, requests: Sequence[Mapping[str, Any]], gaps_ns: NDArray[np.int64]) -> Arrivals:
            played.append((self.number, gaps_ns))
            return super().open_loop(requests, gaps_ns)

    searches = [begun(1000.0, np.ones((20, 5))), begun(1000.0, np.ones((20, 5)))]
    found = search_rates([Watched(0), Watched(1)], searches, ONE, LOAD, 4.0, _window(4, 200), 3, monitor=QuietMonitor)
    assert [number for number, _ in played[:8]] == [0, 1, 1, 0, 0, 1, 1, 0]
    assert [one.rate_rps for one in found[0].probes] == [one.rate_rps for one in found[1].probes]
    assert np.array_equal(played[0][1], played[1][1])
    assert rate_under_slo(found[0], 4.0, 95) == rate_under_slo(found[1], 4.0, 95), "a deployment against itself"


class CountingTarget(SimulatedTarget):
    def saturated(self, requests: Sequence[Mapping[str, Any]], seconds: float, together: int) -> float:
        self.calls.append("saturated")
        return 500.0


def test_capacity_is_measured_in_alternating_bursts_from_idle() -> None:
    calls: list[str] = []
    targets = [CountingTarget(lambda requests: np.ones(len(requests)), calls=calls) for _ in range(2)]
    found = measure_capacity(targets, ONE, 0, monitor=QuietMonitor)
    assert found.shape == (5, 2) and (found == 500).all()
    assert calls == ["settle", "saturated"] * 10


class ByRows(SimulatedTarget):
    """Takes so many milliseconds a row, one request after the other; a burst is as in `load_generator.saturated`."""

    def __init__(self, ms: float) -> None:
        super().__init__(lambda requests: ms * np.array([rows_of(request) for request in requests], dtype=np.float64))

    def saturated(self, requests: Sequence[Mapping[str, Any]], seconds: float, together: int) -> float:
        taken_ms, answered = 0.0, 0
        while taken_ms < 1000 * seconds or answered % together:
            taken_ms += float(self.service_ms([requests[answered % len(requests)]])[0])
            answered += 1
        return 1000 * answered / taken_ms


@pytest.mark.parametrize("largest_first", [False, True])
def test_a_slow_deployment_has_the_capacity_of_the_same_requests(largest_first: bool) -> None:
    """One takes 50 times as long as the other, whichever requests come first in the list."""
    rows = np.clip(np.exp(np.random.default_rng(0).normal(np.log(200), 0.6, 1000)), 1, 1000).astype(int)
    ordered = sorted(rows.tolist(), reverse=largest_first)
    requests = [{"x": np.zeros(size)} for size in ordered]
    fast, slow = measure_capacity([ByRows(0.001), ByRows(0.05)], requests, 0, monitor=QuietMonitor).T
    assert np.median(fast) == pytest.approx(1e6 / rows.mean(), rel=0.02)
    assert np.median(fast) / np.median(slow) == pytest.approx(50, rel=0.03)


@pytest.mark.parametrize("slower", [0.5, 3.0])
def test_rates_and_latencies_are_those_of_the_reference_pace(slower: float) -> None:
    """The same queue on a clock of another speed: arrivals and services that take so many times longer."""

    def target(times: float) -> SimulatedTarget:
        return SimulatedTarget(lambda requests: np.full(len(requests), 2.0 * times))

    slow = probe(target(slower), ONE, Traffic(), 300.0, 500.0, 500, 1, slower)
    reference = probe(target(1.0), ONE, Traffic(), 300.0, 500.0, 500, 1)
    assert slow.rate_rps == 300.0
    np.testing.assert_allclose(slow.latency_ms, reference.latency_ms, rtol=1e-3)
    capacity = measure_capacity([target(slower)], ONE, 0, lambda: slower, monitor=QuietMonitor)
    assert capacity == pytest.approx(np.full((5, 1), 500.0))


@pytest.mark.parametrize(("rate", "count"), [(20_000.0, 6000), (200.0, 500), (10.0, 300), (4.0, 135)])
def test_the_requests_of_a_rate_take_half_a_minute_at_most(rate: float, count: int) -> None:
    """A probe takes 0.3 s at least and, where a percentile does not need more requests, half a minute at most."""
    assert counted(rate, 500, 131, 30.0) == count


def test_a_probe_is_one_stream_in_segments_after_its_warm_up() -> None:
    lengths: list[int] = []

    class Watched(SimulatedTarget):
        def open_loop(self, requests: Sequence[Mapping[str, Any]], gaps_ns: NDArray[np.int64]) -> Arrivals:
            lengths.append(len(requests))
            return super().open_loop(requests, gaps_ns)

    found = probe(Watched(lambda requests: np.ones(len(requests))), ONE, Traffic(), 200.0, 400.0, 500, 11)
    assert found.latency_ms.shape == (5, 100)
    assert 500 < lengths[0] < 550
    assert np.array_equal(found.latency_ms, found.latency_ms.astype(np.float32)), "as it is kept"


@pytest.mark.parametrize(
    ("warm_up", "seconds", "counted", "most"),
    [(1, 30.0, 500, 500), (2, 30.0, 500, 1000), (4, 30.0, 500, 1000), (4, 0.7, 500, 679), (4, 0.2, 195, 195)],
)
def test_the_warm_up_near_the_capacity_is_limited_by_the_window(
    warm_up: int, seconds: float, counted: int, most: int
) -> None:
    """At 970 requests/s, 97% of the capacity of M/M/1, the relaxation takes above 10,000 requests."""
    lengths: list[int] = []

    class Watched(SimulatedTarget):
        def open_loop(self, requests: Sequence[Mapping[str, Any]], gaps_ns: NDArray[np.int64]) -> Arrivals:
            lengths.append(len(requests))
            assert len(gaps_ns) == len(requests)
            return super().open_loop(requests, gaps_ns)

    window, load = replace(_window(1, 500), warm_up=warm_up, seconds=seconds), replace(LOAD, slo_ms=1e9)
    search_rates([Watched(lambda requests: np.ones(len(requests)))], [begun(1000.0)], ONE, load, 1e9, window, 0)
    assert lengths == [counted + most]


@pytest.mark.parametrize("name", ["expon", "lognorm", "uniform"])
def test_a_few_requests_have_the_mean_rows_of_all(name: str) -> None:
    law = {"expon": stats.expon(), "lognorm": stats.lognorm(0.6), "uniform": stats.uniform()}[name]
    rows = np.maximum(1, np.rint(500 * law.rvs(3000, random_state=1))).astype(int)
    few = [len(request["item"]) for request in typical_requests(requests_of(rows.tolist()), 12)]
    assert len(few) == 12 and np.mean(few) == pytest.approx(rows.mean(), rel=0.01)


@settings(max_examples=20)
@given(st.integers(0, 1000), st.floats(0.5, 20))
def test_the_rate_is_the_same_from_the_same_seed(seed: int, slo_ms: float) -> None:
    random = np.random.default_rng(seed)
    probes = tuple(Probe(rate, random.gamma(4, rate / 1000, (5, 40))) for rate in (100.0, 400.0, 900.0))
    search = RateSearch(probes, np.array([800.0, 900, 950, 1000, 990]), random.gamma(4, 0.05, (20, 5)))
    first, second = (resampled_rates(search, np.full(50, slo_ms), 95, seed) for _ in range(2))
    assert np.array_equal(first, second)
    assert first.min() >= 0 and first.max() <= 1000
    assert percentile(first, 100) <= 1000


def test_a_monitor_that_sees_others_repeats_a_probe() -> None:
    """A probe beside a busy neighbour is taken again, and the calm one is kept."""
    shares = iter([0.9, 0.0])
    monitor: Any = lambda: SimpleNamespace(stop=lambda: SimpleNamespace(taken=next(shares)))  # noqa: E731
    target = exponential(1.0)
    (found,) = search_rates([target], [begun(1000.0)], ONE, LOAD, 4.0, _window(1, 50), 0, calm=0.02, monitor=monitor)
    assert target.calls.count("open_loop") == 2 and len(found.probes) == 1
    shares, target, once = iter([0.9]), exponential(1.0), replace(_window(1, 50), most=1.0)
    search_rates([target], [begun(1000.0)], ONE, LOAD, 4.0, once, 0, calm=0.02, monitor=monitor)
    assert target.calls.count("open_loop") == 1, "the window has no repetitions"
    shares, target, short = iter([0.9]), exponential(1.0), replace(_window(1, 50), patience_seconds=1e-9)
    search_rates([target], [begun(1000.0)], ONE, LOAD, 4.0, short, 0, calm=0.02, monitor=monitor)
    assert target.calls.count("open_loop") == 1, "there is no time for repetitions"
