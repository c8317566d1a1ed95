"""Deployments whose answers are computed, on a clock that costs nothing: the oracle of queueing measurements."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.measurement.interference import Interference
from objectives.measurement.load_generator import Arrivals

Floats = NDArray[np.float64]
QUIET = Interference(wall=1.0, cpu=0.5, waiting=0.0, foreign=0.0, idle=1.5, stolen=0.0, switches=0.0)


class QuietMonitor:
    """A machine that does nothing else."""

    def stop(self) -> Interference:
        return QUIET


@dataclass
class SimulatedTarget:
    """Replicas that take requests in their order, each as soon as it is free.

    service_ms: of requests, drawn anew at each call
    """

    service_ms: Callable[[Sequence[Mapping[str, Any]]], Floats]
    served_together: int = 1
    calls: list[str] = field(default_factory=list)

    def open_loop(self, requests: Sequence[Mapping[str, Any]], gaps_ns: NDArray[np.int64]) -> Arrivals:
        self.calls.append("open_loop")
        arrivals = np.cumsum(gaps_ns) / 1e6
        service = self.service_ms(requests)
        replicas = self.served_together
        latency = _one_by_one(arrivals, service) if replicas == 1 else _several(arrivals, service, replicas)
        return Arrivals(latency, np.zeros(len(arrivals)), 1.0)

    def closed_loop(self, requests: Sequence[Mapping[str, Any]]) -> Floats:
        self.calls.append("closed_loop")
        return self.service_ms(requests)

    def saturated(self, requests: Sequence[Mapping[str, Any]], seconds: float, together: int) -> float:
        self.calls.append("saturated")
        count = 5000
        chosen = [requests[i % len(requests)] for i in range(count)]
        return float(1000 * self.served_together / self.service_ms(chosen).mean())

    def settle(self) -> None:
        self.calls.append("settle")


def steady() -> SimulatedTarget:
    """Return a reference of a machine that keeps its speed."""
    return SimulatedTarget(lambda requests: np.ones(len(requests)))


def _one_by_one(arrivals: Floats, service: Floats) -> Floats:
    """Lindley's recursion as a running maximum."""
    done = np.cumsum(service)
    latency: Floats = done + np.maximum.accumulate(arrivals - (done - service)) - arrivals
    return latency


def _several(arrivals: Floats, service: Floats, replicas: int) -> Floats:
    """Kiefer and Wolfowitz: the replica that is free first takes the next request."""
    free, latency = [0.0] * replicas, np.empty(len(arrivals))
    for i, (at, takes) in enumerate(zip(arrivals, service, strict=True)):
        ends = max(at, free[0]) + takes
        heapq.heapreplace(free, ends)
        latency[i] = ends - at
    return latency


def requests_of(rows: Sequence[int]) -> list[dict[str, Any]]:
    """Requests that hold nothing but so many rows each."""
    return [{"item": np.zeros(count, dtype=np.int64)} for count in rows]
