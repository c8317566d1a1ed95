"""Transport of requests: by the rate around them, one at a time, on a machine whose speed changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planning.demand import Floats
from search.plan.replay.transport import DrawnTransport, Transport, TransportSample, local_rates, travelled_s


def poisson(*rates: float, seconds: float = 60.0) -> Floats:
    """Arrivals at each rate for so many seconds, one rate after the other."""
    random = np.random.default_rng(0)
    parts = [seconds * (n + np.sort(random.random(random.poisson(rate * seconds)))) for n, rate in enumerate(rates)]
    return np.concatenate(parts)


def at_usual_speed(*usual_ms: float) -> TransportSample:
    return TransportSample(np.array(usual_ms), np.ones(4000), float(np.mean(usual_ms)))


def queue(arrivals: Floats, takes_s: Floats) -> Floats:
    """Return the seconds from each arrival to the end in a queue that is played request by request."""
    free, latency = 0.0, []
    for arrival, takes in zip(arrivals.tolist(), takes_s.tolist(), strict=True):
        free = max(free, arrival) + takes
        latency.append(free - arrival)
    return np.array(latency)


def test_requests_travel_one_at_a_time() -> None:
    """Three at once, which wait for each other, and one later."""
    found = travelled_s(np.array([0, 0, 0, 1.0]), DrawnTransport(np.full(4, 2.0), np.ones(10)))
    assert found == pytest.approx([0.002, 0.004, 0.006, 0.002])


def test_a_slow_machine_delays_all_that_come_meanwhile() -> None:
    """At a quarter of its speed from 0.1 to 0.2 s, a request of 2 ms takes 8 ms, and one that meets its end less."""
    speed = np.ones(1000)
    speed[100:200] = 0.25
    found = travelled_s(np.array([0.05, 0.12, 0.196, 0.5, 2.0]), DrawnTransport(np.full(5, 2.0), speed))
    assert found == pytest.approx([0.002, 0.008, 0.004 + 0.001, 0.002, 0.002])


def test_a_rate_is_that_of_the_second_around_a_request() -> None:
    assert local_rates(np.array([0.0, 0.3, 0.6, 5.0])).tolist() == [2, 3, 2, 1]


def test_a_steady_trace_is_measured_at_its_rate() -> None:
    asked = list[float]()

    def sample(rate_rps: float) -> TransportSample:
        asked.append(rate_rps)
        return at_usual_speed(1.0, 3.0)

    found = Transport.measured(poisson(200.0), sample)
    assert asked == [pytest.approx(190, rel=0.05)]
    every = np.arange(1000.0)
    drawn = found.drawn(every, 0).usual_ms.tolist()
    assert found.drawn(every, 0).usual_ms.tolist() == drawn != found.drawn(every, 1).usual_ms.tolist()
    assert set(drawn) == {1.0, 3.0} and np.mean(drawn) == pytest.approx(2.0, abs=0.1)
    Transport.measured(np.arange(60.0), sample)
    Transport.measured(poisson(600.0), sample)
    assert asked[1:] == [10.0, 250.0, pytest.approx(350)], "0.7 of the time of 2 ms in the mean"


def test_a_trace_with_a_peak_has_the_transport_of_both_rates_and_a_mixture_between() -> None:
    """Requests take 1 ms at 50/s, and 0.5 ms at 400/s; halfway, by the logarithms, one in two takes each."""
    asked = list[float]()

    def sample(rate_rps: float) -> TransportSample:
        asked.append(rate_rps)
        return at_usual_speed(*[1.0 if rate_rps < 200 else 0.5] * 10)

    trace = poisson(50.0, 50.0, 50.0, 400.0)
    found = Transport.measured(trace, sample)
    calm, busy = asked
    assert 40 < calm < 400 and busy == pytest.approx(420, rel=0.1)
    drawn = found.drawn(trace, 0).usual_ms
    assert (drawn[trace > 181] == 0.5).mean() > 0.5
    exact = Transport(np.array([50.0, 800.0]), ((at_usual_speed(1.0),), (at_usual_speed(0.5),)))
    for rate, expected in ((20.0, 1.0), (50.0, 1.0), (200.0, 0.75), (800.0, 0.5), (2000.0, 0.5)):
        evenly = np.arange(0, 1600, 1 / rate)
        inside = (evenly > 2) & (evenly < 1598)
        assert exact.drawn(evenly, 0).usual_ms[inside].mean() == pytest.approx(expected, abs=0.04)  # 800 pieces


def test_the_busy_rate_leaves_transport_some_time() -> None:
    """Requests of 5 ms: no more than 140/s are asked for, and only the calm rate where that is as much."""
    asked = list[float]()

    def sample(rate_rps: float) -> TransportSample:
        asked.append(rate_rps)
        return at_usual_speed(*[5.0] * 10)

    Transport.measured(poisson(*[60.0] * 6, 600.0), sample)
    found = Transport.measured(poisson(*[120.0] * 8, 600.0), sample)
    assert len(asked) == 3 and asked[1] == pytest.approx(140) and len(found.samples) == 1


def test_what_is_slow_counts_for_the_busy_rate() -> None:
    """A quarter of the requests takes 10 ms in place of 1: transport has 0.7 of the time at 215/s, not at 700/s."""
    arrivals = poisson(60.0)
    latency_s = queue(arrivals, np.where(np.arange(len(arrivals)) % 4 == 0, 0.010, 0.001))
    asked = list[float]()

    def sample(rate_rps: float) -> TransportSample:
        asked.append(rate_rps)
        return TransportSample.of(arrivals, 1e3 * latency_s)

    Transport.measured(poisson(*[60.0] * 8, 900.0), sample)
    assert asked[1] == pytest.approx(700 / 3.25, rel=0.01)


def test_a_second_sample_counts_as_much_as_the_first() -> None:
    """Later the machine is half as fast: every other piece is one of then."""
    slow = TransportSample(np.full(10, 1.0), np.full(9000, 0.5), 2.0)
    found = Transport(np.array([50.0]), ((at_usual_speed(*[1.0] * 10),),)).measured_again(lambda rate: slow)
    speed = found.drawn(poisson(50.0, seconds=4000.0), 0).speed
    assert speed.mean() == pytest.approx(0.75, abs=0.03)
    assert set(speed.tolist()) == {0.5, 1.0} and found.rates_rps.tolist() == [50.0]


@pytest.mark.parametrize("rate", [40.0, 400.0])
def test_a_slow_moment_lasts_as_long_at_another_rate(rate: float) -> None:
    """At 100/s the machine has a fifth of its speed for 0.2 s of every 2 s, in a sample of requests of 1 ms.

    At another rate a tenth of the requests comes in such a moment too, and takes 5 ms. Drawn by the number of requests,
    400/s would meet as many slow ones in a row as 100/s, in a quarter of the time.
    """
    arrivals = poisson(100.0, seconds=100.0)
    slow = arrivals % 2 < 0.2
    latency_s = queue(arrivals, np.where(slow, 0.005, 0.001))
    sample = TransportSample.of(arrivals, 1e3 * latency_s)
    moments = np.arange(len(sample.speed)) * 0.001 % 2
    assert (sample.speed[(moments > 0.02) & (moments < 0.18)] < 0.25).mean() > 0.7
    assert (sample.speed[moments > 0.3] > 0.99).all()
    trace = np.arange(0, 600, 1 / rate)
    drawn = Transport(np.array([100.0]), ((sample,),)).drawn(trace, 0)
    travelled = travelled_s(trace, drawn)
    if rate < 100:
        assert (travelled > 0.004).mean() == pytest.approx(0.08, abs=0.03) and travelled.max() < 0.05
    else:  # 40 too many in each moment, whose queue is gone soon after it
        assert 0.08 < (travelled > 0.004).mean() < 0.2 and travelled.max() < 0.3


@pytest.mark.parametrize("rate", [20.0, 100.0])
def test_slow_requests_of_their_own_stay_as_frequent(rate: float) -> None:
    """A tenth of the requests at 20/s takes 5 ms in place of 1, each by itself: so it does at any rate."""
    arrivals = poisson(20.0, seconds=200.0)
    latency_s = queue(arrivals, np.where(np.random.default_rng(1).random(len(arrivals)) < 0.1, 0.005, 0.001))
    sample = TransportSample.of(arrivals, 1e3 * latency_s)
    trace = poisson(rate, seconds=600.0)
    travelled = travelled_s(trace, Transport(np.array([20.0]), ((sample,),)).drawn(trace, 0))
    # Two that follow each other by chance count as a slow moment, which others meet less; at 100/s some wait.
    assert (travelled > 0.0045).mean() == pytest.approx(0.09, abs=0.025)


def test_a_stall_lasts_as_long_whatever_comes_meanwhile() -> None:
    """Nothing is served for 0.3 s of every 5 s: at 4 times the rate of the sample as large a share waits."""
    arrivals = poisson(100.0, seconds=100.0)
    stalled = arrivals % 5 < 0.3
    first = np.flatnonzero(stalled & ~np.concatenate(([False], stalled[:-1])))
    takes_s = np.full(len(arrivals), 0.001)
    takes_s[first] = 0.3 - arrivals[first] % 5
    sample = TransportSample.of(arrivals, 1e3 * queue(arrivals, takes_s))
    trace = poisson(400.0, seconds=600.0)
    travelled = travelled_s(trace, Transport(np.array([100.0]), ((sample,),)).drawn(trace, 0))
    # Those that come within it, and those that come while its queue is served at 1000/s.
    assert (travelled > 0.01).mean() == pytest.approx(0.06 * 1.6, rel=0.3) and travelled.max() < 0.75


def test_any_request_is_as_much_slower_in_a_slow_moment() -> None:
    """Requests of 0.2 to 1.8 ms take five times as long for 0.2 s of every 2 s: 4 ms more in the mean."""
    arrivals = np.arange(0, 200, 1 / 200)
    own_ms = np.random.default_rng(1).uniform(0.2, 1.8, len(arrivals))
    sample = TransportSample.of(arrivals, 1e3 * queue(arrivals, np.where(arrivals % 2 < 0.2, 5e-3, 1e-3) * own_ms))
    trace = np.arange(0, 600, 1 / 20)
    drawn = Transport(np.array([200.0]), ((sample,),)).drawn(trace, 0)
    lost_ms = 1e3 * travelled_s(trace, drawn) - drawn.usual_ms
    # Of the whole a tenth is slow, and a request takes 1 ms at the usual speed.
    assert lost_ms.mean() == pytest.approx(0.1 * 4.0, rel=0.25)


@pytest.mark.parametrize(
    ("latency_ms", "mean_ms"),
    [
        ([0.0], 0.0),
        ([0.0] * 5, 0.0),
        ([3.0], 3.0),
        ([0.0, 0.0, 0.0, 0.0, 7.0], 1.4),
        ([0.001, 0.001, 0.001, 300.0, 201.0], 301.003 / 5),  # the last one waits for 200 ms
    ],
)
def test_few_or_no_times_are_a_sample_too(latency_ms: list[float], mean_ms: float) -> None:
    arrivals = np.arange(len(latency_ms)) * 0.1
    sample = TransportSample.of(arrivals, np.array(latency_ms))
    assert len(sample.speed) == 2000 and sample.mean_ms == pytest.approx(mean_ms)
    again = travelled_s(arrivals, DrawnTransport(sample.usual_ms, sample.speed))
    assert again == pytest.approx(np.array(latency_ms) / 1e3, abs=1e-4)
    drawn = Transport(np.array([10.0]), ((sample,),)).drawn(np.array([0.0, 2.0, 4.0]), 0)
    assert len(drawn.usual_ms) == 3 and len(drawn.speed) == 6000


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), min_size=1, max_size=40))
def test_the_same_requests_take_as_long_again(drawn: list[tuple[int, int]]) -> None:
    """The sample of a queue, played by its own arrivals on the machine's speed of then, gives its latency.

    All times are whole milliseconds, in which the speed is told.
    """
    arrivals = np.cumsum([gap for gap, _ in drawn]) / 1e3
    latency_s = queue(arrivals, np.array([takes for _, takes in drawn]) / 1e3)
    sample = TransportSample.of(arrivals, 1e3 * latency_s)
    again = travelled_s(arrivals, DrawnTransport(sample.usual_ms, sample.speed))
    assert again == pytest.approx(latency_s, abs=1e-5)
