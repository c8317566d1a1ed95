"""Bins against closed forms and brute force: a counted queue, known rates, percentiles by sorting."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objectives.measurement.load_target import LiveTarget
from objectives.measurement.timeline import FEWEST_BINS, MOST_BINS, Played, joined, play, play_closed, timeline


class Instant:
    """A deployment that answers at once, or refuses."""

    def __init__(self, refused: bool = False) -> None:
        self.finished_ns, self._refused = time.perf_counter_ns(), refused

    def result(self) -> None:
        if self._refused:
            raise DeclinedError


class DeclinedError(RuntimeError):
    refused = True


def played(
    scheduled: Any, latency_ms: Any, seconds: float = 0.0, cores: float = 1.0, offered_share: float = 1.0
) -> Played:
    """A play in which so many cores were busy all the time."""
    at, latency = np.asarray(scheduled, dtype=np.float64), np.asarray(latency_ms, dtype=np.float64)
    clock = np.array([0.0, seconds or float(at[-1])])
    return Played(at, latency, np.zeros(len(at)), offered_share, clock, cores * clock)


def test_evenly_spaced_requests_have_the_rate_and_the_queue_of_littles_law() -> None:
    """100 requests/s that stay 25 ms each: 2.5 of them are there in the mean (Little 1961)."""
    line = timeline(played(np.arange(1000) / 100, np.full(1000, 25.0), 11.0, cores=1.5), bins=11)
    assert line.edges_s == pytest.approx(range(12))
    assert line.offered_rps == pytest.approx([100] * 10 + [0], abs=1)
    assert line.served_rps == pytest.approx([97.5] + [100] * 9 + [2.5], abs=1)
    assert line.queue_mean == pytest.approx([2.5] * 10 + [0.0], abs=0.05)
    assert max(line.queue_max) == 3
    assert line.queue_end[-1] == 0
    assert line.p50_ms == line.p95_ms == (25.0,) * 10 + (None,)
    assert line.cpu_cores == pytest.approx([1.5] * 11)
    assert line.refused == (0,) * 11


def test_a_bin_with_too_few_requests_tells_no_percentile() -> None:
    """A p50 needs 2 requests and a p95 20; the first second has ten, the last one."""
    line = timeline(played([*np.linspace(0, 0.9, 10), 1.5], [5.0] * 11, 2.0), bins=2)
    assert line.p50_ms == (5.0, None)
    assert line.p95_ms == (None, None)


def test_percentiles_are_samples_of_the_requests_scheduled_in_the_bin() -> None:
    latency = np.random.default_rng(0).permutation(np.arange(1.0, 41.0))
    line = timeline(played(np.linspace(0, 0.99, 40), latency, 2.0), bins=2)
    assert (line.p50_ms[0], line.p95_ms[0]) == (20.0, 38.0)


def test_refused_requests_are_counted_and_never_queue() -> None:
    latency = np.where(np.arange(100) % 2 == 0, np.inf, 4.0)
    line = timeline(played(np.arange(100) / 100, latency, 1.0), bins=2)
    assert line.refused == (25, 25)
    assert sum(line.offered_rps) / 2 == pytest.approx(100)
    assert sum(line.served_rps) / 2 == pytest.approx(50)
    assert max(line.queue_max) == 1
    assert line.p50_ms == (4.0, 4.0)
    assert line.p95_ms == (None, None), "it lies among the refused"


def test_all_refused_is_an_empty_queue() -> None:
    line = timeline(played(np.linspace(0, 1, 50), np.full(50, np.inf)), bins=5)
    assert (set(line.queue_max), set(line.served_rps)) == ({0}, {0.0})
    assert sum(line.refused) == 50


@st.composite
def _plays(draw: st.DrawFn) -> Played:
    count = draw(st.integers(1, 60))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # Multiples of a power of two: sums are exact, and many moments fall on others and on edges.
    scheduled = np.sort(random.integers(0, 256, count)) / 64
    latency = np.where(random.random(count) < 0.2, np.inf, random.integers(0, 128, count) / 64 * 1e3)
    return played(scheduled, latency, 8.0)


@given(_plays(), st.sampled_from([1, 2, 8, 32]))
def test_the_queue_is_what_counting_gives(run: Played, bins: int) -> None:
    line = timeline(run, bins)
    edges = np.array(line.edges_s)
    start, finish = run.scheduled_s[run.served], run.finished_s[run.served]
    for i, (low, high) in enumerate(itertools.pairwise(edges)):
        overlap = np.minimum(finish, high) - np.maximum(start, low)
        assert line.queue_mean[i] == pytest.approx(overlap.clip(0).sum() / (high - low), abs=1e-9)
        assert line.queue_end[i] == np.sum((start <= high) & (finish > high))
        # The level rises at arrivals only: its highest is at the bin's start, or at one of them.
        moments = [low, *start[(start > low) & (start <= high)]]
        assert line.queue_max[i] >= max(int(np.sum((start <= t) & (finish > t))) for t in moments)
        assert line.queue_max[i] <= max(int(np.sum((start <= t) & (finish >= t))) for t in moments)
    width = edges[1] - edges[0]
    assert sum(line.offered_rps) * width == pytest.approx(len(run.scheduled_s))
    assert sum(line.served_rps) * width == pytest.approx(len(start))
    assert sum(line.refused) == len(run.scheduled_s) - len(start)


@pytest.mark.parametrize(
    ("count", "seconds", "bins"),
    [
        (24_000, 20.0, MOST_BINS),
        (2_000, 20.0, 50),  # 40 requests in each
        (200, 20.0, FEWEST_BINS),
        (10_000, 2.0, 20),  # none is shorter than 0.1 s
        (5, 0.05, 1),
    ],
)
def test_bins_are_about_a_hundred_and_hold_enough(count: int, seconds: float, bins: int) -> None:
    assert len(timeline(played(np.linspace(0, seconds, count), np.zeros(count))).p50_ms) == bins


def test_plays_are_joined_end_to_end() -> None:
    """The second begins when the first's last answer is there; processor time goes on from where it was."""
    first = played([0.5, 1.0], [100.0, 1000.0], 2.0, cores=0.5, offered_share=0.5)
    second = played([0.2, 1.0], [10.0, 10.0], 1.5, cores=2.0)
    both = joined([first, second])
    assert both.scheduled_s == pytest.approx([0.5, 1.0, 2.2, 3.0])
    assert both.latency_ms.tolist() == [100.0, 1000.0, 10.0, 10.0]
    assert both.cpu_at_s == pytest.approx([0.0, 2.0, 3.5])
    assert both.cpu_s == pytest.approx([0.0, 1.0, 4.0])
    # Planned 1 s and 1 s, submitted in 2 s and 1 s.
    assert both.offered_share == pytest.approx(2 / 3)


