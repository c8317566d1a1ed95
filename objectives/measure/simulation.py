"""Simulation of a placement: its service curve is measured, in one short open loop and in one with every replica busy,
and the load generator drives the placement on a virtual clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from objectives.arrays import Arrays
from objectives.measure.deployment import load_target, warm_up
from objectives.measurement.arrivals import Traffic, gaps
from objectives.measurement.load_generator import Arrivals, Request, drawn_requests
from objectives.measurement.load_target import LiveTarget
from objectives.measurement.service_curve import Runs, ServiceCurve
from objectives.measurement.statistics import Floats
from objectives.records import rows_of
from objectives.serving.pool import Pool
from objectives.serving.pool.virtual_clock import simulate
from objectives.serving.split_engine import Engine
from spaces.techniques.placement import EmbeddingDevice, InstanceGroup, Placement

# Requests of the open loop, and for each replica when all are busy.
_OPEN_REQUESTS = 200
_BUSY_REQUESTS = 60
# Utilisation of the open loop, at which some runs find a replica idle and others do not.
_SHARE = 0.5
# Requests of the first try to saturate a placement for as long as is asked.
_SATURATING = 256
_MOST_SATURATING = 1 << 14


class Observed:
    """An engine that notes which requests it ran, and when each run began and ended.

    runs: (id of the request, nanoseconds) of the start and of the end
    """

    def __init__(self, engine: Engine) -> None:
        self._engine, self.once = engine, engine.once
        self.runs: list[tuple[int, int, int]] = []

    def run(self, inputs: Arrays) -> NDArray[np.float32]:
        start = time.perf_counter_ns()
        scores = self._engine.run(inputs)
        self.runs.append((id(inputs), start, time.perf_counter_ns()))
        return scores


def measure_service_curve(
    open_engine: Callable[[InstanceGroup], Engine],
    instance_group: InstanceGroup,
    requests: Sequence[Request],
    seed: int,
    inline: bool = False,
    embedding_device: EmbeddingDevice | None = None,
    user_once: bool = False,
) -> ServiceCurve:
    """Measure an instance group by itself, where requests are neither batched, split nor refused.

    Args:
        requests: of the sizes that will be simulated, batches included
    """
    placement = Placement(instance_group, inline=inline, embedding_device=embedding_device, user_once=user_once)
    engines: list[Observed] = []

    def observed(group: InstanceGroup) -> Engine:
        engines.append(Observed(open_engine(group)))
        return engines[-1]

    with Pool(placement, observed) as pool:
        warm_up(pool.submit, requests, placement)
        target = load_target(pool, placement, requests)
        target.settle()
        some = drawn_requests(requests, _OPEN_REQUESTS, seed)
        mean_ms = float(target.closed_loop(some[:20]).mean())
        rate = _SHARE * 1000 * instance_group.replicas / mean_ms
        apart = gaps(Traffic(), rate, len(some), seed)
        together = np.ones(_BUSY_REQUESTS * instance_group.replicas, dtype=np.int64)
        parts = [
            _play(target, engines, some, apart),
            _play(target, engines, drawn_requests(requests, len(together), seed, 1), together),
        ]
    return ServiceCurve.fit(Runs(*(np.concatenate(column) for column in zip(*parts, strict=True))))


Columns = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]


def _play(
    target: LiveTarget, engines: Sequence[Observed], requests: Sequence[Request], gaps_ns: NDArray[np.int64]
) -> Columns:
    """Play a schedule, and return the columns of `Runs`."""
    own = [dict(request) for request in requests]  # so that each has an identity
    place = {id(request): number for number, request in enumerate(own)}
    for engine in engines:
        engine.runs.clear()
    played = target.open_loop(own, gaps_ns)
    due_ns = played.start_ns + np.cumsum(gaps_ns)
    finished_ns = due_ns + np.rint(played.latency_ms * 1e6).astype(np.int64)
    ns, idle, busy = np.zeros(len(own), np.int64), np.zeros(len(own), np.bool_), np.zeros(len(own), np.int64)
    # The target also runs some of the requests before the schedule begins.
    runs = [
        [(place[key], start, end) for key, start, end in engine.runs if start >= played.start_ns] for engine in engines
    ]
    for own_runs in runs:
        before_ns = 0
        for number, start, _ in own_runs:
            idle[number] = due_ns[number] >= before_ns
            ns[number] = finished_ns[number] - (due_ns[number] if idle[number] else before_ns)
            before_ns = finished_ns[number]
            busy[number] = sum(
                any(begun <= start < ended for _, begun, ended in others) for others in runs if others is not own_runs
            )
    return np.array([rows_of(request) for request in own]), ns, idle, busy


def joined(requests: Sequence[Request], most_rows: int) -> list[Request]:
    """Join neighbouring requests to batches of at most so many rows, for the sizes that a batching placement runs."""
    found: list[Request] = []
    for request in requests:
        if found and rows_of(found[-1]) + rows_of(request) <= most_rows:
            found[-1] = {name: np.concatenate([found[-1][name], values]) for name, values in request.items()}
        else:
            found.append(request)
    return found


@dataclass(frozen=True)
class VirtualTarget:
    """A placement whose runs take the times that its groups' service curves give.

    Args:
        services: for each instance group, the nanoseconds of a run by rows, whether the replica was idle, and the
            number of other replicas that are busy
        outstanding: requests in flight that keep every replica busy
    """

    placement: Placement
    services: Sequence[Callable[[int, bool, int], float]]
    outstanding: int

    @property
    def replicas(self) -> int:
        return self.placement.replicas

    def open_loop(self, requests: Sequence[Request], gaps_ns: NDArray[np.int64]) -> Arrivals:
        due_ns = np.cumsum(gaps_ns)
        found = simulate(self.placement, _sizes(requests), due_ns.tolist(), self._service)
        latency_ms = np.where(found.refused, np.inf, (found.finished_ns - due_ns) / 1e6)
        return Arrivals(latency_ms, np.zeros(len(due_ns)), 1.0)

    def closed_loop(self, requests: Sequence[Request]) -> Floats:
        found = simulate(self.placement, _sizes(requests), [0] * len(requests), self._service, outstanding=1)
        latency_ms = (found.finished_ns - found.submitted_ns) / 1e6
        return np.where(found.refused, np.inf, latency_ms)

    def saturated(self, requests: Sequence[Request], seconds: float) -> float:
        sizes, count = _sizes(requests), _SATURATING
        while True:
            rows = [sizes[i % len(sizes)] for i in range(count)]
            found = simulate(self.placement, rows, [0] * count, self._service, self.outstanding)
            took = found.finished_ns.max() / 1e9
            if took >= seconds or count >= _MOST_SATURATING:
                return float((~found.refused).sum() / took)
            count *= 2

    def settle(self) -> None:
        """Return at once: nothing runs on in virtual time."""

    def _service(self, group: int, rows: int, idle: bool, busy: int) -> float:
        return self.services[group](rows, idle, busy)


def _sizes(requests: Sequence[Request]) -> list[int]:
    return [rows_of(request) for request in requests]
