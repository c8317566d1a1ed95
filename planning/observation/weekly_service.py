"""Service by hour and weekday: latency, CPU time and queue of a server's samples, or of a request log."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planning.demand import Floats
from planning.hours_of_week import EPOCH_SECONDS, HOUR_SECONDS, HOURS, hour_of_week
from planning.observation.metrics_samples import MetricsSample, Work, is_same_process, work_between

# Time between samples that may reach into another hour and still counts for that of its middle.
_LONGEST_ACROSS_SECONDS = 300.0
# Most samples of a timeline; beyond twice as many, every second one is left out.
_TIMELINE = 2000


@dataclass(frozen=True)
class ServiceHour:
    """Service in one hour of the week over all weeks; a number that is not known is None.

    hours: hours, or parts of one, that are known of it
    answered: requests whose latency is known
    p95_ms: None too where it lies above the largest bucket of a server's histogram
    queue_mean, queue_max: of the samples, or of what the requests of a log met
    """

    weekday: int
    hour: int
    hours: float
    rate_rps: float | None
    answered: int
    mean_ms: float | None
    p95_ms: float | None
    cpu_cores: float | None
    queue_mean: float | None
    queue_max: float | None

    @property
    def number(self) -> int:
        """Number of the hour in the week."""
        return 24 * self.weekday + self.hour


@dataclass(frozen=True)
class Interval:
    """Work of a server between two samples, and what waited at the second; latency is as that of `Work`."""

    start_s: float
    seconds: float
    rate_rps: float
    refused_rps: float
    mean_ms: float | None
    p95_ms: float | None
    mean_rows: float | None
    cpu_cores: float
    queue: float
    in_flight: float


@dataclass(frozen=True)
class SampledService:
    """Service of a server as its samples tell it.

    start_s, end_s: seconds since the epoch of the first and the last sample
    restarts: times that the server was started again between samples
    unassigned_seconds: time between samples of one process that lie in different hours and far apart
    whole: all work between samples, with the mean of the queue and of the requests in flight
    intervals: from sample to sample, or, of more than some thousands, to a later one; `start_s` counts from the first
    """

    samples: int
    start_s: float
    end_s: float
    restarts: int
    unassigned_seconds: float
    whole: Interval
    queue_max: float
    in_flight_max: float
    intervals: tuple[Interval, ...]
    hours: tuple[ServiceHour, ...]


class ServiceSamples:
    """Summary of samples that are added one by one in the order of time, in memory that does not grow with them."""

    def __init__(self) -> None:
        self.samples = self.restarts = 0
        self._last: MetricsSample | None = None
        self._start_s = 0.0
        # By hour of the week; None holds what belongs to no hour.
        self._work: dict[int | None, Work] = {}
        self._queued, self._queue_sum, self._queue_max = (np.zeros(HOURS) for _ in range(3))
        self._in_flight_sum = self._in_flight_max = 0.0
        self._kept: list[MetricsSample] = []
        self._stride = 1

    def add(self, sample: MetricsSample) -> None:
        """Add the next sample."""
        if self._last is None:
            self._start_s = sample.at_s
        elif (work := work_between(self._last, sample)) is not None:
            hour = _hour_of_interval(self._last.at_s, sample.at_s)
            self._work[hour] = work if hour not in self._work else self._work[hour] + work
        elif not is_same_process(self._last, sample):
            self.restarts += 1
        hour = int((sample.at_s + EPOCH_SECONDS) // HOUR_SECONDS) % HOURS
        self._queued[hour] += 1
        self._queue_sum[hour] += sample.queue
        self._queue_max[hour] = max(self._queue_max[hour], sample.queue)
        self._in_flight_sum += sample.in_flight
        self._in_flight_max = max(self._in_flight_max, sample.in_flight)
        if self.samples % self._stride == 0:
            self._kept.append(sample)
            if len(self._kept) > 2 * _TIMELINE:
                del self._kept[1::2]
                self._stride *= 2
        self.samples += 1
        self._last = sample

    def summary(self) -> SampledService:
        """Summarise the samples so far.

        Raises:
            ValueError: no two of them, one after the other, are of one process.
        """
        if self._last is None or not self._work:
            raise ValueError(f"two samples or more of a server that runs on are needed, but got {self.samples}")
        first, *others = self._work.values()
        whole = sum(others, first)
        queue, in_flight = float(self._queue_sum.sum()) / self.samples, self._in_flight_sum / self.samples
        unassigned = self._work.get(None)
        return SampledService(
            samples=self.samples,
            start_s=self._start_s,
            end_s=self._last.at_s,
            restarts=self.restarts,
            unassigned_seconds=0.0 if unassigned is None else unassigned.seconds,
            whole=_interval(whole, 0.0, queue, in_flight),
            queue_max=float(self._queue_max.max()),
            in_flight_max=self._in_flight_max,
            intervals=tuple(self._intervals(self._last)),
            hours=tuple(self._hour(hour) for hour in range(HOURS) if self._queued[hour] or hour in self._work),
        )

    def _intervals(self, last: MetricsSample) -> list[Interval]:
        kept = self._kept if self._kept[-1] is last else [*self._kept, last]
        found = []
        for before, after in itertools.pairwise(kept):
            if (work := work_between(before, after)) is not None:
                found.append(_interval(work, before.at_s - self._start_s, after.queue, after.in_flight))
        return found

    def _hour(self, hour: int) -> ServiceHour:
        work, queued = self._work.get(hour), self._queued[hour]
        return ServiceHour(
            weekday=hour // 24,
            hour=hour % 24,
            hours=0.0 if work is None else work.seconds / HOUR_SECONDS,
            rate_rps=None if work is None else work.rate_rps,
            answered=0 if work is None else round(work.answered),
            mean_ms=None if work is None else work.mean_ms,
            p95_ms=None if work is None else work.p95_ms,
            cpu_cores=None if work is None else work.cpu_cores,
            queue_mean=float(self._queue_sum[hour] / queued) if queued else None,
            queue_max=float(self._queue_max[hour]) if queued else None,
        )


def _hour_of_interval(start_s: float, end_s: float) -> int | None:
    """Return the hour of the week that a time belongs to; None if it is long and reaches into another hour."""
    start, end = start_s + EPOCH_SECONDS, end_s + EPOCH_SECONDS
    # A time that ends where an hour begins is not in it.
    if start // HOUR_SECONDS == -(-end // HOUR_SECONDS) - 1 or end - start <= _LONGEST_ACROSS_SECONDS:
        return int((start + end) / 2 // HOUR_SECONDS) % HOURS
    return None


def _interval(work: Work, start_s: float, queue: float, in_flight: float) -> Interval:
    return Interval(
        start_s,
        work.seconds,
        work.rate_rps,
        work.refused_rps,
        work.mean_ms,
        work.p95_ms,
        work.mean_rows,
        work.cpu_cores,
        queue,
        in_flight,
    )


def logged_service(seconds: Floats, start_s: float | None, measures: Mapping[str, Floats]) -> tuple[ServiceHour, ...]:
    """Return the service by the hours of the week that a log has.

    Args:
        seconds: (n,) arrivals, ascending from 0
        start_s: of the first since the epoch; None: it counts as Monday 0:00
        measures: (n,) by name, NaN where not known: latency_ms, cpu_ms (CPU time that a request took), queue_length
            (that it met)
    """
    start = 0.0 if start_s is None else start_s + EPOCH_SECONDS
    at, known_s = hour_of_week(start + seconds), _seconds_of_hours(start, start + float(seconds[-1]))
    found = []
    for hour in np.union1d(np.unique(at), np.flatnonzero(known_s)).tolist():
        arrived, known = at == hour, float(known_s[hour])
        latency, cpu, queue = (_known(measures.get(name), arrived) for name in ("latency_ms", "cpu_ms", "queue_length"))
        # The last request of a log may be all that it has of an hour.
        rate = float(np.count_nonzero(arrived)) / known if known else None
        found.append(
            ServiceHour(
                weekday=hour // 24,
                hour=hour % 24,
                hours=known / HOUR_SECONDS,
                rate_rps=rate,
                answered=len(latency),
                mean_ms=float(latency.mean()) if len(latency) else None,
                p95_ms=float(np.percentile(latency, 95)) if len(latency) else None,
                # Requests whose time is not known take the mean of the others.
                cpu_cores=float(cpu.mean()) / 1000 * rate if len(cpu) and rate is not None else None,
                queue_mean=float(queue.mean()) if len(queue) else None,
                queue_max=float(queue.max()) if len(queue) else None,
            )
        )
    return tuple(found)


def _known(values: Floats | None, arrived: NDArray[np.bool_]) -> Floats:
    own = np.zeros(0) if values is None else values[arrived]
    return own[~np.isnan(own)]


def _seconds_of_hours(start: float, end: float) -> Floats:
    """Return the seconds of each hour of the week, (168,), between two moments in seconds since a Monday 0:00."""
    inner = np.arange(start // HOUR_SECONDS + 1, np.ceil(end / HOUR_SECONDS)) * HOUR_SECONDS
    edges = np.concatenate([[start], inner, [end]])
    found = np.bincount(hour_of_week((edges[1:] + edges[:-1]) / 2), np.diff(edges), minlength=HOURS)
    return np.asarray(found, np.float64)
