"""Service by hour and weekday, of samples and logs whose latency, CPU time and queue are planted."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Histogram

from planning.demand import Floats
from planning.hours_of_week import HOURS, named_hours
from planning.observation import weekly_service
from planning.observation.metrics_samples import MetricsSample
from planning.observation.weekly_service import SampledService, ServiceSamples, logged_service

HOUR = 3600.0
# Monday.
START = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC).timestamp()
LIMITS = tuple(digit * 10.0**power for power in range(-4, 1) for digit in (1, 2, 5))


class PlantedServer:
    """Counters of a server, whose histogram is that of the Prometheus client."""

    def __init__(self, started_s: float) -> None:
        self.started_s, self.cpu_s = started_s, 0.0
        self.histogram = Histogram("seconds", "", buckets=LIMITS, registry=CollectorRegistry())

    def answer(self, seconds: Sequence[float] | Floats, cpu_s: float) -> None:
        self.cpu_s += cpu_s
        for each in seconds:
            self.histogram.observe(float(each))

    def sample(self, at_s: float, queue: float = 0.0) -> MetricsSample:
        (family,) = self.histogram.collect()
        values = {sample.name: sample.value for sample in family.samples}
        buckets = {float(one.labels["le"]): one.value for one in family.samples if one.name == "seconds_bucket"}
        count = values["seconds_count"]
        return MetricsSample(
            at_s, self.started_s, count, values["seconds_sum"], buckets, count, 0.0, 10 * count, self.cpu_s, queue, 1.0
        )


def summary_of(samples: Sequence[MetricsSample]) -> SampledService:
    found = ServiceSamples()
    for sample in samples:
        found.add(sample)
    return found.summary()


def width_at(seconds: float) -> float:
    """Width of the bucket of a time."""
    upper = min(limit for limit in LIMITS if limit >= seconds)
    return upper - max([0.0, *(limit for limit in LIMITS if limit < seconds)])


@pytest.fixture(scope="module")
def planted() -> tuple[list[MetricsSample], dict[int, Floats], dict[int, list[float]]]:
    """Samples of two weeks, every 20 minutes, of a server that is started again twice; latencies and queues by hour.

    The first sample after each start comes 1 s after it, so that nothing is lost.
    """
    random = np.random.default_rng(0)
    samples: list[MetricsSample] = []
    latencies: dict[int, list[Floats]] = {}
    queues: dict[int, list[float]] = {}
    server = PlantedServer(START - 5)
    for step in range(2 * HOURS * 3 + 1):
        hour, at_s = step // 3 % HOURS, START + step * HOUR / 3
        if step in (200, 601):
            server = PlantedServer(at_s + 0.5)
            at_s += 1
        queue = float(random.poisson(hour % 24 / 6))
        queues.setdefault(hour, []).append(queue)
        samples.append(server.sample(at_s, queue))
        drawn = random.lognormal(np.log(0.003 + 0.001 * hour), 0.5, 25)
        if step + 1 not in (200, 601, 2 * HOURS * 3 + 1):
            # Of the work before a restart and after the last sample nothing is known.
            latencies.setdefault(hour, []).append(drawn)
            server.answer(drawn, HOUR / 3 * (0.1 + 0.01 * hour))
    return samples, {hour: np.concatenate(drawn) for hour, drawn in latencies.items()}, queues


def test_latency_cpu_and_queue_of_each_hour_are_found_again(
    planted: tuple[list[MetricsSample], dict[int, Floats], dict[int, list[float]]],
) -> None:
    samples, latencies, queues = planted
    found = summary_of(samples)
    assert [hour.number for hour in found.hours] == list(range(HOURS))
    assert (found.samples, found.restarts, found.unassigned_seconds) == (len(samples), 2, 0.0)
    for hour in found.hours:
        drawn = latencies[hour.number]
        assert hour.answered == len(drawn) and hour.mean_ms == pytest.approx(1000 * drawn.mean())
        exact = float(np.percentile(drawn, 95))
        assert hour.p95_ms == pytest.approx(1000 * exact, abs=1000 * width_at(exact))
        assert hour.cpu_cores == pytest.approx(0.1 + 0.01 * hour.number, rel=0.01)
        assert hour.rate_rps == pytest.approx(len(drawn) / (hour.hours * HOUR))
        own = queues[hour.number]
        assert hour.queue_mean == pytest.approx(np.mean(own)) and hour.queue_max == max(own)
    together = np.concatenate(list(latencies.values()))
    assert found.whole.mean_ms == pytest.approx(1000 * together.mean())
    assert found.whole.seconds == pytest.approx(2 * HOURS * HOUR - 2 * (HOUR / 3 + 1))


def test_the_p95_of_an_hour_is_that_of_all_its_requests_and_no_mean_of_p95s() -> None:
    """A quarter of an hour has 99 fast requests, the next one slow one: the p95 of the hour is fast."""
    server = PlantedServer(START)
    samples = [server.sample(START)]
    server.answer([0.0015] * 99, 1.0)
    samples.append(server.sample(START + 900))
    server.answer([4.0], 1.0)
    samples.append(server.sample(START + 1800))
    (hour,) = summary_of(samples).hours
    assert hour.p95_ms is not None and 1 <= hour.p95_ms <= 2


def test_hours_without_samples_are_not_there_and_gaps_count_for_the_whole_only() -> None:
    server = PlantedServer(START - 100)
    samples = []
    for at_s in (0, 10, 3590, 3605, 3 * HOUR + 5, 3 * HOUR + 10):
        server.answer([0.01] * 7, 1.0)
        samples.append(server.sample(START + at_s))
    found = summary_of(samples)
    # From 3590 to 3605 s counts for the hour of its middle, and what lasts from one hour to another for none.
    assert [(hour.number, hour.answered) for hour in found.hours] == [(0, 21), (1, 0), (3, 7)]
    assert found.hours[1].mean_ms is found.hours[1].rate_rps is None and found.hours[1].queue_mean == 0
    assert found.unassigned_seconds == 2 * HOUR and found.whole.rate_rps == pytest.approx(35 / (3 * HOUR + 10))
    # A time until the beginning of the next hour is in the hour.
    ends = [server.sample(START + at_s) for at_s in (4 * HOUR, 5 * HOUR)]
    assert [hour.hours for hour in summary_of(ends).hours] == [1.0, 0.0]


def test_a_clock_that_is_set_back_costs_the_time_between_two_samples() -> None:
    server = PlantedServer(START)
    samples = []
    for at_s in (0, 10, 5, 15):
        server.answer([0.01], 1.0)
        samples.append(server.sample(START + at_s))
    found = summary_of(samples)
    assert found.restarts == 0 and found.whole.seconds == 20 and found.hours[0].answered == 2


def test_samples_that_tell_nothing_are_an_error() -> None:
    server = PlantedServer(START)
    again = dataclasses.replace(server.sample(START + 5), started_s=START + 3)
    for samples in ([], [server.sample(START)], [server.sample(START), again]):
        with pytest.raises(ValueError, match="two samples or more"):
            summary_of(samples)


def test_a_timeline_is_thinned_and_loses_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weekly_service, "_TIMELINE", 20)
    server = PlantedServer(START)
    samples = []
    for at_s in range(1000):
        samples.append(server.sample(START + at_s))
        server.answer([0.01] * (at_s % 3), 0.0)
    found = summary_of(samples)
    assert 20 <= len(found.intervals) <= 41
    assert sum(each.rate_rps * each.seconds for each in found.intervals) == pytest.approx(samples[-1].requests)
    assert found.intervals[0].start_s == 0 and found.whole.seconds == 999


def test_histograms_of_other_buckets_are_joined_where_both_have_a_limit() -> None:
    server = PlantedServer(START)
    first = [server.sample(START)]
    server.answer([0.0015] * 90 + [0.04] * 10, 1.0)
    first.append(server.sample(START + 60))
    few = (0.002, 0.05, float("inf"))
    second = [
        dataclasses.replace(
            each, at_s=each.at_s + 100, started_s=START + 90, buckets={limit: each.buckets[limit] for limit in few}
        )
        for each in first
    ]
    (hour,) = summary_of([*first, *second]).hours
    # 180 of 200 requests take at most 2 ms, the others up to 50 ms.
    assert hour.answered == 200 and hour.p95_ms == pytest.approx(2 + 48 * (190 - 180) / 20)


@pytest.mark.parametrize("start_s", [START + 4.5 * HOUR, None])
def test_a_log_has_the_latency_of_its_hours(start_s: float | None) -> None:
    random = np.random.default_rng(1)
    seconds = np.sort(random.uniform(0, 9 * 24 * HOUR, 40_000))
    seconds -= seconds[0]
    first = 0.0 if start_s is None else start_s - START
    numbers = ((first + seconds) // HOUR).astype(int) % HOURS
    latency = random.lognormal(np.log(3.0 + numbers), 0.4)
    latency[random.random(len(latency)) < 0.1] = np.nan
    cpu, queue = 2.0 + numbers % 5, random.poisson(1 + numbers / 50).astype(np.float64)
    found = logged_service(seconds, start_s, {"latency_ms": latency, "cpu_ms": cpu, "queue_length": queue})
    assert [hour.number for hour in found] == list(range(HOURS))
    for hour in found:
        own = numbers == hour.number
        drawn = latency[own & ~np.isnan(latency)]
        assert (hour.answered, hour.mean_ms) == (len(drawn), pytest.approx(drawn.mean()))
        assert hour.p95_ms == pytest.approx(np.percentile(drawn, 95))
        assert hour.rate_rps == pytest.approx(own.sum() / (hour.hours * HOUR))
        assert hour.cpu_cores == pytest.approx(cpu[own].sum() / 1000 / (hour.hours * HOUR))
        assert (hour.queue_mean, hour.queue_max) == (pytest.approx(queue[own].mean()), queue[own].max())
    assert sum(hour.hours for hour in found) == pytest.approx(seconds[-1] / HOUR)


def test_a_log_of_half_an_hour_has_two_hours_in_part() -> None:
    seconds = np.array([0.0, 600.0, 1800.0])
    found = logged_service(seconds, START + HOUR - 900, {"latency_ms": np.array([1.0, np.nan, 4.0])})
    assert [(hour.number, hour.hours, hour.answered) for hour in found] == [(0, 0.25, 1), (1, 0.25, 1)]
    assert found[0].cpu_cores is found[0].queue_mean is None
    ends = logged_service(np.array([0.0, HOUR]), START, {"latency_ms": np.array([1.0, 4.0])})
    assert [(hour.hours, hour.mean_ms, hour.rate_rps) for hour in ends] == [(1.0, 1.0, 1 / HOUR), (0.0, 4.0, None)]


@pytest.mark.parametrize(
    ("hours", "expected"),
    [
        ([], ""),
        ([0], "Monday 0:00 to 1:00"),
        ([23, 22], "Monday 22:00 to 24:00"),
        ([22, 23, 24], "Monday 22:00 to Tuesday 1:00"),
        ([9, 167], "Monday 9:00 to 10:00, Sunday 23:00 to 24:00"),
        (range(168), "Monday 0:00 to Sunday 24:00"),
    ],
)
def test_hours_are_named_by_stretches(hours: Sequence[int], expected: str) -> None:
    assert named_hours(hours) == expected
