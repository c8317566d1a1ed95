"""A deployment as the load generator drives it: on the real clock here, on a simulated one in tests."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from objectives.measurement.load_generator import (
    Arrivals,
    Request,
    Submit,
    closed_loop,
    open_loop,
    saturated,
    settle,
    spin_ns,
)
from objectives.measurement.statistics import Floats

# Before a schedule begins, the deployment answers one request after another for so long: by then its threads, caches
# and standing with the kernel's scheduler are those of a deployment at work, whatever ran before. With two requests
# instead, a baseline whose pace had just been taken had a median 7% above that of the same model that had not.
_PRIMED_SECONDS = 0.03


class LoadTarget(Protocol):
    """What is measured: it answers requests under a schedule, one by one, or as fast as it can.

    All times are milliseconds, and infinite where a request was refused. One call runs at a time.
    """

    @property
    def replicas(self) -> int:
        """How many requests are served at the same time."""
        ...

    def open_loop(self, requests: Sequence[Request], gaps_ns: NDArray[np.int64]) -> Arrivals:
        """Submit each request at its scheduled time, from idle; (n,) gaps before each."""
        ...

    def closed_loop(self, requests: Sequence[Request]) -> Floats:
        """(n,) milliseconds of one request at a time."""
        ...

    def saturated(self, requests: Sequence[Request], seconds: float) -> float:
        """Requests per second while more are always waiting than are served."""
        ...

    def settle(self) -> None:
        """Return when it is idle and holds no core."""
        ...


@dataclass(frozen=True)
class LiveTarget:
    """A running pool, known by its `submit`.

    Args:
        outstanding: requests that keep every replica busy, and full where it batches
        in_turn: replicas that take requests in their order, as `traffic.open_loop` takes it
    """

    submit: Submit
    replicas: int
    outstanding: int
    in_turn: int | None = None

    def open_loop(self, requests: Sequence[Request], gaps_ns: NDArray[np.int64]) -> Arrivals:
        return open_loop(self.submit, requests, gaps_ns, spin_ns(self._prime(requests)), self.in_turn)

    def closed_loop(self, requests: Sequence[Request]) -> Floats:
        return closed_loop(self.submit, requests)

    def saturated(self, requests: Sequence[Request], seconds: float) -> float:
        return saturated(self.submit, requests, self.outstanding, seconds)

    def settle(self) -> None:
        settle()

    def _prime(self, requests: Sequence[Request]) -> float:
        """Return the mean milliseconds of the uncounted requests, one at a time, from the last one backwards."""
        taken: list[float] = []
        end = time.perf_counter() + _PRIMED_SECONDS
        while time.perf_counter() < end or not taken:
            taken.extend(closed_loop(self.submit, [requests[-1 - len(taken) % len(requests)]]).tolist())
        return statistics.fmean(taken)
