"""Pace of the machine during a measurement, from the service times of the deployments themselves."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence

from objectives.measurement.load_generator import Request, typical_requests
from objectives.measurement.load_target import LoadTarget

# Limits of the number of requests of a look, and the time that they are to take.
_FEWEST, _MOST, _LOOK_SECONDS = 4, 12, 0.03
_LOOKS = 3
# Ratio of the machine's current service time to that of a reference moment. The argument is the number of the target
# that runs next.
Slowness = Callable[[int], float]


class ServiceTimer:
    """Timer of a deployment's current service time, one request at a time.

    A machine's speed may change by half within minutes. At a fixed rate the queue in its slow phases would dominate a
    window's p95, and a rate found in a fast phase could not be compared with one of a slow phase.

    The number of its requests is settled by a first look.
    """

    def __init__(self, target: LoadTarget, requests: Sequence[Request]) -> None:
        self._target = target
        mean_ms = float(target.closed_loop(typical_requests(requests, _FEWEST)).mean())
        self._requests = typical_requests(requests, min(max(int(1e3 * _LOOK_SECONDS / mean_ms), _FEWEST), _MOST))
        self._recent: deque[float] = deque(maxlen=_LOOKS)
        self.restart()

    def restart(self) -> None:
        """Measure all that the next median is of anew."""
        self._recent.extend(self._service_ms() for _ in range(_LOOKS))

    def __call__(self) -> float:
        """Return the mean milliseconds of a request: the median of this measurement and the two before."""
        self._recent.append(self._service_ms())
        return statistics.median(self._recent)

    def _service_ms(self) -> float:
        return float(self._target.closed_loop(self._requests).mean())


class Pace:
    """Slowness of the machine since this was made, measured on all targets alike.

    The one that runs next is measured, after the one that follows it, so that whatever a deployment finds when its turn
    comes (caches, cores, its standing with the kernel's scheduler) the others find as often. With the baseline's pace
    alone, a baseline whose block came next had just run: of two equal deployments the other one's p95 was 7% higher.
    """

    def __init__(self, targets: Sequence[LoadTarget], requests: Sequence[Request]) -> None:
        self._targets, self._timers = targets, []
        for target in targets:
            target.settle()
            self._timers.append(ServiceTimer(target, requests))
        self.service_ms = tuple(timer() for timer in self._timers)
        self._recent = frozenset(range(len(targets)))

    def __call__(self, first: int) -> float:
        """Measure the slowness, the geometric mean over the target that runs next and the one that follows it.

        The slowness of a target that refuses requests is unknown, and the other one's is taken. Where both refuse, it
        is that of the last target, the baseline, or 1 where that is unknown too.
        """
        measured = ((first + 1) % len(self._targets), first)
        found = [self._slowness(which) for which in measured]
        self._recent = frozenset(measured)
        known = [slower for slower in found if slower is not None]
        if not known:
            known = [self._slowness(len(self._targets) - 1) or 1.0]
        return statistics.geometric_mean(known)

    def _slowness(self, which: int) -> float | None:
        """Return how many times as long a request takes this target as in the beginning, None if that is unknown."""
        self._targets[which].settle()
        if which not in self._recent:
            # Its last times are those of several turns ago.
            self._timers[which].restart()
        slower = self._timers[which]() / self.service_ms[which]
        return slower if math.isfinite(slower) and slower > 0 else None
