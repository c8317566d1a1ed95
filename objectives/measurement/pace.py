"""Pace of the machine during a measurement, and the time of a request to the baseline relative to it."""

from __future__ import annotations

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
# Limits of the number of rounds in which a target answers a look's requests, and the time that its answers may take.
_FEWEST_ROUNDS, _MOST_ROUNDS, _ROUNDS_SECONDS = 4, 16, 1.5
# Requests that take longer wake a deployment with one of them; the limit itself was not measured. A DCN-V2 on two
# threads took 4 times as long as later for the first of 20 rows, 1.6 times for the second, and as long as later for the
# seventh; 1.5 and 1.1 times for the first and second of 200 rows, which take 1.4 ms.
_AWAKE_MS = 5.0


def service_and_pace_ms(
    target: LoadTarget, requests: Sequence[Request], pace: Callable[[], float], most: int = _MOST_ROUNDS
) -> tuple[float, float]:
    """Return the trimmed mean of the milliseconds of a request, one at a time, and the median pace meanwhile.

    Two threads may run on one core for a while, so that looks at one target differ by half. Rounds are repeated until
    the target's answers have taken 1.5 s. Each begins idle; requests that do not count wake the target, since under
    load it is awake; those that count and a look at the pace follow. The smallest and the largest time of each request
    are left out, since a single stall of the machine would count in all blocks.

    Args:
        pace: measures the machine's pace
        most: rounds at most, 4 or more
    """
    chosen, median_ms = _requests_of_a_look(target, requests)
    waking = chosen if median_ms < _AWAKE_MS else chosen[:1]
    rounds, paces, taken_ms = list[Floats](), list[float](), 0.0
    while len(rounds) < _FEWEST_ROUNDS or (len(rounds) < most and taken_ms < 1e3 * _ROUNDS_SECONDS):
        target.settle()
        taken_ms += float(target.closed_loop(waking).sum())
        rounds.append(target.closed_loop(chosen))
        taken_ms += float(rounds[-1].sum())
        paces.append(pace())
    return float(np.sort(rounds, axis=0)[1:-1].mean()), statistics.median(paces)


def _requests_of_a_look(target: LoadTarget, requests: Sequence[Request]) -> tuple[list[Request], float]:
    """Return typical requests, as many as take a target 30 ms, but 4 to 12, and the median milliseconds of one.

    The median is that of four requests, so that a stall in one of them does not settle the number.
    """
    target.settle()
    median_ms = float(np.median(target.closed_loop(typical_requests(requests, _FEWEST))))
    count = min(max(int(1e3 * _LOOK_SECONDS / median_ms), _FEWEST), _MOST)
    return typical_requests(requests, count), median_ms


class PaceTimer:
    """Timer of the machine's pace: the milliseconds of a request to a deployment on one thread, one at a time.

    A machine's speed may change by half within minutes. At a fixed rate the queue in its slow phases would dominate a
    window's p95, and a rate found in a fast phase could not be compared with one of a slow phase.

    The deployment is not compared itself, so every block finds that another deployment ran before it, and no deployment
    is favoured. With the baseline's own pace, a baseline whose block came next had just run: of two equal deployments
    the other one's p95 was 7% higher.

    The number of its requests is settled by a first look.
    """

    def __init__(self, target: LoadTarget, requests: Sequence[Request]) -> None:
        self._target, (self._requests, _) = target, _requests_of_a_look(target, requests)
        self._recent: deque[float] = deque(maxlen=_LOOKS)
        self.restart()

    def restart(self) -> None:
        """Measure all that the next median is of anew."""
        self._recent.extend(self._look_ms() for _ in range(_LOOKS))

    def __call__(self) -> float:
        """Return the mean milliseconds of a request: the median of this look and the two before."""
        self._recent.append(self._look_ms())
        return statistics.median(self._recent)

    def _look_ms(self) -> float:
        """Return the mean of one look, from idle like every other: an awake deployment answers sooner."""
        self._target.settle()
        return float(self._target.closed_loop(self._requests).mean())
