"""The rate under an SLO against queues and curves whose answer is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from objectives.measurement import throughput as module
from objectives.measurement import traffic
from objectives.measurement.schedule import Traffic, gaps
from objectives.measurement.statistics import percentile
from objectives.measurement.throughput import (
    Pace,
    Probe,
    crossing,
    open_loop_probe,
    saturation,
    search_rates,
    slo_rate,
)

Floats = NDArray[np.float64]
BLOCKS = 5


def mm1(service_rate: float, requests: int, seed: int) -> Callable[[float], Probe]:
    """A queue with Poisson arrivals and one exponential server, in virtual time.

    By Lindley's recursion the k-th arrival leaves at D[k] = max over i <= k of (A[i] + S[i] + ... + S[k]).
    """

    def sojourn_ms(rate: float, block: int) -> Floats:
        arrival = np.cumsum(gaps(Traffic(), rate, requests, seed + block)) / 1e6
        service = np.cumsum(np.random.default_rng([block, 17, seed]).exponential(1000 / service_rate, requests))
        before = np.concatenate([[0.0], service[:-1]])
        left: Floats = service + np.maximum.accumulate(arrival - before)
        return left - arrival

    return lambda rate: Probe(rate, np.stack([sojourn_ms(rate, block) for block in range(BLOCKS)]))


@pytest.mark.parametrize(
    ("slo_ms", "first"),
    [
        pytest.param(10.0, 300.0, id="from below"),
        pytest.param(4.0, 900.0, id="from above"),
        pytest.param(30.0, 300.0, id="near saturation"),
    ],
)
def test_the_rate_of_an_mm1_queue_is_that_of_its_law(slo_ms: float, first: float) -> None:
    """The time in the system is exponential with rate mu - lambda, so its p95 is -ln(0.05) / (mu - lambda)."""
    queue = mm1(1000.0, 60_000, seed=1)
    probes = search_rates(queue, queue(first), 1000.0, slo_ms, 95, probes=6)
    rates = np.array([probe.rate_rps for probe in probes])
    found = crossing(rates, np.array([percentile(probe.latency_ms, 95) for probe in probes]), slo_ms)
    assert found == pytest.approx(1000 + 1000 * math.log(0.05) / slo_ms, rel=0.02)


def test_two_queues_beside_each_other_differ_as_their_laws_do() -> None:
    """With the slower one's own p95 at 600 a second as the SLO: mu - lambda is the same for both, so 1600."""
    ours, theirs = mm1(2000.0, 4000, seed=1), mm1(1000.0, 4000, seed=1)
    limit = theirs(600.0).latency_ms
    probes = search_rates(ours, ours(600.0), 2000.0, percentile(limit, 95), 95, probes=6)
    rate, drawn = slo_rate(probes, np.full(5, 2000.0), limit, 95, seed=0)
    assert rate == pytest.approx(1600, rel=0.05)
    assert drawn.shape == (400,)
    assert np.quantile(drawn, 0.025) <= 1600 <= np.quantile(drawn, 0.975)


@given(st.floats(0.1, 5), st.floats(-6, 3), st.floats(0.01, 0.99))
def test_a_power_of_the_rate_is_crossed_exactly(power: float, scale: float, place: float) -> None:
    """Interpolation in logarithms is exact where log p95 is linear in log rate."""
    rates = np.array([100.0, 250.0, 900.0, 1000.0])
    true = 100.0 * 10**place
    slo = math.exp(scale) * true**power
    assert crossing(rates, math.exp(scale) * rates**power, slo) == pytest.approx(true, rel=1e-6)


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=8), st.floats(0.01, 100), st.floats(1, 3))
def test_a_looser_slo_never_lowers_the_rate(percentiles: list[float], slo: float, looser: float) -> None:
    rates, values = np.geomspace(10, 1000, len(percentiles)), np.array(percentiles)
    tight, loose = crossing(rates, values, slo), crossing(rates, values, looser * slo)
    assert tight <= loose * (1 + 1e-9)
    assert 0 < tight <= rates[-1] * (1 + 1e-9)


def test_where_no_rate_keeps_the_slo_the_lowest_is_scaled_down() -> None:
    assert crossing(np.array([100.0, 200.0]), np.array([8.0, 9.0]), 2.0) == 25.0


def test_infinite_percentiles_are_crossed_at_the_last_rate_that_kept_the_slo() -> None:
    """All that is known of refusals is that they begin between two rates."""
    with np.errstate(all="raise"):
        assert crossing(np.array([100.0, 200.0]), np.array([1.0, np.inf]), 2.0) == pytest.approx(100)
        assert crossing(np.array([100.0, 200.0]), np.array([np.inf, np.inf]), 2.0) == 0


