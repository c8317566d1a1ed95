"""The open loop measures from the scheduled arrival; the SLO's rate has a closed form where latency has."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from objectives.measurement.latency import Window, summarise, time_side_by_side
from objectives.measurement.throughput import Probe, crossing, search_rates, slo_rate
from objectives.measurement.traffic import closed_loop, open_loop, poisson_gaps


class Instant:
    """Answered at once."""

    def __init__(self) -> None:
        self.finished_ns = time.perf_counter_ns()

    def result(self) -> None:
        return None


class Busy:
    """A single server in virtual time: each request takes `service_ns` after the one before."""

    def __init__(self, service_ns: int) -> None:
        self.service_ns, self.free_at = service_ns, 0

    def __call__(self, request: Mapping[str, Any]) -> Any:
        self.free_at = max(self.free_at, time.perf_counter_ns()) + self.service_ns
        answer = Instant()
        answer.finished_ns = self.free_at
        return answer


def test_arrivals_do_not_wait_for_answers() -> None:
    """All 50 due at once: the k-th has waited for the k before it, though the generator never waited."""
    arrivals = open_loop(Busy(1_000_000), [{}] * 50, np.zeros(50, dtype=np.int64))
    assert np.diff(arrivals.latency_ms) == pytest.approx(1.0, abs=1e-6)
    assert arrivals.latency_ms[-1] >= 50


def test_a_late_generator_shows_as_latency() -> None:
    def slow_submit(request: Mapping[str, Any]) -> Any:
        time.sleep(0.002)
        return Instant()

    arrivals = open_loop(slow_submit, [{}] * 20, np.full(20, 100_000, dtype=np.int64))
    assert arrivals.lag_ms[-1] > 10
    assert arrivals.latency_ms[-1] > arrivals.lag_ms[-1]


def test_poisson_gaps_have_the_rate_and_the_variation_of_an_exponential() -> None:
    gaps = poisson_gaps(2000, 50_000, np.random.default_rng(0))
    assert gaps.mean() == pytest.approx(5e5, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(1, rel=0.03)


def test_both_arms_get_the_same_requests() -> None:
    seen: dict[str, list[int]] = {"ours": [], "theirs": []}

    def arm(name: str) -> Any:
        def submit(request: Mapping[str, Any]) -> Any:
            seen[name].append(request["id"])
            return Instant()

        return submit

    requests = [{"id": i} for i in range(37)]
    window = Window(blocks=20, requests=6, service_requests=2)
    timings = time_side_by_side(arm("ours"), arm("theirs"), requests, 5000, window, seed=0)
    assert seen["ours"] == seen["theirs"]
    assert timings.candidate.shape == (20, 6)
    assert summarise(timings, 5000, 0).candidate.p99_ms is None, "120 samples are too few for a p99"


def test_closed_loop_is_one_at_a_time() -> None:
    flying = 0

    class Waiting(Instant):
        def result(self) -> None:
            nonlocal flying
            time.sleep(0.001)
            flying -= 1
            self.finished_ns = time.perf_counter_ns()

    def submit(request: Mapping[str, Any]) -> Any:
        nonlocal flying
        assert flying == 0
        flying += 1
        return Waiting()

    assert (closed_loop(submit, [{}] * 5) >= 1).all()


def _md1(rate: float) -> Probe:
    """A made-up machine whose p95 is 1 / (1 - load) ms with a capacity of 1000 requests/s."""
    load = min(rate / 1000, 0.999)
    return Probe(rate, np.full((5, 40), 1 / (1 - load)))


def test_the_slo_rate_is_found_where_latency_has_a_closed_form() -> None:
    """1 / (1 - rate / 1000) = 4 at a rate of 750."""
    probes = search_rates(_md1, _md1(100.0), 1000.0, 4.0, 95, probes=6)
    rate, drawn = slo_rate(probes, np.full(5, 1000.0), 4.0, 95, seed=0)
    assert rate == pytest.approx(750, rel=0.02)
    assert drawn == pytest.approx(rate, rel=1e-9), "without noise the resamples agree"


def test_a_candidate_slower_than_the_baseline_is_searched_below_the_studys_rate() -> None:
    probes = search_rates(_md1, _md1(900.0), 1000.0, 2.0, 95, probes=6)
    rate, _ = slo_rate(probes, np.full(5, 1000.0), 2.0, 95, seed=0)
    assert rate == pytest.approx(500, rel=0.05)


def test_no_rate_above_saturation_is_claimed() -> None:
    fast = [Probe(r, np.full((5, 40), 0.1)) for r in (100.0, 5000.0)]
    assert slo_rate(fast, np.full(5, 900.0), 4.0, 95, seed=0)[0] == 900


def test_crossing_levels_a_dip() -> None:
    rates, percentiles = np.array([1.0, 2.0, 4.0, 8.0]), np.array([1.0, 3.0, 2.0, 6.0])
    assert crossing(rates, percentiles, 3.0) == pytest.approx(4.0)
    assert crossing(rates, percentiles, 0.5) == pytest.approx(0.5)
    assert crossing(rates, percentiles, 9.0) == 8.0


def test_a_window_too_short_for_intervals_is_refused() -> None:
    with pytest.raises(ValueError, match="20 blocks"):
        Window(blocks=10)
