"""Groups of candidates that are benchmarked together, so that they share the time of one baseline."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from objectives.jobs.requests import BenchmarkResponse, GroupBenchmarkRequest, GroupBenchmarkResponse
from search.explore.running_trial import RunningTrial
from search.explore.screening import Screening
from search.study import Study
from search.workers.meter_jobs import MeterJobs, Side, ratio_noise
from search.workers.processes import Done

# Deployments that are open together beside the baseline: the more, the less time the baseline takes, the farther apart
# are the blocks that are compared, and the later the search learns from them. Models together hold at most so many
# bytes.
TOGETHER = 4
_BYTES = 2 << 30
# Most candidates that wait for a benchmark before no other is begun.
MOST_WAITING = 2 * TOGETHER
# A group is complete with so many, and with the most once benchmarks have taken this share of the search's time, in
# between in proportion; from that share on it waits. The rest of the time is for other candidates, some of which
# dominate those that wait.
_FEWEST, _MOST_SHARE = 2, 0.5
T = TypeVar("T")


class BenchmarkQueue:
    """Trials that wait for their benchmark, in one call of a search."""

    def __init__(self, jobs: MeterJobs, study: Study, screening: Screening) -> None:
        self._jobs, self._study, self._screening = jobs, study, screening
        self._group: list[RunningTrial] = []
        self._halves: list[list[RunningTrial]] = []
        self._seconds = 0.0

    def take(
        self, waiting: Sequence[RunningTrial], now: bool, elapsed: float, left: float = math.inf
    ) -> list[RunningTrial]:
        """Return the group to benchmark next, or an empty one.

        Args:
            now: whether it does not wait for more trials, as the first, with the baseline, does
            elapsed: seconds of the search: the less of them benchmarks have taken, the sooner a group is complete
            left: seconds that are left for it, which decide how many trials are taken, rounded up, and one at least; a
                half of a group that failed is taken as a whole
        """
        while self._halves:
            # Some of a half may have ended since, for what the other half has shown.
            if group := [one for one in self._halves.pop() if any(one is other for other in waiting)]:
                return group
        share = self._seconds / max(elapsed, 1e-3) / _MOST_SHARE
        begun = bool(self._study.measured())
        complete = begun and share <= 1 and len(waiting) >= max(_FEWEST, TOGETHER * share)
        if not waiting or not (now or complete):
            return []
        most = max(1, math.ceil(min(TOGETHER, left / max(self.expected_seconds(1), 1e-3))))
        group = self._screening.by_promise(waiting)[:most]
        return next(fitting(group, [side(one) for one in group]))

    def expected_seconds(self, waiting: int) -> float:
        """Return the seconds that the next group will take, by the benchmarks so far."""
        measured = [trial.outcome.seconds.get("time", 0.0) for trial in self._study.measured_trials()]
        return min(waiting, TOGETHER) * sum(measured) / max(len(measured), 1)

    def request(self, group: list[RunningTrial]) -> GroupBenchmarkRequest:
        """Return the request for a group; `end` takes its response."""
        self._group = group
        timings = [(m.latency, m.throughput) for m in self._study.measured().values()]
        jobs = replace(self._jobs, noise=ratio_noise(timings))
        recordings = [self._jobs.recording(f"trial-{running.number}") for running in group]
        return jobs.time_group([side(one) for one in group], jobs.config.seed + group[0].number, recordings)

    def begin_again(self, done: Done) -> None:
        """Take the group as it is next, since its benchmark was killed."""
        self._seconds += done.seconds
        self._halves.append(self._group)

    def end(self, done: Done) -> Iterator[tuple[RunningTrial, BenchmarkResponse | str]]:
        """Yield the numbers of each trial that was measured, or the reason why it has none.

        Where a group of several failed, yield nothing: its halves are tried next.
        """
        group = self._group
        self._seconds += done.seconds
        if isinstance(done.result, GroupBenchmarkResponse):
            for running, found, failure in zip(group, done.result.benchmarks, done.result.failures, strict=True):
                yield running, failure or "no numbers" if found is None else found
        elif len(group) == 1:
            yield group[0], done.error or "no numbers"
        else:
            middle = len(group) // 2
            self._halves += [group[middle:], group[:middle]]


def side(running: RunningTrial) -> Side:
    """Return a built trial's model file and candidate."""
    assert running.artifact is not None
    return running.artifact, running.candidate


def fitting(points: Sequence[T], sides: Sequence[Side]) -> Iterator[list[T]]:
    """Yield the points in groups whose models, of the sides in the same order, fit into memory together."""
    group: list[T] = []
    held = 0
    for point, (artifact, _) in zip(points, sides, strict=True):
        if group and held + artifact.model_bytes > _BYTES:
            yield group
            group, held = [], 0
        group.append(point)
        held += artifact.model_bytes
    if group:
        yield group
