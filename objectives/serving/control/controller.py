"""Controller: a pure state machine from what a server sees to the option that is to serve, with the reason.

The rate that is wanted is the larger one of the plan's and of the mean over the stable window. A rate over the panic
window that is `panic` times what serves, the requests that wait included, starts a panic: what serves only grows then,
until the rate has been lower for a stable window. Capacity is taken away once everything that was wanted within a
stable window fits into less. All rates are compared with capacities of a machine alone: in a phase whose requests are
dealt to several machines, which therefore serve more, each request counts for less. Rates count for more where answers
were late although the capacity was to suffice (`correction`). Where no option of a variant suffices, a faster one takes
its place before anything is refused, and leaves it again by the same rule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

from objectives.serving.control.correction import Answers, Correction, Terms, correct
from objectives.serving.control.options import ControlPlan, PlannedPhase, choose, usable_options
from objectives.serving.control.windows import Windows


class Reason(StrEnum):
    """Reason of a decision."""

    STEADY = "steady"
    PLAN = "plan"
    STABLE = "stable window"
    PANIC = "panic window"
    LATE = "late answers"
    CALM = "calm"
    BROKEN = "broken"


class Sample(NamedTuple):
    """A value at a moment."""

    at_s: float
    value: float


@dataclass(frozen=True)
class Observation:
    """Observation of a server.

    now_s: seconds since the plan's start
    arrived: requests since the server's start, refused ones too
    backlog: requests that wait for a replica, or for the event loop that runs it
    serving: number of the option that serves
    ended, late: requests since the server's start that were answered or refused, or still run though their time has
        passed, and those of them that were not answered in time
    broken: numbers of options that cannot be opened
    """

    now_s: float
    arrived: int
    backlog: int
    serving: int
    broken: frozenset[int] = frozenset()
    ended: int = 0
    late: int = 0

    @property
    def answers(self) -> Answers:
        """The answers so far."""
        return Answers(self.now_s, self.ended, self.late, self.backlog)


@dataclass(frozen=True)
class State:
    """Memory of the controller.

    seen: requests so far
    arrived: the same as they count, at each tick of a stable window, and at the one before
    wanted: rate that was wanted at each tick of a stable window
    option: number of the option that is to serve
    """

    seen: int
    arrived: tuple[Sample, ...]
    wanted: tuple[Sample, ...]
    option: int
    panic_until_s: float = -math.inf
    correction: Correction = field(default_factory=Correction)


@dataclass(frozen=True)
class Decision:
    """The option that is to serve from now on, and why.

    planned_rps, stable_rps, panic_rps: the plan's rate, and those over the windows, divided by the capacity factor
        which applied when the requests came; that of the panic window counts the requests that wait
    held_rps: the highest rate that was wanted within a stable window, for which the option suffices where one does
    correction: times that a rate counts for, in held_rps alone
    capacity_factor: of the phase
    """

    now_s: float
    option: int
    reason: Reason
    panicking: bool
    planned_rps: float
    stable_rps: float
    panic_rps: float
    held_rps: float
    backlog: int
    correction: float
    capacity_factor: float = 1.0


def begin(plan: ControlPlan, windows: Windows, now_s: float, arrived: int = 0) -> State:
    """Return the first state of a controller.

    Its option is for what is foreseen from now, or before the plan's start from second 0, until what the first tick
    decides can serve, if the option serves at once. Where nothing is foreseen, it is as many replicas as there may be
    of a variant of the least loss.
    """
    from_s = max(now_s, 0.0)
    foreseen = _foreseen(plan, windows, from_s)
    if foreseen is not None:
        rate, option = foreseen.rate_rps, choose(plan.options, foreseen.rate_rps, foreseen.loss)
    else:
        least = min(each.loss for each in plan.options)
        rate = max(each.capacity_rps for each in plan.options if each.loss == least)
        option = choose(plan.options, rate, 0.0)
    assert option is not None, "a plan has an option"
    correction = Correction(from_s=now_s, batch_s=now_s)
    return State(arrived, (Sample(now_s, arrived),), (Sample(now_s, rate),), option, correction=correction)


def resumed(plan: ControlPlan, windows: Windows, state: State, shift_s: float, seen: Observation) -> State:
    """Return the state that goes on under another plan, or at another second, with what was seen: a surge stays one.

    Args:
        shift_s: seconds from the clock of the old plan to that of the new one
        seen: on the new plan's clock; what serves is none of the new plan's options, and `serving` does not count
    """

    def shifted(samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
        return tuple(Sample(sample.at_s + shift_s, sample.value) for sample in samples)

    arrived, wanted = shifted(state.arrived), shifted(state.wanted)
    correction = state.correction.begun_again(seen.answers, windows.panic_s)
    option, until_s = begin(plan, windows, seen.now_s).option, state.panic_until_s + shift_s
    moved = State(state.seen, arrived, wanted, option, until_s, correction)
    # As if the largest one served, so that no panic starts before it is known which one does.
    largest = max(range(len(plan.options)), key=lambda number: plan.options[number].capacity_rps)
    return decide(plan, windows, moved, replace(seen, serving=largest))[0]


def _foreseen(plan: ControlPlan, windows: Windows, now_s: float) -> PlannedPhase | None:
    """Return what is foreseen until what the next tick decides can serve; None where nothing is.

    A phase that begins just then can wait for that tick.
    """
    return plan.foreseen(now_s, math.nextafter(now_s + plan.lead_s + windows.tick_s, now_s))


def decide(plan: ControlPlan, windows: Windows, state: State, seen: Observation) -> tuple[State, Decision]:
    """Return the next state, and the decision."""
    now = seen.now_s
    foreseen = _foreseen(plan, windows, now)
    planned, least_loss = (0.0, 0.0) if foreseen is None else (foreseen.rate_rps, foreseen.loss)
    before = state.arrived[-1]
    counted = before.value + (seen.arrived - state.seen) / plan.capacity_factor(before.at_s)
    factor = plan.capacity_factor(now)
    arrived = _since(state.arrived, Sample(now, counted), now - windows.stable_s)
    stable, panic = (_rate(arrived, width, windows.panic_s) for width in (windows.stable_s, windows.panic_s))
    terms = _terms(plan, windows, state, seen, (stable, panic), least_loss)
    if seen.serving == state.option:
        correction = correct(state.correction, seen.answers, terms)
    else:  # something else is about to serve, and no answer counts
        correction = state.correction.begun_again(seen.answers, windows.panic_s)
    panic += seen.backlog / factor / windows.panic_s

    until_s = state.panic_until_s
    if panic / windows.target >= windows.panic * plan.options[seen.serving].capacity_rps:
        until_s = now + windows.stable_s
    panicking = now < until_s
    if panicking and now >= state.panic_until_s and not terms.explained:
        # What waits is more than a panic window of work, though no more arrived than was to be served.
        correction = correction.grown(seen.answers, terms)
    calm, burst = (correction.factor * max(planned, rate / windows.target) for rate in (stable, panic))
    want = max(calm, burst) if panicking else calm
    wanted = tuple(each for each in state.wanted if each.at_s > now - windows.stable_s)
    wanted = (*wanted, Sample(now, want))
    held = max(each.value for each in wanted)

    option = _option(plan, state.option, held, least_loss, panicking, seen.broken)
    as_planned = planned >= stable / windows.target
    reason = _reason(plan, state.option, option, panicking, as_planned, least_loss, seen)
    if reason in (Reason.PLAN, Reason.STABLE) and correction.factor > state.correction.factor:
        reason = Reason.LATE
    rates = (planned, stable, panic, held)
    decision = Decision(now, option, reason, panicking, *rates, seen.backlog, correction.factor, factor)
    return State(seen.arrived, arrived, wanted, option, until_s, correction), decision


def _terms(
    plan: ControlPlan,
    windows: Windows,
    state: State,
    seen: Observation,
    arriving_rps: tuple[float, float],
    least_loss: float,
) -> Terms:
    """Return the terms of a correction, given the rates over the stable window and over the panic window."""
    served_rps = plan.options[seen.serving].capacity_rps
    usable = usable_options(plan.options, least_loss, seen.broken)
    largest_rps = max((plan.options[number].capacity_rps for number in usable), default=0.0)
    held_rps = served_rps * windows.target / state.correction.factor
    widths = (windows.stable_s, windows.panic_s)
    return Terms(
        plan.allowed_late,
        *widths,
        settle_s=plan.lead_s + windows.panic_s,
        explained=any(_surely_above(rate, width, held_rps) for rate, width in zip(arriving_rps, widths, strict=True)),
        # Little more than what the largest option can do, which a larger factor could not exceed.
        most=1.01 * windows.target * largest_rps / max(*arriving_rps, 1e-9) if largest_rps > served_rps else 1.0,
    )


def _surely_above(rate_rps: float, width_s: float, limit_rps: float) -> bool:
    """Return whether a rate is above a limit beyond the chance of Poisson arrivals, two standard deviations."""
    return rate_rps - 2 * math.sqrt(rate_rps / width_s) > limit_rps


def _since(samples: tuple[Sample, ...], newest: Sample, from_s: float) -> tuple[Sample, ...]:
    """Return the samples since a moment, with the last one before it, and the newest."""
    before = sum(sample.at_s <= from_s for sample in samples)
    return (*samples[max(0, before - 1) :], newest)


def _rate(arrived: tuple[Sample, ...], width_s: float, least_s: float) -> float:
    """Return the mean rate over the last `width_s` seconds.

    At the beginning it is the mean over the time so far, taken as `least_s` at least, so that a handful of requests
    does not look like a surge.
    """
    newest = arrived[-1]
    before = [sample for sample in arrived if sample.at_s <= newest.at_s - width_s]
    first = before[-1] if before else arrived[0]
    return (newest.value - first.value) / max(newest.at_s - first.at_s, least_s)


def _option(
    plan: ControlPlan, now: int, held_rps: float, least_loss: float, panicking: bool, broken: frozenset[int]
) -> int:
    found = choose(plan.options, held_rps, least_loss, broken)
    if found is None:
        return now
    shrinks = plan.options[found].capacity_rps < plan.options[now].capacity_rps
    return now if panicking and shrinks and now not in broken else found


def _reason(
    plan: ControlPlan, old: int, new: int, panicking: bool, as_planned: bool, least_loss: float, seen: Observation
) -> Reason:
    if old == new:
        return Reason.STEADY
    if old in seen.broken:
        return Reason.BROKEN
    before, after = plan.options[old], plan.options[new]
    if after.capacity_rps > before.capacity_rps:
        if panicking:
            return Reason.PANIC
        return Reason.PLAN if as_planned else Reason.STABLE
    return Reason.PLAN if before.loss < least_loss else Reason.CALM
