"""Pace of the machine, and that neither deployment is favoured by how it is taken."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from objectives.measure.benchmark import measure_visit
from objectives.measurement.arrivals import Traffic
from objectives.measurement.latency import Load, Window
from objectives.measurement.load_generator import Arrivals
from objectives.measurement.pace import PaceTimer, service_and_pace_ms
from objectives.measurement.recording import Recording
from objectives.records import NotFiniteError
from tests.measurement_tests.simulated import QuietMonitor, SimulatedTarget, requests_of, steady

Floats = NDArray[np.float64]


def test_the_pace_follows_the_machine() -> None:
    """A request takes a millisecond for each of its rows, 1 to 300, times how slow the machine is."""
    slowness = [1.0]
    sizes = np.random.default_rng(0).permutation(300) + 1
    target = SimulatedTarget(lambda requests: np.array([len(r["item"]) * slowness[0] for r in requests]))
    pace = PaceTimer(target, requests_of(sizes.tolist()))
    mean = np.mean(sizes)
    assert pace() == pytest.approx(mean, rel=0.01), "a few sizes have the mean of all"
    slowness[0] = 5.0
    assert pace() == pytest.approx(mean, rel=0.01), "one slow look is no slower machine"
    assert pace() == pytest.approx(5 * mean, rel=0.01), "two are"


@pytest.mark.parametrize(("milliseconds", "count"), [(0.1, 12), (1.0, 12), (5.0, 6), (100.0, 4), (math.inf, 4)])
def test_a_look_has_as_many_requests_as_take_30_ms(milliseconds: float, count: int) -> None:
    counts = list[int]()

    def service(requests: Sequence[Mapping[str, Any]]) -> Floats:
        counts.append(len(requests))
        return np.full(len(requests), milliseconds)

    timer = PaceTimer(SimulatedTarget(service), requests_of([1] * 20))
    assert timer() == pytest.approx(milliseconds) and counts == [4, *[count] * 4]


def test_every_look_at_the_pace_begins_idle() -> None:
    """An awake deployment answers sooner, so looks of both kinds are not to be compared."""
    milliseconds, calls = [2.0], list[str]()
    pace_target = SimulatedTarget(lambda requests: np.full(len(requests), milliseconds[0]), calls=calls)
    pace = PaceTimer(pace_target, requests_of([1]))
    assert pace() == 2.0
    assert calls == ["settle", "closed_loop"] * (1 + 3 + 1), "one for the number of requests, three, and one now"
    milliseconds[0] = 8.0
    assert pace() == 2.0 and pace() == 8.0, "the second look that says so"


def test_the_time_of_a_request_is_a_mean_of_rounds_of_an_awake_target_without_a_stall() -> None:
    """In three of eight rounds both threads run on one core, and another one has a stall of 50 ms.

    The pace is 7 ms, but for two looks in which the machine stalls.
    """
    calls, rounds = list[str](), [1.0, 2.0, 1.0, 50.0, 2.0, 1.0, 2.0, 1.0]
    taken = itertools.chain([1.0], *((9.0, milliseconds) for milliseconds in rounds))
    target = SimulatedTarget(lambda requests: np.full(len(requests), next(taken)), calls=calls)
    paces = iter([7.0, 7.0, 90.0, 80.0, 7.0, 7.0, 7.0, 7.0])

    def pace() -> float:
        calls.append("pace")
        return next(paces)

    service_ms, pace_ms = service_and_pace_ms(target, requests_of([1] * 20), pace, most=8)
    assert service_ms == pytest.approx((3 * 1.0 + 3 * 2.0) / 6), "what wakes it, of 9 ms, does not count"
    assert pace_ms == 7.0
    assert calls == ["settle", "closed_loop", *["settle", "closed_loop", "closed_loop", "pace"] * 8], (
        "a look for the number of requests comes first"
    )


@pytest.mark.parametrize(
    ("milliseconds", "waking", "counted", "rounds"),
    [
        (0.1, 12, 12, 16),
        (4.0, 7, 7, 16),
        (6.0, 1, 5, 16),
        (25.0, 1, 4, 12),
        (50.0, 1, 4, 6),
        (100.0, 1, 4, 4),
        (math.inf, 1, 4, 4),
    ],
)
def test_rounds_are_repeated_until_they_take_1500_ms(
    milliseconds: float, waking: int, counted: int, rounds: int
) -> None:
    counts = list[int]()

    def service(requests: Sequence[Mapping[str, Any]]) -> Floats:
        counts.append(len(requests))
        return np.full(len(requests), milliseconds)

    service_ms, _ = service_and_pace_ms(SimulatedTarget(service), requests_of([1] * 20), lambda: 1.0)
    assert service_ms == pytest.approx(milliseconds) and counts == [4, *[waking, counted] * rounds]


def test_a_stall_in_the_first_look_does_not_settle_how_a_target_is_woken() -> None:
    """One of the first four requests takes 50 ms; each of the others takes 0.3 ms, and wakes the target with others."""
    counts = list[int]()

    def service(requests: Sequence[Mapping[str, Any]]) -> Floats:
        counts.append(len(requests))
        return np.array([50.0 if len(counts) == 1 and not place else 0.3 for place in range(len(requests))])

    service_and_pace_ms(SimulatedTarget(service), requests_of([1] * 20), lambda: 1.0)
    assert counts == [4, *[12, 12] * 16]


def test_a_stall_at_the_beginning_of_a_visit_changes_no_rate() -> None:
    """The first three looks at the pace take 9 ms, all later ones 1 ms; rates were relative to the first three."""
    looks = itertools.count()
    pace_target = SimulatedTarget(lambda asked: np.full(len(asked), 9.0 if 1 <= next(looks) <= 3 else 1.0))
    targets = [SimulatedTarget(lambda asked: np.full(len(asked), 2.0)) for _ in range(2)]
    load = Load(Traffic(), 0.4, 95, None)
    (visit,) = measure_visit(targets, pace_target, requests_of([1] * 20), load, Window(), 0, QuietMonitor)
    assert visit.timings.rate_rps == pytest.approx(200.0)


def test_a_baseline_that_refuses_too_many_requests_at_the_load_has_no_slo() -> None:
    """It answers a request in 2 ms, and refuses every tenth in an open loop."""

    class Refusing(SimulatedTarget):
        def open_loop(self, requests: Sequence[Mapping[str, Any]], gaps_ns: NDArray[np.int64]) -> Arrivals:
            found = super().open_loop(requests, gaps_ns)
            return replace(found, latency_ms=np.where(np.arange(len(requests)) % 10, found.latency_ms, math.inf))

    targets = [Refusing(lambda asked: np.full(len(asked), 2.0)) for _ in range(2)]
    with pytest.raises(NotFiniteError, match=r"set slo\.ms"):
        measure_visit(
            targets, steady(), requests_of([1] * 20), Load(Traffic(), 0.4, 95, None), Window(), 0, QuietMonitor
        )


def test_a_baseline_that_refuses_single_requests_has_no_load() -> None:
    """It refuses one of twelve."""
    refusing = SimulatedTarget(lambda asked: np.array([math.inf if at == 5 else 1.0 for at in range(len(asked))]))
    targets, load = [refusing] * 2, Load(Traffic(), 0.4, 95, None)
    with pytest.raises(NotFiniteError, match="one at a time"):
        measure_visit(targets, steady(), requests_of([1] * 20), load, Window(), 0, QuietMonitor)


def test_arrivals_are_as_much_slower_as_the_machine_and_no_compared_deployment_tells_it() -> None:
    """The machine takes three times as long after some turns, by the pace target; the others take as long as before.

    The first twenty looks are those of the visit's beginning.
    """
    looks = itertools.count()
    pace_target = SimulatedTarget(lambda asked: np.full(len(asked), 3.0 if next(looks) > 24 else 1.0))
    targets = [SimulatedTarget(lambda asked: np.full(len(asked), 2.0)) for _ in range(2)]
    load = Load(Traffic(), 0.4, 95, None)
    (visit,) = measure_visit(targets, pace_target, requests_of([1] * 20), load, Window(), 0, QuietMonitor)
    rates = visit.timings.rate_rps
    assert rates[0] == pytest.approx(200.0) and rates[-1] == pytest.approx(200.0 / 3)
    assert np.unique(np.round(rates, 3)).tolist() == pytest.approx([66.667, 200.0])


@pytest.mark.parametrize(("milliseconds", "requests", "counted"), [(4.0, 15, 300), (100.0, 7, 130)])
def test_a_visit_of_a_slow_model_has_as_few_requests_as_its_percentile_needs(
    milliseconds: float, requests: int, counted: int
) -> None:
    """At a load of 0.4, 5 s hold 500 requests of 4 ms and 20 of 100 ms."""
    targets = [SimulatedTarget(lambda asked: np.full(len(asked), milliseconds)) for _ in range(2)]
    window = Window(requests=15, probes=1, probe_requests=300, seconds=5.0).extended(95)
    load = Load(Traffic(), 0.4, 95, None)
    (visit,) = measure_visit(targets, steady(), requests_of([1] * 20), load, window, 0, QuietMonitor)
    assert visit.timings.candidate.shape == visit.timings.baseline.shape == (20, requests)
    sizes = sorted(probe.latency_ms.size for probe in visit.candidate.probes)
    assert sizes == sorted([20 * requests, counted]), "at the study's load, and at the rate that is tried"


def test_blocks_of_visits_that_are_joined_have_one_length_whatever_the_pace() -> None:
    targets = [SimulatedTarget(lambda asked: np.full(len(asked), 100.0)) for _ in range(2)]
    window = Window(requests=15, probes=1, probe_requests=300, seconds=5.0, visits=2).extended(95)
    load = Load(Traffic(), 0.4, 95, None)
    (visit,) = measure_visit(targets, steady(), requests_of([1] * 20), load, window, 0, QuietMonitor)
    assert visit.timings.candidate.shape == (20, 15)


@pytest.mark.parametrize("candidates", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_of_equal_deployments_none_is_favoured_by_what_ran_before(candidates: int) -> None:
    """A deployment takes a fifth longer when another one ran last, as with cold caches.

    With the baseline's pace alone before each pair, the candidate's p95 is higher, and this fails.
    """
    random, last = np.random.default_rng(0), [""]

    def target(name: str) -> SimulatedTarget:
        def service(requests: Sequence[Mapping[str, Any]]) -> Floats:
            cold, last[0] = last[0] != name, name
            return random.exponential(1.2 if cold else 1.0, len(requests))

        return SimulatedTarget(service)

    targets, pace_target = [target(str(number)) for number in range(candidates + 1)], target("pace")
    visits = [
        measure_visit(
            targets, pace_target, requests_of([1] * 20), Load(Traffic(), 0.4, 95, None),
            Window(100, probes=3, probe_requests=2000), seed, QuietMonitor,
        )
        for seed in range(20)
    ]  # fmt: skip
    for of_one in zip(*visits, strict=True):
        latency, throughput = Recording(of_one, None, 95, 0).summarize()
        assert latency.p95_ratio == pytest.approx(1.0, abs=0.04)
        low, high = throughput.ratio_interval
        assert low < 1 < high and throughput.ratio == pytest.approx(1.0, abs=0.1)
