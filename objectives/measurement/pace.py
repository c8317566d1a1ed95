"""Pace of the machine during a measurement: how long a request to the baseline's model takes on one thread."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from objectives.measurement.load_generator import Request, typical_requests
from objectives.measurement.load_target import LoadTarget
from objectives.measurement.statistics import Floats

# Limits of the number of requests of a look, and the time that they are to take.
_FEWEST, _MOST, _LOOK_SECONDS = 4, 12, 0.03
_LOOKS = 3
# Limits of the number of rounds in which a target answers a look's requests, and the time that they may take.
_FEWEST_ROUNDS, _MOST_ROUNDS, _ROUNDS_SECONDS = 8, 16, 1.5
# Work after which a deployment that was idle is awake. On two threads the first request of 20 rows took 4 times as long
# as later ones, the second 1.6 times, and the seventh no longer; of 200 rows the first 1.5 times.
_AWAKE_MS = 5.0


def service_and_pace_ms(
    target: LoadTarget, requests: Sequence[Request], pace: Callable[[], float], most: int = _MOST_ROUNDS
) -> tuple[float, float]:
    """Return the mean milliseconds of a request to a target, one at a time, and the mean pace of the machine meanwhile.

    Two threads may run on one core for some tenths of a second, so that looks at one target differ by half: there are
    as many rounds as take it 1.5 s, but 8 to `most`. In each the target is idle at first, then answers some requests
    that do not count, as under load it is awake, and then those that do; then the pace is taken. The shortest and the
    longest time of each request, and look at the pace, are left out, since a single stall of the machine would count in
    all blocks.

    Args:
        pace: measures the machine's pace
    """
    mean_ms = float(target.closed_loop(typical_requests(requests, _FEWEST)).mean())
    chosen = _requests_of_a_look(requests, mean_ms)
    awake = chosen[: max(math.ceil(_AWAKE_MS / mean_ms), 1)]
    rounds, paces, taken_ms = list[Floats](), list[float](), 0.0
    while len(rounds) < min(_FEWEST_ROUNDS, most) or (len(rounds) < most and taken_ms < 1e3 * _ROUNDS_SECONDS):
        target.settle()
        target.closed_loop(awake)
        rounds.append(target.closed_loop(chosen))
        paces.append(pace())
        taken_ms += float(rounds[-1].sum())
    return _trimmed_mean(rounds), _trimmed_mean(paces)


def _trimmed_mean(values: Sequence[Floats] | Sequence[float]) -> float:
    """Return the mean of all but the smallest and the largest along the first axis."""
    return float(np.sort(values, axis=0)[1:-1].mean())


def _requests_of_a_look(requests: Sequence[Request], mean_ms: float) -> list[Request]:
    """Return typical requests: as many as take 30 ms, but 4 to 12."""
    return typical_requests(requests, min(max(int(1e3 * _LOOK_SECONDS / mean_ms), _FEWEST), _MOST))


class ServiceTimer:
    """Timer of a deployment's current service time, one request at a time.

    A machine's speed may change by half within minutes. At a fixed rate the queue in its slow phases would dominate a
    window's p95, and a rate found in a fast phase could not be compared with one of a slow phase.

    The number of its requests is settled by a first look.
    """

    def __init__(self, target: LoadTarget, requests: Sequence[Request]) -> None:
        first = target.closed_loop(typical_requests(requests, _FEWEST))
        self._target, self._requests = target, _requests_of_a_look(requests, float(first.mean()))
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
    """Pace of the machine: milliseconds of a request to the pace target, as `ServiceTimer` tells them.

    That target is not compared itself, so every block finds that another deployment ran before it, and no deployment is
    favoured. With the baseline's own pace, a baseline whose block came next had just run: of two equal deployments
    the other one's p95 was 7% higher.
    """

    def __init__(self, pace_target: LoadTarget, requests: Sequence[Request]) -> None:
        pace_target.settle()
        self._target, self._timer = pace_target, ServiceTimer(pace_target, requests)

    def __call__(self) -> float:
        """Return the pace of this moment, from idle."""
        self._target.settle()
        return self._timer()
