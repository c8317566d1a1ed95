"""Plan of a front for a demand: forecast, schedule, and all policies judged on the held-out end of the trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from objectives.measurement.request_log import RequestLog
from objectives.serving.control.windows import KPA, Windows
from planning.autoscaler import Arrived
from planning.capacity import CapacityTable, Objective
from planning.demand import Counts, Demand, Floats, demand_of
from planning.fleet import Trajectory
from planning.forecast import QUANTILES, Forecast, Selected, forecast, select
from planning.policies import LEAD, Limits, PhasePlans, oracle, planned, reactive, reactive_floor, schedule, static
from planning.replay import Arrivals, Outcome, replay, windows

STATIC_MEAN, STATIC_PEAK, REACTIVE = "static, mean", "static, peak", "reactive"
PLANNED, ELASTIC, ORACLE = "planned", "planned + reactive", "oracle"


@dataclass(frozen=True)
class Terms:
    """Settings of a plan and of its judgement.

    phase_seconds: length of a phase, in which one variant serves
    horizon: phases that are planned at a time, at most a day
    held_out: share of the trace, its end, on which policies are judged
    simulated: most requests of a policy on the virtual clock
    """

    objective: Objective
    limits: Limits
    phase_seconds: float
    horizon: int
    held_out: float = 0.3
    simulated: int = 100_000
    autoscaler: Windows = KPA
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Backtested:
    """Policies on the held-out part of a trace.

    outcomes: by policy
    trajectories: by policy
    selected: the model of the forecasts, and its backtest on what lies before
    expected, demand_rps: what the planned policy foresaw, (T,) each
    coverage: by quantile, share of held-out phases whose count is at most the forecast quantile
    mape: of the forecasts of the held-out phases, over those with requests
    """

    demand: Demand
    outcomes: Mapping[str, Outcome]
    trajectories: Mapping[str, Trajectory]
    selected: Selected
    expected: Floats
    demand_rps: Floats
    coverage: Mapping[float, float]
    mape: float


@dataclass(frozen=True, eq=False)
class Planned:
    """A plan of the phases that follow a trace, with the evidence for it.

    selected: the forecasting model and its backtest on all of the trace
    """

    upcoming: PhasePlans
    selected: Selected
    backtested: Backtested
    start_s: float | None


@dataclass(frozen=True, eq=False)
class Trace:
    """Requests of a log in order: seconds from the first, and rows, (n,) each."""

    seconds: Floats
    rows: Counts
    start_s: float | None = None

    @classmethod
    def of(cls, log: RequestLog, rows: Counts, seed: int) -> Trace:
        """Return the trace of a log; rows that it does not have are drawn from given ones, (m,)."""
        drawn = np.random.default_rng(seed).choice(rows, len(log.seconds)) if log.rows is None else log.rows
        return cls(log.seconds, drawn, log.start_s)


def split_phases(phases: int, terms: Terms) -> int:
    """Return how many phases the history has, so that the others are held out.

    Raises:
        ValueError: either part would be too short.
    """
    known = phases - max(1, round(terms.held_out * phases))
    if known < 3 * (terms.horizon + LEAD) + LEAD:
        raise ValueError(
            f"a history of {3 * (terms.horizon + LEAD) + LEAD} phases or more is needed for a horizon of "
            f"{terms.horizon}, but got {known} of {phases} phases"
        )
    return known


def backtest_policies(
    tables: Sequence[CapacityTable],
    trace: Trace,
    demand: Demand,
    terms: Terms,
    say: Callable[[str], None] = lambda line: None,
) -> Backtested:
    """Judge every policy on the held-out end of a trace; what it knows lies before."""
    known = split_phases(len(demand), terms)
    before, after = demand.split(known)
    selected = select(before.counts, demand.per_day, terms.horizon + LEAD)
    say(f"forecast: {selected.model.name}, pinball loss {selected.scores[0].pinball:.3f} of the mean")
    forecasts: list[Forecast] = []
    plans = planned(tables, before, after, selected, terms.limits, terms.horizon, forecasts.append)
    end_s = len(after) * demand.phase_seconds
    cut = known * demand.phase_seconds
    first, last = np.searchsorted(trace.seconds, [cut, cut + end_s])
    seconds, rows = trace.seconds[first:last] - cut, trace.rows[first:last]
    rates = float(before.rates_rps.mean()), float(before.rates_rps.max())

    def arrived(at: Floats) -> Floats:
        return np.searchsorted(seconds, at).astype(np.float64)

    trajectories = trajectories_of(tables, *rates, plans, after, arrived, terms)
    drawn = windows(seconds, rows, demand.phase_seconds, end_s, terms.simulated, terms.seed)
    outcomes = judged(tables, trajectories, drawn, terms, say)
    coverage, mape = _errors(forecasts, after.counts)
    return Backtested(after, outcomes, trajectories, selected, plans.expected, plans.demand_rps, coverage, mape)


def trajectories_of(
    tables: Sequence[CapacityTable],
    mean_rps: float,
    peak_rps: float,
    plans: PhasePlans,
    after: Demand,
    arrived: Arrived,
    terms: Terms,
) -> dict[str, Trajectory]:
    """Return the machines of every policy over time.

    Args:
        mean_rps, peak_rps: rates that the static choices are for
        after: what comes, which the oracle knows
        arrived: the same request by request, which the reactive rule sees as it comes
    """
    phase_s, end_s = terms.phase_seconds, len(after) * terms.phase_seconds
    mean, peak = (static(tables, rate, terms.limits) for rate in (mean_rps, peak_rps))
    plan = plans.trajectory(phase_s)
    return {
        STATIC_MEAN: mean,
        STATIC_PEAK: peak,
        REACTIVE: reactive(tables, reactive_floor(mean, terms.autoscaler), arrived, end_s, terms.autoscaler),
        PLANNED: plan,
        ELASTIC: reactive(tables, plan, arrived, end_s, terms.autoscaler),
        ORACLE: oracle(tables, after, terms.limits, terms.horizon).trajectory(phase_s),
    }


def judged(
    tables: Sequence[CapacityTable],
    trajectories: Mapping[str, Trajectory],
    drawn: Arrivals,
    terms: Terms,
    say: Callable[[str], None],
) -> dict[str, Outcome]:
    """Serve the same arrivals by the machines of every policy."""
    offers, outcomes = [table.offer for table in tables], {}
    for name, trajectory in trajectories.items():
        found = replay(offers, trajectory, drawn, terms.phase_seconds, terms.objective, terms.seed)
        say(f"{name}: {found.late:.2%} of the requests late, {found.replica_seconds:,.0f} replica-seconds")
        outcomes[name] = found
    return outcomes


def _errors(forecasts: Sequence[Forecast], counts: Floats) -> tuple[dict[float, float], float]:
    """Return the coverage of each quantile and the MAPE of forecasts of consecutive phases."""
    expected = np.concatenate([each.expected for each in forecasts])
    some = counts > 0
    mape = float((np.abs(expected - counts)[some] / counts[some]).mean()) if some.any() else 0.0
    bounds = {quantile: np.concatenate([each.quantiles[quantile] for each in forecasts]) for quantile in QUANTILES}
    return {quantile: float((counts <= bound).mean()) for quantile, bound in bounds.items()}, mape


def plan_ahead(tables: Sequence[CapacityTable], demand: Demand, selected: Selected, terms: Terms) -> PhasePlans:
    """Plan the phases that follow a demand, from its forecast."""
    found = forecast(selected, demand.counts, terms.horizon)
    rates = found.quantiles[terms.limits.headroom] / demand.phase_seconds
    return schedule(tables, found.expected, rates, demand.phase_seconds, terms.limits)


def make_plan(
    tables: Sequence[CapacityTable], log: RequestLog, trace: Trace, terms: Terms, say: Callable[[str], None]
) -> Planned:
    """Judge all policies on the end of a trace, then plan the phases that follow it.

    Raises:
        ValueError: the trace is too short for the phases and the horizon.
        NoScheduleError: no choice keeps the limits.
        OutsideRangeError: a request has a size for which no time was measured.
    """
    demand = demand_of(log, terms.phase_seconds)
    backtested = backtest_policies(tables, trace, demand, terms, say)
    selected = select(demand.counts, demand.per_day, terms.horizon + LEAD)
    start_s = None if demand.start_s is None else demand.start_s + len(demand) * demand.phase_seconds
    return Planned(plan_ahead(tables, demand, selected, terms), selected, backtested, start_s)
