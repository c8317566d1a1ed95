"""Choice of a point for deployment: a policy orders the finalists, and the first that test confirms is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from objectives.records import Latency, Measurement, Quality
from search.ablation.records import DistillationGain
from search.config.loss_limits import Limits
from search.errors import ConfigError, JobError, NothingConfirmedError
from search.format import count, ranged
from search.front import unit_objectives
from search.results import Choice, Confirmation, Front, Point, TunedRatios, numbers_of
from search.verdict import interference_warnings
from search.workers.meter_jobs import Side
from search.workers.paired_comparison import PairedComparison
from spaces.serialization import fields_in

Preference = Literal["latency", "throughput", "memory", "knee"]
PREFERENCES: Mapping[Preference, str] = {
    "knee": "the knee of the front",
    "latency": "the lowest p95",
    "throughput": "the highest throughput",
    "memory": "the smallest model",
}
ALPHA = 0.05
# A few are enough: each further evaluation on test widens the interval.
MOST_LOOKS = 5


@dataclass(frozen=True)
class Policy:
    """Limits that a point must keep, and the preference among those that do; ConfigError where one is invalid."""

    max_loss: float
    p95_ms: float | None = None
    p95_ratio: float | None = None
    prefer: Preference = "knee"
    slices: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("p95_ms", "p95_ratio"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name}: must be above 0, but got {value}")
        if not 0 < self.max_loss < 1:
            raise ConfigError(f"max_loss: must lie between 0 and 1, but got {self.max_loss}")
        if self.prefer not in PREFERENCES:
            raise ConfigError(f"prefer: must be one of {', '.join(PREFERENCES)}, but got {self.prefer!r}")

    @property
    def limits(self) -> Limits:
        return Limits(self.max_loss, self.slices)

    def too_slow(self, p95_ms: float | None, p95_ratio: float | None) -> str | None:
        """Return the latency limit that a p95 violates, with the margin; None for none. An unknown p95 keeps none."""
        for what, unit, value, limit in (
            ("p95", " ms", p95_ms, self.p95_ms),
            ("p95 ratio", "", p95_ratio, self.p95_ratio),
        ):
            if limit is None:
                continue
            if value is None:
                return f"the upper bound of the {what} must be {limit:g}{unit} at most, but is not known"
            if value > limit:
                return (
                    f"the {what} may be {value:.3f}{unit}, {value - limit:.3f} above the {limit:g}{unit} of the policy"
                )
        return None

    def unproved_latency(self, latency: Latency) -> str | None:
        """Return the latency limit that the whole interval does not keep, with the margin; None where it keeps all."""
        return self.too_slow(*p95_upper_bounds(latency))


def p95_upper_bounds(latency: Latency) -> tuple[float | None, float]:
    """Upper ends of the intervals of the candidate's p95 in milliseconds and of its ratio to the baseline's."""
    interval = latency.candidate.p95_interval_ms
    return None if interval is None else interval[1], latency.p95_ratio_interval[1]


@dataclass(frozen=True)
class Confirmed:
    """A model benchmarked over a long window and evaluated on test.

    looks: number of evaluations on test so far, this one included
    control: the gain of distillation over the labels alone, where it was measured
    tuned: the ratios to the tuned baseline, from a paired benchmark over a long window
    """

    measurement: Measurement
    looks: int
    control: DistillationGain | None = None
    tuned: TunedRatios | None = None


@dataclass(frozen=True)
class ModelKey:
    """A model as it is scored: the file, where it runs, and the width that it computes in."""

    artifact: str
    engine: tuple[str, ...]
    compute: str


@dataclass(frozen=True)
class Look:
    """A look at test: its number, the first trial that it was taken for, the model, and what was seen."""

    look: int
    trial: int
    model: ModelKey
    quality: Quality


def finalists(front: Front, policy: Policy) -> list[Point]:
    """The front's points that keep the policy on validation, in the fixed order in which they are confirmed.

    Those whose whole intervals keep it, of the loss and of the p95, come first: they are the likelier to be confirmed,
    and this costs no evaluation on test. Within both, the preferred first.
    """
    points = [p for p in front.members if p.trial != 0 and p.quality.loss <= policy.max_loss]
    points = [p for p in points if policy.too_slow(p.latency_ms.p95, p.p95_ratio) is None]
    worth = zip(points, _worth(points, policy), strict=True)
    return [point for point, _ in sorted(worth, key=lambda one: (not _surely(one[0], policy), -one[1]))]


def _surely(point: Point, policy: Policy) -> bool:
    """Return whether the whole intervals of a point satisfy the policy."""
    interval = point.latency_ms.p95_interval
    slow = policy.too_slow(None if interval is None else interval[1], point.p95_ratio_interval[1])
    return slow is None and point.quality.loss_interval[1] <= policy.max_loss


def _worth(points: Sequence[Point], policy: Policy) -> list[float]:
    """Higher is preferred. The knee is the point nearest (Euclid) to the best of each objective among the points."""
    if policy.prefer == "latency":
        return [-p.p95_ratio for p in points]
    if policy.prefer == "throughput":
        return [p.throughput_ratio for p in points]
    if policy.prefer == "memory":
        return [-p.model_bytes for p in points]
    if not points:
        return []
    p95, throughput, loss = zip(*((p.p95_ratio, p.throughput_ratio, p.quality.loss) for p in points), strict=True)
    units = unit_objectives(p95, throughput, loss, policy.max_loss)
    return [-float(d) for d in np.linalg.norm(units.max(axis=0) - units, axis=1)]


def confidence_of(look: int) -> float:
    """Return the confidence level of the k-th evaluation on test: Bonferroni with unequal shares, alpha / (k (k + 1)),
    which sum to alpha.

    For any number of evaluations, the chance that any accepted point violates the limit stays below alpha, and the
    number need not be known beforehand.
    """
    return 1 - ALPHA / (look * (look + 1))


def confirm(
    pairs: PairedComparison, candidates: Sequence[tuple[Point, Side]], looks: list[Look], policy: Policy
) -> tuple[Point, Confirmed]:
    """Walk down the finalists; the first whose test interval keeps the tolerated loss is confirmed.

    Args:
        looks: earlier evaluations on test of this study; this call's are appended. The same model counts only once.

    Raises:
        NothingConfirmedError: no finalist was confirmed; the message has the nearest.
    """
    nearest: str | None = None
    say = pairs.console.say
    for point, ours in candidates[:MOST_LOOKS]:
        name, (artifact, candidate) = f"trial {point.trial}", ours
        say(f"{name}: timing over a long window")
        try:
            timed = pairs.benchmark(ours, "confirm", pairs.jobs.recording(f"confirm-{point.trial}"))
        except JobError as error:
            say(f"{name}: not timed: {error}")
            continue
        if (slow := policy.unproved_latency(timed.latency)) is not None:
            say(f"{name}: over a long window {slow}")
            continue
        places = tuple(instance_group.place for instance_group in candidate.placement.instance_groups)
        model = ModelKey(artifact.key, places, candidate.precision.compute)
        look = next((before.look for before in looks if before.model == model), len(looks) + 1)
        quality = pairs.evaluate(ours, "test", confidence_of(look))
        if look > len(looks):
            looks.append(Look(look, point.trial, model, quality))
        loss = ranged(quality.loss, quality.loss_interval, "+.2%")
        told = f"loss on test {loss} at {quality.confidence:.1%} (look {look})"
        unproved = policy.limits.unproved(quality)
        if unproved is None:
            say(f"{name}: {told}: confirmed")
            measurement = Measurement(quality, timed.latency, timed.throughput, timed.footprint)
            return point, Confirmed(measurement, len(looks))
        say(f"{name}: {told}: not confirmed: {unproved}")
        nearest = nearest or told
    if nearest is None:
        raise NothingConfirmedError("no point of the front keeps the policy")
    raise NothingConfirmedError(f"no finalist held on test; the first: {nearest}")


def reason(point: Point, confirmed: Confirmed, policy: Policy, finalists: int) -> str:
    """Describe the reason for this point, in one sentence."""
    quality = confirmed.measurement.quality
    return (
        f"Trial {point.trial} is {PREFERENCES[policy.prefer]} among {finalists} finalists that keep a loss of "
        f"{policy.max_loss:.2%}, and on test its loss is {ranged(quality.loss, quality.loss_interval, '+.2%')} after "
        f"{count(confirmed.looks, 'look')}."
    )


def choice(point: Point, confirmed: Confirmed, bundle: Path, why: str, registered: Mapping[str, str] | None) -> Choice:
    """The record of a confirmed point whose bundle is written."""
    measured = confirmed.measurement
    confirmation = Confirmation(
        **fields_in(Confirmation, numbers_of(measured)),
        looks=confirmed.looks,
        warnings=tuple(interference_warnings(measured.latency)),
        tuned_baseline=confirmed.tuned,
    )
    return Choice(str(bundle), point, confirmation, confirmed.control, why, registered)
