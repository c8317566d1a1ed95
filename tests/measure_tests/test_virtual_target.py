"""A placement on the virtual clock as a target of the load generator, with curves that are given or measured."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from objectives.measure import service_curves
from objectives.measure.benchmark import Load, measure_visit
from objectives.measure.deployment import load_target, saturating
from objectives.measure.service_curves import StudyRate, joined, measure_service_curve
from objectives.measure.virtual_target import SimulatedLoad, VirtualTarget
from objectives.measurement.arrivals import Traffic
from objectives.measurement.latency import Window
from objectives.measurement.recording import Recording
from objectives.measurement.service_curve import Runs, ServiceCurve
from objectives.records import rows_of
from spaces.techniques.placement import Admission, Batching, InstanceGroup, Placement
from tests.measurement_tests.simulated import QuietMonitor, requests_of, steady


def by_rows(group: int, rows: int, idle_ns: int | None, busy: int) -> float:
    return 1e4 * rows + (0 if idle_ns is None else 2e5)


def test_one_at_a_time_takes_what_an_idle_replica_takes() -> None:
    target = VirtualTarget(Placement(), by_rows, 2)
    assert target.closed_loop(requests_of([10, 30])).tolist() == [0.3, 0.5]
    assert target.saturated(requests_of([10]), 0.1, 1) == pytest.approx(10_000, rel=0.01)


@pytest.mark.parametrize("replicas", [1, 2, 4, 8])
def test_every_replica_is_busy_in_a_saturated_loop(replicas: int) -> None:
    """However much sizes differ, the capacity is that of one replica so many times."""
    rows = np.clip(np.exp(np.random.default_rng(1).normal(np.log(200), 0.6, 1000)), 1, 1000).astype(int)
    placement, requests = Placement(InstanceGroup(replicas=replicas, threads=1)), requests_of(rows.tolist())
    target = VirtualTarget(placement, lambda group, rows, idle_ns, busy: 1e4 * rows, saturating(placement, requests))
    assert target.saturated(requests, 1.0, 10) == pytest.approx(replicas * 1e5 / rows.mean(), rel=0.02)


@pytest.mark.parametrize("split_rows", [None, 100])
def test_utilisation_is_one_at_the_capacity_of_requests_that_are_split_or_not(split_rows: int | None) -> None:
    """Four replicas serve four requests at the same time, or one whose parts each of them has."""
    placement, requests = Placement(InstanceGroup(replicas=4), split_rows=split_rows), requests_of([400] * 50)
    target = VirtualTarget(placement, lambda group, rows, idle_ns, busy: 1e4 * rows, saturating(placement, requests))
    capacity, seconds = target.saturated(requests, 1.0, 10), target.closed_loop(requests).mean() / 1000
    assert capacity * seconds / target.served_together == pytest.approx(1, rel=0.02)


def test_strata_count_where_answers_come_one_by_one() -> None:
    """Among answers of a batch, or of several replicas, a capacity ends where the time does."""
    pool: Any = SimpleNamespace(submit=None)
    alone, several = Placement(), Placement(InstanceGroup(replicas=2))
    batching = Placement(batching=Batching(rows=800))
    requests = requests_of([200] * 5)
    found = [load_target(pool, placement, requests).one_by_one for placement in (alone, several, batching)]
    assert found == [True, False, False]


def test_refusals_have_infinite_latency() -> None:
    target = VirtualTarget(Placement(admission=Admission(queue=1)), by_rows, 2)
    found = target.open_loop(requests_of([10] * 4), np.array([1000] * 4))
    assert np.isinf(found.latency_ms).tolist() == [False, False, True, True]
    assert VirtualTarget(Placement(admission=Admission(queue=1)), by_rows, 9).saturated(requests_of([10]), 0.01, 1) > 0


def test_a_whole_visit_runs_on_virtual_time() -> None:
    """Planted: twice the replicas of a queue at load 0.4 wait less, and serve twice as much."""
    requests = requests_of(np.random.default_rng(0).integers(50, 150, 300).tolist())
    one = VirtualTarget(Placement(), by_rows, 2)
    two = VirtualTarget(Placement(InstanceGroup(replicas=2)), by_rows, 4)
    window = Window(blocks=40, probe_requests=1000)
    (visit,) = measure_visit((two, one), steady(), requests, Load(Traffic(), 0.4, 95, None), window, 0, QuietMonitor)
    latency, throughput = Recording((visit,), None, 95, 0).summarize()
    assert latency.p95_ratio < 0.9
    assert throughput.capacity_ratio == pytest.approx(2, rel=0.02)
    assert throughput.ratio > 1.8


@pytest.mark.parametrize(("transport_ms", "service_ms"), [(0.5, 0.2), (0.2, 0.5), (0.0, 0.5)])
def test_transport_and_pool_are_queues_in_a_row(transport_ms: float, service_ms: float) -> None:
    """The slower one alone of two deterministic servers in a row makes requests wait.

    They wait as in an M/D/1 queue (Friedman 1965). A request alone takes both times, and no more requests pass than the
    slower server lets.
    """
    target = VirtualTarget(Placement(), lambda group, rows, idle_ns, busy: 1e6 * service_ms, 4, transport_ms)
    requests, slower = requests_of([10] * 60_000), max(transport_ms, service_ms)
    assert target.closed_loop(requests[:5]).tolist() == pytest.approx([transport_ms + service_ms] * 5)
    assert target.saturated(requests[:5], 0.1, 1) == pytest.approx(1000 / slower, rel=0.01)
    load = 0.6
    gaps_ns = np.random.default_rng(0).exponential(1e6 * slower / load, len(requests)).astype(np.int64) + 1
    waited = target.open_loop(requests, gaps_ns).latency_ms.mean() - transport_ms - service_ms
    assert waited == pytest.approx(slower * load / (2 * (1 - load)), rel=0.05)


class Sleeping:
    once: frozenset[str] = frozenset()

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        time.sleep(1e-4 * len(inputs["item"]))
        return np.asarray(inputs["item"], dtype=np.float32)


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_curve_is_measured_on_the_running_pool(replicas: int) -> None:
    """No time is compared: on a busy machine a run takes longer."""
    requests = requests_of(np.random.default_rng(0).integers(2, 20, 60).tolist())
    placement = Placement(InstanceGroup(replicas=replicas))
    for _ in range(5):  # another process may hold up so many runs that few find a replica idle, or most are long
        curve = measure_service_curve(lambda group: Sleeping(), placement, requests, 0, StudyRate(0.4, 4.0))
        lines = (curve.idle, curve.rested, curve.alone, curve.crowded)
        shortest = min(min(line.deviations) for line in lines)
        if curve.idle_ns > 0 and shortest > 0.1:
            break
    assert 2 <= curve.least_rows <= 4 and 17 <= curve.most_rows <= 19
    assert curve.others == replicas - 1
    assert curve.rested_ns >= curve.idle_ns > 0
    assert shortest > 0.1, "no run took nearly no time"
    for line in lines:
        assert (np.diff(line.ns) >= 0).all() and line(10) > 0.8e6, "a run of 10 rows sleeps for 1 ms"


def test_the_rate_of_a_study_is_that_of_its_baseline() -> None:
    """A deployment for which no other time is told is as fast as the baseline."""
    assert StudyRate(0.4, 4.0).rps(mean_ms=0.5) == pytest.approx(100)
    assert StudyRate(0.4).rps(mean_ms=0.5) == pytest.approx(800)
    assert StudyRate(0.4, 4.0, transport_ms=1.0).rps(mean_ms=0.5) == pytest.approx(80), "less, as clients see it"


class OnOneCore(Sleeping):
    """An engine that shares a core with others: a run takes as much longer for each of them that runs when it begins.

    running: engines that run
    """

    def __init__(self, running: list[object]) -> None:
        self._running = running

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        self._running.append(self)
        try:
            time.sleep(1e-4 * len(inputs["item"]) * (len(self._running) - 1))
            return super().run(inputs)
        finally:
            self._running.remove(self)


def test_a_run_beside_another_instance_group_takes_its_own_line() -> None:
    """A sleep is never too short, so that only times from below are compared."""
    requests = requests_of(np.random.default_rng(0).integers(8, 12, 60).tolist())
    running: list[object] = []
    opened: list[InstanceGroup] = []

    def opening(group: InstanceGroup) -> OnOneCore:
        opened.append(group)
        return OnOneCore(running)

    other = InstanceGroup("openvino", replicas=2)
    curve = measure_service_curve(opening, Placement(), requests, 0, beside=(other,))
    assert opened == [InstanceGroup(), other, other]
    assert curve.others == 2
    assert curve.alone(10) > 0.8e6
    assert curve.crowded(10) > 2.4e6, "both replicas of the other group run"
    assert not running, "nothing runs on"
    assert measure_service_curve(opening, Placement(), requests, 0).others == 0


def test_an_error_of_another_instance_group_is_raised() -> None:
    class Failing(Sleeping):
        runs = 0

        def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
            self.runs += 1
            if self.runs > 24:  # the warm-up has as many sizes at most
                raise MemoryError("other group")
            return super().run(inputs)

    requests = requests_of([2, 3, 4] * 20)
    with pytest.raises(MemoryError, match="other group"):
        measure_service_curve(
            lambda group: Failing() if group.engine == "openvino" else Sleeping(), Placement(), requests, 0,
            beside=(InstanceGroup("openvino"),),
        )  # fmt: skip


def test_runs_of_disturbed_blocks_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes take most of a core in two of five blocks."""
    taken, played, fitted = iter([0.0, 0.9, 0.02, 0.8, 0.0]), list[Any](), list[Runs]()
    play, fit = service_curves._play, ServiceCurve.fit

    class Monitor:
        def stop(self) -> SimpleNamespace:
            return SimpleNamespace(taken=next(taken))

    monkeypatch.setattr(service_curves, "InterferenceMonitor", Monitor)
    # However long a busy machine takes, every block is played, at the study's rate too.
    monkeypatch.setattr(service_curves, "_BLOCKS_SECONDS", 1e9)
    monkeypatch.setattr(service_curves, "_RESTED", 1e-9)
    monkeypatch.setattr(service_curves, "rested_requests", lambda share: 30)
    monkeypatch.setattr(service_curves, "_play", lambda *given: played.append(play(*given)) or played[-1])
    monkeypatch.setattr(ServiceCurve, "fit", lambda runs, rested: fitted.extend([runs, rested]) or fit(runs, rested))
    requests = requests_of(np.random.default_rng(0).integers(2, 20, 60).tolist())
    measure_service_curve(lambda group: Sleeping(), Placement(), requests, 0, StudyRate(0.4, 8.0), blocks=5)
    assert len(played) == 15, "in an open loop, with the replica busy, and at the study's rate"
    runs, rested = fitted
    calm = [3 * block + part for block in (0, 2, 4) for part in (0, 1)]
    np.testing.assert_array_equal(runs.ns, np.concatenate([played[number][1] for number in calm]))
    np.testing.assert_array_equal(rested.ns, np.concatenate([played[number][1] for number in (2, 8, 14)]))


def test_neighbours_are_joined_up_to_a_size() -> None:
    found = joined(requests_of([3, 4, 5, 6, 20, 1]), 10)
    assert [rows_of(request) for request in found] == [7, 5, 6, 20, 1]
    found = joined(requests_of([3, 4, 2, 6, 20, 1]), 10)
    assert [rows_of(request) for request in found] == [9, 6, 20, 1]


@pytest.mark.parametrize("seed", range(10))
def test_the_simulated_load_is_that_of_many_requests(seed: int) -> None:
    """Times of single requests vary by half; the mean of twelve alone would be off by 14% or more for a third of seeds.

    The closed form: a gamma distribution of shape 4 and scale 0.25 ms has a mean of 1 ms.
    """
    random = np.random.default_rng(seed)
    baseline = VirtualTarget(Placement(), lambda group, rows, idle_ns, busy: 1e6 * random.gamma(4.0, 0.25), 2)
    simulated = SimulatedLoad.of(baseline, requests_of([10] * 20), Load(Traffic(), 0.4, 95, None), seed)
    assert simulated.rate_rps == pytest.approx(400, rel=0.1)
