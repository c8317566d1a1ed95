"""Replays of arrivals whose latencies, machines and money are counted by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from planning.capacity import Objective
from planning.fleet import Deployment, MachineKind, Offer, Trajectory, cores_of, layouts_of, offers_of
from planning.replay import Arrivals, replay, windows
from spaces.techniques.placement import InstanceGroup, Placement, Route
from tests.planning_tests.fleets import deployment, offer

OBJECTIVE = Objective(15.0)


def arrivals(seconds: list[float], end_s: float) -> Arrivals:
    count = len(seconds)
    return Arrivals(np.array(seconds), np.full(count, 100), np.ones(count), end_s)


def test_requests_are_dealt_in_turn_to_the_machines_that_serve() -> None:
    """Runs take 10 ms. Four at once: one machine answers after 10, 20, 30 and 40 ms, two after 10, 10, 20 and 20."""
    trajectory = Trajectory(np.array([0.0, 5.0]), np.array([0, 0]), np.array([1, 2]))
    offers = [offer(price=3600.0, loss=0.01)]
    found = replay(offers, trajectory, arrivals([1.0] * 4 + [6.0] * 4, 10.0), 5.0, OBJECTIVE, 0)
    assert [phase.late for phase in found.phases] == [0.75, 0.5]
    assert [phase.p95_ms for phase in found.phases] == pytest.approx([40, 20])
    assert [phase.machines for phase in found.phases] == [1, 2]
    assert (found.late, found.refused, found.phases_missed) == (0.625, 0.0, 1.0)
    assert found.loss == 0.01
    # 5 s of one, 5 s of two, and the start of the second: 2 s to load its model.
    assert (found.machine_seconds, found.money, found.starts) == (pytest.approx(17), pytest.approx(17), 1)


def test_a_variant_that_takes_over_starts_anew_and_loses_what_it_loses() -> None:
    offers = [offer(price=36.0, loss=-0.01, replicas=2), offer(price=72.0, loss=0.02, ms=1.0, start_s=3.0)]
    trajectory = Trajectory(np.array([0.0, 6.0]), np.array([0, 1]), np.array([2, 1]))
    found = replay(offers, trajectory, arrivals([1.0, 7.0, 7.5, 8.0], 10.0), 2.0, OBJECTIVE, 0)
    assert found.loss == pytest.approx(0.015), "a gain counts as no loss"
    assert found.machine_seconds == pytest.approx(2 * 6 + 4 + 5)
    assert found.replica_seconds == pytest.approx(2 * 2 * 6 + 4 + 5)
    assert found.money == pytest.approx((12 * 36 + 9 * 72) / 3600)
    assert [phase.late for phase in found.phases] == [0, None, None, 0, 0]
    assert found.phases_missed == 0


def test_a_full_queue_refuses() -> None:
    """256 requests wait at a server's limit, and one runs."""
    found = replay([offer()], Trajectory(np.zeros(1), np.zeros(1, int), np.ones(1, int)), arrivals([1.0] * 300, 9.0),
                   9.0, OBJECTIVE, 0)  # fmt: skip
    assert found.refused == pytest.approx(43 / 300)


def test_windows_stand_for_their_phases() -> None:
    random = np.random.default_rng(0)
    counts = np.tile([100, 3000], 30)
    seconds = np.sort(10 * (np.repeat(np.arange(60), counts) + random.random(counts.sum())))
    rows = random.integers(1, 9, len(seconds))
    whole = windows(seconds, rows, 10.0, 600.0, 10**6, 0)
    assert whole.seconds is seconds and (whole.weights == 1).all()
    drawn = windows(seconds, rows, 10.0, 600.0, 9300, 0)
    assert len(drawn.seconds) == pytest.approx(9300, rel=0.1)
    by_phase = np.bincount((drawn.seconds / 10).astype(int), drawn.weights)
    assert by_phase == pytest.approx(counts)
    for phase in range(60):
        inside = drawn.seconds[(drawn.seconds >= 10 * phase) & (drawn.seconds < 10 * phase + 10)]
        assert np.ptp(inside) <= 1.0, "a window is a tenth of its phase"


