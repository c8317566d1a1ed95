"""Numbers of a measured trial that the page draws and lists, by name."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from objectives.records import Interval
from search.choose.policy import estimates
from search.format import milliseconds, percent, significant, size, times
from search.results import Front, Point

# A value with the ends of its interval; None for what is not known.
Estimate = tuple[float | None, float | None, float | None]


@dataclass(frozen=True)
class Measure:
    """A number of a measured trial: its words, its value with its interval, and how it is drawn.

    logarithmic: on an axis; better: which end of the axis; word: a value as text, such as at a tick
    """

    words: str
    read: Callable[[Point], Estimate]
    word: Callable[[float], str]
    logarithmic: bool = True
    better: str = "less"


def _of(value: float | None, interval: Interval | None) -> Estimate:
    return (value, *(interval or (None, None)))


def _with_overhead(percent: str) -> Callable[[Point], Estimate]:
    """Read the ratio of a percentile with the time that is spent elsewhere."""

    def read(point: Point) -> Estimate:
        found = vars(point.with_overhead) if point.with_overhead is not None else {}
        return _of(found.get(f"{percent}_ratio"), found.get(f"{percent}_ratio_interval"))

    return read


def _later_p95(point: Point) -> Estimate:
    """Read the p95 in milliseconds with the time that is spent elsewhere."""
    added, (value, *ends) = point.with_overhead, MEASURES["p95_ms"].read(point)
    if added is None or value is None:
        return (None, None, None)
    low, high = (None if end is None else end + added.overhead_ms for end in ends)
    return (value + added.overhead_ms, low, high)


def _single(value: float | None) -> Estimate:
    return (value, value, value)


MEASURES: Mapping[str, Measure] = {
    "p95_ms": Measure("p95", lambda p: _of(p.latency_ms.p95, p.latency_ms.p95_interval), milliseconds),
    "p95_ratio": Measure("p95 ratio", lambda p: _of(p.p95_ratio, p.p95_ratio_interval), times),
    "throughput_rps": Measure(
        "throughput in requests/s", lambda p: _of(p.throughput_rps, p.throughput_interval), significant, better="more"
    ),
    "throughput_ratio": Measure(
        "throughput ratio", lambda p: _of(p.throughput_ratio, p.throughput_ratio_interval), times, better="more"
    ),
    "capacity_ratio": Measure(
        "capacity ratio", lambda p: _of(p.capacity_ratio, p.capacity_ratio_interval), times, better="more"
    ),
    "service_p50_ratio": Measure(
        "service p50 ratio", lambda p: _of(p.latency_ms.service_p50_ratio, p.latency_ms.service_p50_ratio_interval),
        times,
    ),
    "loss": Measure("loss", lambda p: _of(p.quality.loss, p.quality.loss_interval), percent, logarithmic=False),
    "model_bytes": Measure("model", lambda p: _single(p.model_bytes), size),
    "memory_mb": Measure("peak memory in MB", lambda p: _single(estimates(p)["memory_mb"]), significant),
    "p50_ms": Measure("p50", lambda p: _single(p.latency_ms.p50), milliseconds),
    "p99_ms": Measure("p99", lambda p: _single(p.latency_ms.p99), milliseconds),
    "p50_ratio": Measure("p50 ratio", lambda p: _of(p.latency_ms.p50_ratio, p.latency_ms.p50_ratio_interval), times),
    "p99_ratio": Measure("p99 ratio", lambda p: _of(p.latency_ms.p99_ratio, p.latency_ms.p99_ratio_interval), times),
    "p95_ms_with_overhead": Measure("p95 with overhead", _later_p95, milliseconds),
    "p50_ratio_with_overhead": Measure("p50 ratio with overhead", _with_overhead("p50"), times),
    "p95_ratio_with_overhead": Measure("p95 ratio with overhead", _with_overhead("p95"), times),
    "p99_ratio_with_overhead": Measure("p99 ratio with overhead", _with_overhead("p99"), times),
    "cpu_seconds": Measure("CPU seconds per 1000 requests", lambda p: _single(p.cpu_seconds_per_1000), significant),
    "money": Measure("money per million requests", lambda p: _single(p.money_per_million), significant),
}  # fmt: skip
# Measures that every page has; the others are those of further objectives.
ALWAYS = (
    "p95_ms", "p95_ratio", "throughput_rps", "throughput_ratio", "capacity_ratio", "service_p50_ratio", "loss",
    "model_bytes", "memory_mb",
)  # fmt: skip
# Measures of a study with a time that is spent elsewhere, and of these the ones that a policy goes by there.
_WITH_OVERHEAD = (
    "p50_ms", "p50_ratio", "p50_ratio_with_overhead", "p95_ms_with_overhead", "p95_ratio_with_overhead", "p99_ms",
    "p99_ratio", "p99_ratio_with_overhead",
)  # fmt: skip
_DECISIVE = {"p95_ms": "p95_ms_with_overhead", "p95_ratio": "p95_ratio_with_overhead"}
# The measures of an objective: as a ratio or share where there is one, and in its own unit.
_OBJECTIVES: Mapping[str, tuple[str, str]] = {
    "latency_p95": ("p95_ratio", "p95_ms"),
    "throughput": ("throughput_ratio", "throughput_rps"),
    "quality": ("loss", "loss"),
    "latency_p50": ("p50_ratio", "p50_ms"),
    "latency_p99": ("p99_ratio", "p99_ms"),
    "model_bytes": ("model_bytes", "model_bytes"),
    "peak_memory_bytes": ("memory_mb", "memory_mb"),
    "cpu_seconds_per_1000": ("cpu_seconds", "cpu_seconds"),
    "money_per_million": ("money", "money"),
}
_POLICY_AXES = ("latency_p95", "throughput", "quality")


def objective_measures(front: Front) -> tuple[tuple[str, str], ...]:
    """Return the measures of p95, throughput and loss, which every choice weighs, and of the study's other objectives.

    Each objective has a pair: its ratio or share, where there is one, and the measure in its own unit.
    """
    known = [name for name in front.objectives if name in _OBJECTIVES]
    return tuple(_OBJECTIVES[name] for name in dict.fromkeys((*_POLICY_AXES, *known)))


def measures_of(front: Front) -> dict[str, Measure]:
    """Return the measures of a study's page, by name."""
    added = _WITH_OVERHEAD if front.overhead_ms else ()
    names = dict.fromkeys((*ALWAYS, *(name for pair in objective_measures(front) for name in pair), *added))
    return {name: MEASURES[name] for name in names}


def decisive_measures(front: Front) -> Mapping[str, str]:
    """Return the measure that a policy goes by in the place of another, by the name of that."""
    return _DECISIVE if front.overhead_ms else {}


def pair_names(front: Front) -> list[str]:
    """Return the names of the page's figures in 2-D, in their order: each pair of measures."""
    names = [MEASURES[ratio].words for ratio, _ in objective_measures(front)]
    pairs = sorted(itertools.combinations(names, 2), key=lambda pair: pair != (names[0], MEASURES["loss"].words))
    return [f"{one} and {other}" for one, other in pairs]
