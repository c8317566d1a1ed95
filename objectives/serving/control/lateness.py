"""Count of late requests: answered after the SLO, refused, or still running once it has passed."""

from __future__ import annotations

import math


class Lateness:
    """Requests of the model that serves, of which the controller learns whether its capacity is as believed.

    A request that hangs counts as late when its time has passed, not when it ends. Those of a model that was replaced,
    and those that failed, do not count.

    slo_ms: milliseconds after which an answer is late
    """

    def __init__(self) -> None:
        self.slo_ms = math.inf
        self._ended = self._late = self._began = 0
        # Start of each, in nanoseconds.
        self._running: dict[int, float] = {}

    def began(self, now_ns: float) -> int:
        """Return the number of a request that is given to the model."""
        self._began += 1
        self._running[self._began] = now_ns
        return self._began

    def answered(self, request: int, now_ns: float) -> None:
        start_ns = self._running.pop(request, None)
        if start_ns is not None:
            self._ended += 1
            self._late += self._is_late(start_ns, now_ns)

    def refused(self, request: int | None = None) -> None:
        """Count a refusal; None for a request that had not begun."""
        if request is None or self._running.pop(request, None) is not None:
            self._ended += 1
            self._late += 1

    def failed(self, request: int) -> None:
        self._running.pop(request, None)

    def model_replaced(self) -> None:
        self._running.clear()

    def counts(self, now_ns: float) -> tuple[int, int]:
        """Return the requests so far that ended or are overdue, and the late ones among them."""
        overdue = [number for number, start_ns in self._running.items() if self._is_late(start_ns, now_ns)]
        for number in overdue:
            self.refused(number)
        return self._ended, self._late

    def _is_late(self, start_ns: float, now_ns: float) -> bool:
        return (now_ns - start_ns) / 1e6 > self.slo_ms