@given(st.floats(20, 5000), st.floats(20, 5000), st.integers(1, 8))
def test_the_bracket_closes_around_a_step(capacity: float, first: float, probes: int) -> None:
    """A machine that keeps the SLO up to its capacity and not beyond; it saturates a little above that."""

    def step(rate: float) -> Probe:
        return Probe(rate, np.full((5, 4), 1.0 if rate <= capacity else 9.0))

    found = search_rates(step, step(first), 1.1 * capacity, 3.0, 95, probes)
    rates = [probe.rate_rps for probe in found]
    assert len(found) == probes + 1 and rates == sorted(rates) and first in rates
    low = max([rate for rate in rates if rate <= capacity], default=first / 8)
    high = min([rate for rate in rates if rate > capacity], default=max(1.1 * capacity, first))
    started = max(8.0, 1.1 * capacity / first)
    assert math.log(high / low) <= math.log(started) / 2 ** (probes - 1) + 1e-9, "halved each time, but for the first"
    if first / 8 <= capacity:
        assert low <= capacity <= high


def test_where_nothing_keeps_the_slo_ever_lower_rates_are_tried() -> None:
    def slow(rate: float) -> Probe:
        return Probe(rate, np.full((5, 40), 50.0))

    probes = search_rates(slow, slow(800.0), 1000.0, 5.0, 95, probes=4)
    rates = [probe.rate_rps for probe in probes]
    assert all(100 < rate <= 800 for rate in rates) and len(set(rates)) == 5
    rate, drawn = slo_rate(probes, np.full(5, 1000.0), 5.0, 95, seed=0)
    assert rate == pytest.approx(rates[0] / 10)
    assert drawn == pytest.approx(rate)


@pytest.mark.parametrize("first_ms", [1.0, np.inf])
def test_a_machine_that_refuses_all_when_saturated_answers_no_rate(first_ms: float) -> None:
    def probe(rate: float) -> Probe:
        assert math.isfinite(rate) and rate > 0
        return Probe(rate, np.full((5, 40), np.inf))

    with np.errstate(all="raise"):
        probes = search_rates(probe, Probe(100.0, np.full((5, 40), first_ms)), 0.0, 2.0, 95, probes=4)
        rate, drawn = slo_rate(probes, np.zeros(5), 2.0, 95, seed=0)
    assert rate == 0
    assert not drawn.any()


def test_a_probe_that_refuses_some_is_over_the_slo_only_if_its_percentile_is() -> None:
    latency = np.ones((5, 40))
    latency[:, 0] = np.inf  # 2.5%
    at = [Probe(100.0, np.ones((5, 40))), Probe(200.0, latency), Probe(400.0, np.full((5, 40), np.inf))]
    assert slo_rate(at, np.full(5, 1000.0), 2.0, 95, seed=0)[0] == pytest.approx(200)
    assert slo_rate(at, np.full(5, 1000.0), 2.0, 99, seed=0)[0] == pytest.approx(100)


def test_where_every_probe_kept_the_slo_the_resamples_reach_from_the_highest_to_saturation() -> None:
    probes = [Probe(rate, np.ones((5, 40))) for rate in (100.0, 500.0)]
    rate, drawn = slo_rate(probes, np.full(5, 800.0), 2.0, 95, seed=0)
    assert rate == 500
    assert drawn.min() >= 500 and drawn.max() <= 800
    assert drawn.mean() == pytest.approx(650, rel=0.03), "uniform"


def test_the_resamples_see_how_far_the_saturated_blocks_differ() -> None:
    probes = [Probe(rate, np.ones((5, 40))) for rate in (100.0, 5000.0)]
    blocks = np.array([800.0, 900.0, 1000.0, 1100.0, 1200.0])
    rate, drawn = slo_rate(probes, blocks, 2.0, 95, seed=0)
    assert rate == 1000
    assert drawn.std() == pytest.approx(blocks.std() / math.sqrt(5), rel=0.15)


class Arm:
    """Answers at once, and knows how many are in flight."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.flying = self.most = 0

    def __call__(self, request: Mapping[str, Any]) -> Any:
        self.seen.append(request["id"])
        self.flying += 1
        self.most = max(self.most, self.flying)
        return SimpleNamespace(finished_ns=0, result=self.land)

    def land(self) -> None:
        self.flying -= 1


@pytest.fixture
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else this machine does."""
    monkeypatch.setattr(module, "calm_blocks", lambda run, blocks: [run() for _ in range(blocks)])
    monkeypatch.setattr(module, "_SATURATION_SECONDS", 0.002)


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.usefixtures("calm")
def test_saturated_two_are_in_flight_for_each_replica(replicas: int) -> None:
    arm, requests = Arm(), [{"id": np.array(i)} for i in range(7)]
    found = saturation(arm, requests, replicas)
    assert found.shape == (5,) and (found > 0).all()
    assert arm.most == 2 * replicas and arm.flying == 0


