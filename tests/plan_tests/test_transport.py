"""Transport of requests: by the rate around them, one at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planning.demand import Floats
from search.plan.replay.transport import Transport, local_rates, own_times, travelled_s


def poisson(*rates: float, seconds: float = 60.0) -> Floats:
    """Arrivals at each rate for so many seconds, one rate after the other."""
    random = np.random.default_rng(0)
    parts = [seconds * (n + np.sort(random.random(random.poisson(rate * seconds)))) for n, rate in enumerate(rates)]
    return np.concatenate(parts)


def test_requests_travel_one_at_a_time() -> None:
    """Three at once, which wait for each other, and one later."""
    found = travelled_s(np.array([0, 0, 0, 1.0]), np.full(4, 2.0))
    assert found == pytest.approx([0.002, 0.004, 0.006, 0.002])


def test_a_rate_is_that_of_the_second_around_a_request() -> None:
    assert local_rates(np.array([0.0, 0.3, 0.6, 5.0])).tolist() == [2, 3, 2, 1]


def test_a_steady_trace_is_measured_at_its_rate() -> None:
    asked = list[float]()

    def sample(rate_rps: float) -> Floats:
        asked.append(rate_rps)
        return np.array([1.0, 3.0])

    found = Transport.measured(poisson(200.0), sample)
    assert asked == [pytest.approx(190, rel=0.05)]
    drawn = found.drawn_ms(np.arange(1000.0), 0)
    assert (
        found.drawn_ms(np.arange(1000.0), 0).tolist() == drawn.tolist() != found.drawn_ms(np.arange(1000.0), 1).tolist()
    )
    assert set(drawn.tolist()) == {1.0, 3.0} and drawn.mean() == pytest.approx(2.0, abs=0.1)
    Transport.measured(np.arange(60.0), sample)
    Transport.measured(poisson(600.0), sample)
    assert asked[1:] == [10.0, 250.0, pytest.approx(350)], "0.7 of the time of 2 ms in the median"
    assert Transport.none().drawn_ms(np.zeros(3), 0).tolist() == [0, 0, 0]


def test_a_trace_with_a_peak_has_the_transport_of_both_rates_and_a_mixture_between() -> None:
    """Requests take 1 ms at 50/s, and 0.5 ms at 400/s; halfway, by the logarithms, one in two takes each."""
    asked = list[float]()

    def sample(rate_rps: float) -> Floats:
        asked.append(rate_rps)
        return np.full(10, 1.0 if rate_rps < 200 else 0.5)

    trace = poisson(50.0, 50.0, 50.0, 400.0)
    found = Transport.measured(trace, sample)
    calm, busy = asked
    assert 40 < calm < 400 and busy == pytest.approx(420, rel=0.1)
    drawn = found.drawn_ms(trace, 0)
    for half in np.unique(trace // 0.5):
        inside = trace // 0.5 == half
        if local_rates(trace)[inside].min() >= busy:
            assert (drawn[inside] == 0.5).all()
    assert (drawn[trace > 181] == 0.5).mean() > 0.5
    exact = Transport(np.array([50.0, 800.0]), (np.full(3, 1.0), np.full(3, 0.5)))
    for rate, expected in ((20.0, 1.0), (50.0, 1.0), (200.0, 0.75), (800.0, 0.5), (2000.0, 0.5)):
        evenly = np.arange(0, 400, 1 / rate)
        inside = (evenly > 1) & (evenly < 399)
        assert exact.drawn_ms(evenly, 0)[inside].mean() == pytest.approx(expected, abs=0.04)  # 800 runs


def test_what_comes_together_has_consecutive_requests_of_a_sample() -> None:
    """So a slow moment of the machine delays several: a tenth of the requests, in one piece, takes 40 ms each."""
    sample = np.where(np.arange(1000) < 100, 40.0, 0.1)
    trace = poisson(50.0, seconds=2000.0)
    drawn = Transport(np.array([50.0]), (sample,)).drawn_ms(trace, 0)
    slow = drawn == 40
    assert slow.mean() == pytest.approx(0.1, abs=0.03)
    together = np.diff(trace // 0.5) == 0
    assert (slow[1:] == slow[:-1])[together].mean() > 0.97, "drawn one by one it would be 0.82"
    longest = travelled_s(trace, drawn).max()
    assert longest > 0.3, "25 requests of 40 ms within half a second wait for each other"


def test_the_busy_rate_leaves_transport_some_time() -> None:
    """Requests of 5 ms: no more than 140/s are asked for, and only the calm rate where that is as much."""
    asked = list[float]()

    def sample(rate_rps: float) -> Floats:
        asked.append(rate_rps)
        return np.full(10, 5.0)

    Transport.measured(poisson(*[60.0] * 6, 600.0), sample)
    found = Transport.measured(poisson(*[120.0] * 8, 600.0), sample)
    assert len(asked) == 3 and asked[1] == pytest.approx(140) and len(found.samples_ms) == 1


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=30))
def test_the_own_times_of_a_queue_are_found_again(drawn: list[tuple[int, int]]) -> None:
    """The queue is played request by request."""
    arrivals, free, latency = np.cumsum([gap for gap, _ in drawn]).astype(float), 0.0, []
    for arrival, (_, takes) in zip(arrivals, drawn, strict=True):
        free = max(free, arrival) + takes
        latency.append(free - arrival)
    assert own_times(arrivals, np.array(latency)).tolist() == [takes for _, takes in drawn]
