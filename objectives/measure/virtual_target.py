"""A placement as the load generator drives it, on a virtual clock: its latency and rates are simulated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from objectives.measurement.load_generator import Arrivals, Request
from objectives.measurement.statistics import Floats
from objectives.records import rows_of
from objectives.serving.pool.virtual_clock import simulate
from spaces.techniques.placement import Placement

# Requests of the first try to saturate a placement for as long as is asked.
_SATURATING = 256
_MOST_SATURATING = 1 << 14


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
