"""Pace of the machine during a measurement: how long a request to the baseline's model takes on one thread."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence

import numpy as np

from objectives.measurement.load_generator import Request, typical_requests
from objectives.measurement.load_target import LoadTarget
from objectives.measurement.statistics import Floats

# Limits of the number of requests of a look, and the time that they are to take.
_FEWEST, _MOST, _LOOK_SECONDS = 4, 12, 0.03
_LOOKS = 3
# Times that a target answers a look's requests, each from idle.
_ROUNDS = 8


def mean_service_ms(target: LoadTarget, requests: Sequence[Request], count: int = _ROUNDS) -> float:
    """Return the trimmed mean of the milliseconds of a request, one at a time, over so many rounds, each from idle.

    Two threads may run on one core for a while or not, so that rounds of one target differ by half. The shortest and
    the longest time of each request are left out, since a single stall of the machine would count in all blocks.
    """
    rounds, chosen = list[Floats](), _requests_of_a_look(target, requests)
    for _ in range(count):
        target.settle()
        rounds.append(target.closed_loop(chosen))
    return float(np.sort(rounds, axis=0)[1:-1].mean())


def _requests_of_a_look(target: LoadTarget, requests: Sequence[Request]) -> list[Request]:
    """Return typical requests: as many as take a target 30 ms, but 4 to 12."""
    mean_ms = float(target.closed_loop(typical_requests(requests, _FEWEST)).mean())
    return typical_requests(requests, min(max(int(1e3 * _LOOK_SECONDS / mean_ms), _FEWEST), _MOST))


class ServiceTimer:
    """Timer of a deployment's current service time, one request at a time.

    A machine's speed may change by half within minutes. At a fixed rate the queue in its slow phases would dominate a
    window's p95, and a rate found in a fast phase could not be compared with one of a slow phase.

    The number of its requests is settled by a first look.
    """

    def __init__(self, target: LoadTarget, requests: Sequence[Request]) -> None:
        self._target, self._requests = target, _requests_of_a_look(target, requests)
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


class Slowness:
    """Slowness of the machine since this was made: how many times as long a request takes the pace target.

    That target is not compared itself, so every block finds that another deployment ran before it, and no deployment is
    favoured. With the baseline's own pace, a baseline whose block came next had just run: of two equal deployments
    the other one's p95 was 7% higher.
    """

    def __init__(self, pace_target: LoadTarget, requests: Sequence[Request]) -> None:
        pace_target.settle()
        self._target, self._timer = pace_target, ServiceTimer(pace_target, requests)
        self._first_ms = self._timer()

    def __call__(self) -> float:
        self._target.settle()
        return self._timer() / self._first_ms
