"""Timeline of a played schedule: rates, percentiles, queue and CPU use by intervals of time."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from objectives.measurement.load_generator import Request
from objectives.measurement.load_target import LoadTarget
from objectives.measurement.statistics import Floats, percentile

MOST_BINS = 100
# A bin's p95 needs a few dozen answers: at a low rate there are fewer bins, but at least this number.
FEWEST_BINS = 25
_SHORTEST_BIN_SECONDS = 0.1
_BIN_REQUESTS = 40
_CPU_CHECK_SECONDS = 0.1


@dataclass(frozen=True, eq=False)
class Played:
    """Raw times of one play, in seconds from its start.

    scheduled_s: (n,), ascending
    latency_ms: (n,) from the scheduled arrival, infinite where a request was refused
    lag_ms: (n,), how late the generator was
    offered_share: planned duration over that of submitting, 1 when on time
    cpu_at_s: (m,), ascending, when the processor time was read; the first at 0, the last after the last answer
    cpu_s: (m,), processor seconds that the process had spent by then, generator included
    """

    scheduled_s: Floats
    latency_ms: Floats
    lag_ms: Floats
    offered_share: float
    cpu_at_s: Floats
    cpu_s: Floats

    def __post_init__(self) -> None:
        count = len(self.scheduled_s)
        if count == 0 or len(self.latency_ms) != count or len(self.cpu_at_s) < 2:
            raise ValueError(
                f"A play has requests and two readings of the processor or more, but got {count} arrivals, "
                f"{len(self.latency_ms)} latencies and {len(self.cpu_at_s)} readings."
            )

    @property
    def served(self) -> NDArray[np.bool_]:
        return np.isfinite(self.latency_ms)

    @property
    def finished_s(self) -> Floats:
        """Time of each answer in seconds, (n,), infinite where a request was refused."""
        return self.scheduled_s + self.latency_ms / 1e3

    @property
    def seconds(self) -> float:
        """Seconds until the last answer."""
        return float(np.max(self.finished_s, initial=self.cpu_at_s[-1], where=self.served))


@dataclass(frozen=True)
class Timeline:
    """Equal bins of time, with one number of each bin in every tuple; `edges_s` has one more.

    offered_rps counts scheduled arrivals, served_rps counts answers by their finish. Percentiles are those of the
    requests scheduled in the bin; None where they are too few, or where the percentile itself was refused. The queue
    holds requests scheduled and not finished: at the end of the bin, its mean over the bin's time, its maximum.
    cpu_cores is the processor time of the whole process over time.
    """

    edges_s: tuple[float, ...]
    offered_rps: tuple[float, ...]
    served_rps: tuple[float, ...]
    refused: tuple[int, ...]
    p50_ms: tuple[float | None, ...]
    p95_ms: tuple[float | None, ...]
    queue_end: tuple[int, ...]
    queue_mean: tuple[float, ...]
    queue_max: tuple[int, ...]
    cpu_cores: tuple[float, ...]


def play(target: LoadTarget, requests: Sequence[Request], gaps_ns: NDArray[np.int64]) -> Played:
    """Play a schedule once in an open loop, while a thread reads the processor time periodically."""
    with _processor_read() as readings:
        arrivals = target.open_loop(requests, gaps_ns)
    cpu = _clock(readings, arrivals.start_ns)
    return Played(np.cumsum(gaps_ns) / 1e9, arrivals.latency_ms, arrivals.lag_ms, arrivals.offered_share, *cpu)


def play_closed(target: LoadTarget, requests: Sequence[Request], seconds: float) -> Played:
    """Play one request at a time in a loop; each is scheduled when the one before is answered."""
    start_ns, latency_ms = [], []
    with _processor_read() as readings:
        origin = readings[0][0]
        for request in itertools.cycle(requests):
            start_ns.append(time.perf_counter_ns())
            latency_ms.append(float(target.closed_loop([request])[0]))
            if time.perf_counter_ns() - origin >= seconds * 1e9:
                break
    scheduled = (np.array(start_ns, dtype=np.int64) - origin) / 1e9
    return Played(scheduled, np.array(latency_ms), np.zeros(len(start_ns)), 1.0, *_clock(readings, origin))


def joined(plays: Sequence[Played]) -> Played:
    """Concatenate plays on one clock, without gaps between them."""
    starts = np.concatenate([[0.0], np.cumsum([p.seconds for p in plays])])
    spent = np.concatenate([[0.0], np.cumsum([p.cpu_s[-1] for p in plays])])
    planned = [float(p.scheduled_s[-1]) for p in plays]
    # Adjacent plays share one reading at their boundary.
    first = [0 if i == 0 else 1 for i in range(len(plays))]
    return Played(
        np.concatenate([p.scheduled_s + at for p, at in zip(plays, starts, strict=False)]),
        np.concatenate([p.latency_ms for p in plays]),
        np.concatenate([p.lag_ms for p in plays]),
        sum(planned) / sum(seconds / p.offered_share for seconds, p in zip(planned, plays, strict=True)),
        np.concatenate([p.cpu_at_s[f:] + at for p, f, at in zip(plays, first, starts, strict=False)]),
        np.concatenate([p.cpu_s[f:] + before for p, f, before in zip(plays, first, spent, strict=False)]),
    )


def timeline(played: Played, bins: int | None = None) -> Timeline:
    """Compute the timeline of a play in `bins`; None for about a hundred of 0.1 s or longer, fewer at a low rate."""
    edges = np.linspace(0, played.seconds, (bins or _bins(played)) + 1)
    width = edges[1] - edges[0]
    served, scheduled, finished = played.served, played.scheduled_s, played.finished_s
    at_end, mean, most = _queue(scheduled[served], finished[served], edges)
    parts = np.split(played.latency_ms, np.searchsorted(scheduled, edges[1:-1]))
    return Timeline(
        edges_s=tuple(edges.tolist()),
        offered_rps=tuple((np.histogram(scheduled, edges)[0] / width).tolist()),
        served_rps=tuple((np.histogram(finished[served], edges)[0] / width).tolist()),
        refused=tuple(int(np.isinf(part).sum()) for part in parts),
        p50_ms=tuple(_percentile(part, 50) for part in parts),
        p95_ms=tuple(_percentile(part, 95) for part in parts),
        queue_end=tuple(at_end.tolist()),
        queue_mean=tuple(mean.tolist()),
        queue_max=most,
        cpu_cores=tuple((np.diff(np.interp(edges, played.cpu_at_s, played.cpu_s)) / width).tolist()),
    )


def _bins(played: Played) -> int:
    wanted = max(FEWEST_BINS, len(played.scheduled_s) / _BIN_REQUESTS)
    return max(1, int(min(MOST_BINS, wanted, played.seconds / _SHORTEST_BIN_SECONDS)))


def _percentile(latency_ms: Floats, percent: float) -> float | None:
    """Return the percentile; None where less than one sample is expected beyond it, or where it is infinite."""
    if latency_ms.size * (100 - percent) < 100:
        return None
    found = percentile(latency_ms, percent)
    return found if math.isfinite(found) else None


def _queue(start: Floats, finish: Floats, edges: Floats) -> tuple[NDArray[np.int64], Floats, tuple[int, ...]]:
    """Count the requests between start and finish, (n,), at the end of each bin; return their mean and maximum too."""
    moments = np.concatenate([start, finish])
    steps = np.repeat(np.array([1, -1], dtype=np.int64), len(start))
    order = np.argsort(moments, kind="stable")
    moments, level = moments[order], np.cumsum(steps[order])
    by_edge = np.searchsorted(moments, edges, side="right")
    at_edge = np.concatenate([[0], level])[by_edge]
    bins = zip(itertools.pairwise(by_edge), at_edge, strict=False)
    most = tuple(int(level[start:end].max(initial=at)) for (start, end), at in bins)
    mean: Floats = np.zeros(len(edges) - 1)
    if len(moments):
        # Request-seconds spent by each time: linear in between, since the level is constant there.
        spent = np.concatenate([[0.0], np.cumsum(level[:-1] * np.diff(moments))])
        mean = np.diff(np.interp(edges, moments, spent)) / np.diff(edges)
    return at_edge[1:], mean, most


Reading = tuple[int, float]


def _read() -> Reading:
    return time.perf_counter_ns(), time.process_time()


@contextmanager
def _processor_read() -> Iterator[list[Reading]]:
    """Yield readings of (nanoseconds, processor seconds): one at once, one every 0.1 s, one at the end."""
    readings = [_read()]
    over = threading.Event()

    def look() -> None:
        while not over.wait(_CPU_CHECK_SECONDS):
            readings.append(_read())

    thread = threading.Thread(target=look, name="processor-time", daemon=True)
    thread.start()
    try:
        yield readings
    finally:
        over.set()
        thread.join()
        readings.append(_read())


def _clock(readings: Sequence[Reading], start_ns: int) -> tuple[Floats, Floats]:
    """Return seconds and processor seconds, both from the start, which may lie between two readings."""
    moments, spent = zip(*readings, strict=True)
    at_s, cpu_s = (np.array(moments, dtype=np.int64) - start_ns) / 1e9, np.array(spent)
    later = at_s > 0
    cpu_s -= np.interp(0.0, at_s, cpu_s)
    return np.concatenate([[0.0], at_s[later]]), np.concatenate([[0.0], cpu_s[later]])
