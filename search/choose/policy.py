"""Policy of a choice: limits that a point must keep, and the order of preference among those that do.

The report mirrors `finalists` in `search/report/templates/policy.js`; a test compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from objectives.records import Footprint, Interval, Latency, OverheadRatios, Throughput
from search.config.loss_limits import Limits
from search.errors import ConfigError
from search.front import unit_objectives
from search.results import Front, Point

Preference = Literal["latency", "throughput", "memory", "knee"]
PREFERENCES: Mapping[Preference, str] = {
    "knee": "the knee of the front",
    "latency": "the lowest p95",
    "throughput": "the highest throughput",
    "memory": "the smallest model",
}
# Finalists that are evaluated on test at most, where each further evaluation widens the interval; and that are tried in
# all, with those that are too slow over a long window.
MOST_LOOKS, MOST_TRIED = 5, 12
# Decimals that count when distances to the best of each objective are compared: the last bits of a logarithm differ
# between processors, and would otherwise order points that are equal.
DISTANCE_DECIMALS = 12
_MEGABYTE = 1e6


@dataclass(frozen=True)
class Limited:
    """A number that a policy may limit: its name in words, its unit, and whether the limit is an upper one."""

    words: str
    unit: str
    at_most: bool


# By the policy's field.
LIMITED: Mapping[str, Limited] = {
    "p95_ms": Limited("p95", " ms", True),
    "p95_ratio": Limited("p95 ratio", "", True),
    "throughput_rps": Limited("throughput", " requests/s", False),
    "throughput_ratio": Limited("throughput ratio", "", False),
    "memory_mb": Limited("peak memory", " MB", True),
}
# A value for each key of `LIMITED`; None where it is not known.
Values = Mapping[str, float | None]


@dataclass(frozen=True)
class Policy:
    """Limits that a point must keep, and the preference among those that do; ConfigError where one is invalid.

    p95_ms, p95_ratio, memory_mb: at most; memory is the peak of a process with the deployment, in 10^6 bytes, and
        latency that with the time that is spent elsewhere, where the study has one
    throughput_rps, throughput_ratio: at least, within the SLO
    """

    max_loss: float
    p95_ms: float | None = None
    p95_ratio: float | None = None
    prefer: Preference = "knee"
    slices: Mapping[str, float] = field(default_factory=dict)
    throughput_rps: float | None = None
    throughput_ratio: float | None = None
    memory_mb: float | None = None

    def __post_init__(self) -> None:
        for name, limit in self._given():
            if not limit > 0:
                raise ConfigError(f"{name}: must be above 0, but got {limit}")
        if not 0 < self.max_loss < 1:
            raise ConfigError(f"max_loss: must lie between 0 and 1, but got {self.max_loss}")
        if self.prefer not in PREFERENCES:
            raise ConfigError(f"prefer: must be one of {', '.join(PREFERENCES)}, but got {self.prefer!r}")

    @property
    def limits(self) -> Limits:
        return Limits(self.max_loss, self.slices)

    def _given(self) -> Iterator[tuple[str, float]]:
        """Yield the limits that are set, by name."""
        for name in LIMITED:
            if (limit := getattr(self, name)) is not None:
                yield name, limit

    def margins(self, values: Values) -> dict[str, float | None]:
        """Return the distance of each value to its limit, negative where it breaks it, None where it is not known."""
        found: dict[str, float | None] = {}
        for name, limit in self._given():
            value = values[name]
            found[name] = None if value is None else limit - value if LIMITED[name].at_most else value - limit
        return found

    def excess(self, values: Values) -> float:
        """Return the largest factor by which the values miss a limit; infinite where one is not known."""
        found = [0.0]
        for name, limit in self._given():
            value = values[name]
            found.append(math.inf if not value else value / limit if LIMITED[name].at_most else limit / value)
        return max(found)

    def broken(self, values: Values) -> str | None:
        """Return the first limit that the values break, with the margin; None for none. An unknown value keeps none."""
        limits = dict(self._given())
        for name, margin in self.margins(values).items():
            words, unit, most = LIMITED[name].words, LIMITED[name].unit, LIMITED[name].at_most
            if margin is None:
                end, side = ("upper", "most") if most else ("lower", "least")
                return f"the {end} bound of the {words} must be {limits[name]:g}{unit} at {side}, but is not known"
            if margin < 0:
                side = "above" if most else "below"
                return (
                    f"the {words} may be {values[name]:.3f}{unit}, {-margin:.3f} {side} the {limits[name]:g}{unit} "
                    "of the policy"
                )
        return None


def measured_bounds(latency: Latency, throughput: Throughput, footprint: Footprint) -> Values:
    """Return the end of each interval that a policy is held to; memory has no interval."""
    p95_ms, added = latency.candidate.p95_interval_ms, latency.with_overhead
    return {
        "p95_ms": _end(p95_ms if added is None else _later(p95_ms, added), 1),
        "p95_ratio": (latency if added is None else added).p95_ratio_interval[1],
        "throughput_rps": _end(throughput.rps_interval, 0),
        "throughput_ratio": throughput.ratio_interval[0],
        "memory_mb": _megabytes(footprint.peak_memory_bytes),
    }


def estimates(point: Point) -> Values:
    """Return the point estimates of what a policy may limit."""
    latency, added = point.latency_ms, point.with_overhead
    return {
        "p95_ms": latency.p95 if added is None else latency.p95 + added.overhead_ms,
        "p95_ratio": decisive_p95_ratio(point),
        "throughput_rps": point.throughput_rps,
        "throughput_ratio": point.throughput_ratio,
        "memory_mb": _megabytes(point.peak_memory_bytes),
    }


def bounds(point: Point) -> Values:
    """Return the end of each interval that a policy is held to, as `measured_bounds`."""
    p95_ms, added = point.latency_ms.p95_interval, point.with_overhead
    return {
        "p95_ms": _end(p95_ms if added is None else _later(p95_ms, added), 1),
        "p95_ratio": (point if added is None else added).p95_ratio_interval[1],
        "throughput_rps": _end(point.throughput_interval, 0),
        "throughput_ratio": point.throughput_ratio_interval[0],
        "memory_mb": _megabytes(point.peak_memory_bytes),
    }


def decisive_p95_ratio(point: Point) -> float:
    """Return the p95 ratio that a policy goes by: with the time that is spent elsewhere, where there is one."""
    return point.p95_ratio if point.with_overhead is None else point.with_overhead.p95_ratio


def _later(interval: Interval | None, added: OverheadRatios) -> Interval | None:
    return None if interval is None else (interval[0] + added.overhead_ms, interval[1] + added.overhead_ms)


def _end(interval: Interval | None, end: int) -> float | None:
    return None if interval is None else interval[end]


def _megabytes(count: int | None) -> float | None:
    return None if count is None else count / _MEGABYTE


def finalists(front: Front, policy: Policy) -> list[Point]:
    """The front's points that keep the policy on validation, in the fixed order in which they are confirmed.

    Those whose whole intervals keep it come first: they are the likelier to be confirmed, and this costs no evaluation
    on test. Within both, the preferred first; of equal ones, the earlier trial.
    """
    points = [p for p in front.members if p.trial != 0 and p.quality.loss <= policy.max_loss]
    points = [p for p in points if policy.broken(estimates(p)) is None]
    worth = zip(points, _worth(points, policy), strict=True)
    return [point for point, _ in sorted(worth, key=lambda one: (not _surely(one[0], policy), -one[1]))]


def no_finalist(front: Front, policy: Policy) -> str:
    """Tell that no point of the front keeps the policy on validation, and which comes nearest to it."""
    points = [p for p in front.members if p.trial != 0]
    if not points:
        return "the front has no point but the baseline"
    nearest = min(points, key=lambda p: max(p.quality.loss / policy.max_loss, policy.excess(estimates(p))))
    loss, told = nearest.quality.loss, policy.broken(estimates(nearest))
    if loss > policy.max_loss:
        told = f"a loss of {loss:.2%} is above the {policy.max_loss:.2%} of the policy"
    return f"no point of the front keeps the policy; the nearest, trial {nearest.trial}: {told}"


def _surely(point: Point, policy: Policy) -> bool:
    """Return whether the whole intervals of a point satisfy the policy."""
    return policy.broken(bounds(point)) is None and point.quality.loss_interval[1] <= policy.max_loss


def _worth(points: Sequence[Point], policy: Policy) -> list[float]:
    """Return the worth of each point, where higher is preferred.

    The knee is the point nearest (Euclid) to the best of each objective among the points.
    """
    if policy.prefer == "latency":
        return [-decisive_p95_ratio(p) for p in points]
    if policy.prefer == "throughput":
        return [p.throughput_ratio for p in points]
    if policy.prefer == "memory":
        return [-p.model_bytes for p in points]
    if not points:
        return []
    p95, throughput, loss = zip(
        *((decisive_p95_ratio(p), p.throughput_ratio, p.quality.loss) for p in points), strict=True
    )
    units = unit_objectives(p95, throughput, loss, policy.max_loss)
    distances = np.linalg.norm(units.max(axis=0) - units, axis=1)
    return [-float(d) for d in np.round(distances, DISTANCE_DECIMALS)]
