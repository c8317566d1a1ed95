"""Schedule of a plan: the offer and the number of machines of each phase, as a mixed-integer program.

With u[t, o] in {0, 1} (offer o serves phase t), n[t, o] >= 0 (its machines) and s[t, o] >= 0 (those that start):

    minimise    sum price[o] n[t, o] + start_price[o] s[t, o]
    subject to  sum_o u[t, o] = 1
                needed[t, o] u[t, o] <= n[t, o] <= most[o] u[t, o]
                s[t, o] >= n[t, o] - n[t - 1, o]
                sum_{t in day} weight[t] loss[o] u[t, o] <= max_loss sum_{t in day} weight[t]     for each day

or the loss is minimised under a further limit, of the money. Where offers may serve phases for which they do not
suffice, the requests that are left unserved are minimised first. Given u, the rest is a network flow with whole
solutions, so that only u has to be declared whole. scipy's HiGHS solves it (Huangfu and Hall 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, csr_array

from planning.fleet import Floats

# Weight of the second objective beside the first, whose ties it breaks.
_TIE = 1e-4
# Slack of a limit, the share by which a solution may miss its optimum without a word, and the longest time of the
# solver for one problem.
_SLACK = 1e-9
_GAP = 1e-6
_SECONDS = 20.0
_OUT_OF_TIME = 1  # in scipy's status


class NoScheduleError(ValueError):
    """No schedule satisfies the limits."""


class OutOfTimeError(NoScheduleError):
    """No schedule was found in the time of the solver."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Demand and offers of a schedule over T phases with O offers.

    needed: (T, O) fewest machines that keep the SLO, 0 where the offer may not serve
    price: (O,) of a machine for one phase
    start_price: (O,) of a machine that starts
    loss: (O,) 0 or more
    most: (O,) machines
    weight: (T,) expected requests
    day: (T,) number of the day of a phase, over which the mean loss is limited
    serving: offer and machines before the first phase, None where the first phase's machines start for nothing
    unserved: (T, O) share of a phase's requests that the needed machines are too few for, None where they suffice
    """

    needed: NDArray[np.int64]
    price: Floats
    start_price: Floats
    loss: Floats
    most: NDArray[np.int64]
    weight: Floats
    day: NDArray[np.int64]
    serving: tuple[int, int] | None = None
    unserved: Floats | None = None


@dataclass(frozen=True, eq=False)
class Schedule:
    """Offer and machines of each phase, (T,) each, their money, and the mean loss of the requests.

    gap: share by which what is minimised may be above its optimum: 0 unless the time ran out
    """

    offers: NDArray[np.int64]
    machines: NDArray[np.int64]
    money: float
    loss: float
    gap: float = field(default=0.0)


def money_of(problem: Problem, offers: NDArray[np.int64], machines: NDArray[np.int64]) -> float:
    """Return the money of machines (T,) of offers (T,), with those that start."""
    first = (int(offers[0]), int(machines[0])) if problem.serving is None else problem.serving
    before_offers = np.concatenate([[first[0]], offers[:-1]])
    before = np.where(before_offers == offers, np.concatenate([[first[1]], machines[:-1]]), 0)
    started = np.maximum(machines - before, 0)
    return float((problem.price[offers] * machines + problem.start_price[offers] * started).sum())


def loss_of(problem: Problem, offers: NDArray[np.int64]) -> float:
    """Return the mean loss of the requests that offers (T,) serve; 0 where no request is expected."""
    total = float(problem.weight.sum())
    return float((problem.weight * problem.loss[offers]).sum() / total) if total > 0 else 0.0


def without_dominated(problem: Problem) -> Problem:
    """Return the problem in which an offer serves no phase if another one does as well by whatever counts.

    The other one can take its place in every phase with as many machines: neither money nor loss nor starts grow, since
    the machines of two offers, added, start no more often than each of them.
    """
    needed = np.where(problem.needed > 0, problem.needed, problem.most.max() + 1)
    better = (needed[:, :, None] <= needed[:, None, :]).all(axis=0)  # [a, b]: a needs no more machines than b
    for value in (problem.price, problem.start_price, problem.loss, -problem.most):
        better &= value[:, None] <= value[None, :]
    if problem.unserved is not None:
        better &= (problem.unserved[:, :, None] <= problem.unserved[:, None, :]).all(axis=0)
    same = better & better.T
    # Of equal ones the first stays.
    dominated = np.asarray((better & ~same).any(axis=0) | np.triu(same, 1).any(axis=0), np.bool_)
    if problem.serving is not None:
        dominated[problem.serving[0]] = False
    return replace(problem, needed=np.where(dominated, 0, problem.needed))


def cheapest(problem: Problem, max_loss: float) -> Schedule:
    """Return the schedule of least money whose mean loss is at most `max_loss` on every day.

    Of all such schedules, only those that leave the fewest requests unserved are considered. It may be one of less loss
    whose money is higher by less than a hundredth of a per cent of what the dearest offer would cost in all phases.

    Raises:
        NoScheduleError: a phase is served by no offer, or the loss is too large with every choice.
    """
    program = _Program(without_dominated(problem))
    limits = program.daily_loss(max_loss)
    fewest, gap = program.fewest_unserved(limits)
    return program.solve(program.money + _TIE * program.loss, [*limits, *fewest], gap)


def least_loss(problem: Problem, max_money: float, max_loss: float) -> Schedule:
    """Return the schedule of least loss whose money is at most `max_money`, and its mean loss `max_loss` on every day.

    Of all such schedules, only those that leave the fewest requests unserved are considered. Of schedules of nearly the
    same loss it may be the one of less money.

    Raises:
        NoScheduleError: a phase is served by no offer, or every choice is dearer or loses more.
    """
    program = _Program(without_dominated(problem))
    limits = [*program.daily_loss(max_loss), LinearConstraint(program.money[None, :], ub=max_money * (1 + _SLACK))]
    fewest, gap = program.fewest_unserved(limits)
    return program.solve(program.loss + _TIE * program.money, [*limits, *fewest], gap)


class _Program:
    """Matrices of a problem over the variables u, n and s, (3 T O,) in this order, each by phase and offer."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._shape = problem.needed.shape
        # No schedule gains by more machines than the busiest phase needs.
        self._most = np.minimum(problem.most, problem.needed.max(axis=0))
        phases, offers = self._shape
        nothing = np.zeros(phases * offers)
        prices, starts = (np.tile(each, phases) for each in (problem.price, problem.start_price))
        self.money = np.concatenate([nothing, prices, starts])
        # In the unit of money: all requests at the largest loss count as much as the dearest phases.
        largest = float(problem.loss.max())
        scale = phases * float((self._most * problem.price).max()) / (largest if largest > 0 else 1.0)
        share = problem.weight / max(float(problem.weight.sum()), 1e-300)
        self.loss = np.concatenate([scale * (share[:, None] * problem.loss).ravel(), nothing, nothing])

    def daily_loss(self, max_loss: float) -> list[LinearConstraint]:
        problem, (phases, offers) = self._problem, self._shape
        days = np.unique(problem.day)
        rows = np.zeros((len(days), self.money.size))
        for row, day in enumerate(days):
            weight = np.where(problem.day == day, problem.weight, 0.0)
            share = weight / max(float(weight.sum()), 1e-300)
            rows[row, : phases * offers] = (share[:, None] * problem.loss).ravel()
        return [LinearConstraint(csr_array(rows), ub=max_loss * (1 + _SLACK))]

    def fewest_unserved(self, limits: Sequence[LinearConstraint]) -> tuple[list[LinearConstraint], float]:
        """Return the limit that no more requests are left unserved than must be, and the gap to the optimum.

        There is no such limit where offers always suffice.
        """
        unserved = self._problem.unserved
        if unserved is None:
            return [], 0.0
        # In units of a request of each phase in the mean, so that the solver's absolute tolerance is a small share.
        each = self._shape[0] * self._problem.weight / max(float(self._problem.weight.sum()), 1e-300)
        count = np.concatenate([(each[:, None] * unserved).ravel(), np.zeros(2 * unserved.size)])
        values, gap = self._values(count, limits)
        return [LinearConstraint(count[None, :], ub=float(count @ values) * (1 + _GAP) + _GAP)], gap

    def solve(self, objective: Floats, limits: Sequence[LinearConstraint], gap: float) -> Schedule:
        """Minimise an objective over all schedules within the limits, whose own gap counts too."""
        values, own = self._values(objective, limits)
        gap = max(gap, own)
        return self._schedule(values, gap if gap > _GAP else 0.0)

    def _values(self, objective: Floats, limits: Sequence[LinearConstraint]) -> tuple[Floats, float]:
        """Return the variables that minimise an objective within the limits, and the gap to the optimum.

        Raises:
            NoScheduleError: there are none, or none were found in time.
        """
        found = milp(
            objective,
            integrality=np.repeat([1, 0, 0], objective.size // 3),
            bounds=self._bounds(),
            constraints=[*self._structure(), *limits],
            options={"mip_rel_gap": _GAP, "time_limit": _SECONDS},
        )
        if found.x is None:
            if found.status == _OUT_OF_TIME:
                raise OutOfTimeError(f"no choice of offers and machines was found in {_SECONDS:g} s")
            raise NoScheduleError("no choice of offers and machines keeps all limits")
        return found.x, float(found.mip_gap or 0.0)

    def _schedule(self, values: Floats, gap: float) -> Schedule:
        chosen, machines, _ = values.reshape(3, *self._shape)
        offers = chosen.argmax(axis=1)
        counts = np.rint(machines[np.arange(len(offers)), offers]).astype(np.int64)
        money, loss = money_of(self._problem, offers, counts), loss_of(self._problem, offers)
        return Schedule(offers, counts, money, loss, gap)

    def _bounds(self) -> Bounds:
        """Bounds of the variables; an offer that cannot serve a phase is not chosen there."""
        possible = (self._problem.needed > 0).astype(float).ravel()
        most = possible * np.tile(self._most, self._shape[0])
        return Bounds(0, np.concatenate([possible, most, most]))

    def _structure(self) -> list[LinearConstraint]:
        (phases, offers), problem = self._shape, self._problem
        count = phases * offers
        every = np.arange(count)
        ones = np.ones(count)

        def matrix(rows: NDArray[np.int64], *parts: tuple[NDArray[np.int64], Floats]) -> csr_array:
            columns = np.concatenate([at for at, _ in parts])
            entries = np.concatenate([value for _, value in parts])
            shape = (int(rows.max()) + 1, 3 * count)
            return csr_array(coo_array((entries, (np.tile(rows, len(parts)), columns)), shape=shape))

        once = matrix(every // offers, (every, ones))
        enough = matrix(every, (count + every, ones), (every, -problem.needed.ravel().astype(float)))
        used = matrix(every, (count + every, ones), (every, -np.tile(self._most, phases).astype(float)))
        started = [LinearConstraint(part, lb=lower) for part, lower in self._started(every)]
        return [LinearConstraint(once, 1, 1), LinearConstraint(enough, lb=0), LinearConstraint(used, ub=0), *started]

    def _started(self, every: NDArray[np.int64]) -> list[tuple[csr_array, Floats]]:
        """Rows s[t, o] - n[t, o] + n[t - 1, o] >= 0; before the first phase the machines are given, or free."""
        count, offers = len(every), self._shape[1]
        later = every[offers:]
        rows = []
        if len(later):
            index = np.arange(len(later))
            entries = np.concatenate([np.ones(len(later)), -np.ones(len(later)), np.ones(len(later))])
            columns = np.concatenate([2 * count + later, count + later, count + later - offers])
            shape = (len(later), 3 * count)
            whole = csr_array(coo_array((entries, (np.tile(index, 3), columns)), shape=shape))
            rows.append((whole, np.zeros(len(later))))
        if self._problem.serving is not None:
            offer, machines = self._problem.serving
            index = np.arange(offers)
            entries = np.concatenate([np.ones(offers), -np.ones(offers)])
            columns = np.concatenate([2 * count + index, count + index])
            first = csr_array(coo_array((entries, (np.tile(index, 2), columns)), shape=(offers, 3 * count)))
            rows.append((first, np.where(index == offer, -float(machines), 0.0)))
        return rows
