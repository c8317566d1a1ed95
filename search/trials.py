"""Trials that ended, and the values that the search minimises."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from objectives.records import Footprint, Interval, Latency, Measurement, Outcome, Throughput
from spaces.candidate import Candidate
from spaces.domains import Scalar

# A candidate that keeps the SLO at no rate stands where one of this ratio would.
_LEAST_THROUGHPUT = 1e-3


def inverse(ratio: float) -> float:
    """Return the value, lower is better, of a throughput ratio."""
    return 1 / max(ratio, _LEAST_THROUGHPUT)


# What the sampler sees of each objective, lower is better; "throughput" is the one that is turned.
_VALUES: Mapping[str, Callable[[Measurement], float | None]] = {
    "latency_p50": lambda m: m.latency.p50_ratio,
    "latency_p95": lambda m: m.latency.p95_ratio,
    "latency_p99": lambda m: m.latency.p99_ratio,
    "throughput": lambda m: inverse(m.throughput.ratio),
    "quality": lambda m: m.quality.loss,
    "model_bytes": lambda m: float(m.footprint.model_bytes),
    "peak_memory_bytes": lambda m: m.footprint.peak_memory_bytes,
    "cpu_seconds_per_1000": lambda m: m.footprint.cpu_seconds_per_1000,
    # Of a machine at a given price, money goes as the inverse of what it answers.
    "money_per_million": lambda m: inverse(m.throughput.ratio),
}
# Half of the width of a 95% interval in standard deviations.
_HALF_WIDTH = 1.96
# The measured ratio of each objective with its interval; the others repeat, or have no interval.
_INTERVALS: Mapping[str, Callable[[Measurement], tuple[float | None, Interval | None]]] = {
    "latency_p50": lambda m: (m.latency.p50_ratio, m.latency.p50_ratio_interval),
    "latency_p95": lambda m: (m.latency.p95_ratio, m.latency.p95_ratio_interval),
    "latency_p99": lambda m: (m.latency.p99_ratio, m.latency.p99_ratio_interval),
    "throughput": lambda m: (m.throughput.ratio, m.throughput.ratio_interval),
    "money_per_million": lambda m: (m.throughput.ratio, m.throughput.ratio_interval),
}


@dataclass(frozen=True)
class FinalNumbers:
    """Numbers of a trial in a final benchmark, which replace those of the search; `timings` as in `Outcome`."""

    latency: Latency
    throughput: Throughput
    footprint: Footprint
    timings: str


@dataclass(frozen=True)
class EndedTrial:
    """A trial that ended.

    minutes: of search until then
    reference: name of the reference point that it measures, None for one of the search
    knobs: as they were suggested
    final: whether the numbers are those of a final benchmark
    start: whether it is a starting point of the search
    expected_loss: loss that the sampler expected of it; None where it expected none
    times_ms: begin and end, in milliseconds since the epoch; None where that is not known yet
    """

    number: int
    candidate: Candidate
    outcome: Outcome
    minutes: float | None
    reference: str | None = None
    knobs: Mapping[str, Scalar] = field(default_factory=dict)
    final: bool = False
    start: bool = False
    expected_loss: float | None = None
    times_ms: tuple[int, int] | None = None

    def with_final(self, final: FinalNumbers) -> EndedTrial:
        """Return the trial with the numbers of a final benchmark."""
        assert self.measurement is not None, "a final benchmark is of measured trials"
        measured = Measurement(self.measurement.quality, final.latency, final.throughput, final.footprint)
        return replace(self, outcome=replace(self.outcome, measurement=measured, timings=final.timings), final=True)

    @property
    def measurement(self) -> Measurement | None:
        return self.outcome.measurement


def sought(measurement: Measurement, objectives: Sequence[str]) -> list[float]:
    """Return the values that the search minimises, lower is better: ratios to the baseline, and the loss.

    A loss below zero counts as 0: a gain over the baseline is welcome, but no search time is spent on it, and it does
    not count in the hypervolume.

    Raises:
        ValueError: one of them was not measured.
    """
    found = []
    for name in objectives:
        value = _VALUES[name](measurement)
        if value is None:
            raise ValueError(f"Every objective must be measured, but got nothing for {name}.")
        found.append(max(0.0, value) if name == "quality" else value)
    return found


def log_deviations(measurement: Measurement, objectives: Sequence[str]) -> list[float]:
    """Return the standard deviation of the logarithm of each value in `sought`; 0 where no interval tells it.

    It is that of a normal distribution whose upper 97.5% quantile is the upper end of the 95% interval, so that few
    visits, whose interval is that of a t distribution, count as less precise. The lower end is not read: it has no
    logarithm where the ratio was 0 in a visit.
    """
    found = []
    for name in objectives:
        ratio, interval = _INTERVALS[name](measurement) if name in _INTERVALS else (None, None)
        found.append(math.log(interval[1] / ratio) / _HALF_WIDTH if interval is not None and ratio else 0.0)
    return found
