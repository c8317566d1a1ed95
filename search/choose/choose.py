"""Choice of a point for deployment: of the finalists in their order, the first that test confirms is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from objectives.records import Measurement
from search.ablation.records import DistillationGain
from search.choose.looks import Look, Looks, ModelKey, confidence_of
from search.choose.policy import MOST_LOOKS, MOST_TRIED, PREFERENCES, Policy, measured_bounds
from search.errors import JobError, NothingConfirmedError
from search.format import count, ranged
from search.results import Choice, Confirmation, Point, TunedRatios, numbers_of
from search.verdict import interference_warnings
from search.workers.meter_jobs import Side
from search.workers.paired_comparison import PairedComparison
from spaces.serialization import fields_in


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
class Unconfirmed:
    """A point that was not confirmed, and why; `loss` is what test said, None where it was not evaluated there."""

    reason: str
    loss: str | None = None


def confirm(
    pairs: PairedComparison, candidates: Sequence[tuple[Point, Side]], looks: Looks, policy: Policy
) -> tuple[Point, Confirmed]:
    """Walk down the finalists; the first whose test interval keeps the tolerated loss is confirmed.

    The walk ends after five evaluations on test, which those that are too slow over a long window do not need.

    Args:
        looks: evaluations on test of this study, to which this call's are added; the same model counts only once

    Raises:
        NothingConfirmedError: no finalist was confirmed; the message has the first one's reason.
    """
    first: str | None = None
    before = len(looks)
    for point, side in candidates[:MOST_TRIED]:
        found = try_point(pairs, point, side, looks, policy)
        if isinstance(found, Confirmed):
            return point, found
        first = first or f"trial {point.trial}: {found.reason}"
        if len(looks) - before >= MOST_LOOKS:
            break
    raise NothingConfirmedError(f"no finalist was confirmed; the first, {first}")


def try_point(
    pairs: PairedComparison, point: Point, side: Side, looks: Looks, policy: Policy
) -> Confirmed | Unconfirmed:
    """Benchmark a point over a long window, and evaluate it on test where that keeps the policy.

    `looks` is as in `confirm`.
    """
    say = pairs.console.say
    name, (artifact, candidate) = f"trial {point.trial}", side
    say(f"{name}: timing over a long window")
    try:
        timed = pairs.benchmark(side, "confirm", pairs.jobs.recording(f"confirm-{point.trial}"))
    except JobError as error:
        say(f"{name}: not timed: {error}")
        return Unconfirmed(f"not timed: {error}")
    if (broken := policy.broken(measured_bounds(timed.latency, timed.throughput, timed.footprint))) is not None:
        say(f"{name}: over a long window {broken}")
        return Unconfirmed(f"over a long window {broken}")
    places = tuple(instance_group.place for instance_group in candidate.placement.instance_groups)
    model = ModelKey(artifact.key, places, candidate.precision.compute)
    look = looks.number_of(model)
    quality = pairs.evaluate(side, "test", confidence_of(look))
    looks.add(Look(look, point.trial, model, quality))
    loss = ranged(quality.loss, quality.loss_interval, "+.2%")
    told = f"loss on test {loss} at {quality.confidence:.1%} (look {look})"
    if (unproved := policy.limits.unproved(quality)) is not None:
        say(f"{name}: {told}: not confirmed: {unproved}")
        return Unconfirmed(f"{told}: {unproved}", told)
    say(f"{name}: {told}: confirmed")
    return Confirmed(Measurement(quality, timed.latency, timed.throughput, timed.footprint), len(looks))


def reason(point: Point, confirmed: Confirmed, policy: Policy, finalists: int) -> str:
    """Describe the reason for this point, in one sentence."""
    quality = confirmed.measurement.quality
    return (
        f"Trial {point.trial} is {PREFERENCES[policy.prefer]} among {finalists} finalists that keep a loss of "
        f"{policy.max_loss:.2%}, and on test its loss is {ranged(quality.loss, quality.loss_interval, '+.2%')} after "
        f"{count(confirmed.looks, 'look')}."
    )


def choice(
    point: Point,
    confirmed: Confirmed,
    bundle: Path,
    why: str,
    registered: Mapping[str, str] | None,
    max_loss: float | None = None,
) -> Choice:
    """The record of a confirmed point whose bundle is written; `max_loss` is that of the policy."""
    return Choice(str(bundle), point, confirmation(confirmed), confirmed.control, why, registered, max_loss)


def confirmation(confirmed: Confirmed) -> Confirmation:
    """The numbers of a confirmed point."""
    measured = confirmed.measurement
    return Confirmation(
        **fields_in(Confirmation, numbers_of(measured)),
        looks=confirmed.looks,
        warnings=tuple(interference_warnings(measured.latency)),
        tuned_baseline=confirmed.tuned,
    )
