"""Choice of a point for deployment: of the finalists in their order, the first that test confirms is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from objectives.records import Measurement, Quality
from search.ablation.records import DistillationGain
from search.choose.policy import MOST_LOOKS, PREFERENCES, Policy, measured_bounds
from search.errors import JobError, NothingConfirmedError
from search.format import count, ranged
from search.results import Choice, Confirmation, Point, TunedRatios, numbers_of
from search.verdict import interference_warnings
from search.workers.meter_jobs import Side
from search.workers.paired_comparison import PairedComparison
from spaces.serialization import fields_in

ALPHA = 0.05


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
        if (broken := policy.broken(measured_bounds(timed.latency, timed.throughput, timed.footprint))) is not None:
            say(f"{name}: over a long window {broken}")
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
