"""A deployment as the load generator drives it: on the real clock here, on a simulated one in tests."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from objectives.measurement.interference import cpu_seconds_of
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
    """Target of a measurement: answers requests under a schedule, one by one, or at its maximum rate.

    All times are milliseconds, and infinite where a request was refused. One call runs at a time.
    """

    @property
    def served_together(self) -> int:
        """Number of requests that are served at the same time, at least."""

    def open_loop(self, requests: Sequence[Request], gaps_ns: NDArray[np.int64]) -> Arrivals:
        """Submit each request at its scheduled time, from idle; (n,) gaps before each."""

    def closed_loop(self, requests: Sequence[Request]) -> Floats:
        """Return the milliseconds of each request, (n,), one at a time."""

    def saturated(self, requests: Sequence[Request], seconds: float, together: int) -> float:
        """Return the requests per second while more requests are always waiting than are being served.

        The number of requests that count is a multiple of `together`, where they are answered one by one.
        """

    def settle(self) -> None:
        """Return when the deployment is idle and occupies no core."""


@dataclass(frozen=True)
class LiveTarget:
    """A running pool, or a server in front of one, driven by its `submit`.

    served_together: as in `LoadTarget`
    outstanding: requests in flight that keep every replica busy, with full batches where it batches
    one_by_one: whether answers come one by one: of one replica, which does not batch
    first: answers that are left out before a saturated rate is measured, as in `load_generator.saturated`
    in_turn: replicas that take requests in their order, as in `load_generator.open_loop`
    children: ids of the processes of all servers that are open, this one's among them; none of a pool in this process
    next_part: called before the wait for idle, with which each part of a measurement begins
    """

    submit: Submit
    served_together: int
    outstanding: int
    one_by_one: bool = False
    first: int = 1
    in_turn: int | None = None
    children: tuple[int, ...] = ()
    next_part: Callable[[], None] = lambda: None

    def open_loop(self, requests: Sequence[Request], gaps_ns: NDArray[np.int64]) -> Arrivals:
        return open_loop(self.submit, requests, gaps_ns, spin_ns(self._prime(requests)), self.in_turn)

    def closed_loop(self, requests: Sequence[Request]) -> Floats:
        return closed_loop(self.submit, requests)

    def saturated(self, requests: Sequence[Request], seconds: float, together: int) -> float:
        together = together if self.one_by_one else 1
        return saturated(self.submit, requests, self.outstanding, seconds, together, self.first)

    def settle(self) -> None:
        self.next_part()
        settle(cpu_seconds=self._cpu_seconds)

    def _cpu_seconds(self) -> float:
        """CPU time of all but this thread, which only waits and looks."""
        return time.process_time() - time.thread_time() + cpu_seconds_of(self.children)

    def _prime(self, requests: Sequence[Request]) -> float:
        """Return the mean milliseconds of the uncounted requests, one at a time, from the last one backwards."""
        taken: list[float] = []
        end = time.perf_counter() + _PRIMED_SECONDS
        while time.perf_counter() < end or not taken:
            taken.extend(closed_loop(self.submit, [requests[-1 - len(taken) % len(requests)]]).tolist())
        return statistics.fmean(taken)