def is_reading() -> bool:
    """Return whether a thread that reads the processor time is left."""
    return any(thread.name == "processor-time" for thread in threading.enumerate())


def test_a_schedule_is_played_and_the_processor_read() -> None:
    count = 0

    def submit(request: Mapping[str, Any]) -> Any:
        nonlocal count
        count += 1
        return Instant(refused=count % 10 == 0)

    gaps = np.full(1000, 1_000_000, dtype=np.int64)
    run = play(LiveTarget(submit, 1, 2), [{}] * 1000, gaps)
    assert not is_reading()
    assert run.scheduled_s == pytest.approx(np.arange(1, 1001) / 1000)
    assert int((~run.served).sum()) == 100
    assert len(run.cpu_at_s) >= 3
    assert (np.diff(run.cpu_at_s) > 0).all()
    assert (np.diff(run.cpu_s) >= 0).all()
    assert run.cpu_at_s[-1] >= run.scheduled_s[-1]


def test_an_error_of_the_model_is_raised_and_the_reader_stops() -> None:
    def submit(request: Mapping[str, Any]) -> Any:
        raise KeyError("item")

    with pytest.raises(KeyError):
        play(LiveTarget(submit, 1, 2), [{}], np.ones(1, dtype=np.int64))
    assert not is_reading()


def test_a_closed_loop_has_one_request_at_a_time() -> None:
    seen: list[int] = []

    def submit(request: Mapping[str, Any]) -> Any:
        seen.append(request["id"])
        return Instant()

    requests: list[Mapping[str, Any]] = [{"id": 0}, {"id": 1}, {"id": 2}]
    run = play_closed(LiveTarget(submit, 1, 2), requests, 0.2)
    assert seen == [i % 3 for i in range(len(seen))]
    assert len(run.scheduled_s) == len(seen) > 3
    assert (run.scheduled_s[1:] >= run.finished_s[:-1]).all()
    assert max(timeline(run).queue_max) == 1
    assert not run.lag_ms.any()


def test_a_play_without_requests_is_refused() -> None:
    with pytest.raises(ValueError, match="but got 0 arrivals"):
        played(np.zeros(0), [], 1.0)