@pytest.mark.usefixtures("calm")
def test_the_pace_follows_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request takes a millisecond for each of its rows, 1 to 300, times how slow the machine is."""
    clock, slowness = SimpleNamespace(now=0), [1.0]
    monkeypatch.setattr(traffic, "time", SimpleNamespace(perf_counter_ns=lambda: clock.now))

    def submit(request: Mapping[str, Any]) -> Any:
        clock.now += round(1_000_000 * len(request["id"]) * slowness[0])
        return SimpleNamespace(finished_ns=clock.now, result=lambda: None)

    sizes = np.random.default_rng(0).permutation(300) + 1
    pace = Pace(submit, [{"id": np.zeros(rows)} for rows in sizes])
    mean = np.mean(sizes)
    assert pace() == pytest.approx(mean, rel=0.01), "a few sizes have the mean of all"
    slowness[0] = 5.0
    assert pace() == pytest.approx(mean, rel=0.01), "one slow look is no slower machine"
    assert pace() == pytest.approx(5 * mean, rel=0.01), "two are"


@pytest.mark.usefixtures("calm")
@pytest.mark.parametrize("slower", [0.5, 3.0])
def test_rates_and_latencies_are_those_of_the_reference_pace(monkeypatch: pytest.MonkeyPatch, slower: float) -> None:
    """The same queue on a clock of another speed: arrivals and services that take so many times longer."""

    def found(times: float, slowness: float) -> tuple[Probe, float]:
        def played(submit: Any, requests: Any, gaps_ns: NDArray[np.int64], spin: int) -> Any:
            arrivals, left, at = np.cumsum(gaps_ns), np.empty(len(gaps_ns)), 0.0
            for i, arrival in enumerate(arrivals):
                at = max(at, arrival) + 2e6 * times
                left[i] = at
            return SimpleNamespace(latency_ms=(left - arrivals) / 1e6)

        monkeypatch.setattr(module, "open_loop", played)
        monkeypatch.setattr(module, "saturated", lambda *_: 500 / times)
        probe = open_loop_probe(Arm(), [{"id": np.array(0)}], Traffic(), 300.0, 1, lambda: slowness)
        return probe, float(saturation(Arm(), [], 1, lambda: slowness).mean())

    (probe, most), (reference, _) = found(slower, slower), found(1.0, 1.0)
    assert (probe.rate_rps, most) == (300.0, pytest.approx(500))
    np.testing.assert_allclose(probe.latency_ms, reference.latency_ms, rtol=1e-4)
    unpaced, _ = found(slower, 1.0)
    assert percentile(unpaced.latency_ms, 95) != pytest.approx(percentile(reference.latency_ms, 95), rel=0.3)


@pytest.mark.usefixtures("calm")
def test_a_probe_takes_its_requests_in_turn_and_gives_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def schedule(traffic: Traffic, rate_rps: float, count: int, seed: int) -> NDArray[np.int64]:
        drawn.append(seed)
        return gaps(traffic, rate_rps, count, seed)

    monkeypatch.setattr(module, "gaps", schedule)
    arm, requests = Arm(), [{"id": np.array(i)} for i in range(7)]
    probe = open_loop_probe(arm, requests, Traffic(), 20_000.0, seed=11)
    assert (probe.rate_rps, probe.latency_ms.shape) == (20_000.0, (5, 1200)), "0.3 s in five blocks"
    # Before each block's 1200 come 400 that are not counted.
    assert [int(each) for each in arm.seen[2:]] == [i % 7 for i in range(5 * 1600)]
    assert drawn == [11, 12, 13, 14, 15], "each block has a schedule of its own"
    assert np.array_equal(probe.latency_ms, probe.latency_ms.astype(np.float32)), "as it is kept"


@pytest.mark.usefixtures("calm")
def test_a_slow_rate_is_probed_by_requests_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "gaps", lambda traffic, rate, count, seed: np.ones(count, dtype=np.int64))
    assert open_loop_probe(Arm(), [{"id": np.array(0)}], Traffic(), 5.0, seed=0).latency_ms.shape == (5, 40)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.5, 20))
def test_the_rate_is_the_same_from_the_same_seed(seed: int, slo_ms: float) -> None:
    random = np.random.default_rng(seed)
    probes = [Probe(rate, random.gamma(4, rate / 1000, (5, 40))) for rate in (100.0, 400.0, 900.0)]
    first, second = (slo_rate(probes, np.array([800.0, 900, 950, 1000, 990]), slo_ms, 95, seed) for _ in range(2))
    assert first[0] == second[0] and np.array_equal(first[1], second[1])
    assert first[1].min() >= 0 and first[1].max() <= 1000
