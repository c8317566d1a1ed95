"""Policies of serving a demand: static, reactive, planned from forecasts, and the oracle's, as machines over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from objectives.serving.control.windows import Windows
from planning.autoscaler import Arrived, autoscale
from planning.capacity import CapacityTable, needed_machines
from planning.demand import DAY_SECONDS, Demand, Floats
from planning.fleet import Trajectory
from planning.forecast import Forecast, Selected, forecast
from planning.schedule import NoScheduleError, OutOfTimeError, Problem, Schedule, cheapest, least_loss

# Phases between the last one that a forecast sees and the first one that it is for, in which machines are ordered.
LEAD = 1


@dataclass(frozen=True)
class Limits:
    """Limits of a plan.

    max_loss: mean quality loss of the requests of a day
    max_money: money of a day; None minimises the money, and otherwise the loss is minimised within both limits
    headroom: quantile of the forecast that the machines suffice for
    """

    max_loss: float
    max_money: float | None = None
    headroom: float = 0.9


@dataclass(frozen=True, eq=False)
class PhasePlans:
    """Schedule of consecutive phases, (T,) each.

    offers, machines: what serves
    short: phases in which all machines of what serves are too few for the SLO
    expected, demand_rps: requests, and the rate that the machines are sized for
    gap: largest gap of a day's solution to its optimum
    """

    offers: NDArray[np.int64]
    machines: NDArray[np.int64]
    short: NDArray[np.bool_]
    expected: Floats
    demand_rps: Floats
    money: float
    loss: float
    gap: float

    def trajectory(self, phase_seconds: float) -> Trajectory:
        return Trajectory(
            np.asarray(np.arange(len(self.offers)) * phase_seconds, np.float64), self.offers, self.machines
        ).merged()


def schedule(
    tables: Sequence[CapacityTable],
    expected: Floats,
    demand_rps: Floats,
    phase_seconds: float,
    limits: Limits,
    serving: tuple[int, int] | None = None,
) -> PhasePlans:
    """Return the optimal schedule of the phases of at most a day.

    Where no choice within the limits keeps the SLO in all phases, an offer may serve with all machines of its kind
    although they are too few, and as few requests as possible are left unserved.

    Args:
        tables: capacity of each offer
        expected: (T,) requests of each phase
        demand_rps: (T,) rate that is to be served
        serving: offer and machines before

    Raises:
        NoScheduleError: no choice keeps the limits.
    """
    offers = [table.offer for table in tables]
    needed = np.stack([needed_machines(table, demand_rps) for table in tables], axis=1)
    problem = Problem(
        needed=needed,
        price=np.array([offer.kind.price_per_hour for offer in offers]) * phase_seconds / 3600,
        start_price=np.array([offer.start_price for offer in offers]),
        loss=np.array([offer.loss for offer in offers]),
        most=np.array([offer.kind.most for offer in offers]),
        weight=expected,
        day=np.zeros(len(expected), np.int64),
        serving=serving,
    )
    try:
        found = _solved(problem, limits, phase_seconds)
    except NoScheduleError as error:
        if needed.all() or isinstance(error, OutOfTimeError):
            raise
        problem = _with_too_few(problem, tables, demand_rps)
        found = _solved(problem, limits, phase_seconds)
    chosen = np.arange(len(expected)), found.offers
    short = np.zeros(len(expected), np.bool_) if problem.unserved is None else problem.unserved[chosen] > 0
    return PhasePlans(found.offers, found.machines, short, expected, demand_rps, found.money, found.loss, found.gap)


def _solved(problem: Problem, limits: Limits, phase_seconds: float) -> Schedule:
    if limits.max_money is None:
        return cheapest(problem, limits.max_loss)
    # Phases that are less or more than a day have their share of its money.
    days = len(problem.weight) * phase_seconds / DAY_SECONDS
    return least_loss(problem, limits.max_money * days, limits.max_loss)


def _with_too_few(problem: Problem, tables: Sequence[CapacityTable], demand_rps: Floats) -> Problem:
    """Return the problem in which all machines of a kind may serve a phase for which they are too few.

    Raises:
        NoScheduleError: no offer serves anything.
    """
    capacity = np.array([table.rate(table.offer.kind.most) for table in tables])
    if not capacity.any():
        raise NoScheduleError("no offer keeps the SLO at any rate")
    enough = problem.needed > 0
    unserved = np.where(enough, 0.0, 1 - capacity / np.maximum(demand_rps, 1e-300)[:, None])
    most = np.where(capacity > 0, problem.most, 0)
    return replace(problem, needed=np.where(enough, problem.needed, most), unserved=np.clip(unserved, 0.0, 1.0))


def joined(parts: Sequence[PhasePlans]) -> PhasePlans:
    """Return the schedules one after another."""
    expected = np.concatenate([part.expected for part in parts])
    lost = sum(part.loss * float(part.expected.sum()) for part in parts)
    return PhasePlans(
        np.concatenate([part.offers for part in parts]),
        np.concatenate([part.machines for part in parts]),
        np.concatenate([part.short for part in parts]),
        expected,
        np.concatenate([part.demand_rps for part in parts]),
        sum(part.money for part in parts),
        lost / max(float(expected.sum()), 1e-300),
        max(part.gap for part in parts),
    )


def by_parts(phases: int, length: int, part: Callable[[int, int, tuple[int, int] | None], PhasePlans]) -> PhasePlans:
    """Schedule consecutive parts of so many phases, each after what the one before ends with.

    Args:
        part: from the first phase, the phase behind the last, and what serves before, to their schedule
    """
    found: list[PhasePlans] = []
    for start in range(0, phases, length):
        serving = None if not found else (int(found[-1].offers[-1]), int(found[-1].machines[-1]))
        found.append(part(start, min(start + length, phases), serving))
    return joined(found)


def schedule_part(
    tables: Sequence[CapacityTable],
    expected: Floats,
    demand_rps: Floats,
    phase_seconds: float,
    limits: Limits,
    serving: tuple[int, int] | None,
    whole: int | None = None,
) -> PhasePlans:
    """Schedule a part of a demand, with the arguments and errors of `schedule`.

    Where its share of the money leaves no choice it has the cheapest, unless it is a whole one: a shorter one, the
    last, may be that of the day's peak.

    Args:
        whole: phases of a whole part, which has to keep its share; None where none has to
    """
    try:
        return schedule(tables, expected, demand_rps, phase_seconds, limits, serving)
    except NoScheduleError as error:
        if len(expected) == whole or limits.max_money is None or isinstance(error, OutOfTimeError):
            raise
        return schedule(tables, expected, demand_rps, phase_seconds, replace(limits, max_money=None), serving)


def planned(
    tables: Sequence[CapacityTable],
    before: Demand,
    after: Demand,
    selected: Selected,
    limits: Limits,
    horizon: int,
    seen: Callable[[Forecast], None] | None = None,
) -> PhasePlans:
    """Plan the phases of a demand part by part, each from a forecast that ends `LEAD` phases before its own start.

    They are in the past, and judge the policy: a part that takes more than its share of the money has no other choice.

    Args:
        before: demand that is known at the beginning
        after: demand that is planned for, of which each forecast sees what was before it
        horizon: phases of a part, at most a day
        seen: is given the forecast of each part
    """
    history = np.concatenate([before.counts, after.counts])

    def part(start: int, end: int, serving: tuple[int, int] | None) -> PhasePlans:
        until = len(before) + start - LEAD
        whole = forecast(selected, history[:until], LEAD + end - start)
        found = Forecast(whole.expected[LEAD:], {q: values[LEAD:] for q, values in whole.quantiles.items()})
        if seen is not None:
            seen(found)
        rates = found.quantiles[limits.headroom] / after.phase_seconds
        return schedule_part(tables, found.expected, rates, after.phase_seconds, limits, serving)

    return by_parts(len(after), horizon, part)


def oracle(tables: Sequence[CapacityTable], after: Demand, limits: Limits, horizon: int) -> PhasePlans:
    """Plan the phases of a demand from their own counts, with the money as in `planned`."""

    def part(start: int, end: int, serving: tuple[int, int] | None) -> PhasePlans:
        rates = after.rates_rps[start:end]
        counts, phase_s = after.counts[start:end], after.phase_seconds
        return schedule_part(tables, counts, rates, phase_s, limits, serving)

    return by_parts(len(after), horizon, part)


def static(tables: Sequence[CapacityTable], rate_rps: float, limits: Limits) -> Trajectory:
    """Return the best choice for one rate, which serves all the time.

    Where no choice within the tolerated loss serves the rate, it is the one that serves most of it.
    """
    found = schedule(tables, np.ones(1), np.array([rate_rps]), 3600.0, Limits(limits.max_loss))
    return Trajectory(np.zeros(1), found.offers, found.machines)


def reactive(
    tables: Sequence[CapacityTable], floor: Trajectory, arrived: Arrived, end_s: float, windows: Windows
) -> Trajectory:
    """Return what an autoscaler adds to a floor as the requests arrive."""

    def needed(offer: int, rate: float) -> int:
        return int(needed_machines(tables[offer], np.array([rate]))[0]) or tables[offer].offer.kind.most

    start_s = max(tables[offer].offer.start_seconds for offer in np.unique(floor.offers).tolist())
    return autoscale(arrived, end_s, needed, start_s, windows, floor)


def reactive_floor(begins_with: Trajectory, windows: Windows) -> Trajectory:
    """Return the floor of a policy that only reacts.

    It is what the policy begins with until its stable window is full, and a single machine of the same offer from then
    on.
    """
    first = begins_with.machines[0]
    starts = np.array([0.0, windows.stable_s])
    return Trajectory(starts, np.repeat(begins_with.offers[:1], 2), np.array([first, 1], np.int64)).merged()