def test_every_request_of_a_trace_is_stood_for() -> None:
    """Phases of one to three requests, of which a window of a quarter has often none."""
    random = np.random.default_rng(0)
    counts = random.integers(0, 4, 400)
    seconds = np.sort(10 * (np.repeat(np.arange(400), counts) + random.random(counts.sum())))
    drawn = windows(seconds, np.ones(len(seconds), np.int64), 10.0, 4000.0, len(seconds) // 4, 0)
    assert len(drawn.seconds) < len(seconds)
    assert np.bincount((drawn.seconds / 10).astype(int), drawn.weights, len(counts)) == pytest.approx(counts)


def test_offers_are_the_deployments_that_a_machine_has_room_for() -> None:
    two, four = deployment(replicas=2), deployment(replicas=4, trial=1)
    heavy = Deployment(2, "heavy", two.placement, two.curves, 2, 0.0, 1.0, memory_bytes=3 * 10**9)
    kinds = [MachineKind("a", 4), MachineKind("b", 9, memory_bytes=7 * 10**9), MachineKind("c", 1)]
    found = {(each.deployment.trial, each.kind.name): each.copies for each in offers_of([two, four, heavy], kinds)}
    assert found == {(0, "a"): 2, (0, "b"): 4, (1, "a"): 1, (1, "b"): 2, (2, "a"): 2, (2, "b"): 1}
    routed = Placement(InstanceGroup(replicas=2, threads=1), route=Route(100, InstanceGroup("openvino", threads=None)))
    assert cores_of(routed, automatic=4) == 6


def test_engines_that_choose_their_threads_and_pinned_replicas_have_a_machine_to_themselves() -> None:
    """In one process, pinned replicas may be as many as the cores; in several they would all take the first cores."""
    automatic = replace(deployment(), placement=Placement(InstanceGroup(threads=None)), cores=2)
    pinned = replace(deployment(trial=1), placement=Placement(InstanceGroup(threads=1, pinned=True)))
    small, large = MachineKind("small", 2), MachineKind("large", 8)
    offers = offers_of([automatic, pinned], [small, large])
    assert [(each.deployment.cores, each.copies) for each in offers] == [(2, 1), (8, 1), (1, 1), (1, 1)]
    routed = Placement(InstanceGroup(threads=None), route=Route(100, InstanceGroup(threads=2)))
    (offer,) = offers_of([replace(automatic, placement=routed, cores=4)], [large])
    assert (offer.deployment.cores, offer.copies) == (8, 1), "both groups share the cores"
    most = [max(layout.replicas for layout in layouts_of(each)) for each in offers]
    assert most == [1, 1, 2, 8]


@pytest.mark.parametrize("gigabytes", [1, 2, 3, 5, 8, 13, 21, 100, None])
def test_what_a_machine_runs_leaves_memory_for_a_swap(gigabytes: int | None) -> None:
    """Two processes take 1 and 3 GB; all pairs of layouts that may take each other's place are tried."""
    memory, two = None if gigabytes is None else gigabytes * 10**9, deployment(replicas=2)
    light, heavy = (replace(two, trial=gb, memory_bytes=gb * 10**9) for gb in (1, 3))
    offers = offers_of([light, heavy], [MachineKind("a", 12, memory_bytes=memory)])
    assert [each.deployment.trial for each in offers] == [
        gb for gb in (1, 3) if memory is None or memory >= 2 * gb * 10**9
    ]
    layouts = [layout for offer in offers for layout in layouts_of(offer)]

    def taken(one: Offer, processes: float) -> float:
        return processes * (one.deployment.memory_bytes or 0)

    if memory is None:
        assert {each.copies for each in offers} == {6} and {each.replicas for each in layouts} >= {1, 12}
        return
    for each in offers:
        assert taken(each, each.copies + 1) <= memory
        assert each.copies == 6 or taken(each, each.copies + 2) > memory, "one more would fit"
    for one, other in itertools.product(layouts, repeat=2):
        assert taken(one, one.replicas / 2) + taken(other, other.replicas / 2) <= memory


@pytest.mark.parametrize("wrong", [{"cores": 0}, {"speed": -1.0}, {"price_per_hour": float("nan")}, {"most": 0},
                                   {"start_seconds": -1.0}])  # fmt: skip
def test_wrong_machines_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MachineKind("a", **{"cores": 1, **wrong})  # type: ignore[arg-type]
