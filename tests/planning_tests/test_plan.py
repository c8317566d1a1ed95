"""Policies on days whose demand is planted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from objectives.measurement.request_log import RequestLog
from planning.capacity import CapacityTable, Objective, capacity_table
from planning.demand import Demand, Workload, demand_of, unit_gaps
from planning.fleet import MachineKind, offers_of
from planning.forecast import Forecast, select
from planning.hours_of_week import HOURS
from planning.plan import (
    ELASTIC,
    ORACLE,
    PLANNED,
    REACTIVE,
    STATIC_MEAN,
    STATIC_PEAK,
    Planned,
    Terms,
    Trace,
    make_plan,
    split_phases,
)
from planning.policies import LEAD, Limits, oracle, planned, schedule, schedule_part, static
from planning.replay import Arrivals
from planning.schedule import NoScheduleError
from planning.weekly_profile import WeeklyProfile, plan_week, poisson_workload
from tests.planning_tests.fleets import deployment, linear_table, offer

OBJECTIVE = Objective(100.0)
PHASE_S = 3600.0


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    """Capacities are simulated with fewer requests than a plan takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("planning.capacity._REQUESTS", 1500)
        yield


def tables() -> list[CapacityTable]:
    exact, fast = offer(price=1.0, most=8, loss=0.0), offer(price=1.0, most=8, loss=0.01, trial=1)
    return [linear_table(exact, 10.0), linear_table(fast, 40.0)]


def test_the_peak_is_served_by_the_fast_variant_where_loss_is_tolerated() -> None:
    rates = np.array([8.0, 9.0, 75.0, 8.0])
    found = schedule(tables(), rates * PHASE_S, rates, PHASE_S, Limits(0.008))
    assert found.offers.tolist() == [0, 0, 1, 0] and found.machines.tolist() == [1, 1, 2, 1]
    assert found.loss == pytest.approx(0.01 * 75 / 100) and not found.short.any()
    exact = schedule(tables(), rates * PHASE_S, rates, PHASE_S, Limits(0.001))
    assert exact.offers.tolist() == [0] * 4 and exact.machines.max() == 8
    # The phases are a sixth of a day.
    rich = schedule(tables(), rates * PHASE_S, rates, PHASE_S, Limits(1.0, max_money=6 * 5.1))
    assert rich.money <= 5.1 and rich.loss == pytest.approx(0.0075)
    with pytest.raises(NoScheduleError):
        schedule(tables(), rates * PHASE_S, rates, PHASE_S, Limits(0.007, max_money=6 * 5.1))


def test_a_part_that_is_shorter_has_its_share_of_the_money() -> None:
    """Each hour may cost 2.5, which the exact variant needs for 20 requests/s, where 30 would need 3."""
    demand = Demand(np.array([20.0, 20.0, 20.0, 30.0]) * PHASE_S, PHASE_S)
    found = oracle(tables(), demand, Limits(1.0, max_money=24 * 2.5), 3)
    assert found.offers.tolist() == [0, 0, 0, 1] and found.machines.tolist() == [2, 2, 2, 1]
    # The last part has 1.5 an hour, which is less than it takes: no reason not to judge a policy on it.
    demand = Demand(np.array([8.0, 8.0, 8.0, 75.0]) * PHASE_S, PHASE_S)
    found = oracle(tables(), demand, Limits(1.0, max_money=24 * 1.5), 3)
    assert found.offers.tolist() == [0, 0, 0, 1] and found.machines.tolist() == [1, 1, 1, 2]
    assert oracle(tables(), demand, Limits(1.0, max_money=24 * 1.5), 1).offers.tolist() == [0, 0, 0, 1]
    rates, limits = np.array([75.0]), Limits(1.0, max_money=24 * 1.5)
    with pytest.raises(NoScheduleError):
        schedule_part(tables(), rates * PHASE_S, rates, PHASE_S, limits, None, 1)
    assert schedule_part(tables(), rates * PHASE_S, rates, PHASE_S, limits, None, 2).machines.tolist() == [2]


def test_an_offer_that_keeps_the_slo_at_no_rate_serves_nothing() -> None:
    """The other one serves what it can; where there is no other, there is no plan."""
    exact, small = tables()
    never, rates = linear_table(exact.offer, 0.0), np.array([1e6])
    found = schedule([never, small], rates * PHASE_S, rates, PHASE_S, Limits(1.0))
    assert found.offers.tolist() == [1] and found.short.tolist() == [True]
    with pytest.raises(NoScheduleError, match="no offer keeps the SLO at any rate"):
        schedule([never], rates * PHASE_S, rates, PHASE_S, Limits(1.0))


def test_a_phase_that_no_choice_serves_gets_every_machine_of_the_one_that_serves_most() -> None:
    rates = np.array([8.0, 500.0])
    found = schedule(tables(), rates, rates, PHASE_S, Limits(1.0))
    assert found.short.tolist() == [False, True] and found.machines.tolist() == [1, 8]
    assert found.offers[1] == 1, "320 requests/s and not 80"
    exact = schedule(tables(), rates, rates, PHASE_S, Limits(0.001))
    assert exact.offers.tolist() == [0, 0] and exact.short.tolist() == [False, True]


def test_one_machine_serves_the_peak_by_the_fast_variant_where_a_static_choice_cannot() -> None:
    """The exact variant cannot serve the peak, and the fast one all the time would lose too much."""
    exact, fast = offer(price=1.0, most=1, loss=0.0), offer(price=1.0, most=1, loss=0.01, trial=1)
    given, limits = [linear_table(exact, 10.0), linear_table(fast, 100.0)], Limits(0.008)
    rates = np.array([8.0, 9.0, 75.0, 8.0])
    found = schedule(given, rates * PHASE_S, rates, PHASE_S, limits)
    assert found.offers.tolist() == [0, 0, 1, 0] and not found.short.any()
    peak = static(given, 75.0, limits)
    assert peak.offers.tolist() == [0] and peak.machines.tolist() == [1]
    with pytest.raises(NoScheduleError):
        static([given[1]], 75.0, limits)


def test_static_choices_keep_the_loss() -> None:
    assert static(tables(), 70.0, Limits(0.0)).machines.tolist() == [7]
    assert static(tables(), 70.0, Limits(0.02)).offers.tolist() == [1]


def hourly(days: int, seed: int = 0) -> Demand:
    hours = np.arange(days * 24)
    means = 3600 * (20 + 15 * np.sin(2 * np.pi * hours / 24))
    return Demand(np.random.default_rng(seed).poisson(means).astype(float), PHASE_S, 0.0)


def test_a_plan_sees_nothing_of_what_it_plans_for() -> None:
    """A future that differs changes only the plans made after it."""
    before, after = hourly(16).split(14 * 24)
    selected = select(before.counts.astype(float), 24, 12 + LEAD)
    other = Demand(after.counts.copy(), PHASE_S)
    other.counts[12 - LEAD :] *= 3
    seen: tuple[list[Forecast], list[Forecast]] = ([], [])
    first, second = (
        planned(tables(), before, each, selected, Limits(0.01), 12, note.append)
        for each, note in zip((after, other), seen, strict=True)
    )
    assert first.machines[:12].tolist() == second.machines[:12].tolist()
    assert first.demand_rps[:12].tolist() == second.demand_rps[:12].tolist()
    assert seen[0][0].expected.tolist() == seen[1][0].expected.tolist()
    assert first.demand_rps[24:36].tolist() != second.demand_rps[24:36].tolist()


def test_the_oracle_serves_every_phase_within_capacity() -> None:
    demand = hourly(3)
    found = oracle(tables(), demand, Limits(0.01), 24)
    capacity = np.array([10.0, 40.0])[found.offers] * found.machines
    assert (capacity >= demand.rates_rps).all()


def compressed(seed: int, days: int = 12) -> tuple[RequestLog, float]:
    """Poisson arrivals of days of 24 phases of 20 s each, from 5 to 35 requests/s."""
    phase_s = 20.0
    phases = np.arange(days * 24)
    random = np.random.default_rng(seed)
    counts = random.poisson(phase_s * (20 + 15 * np.sin(2 * np.pi * phases / 24)))
    seconds = np.sort(phase_s * (np.repeat(phases, counts) + random.random(counts.sum())))
    return RequestLog(seconds - seconds[0]), phase_s


@dataclass(frozen=True, eq=False)
class Made:
    """A plan with what it was made of."""

    tables: list[CapacityTable]
    terms: Terms
    demand: Demand
    plan: Planned
    said: list[str]


@pytest.fixture(scope="module")
def made(short: None) -> Made:
    """Plan 12 "days" of 24 phases, of which 3 are held out; the exact variant takes 60 ms, the fast one 20."""
    log, phase_s = compressed(0)
    demand = demand_of(log, phase_s)
    terms = Terms(OBJECTIVE, Limits(0.005, headroom=0.9), phase_s, 12, held_out=0.25, simulated=10_000)
    known = log.seconds[log.seconds < split_phases(len(demand), terms) * phase_s]
    workload = Workload(unit_gaps(known, phase_s), np.array([100]))
    ones = (deployment(60.0, 0.0), deployment(20.0, 0.01, trial=1))
    offers = offers_of(ones, [MachineKind("small", 1, price_per_hour=1.0, most=12)])
    given = [capacity_table(one, workload, OBJECTIVE, 0) for one in offers]
    said: list[str] = []
    dated = RequestLog(log.seconds, start_s=1.7e9)
    return Made(
        given, terms, demand, make_plan(given, dated, Trace.of(log, np.array([100]), 0), terms, said.append), said
    )


def test_policies_are_ordered_as_they_must_be(made: Made) -> None:
    found = made.plan.backtested
    outcomes = found.outcomes
    assert list(outcomes) == [STATIC_MEAN, STATIC_PEAK, REACTIVE, PLANNED, ELASTIC, ORACLE]
    assert outcomes[STATIC_PEAK].late < 0.05 < outcomes[STATIC_MEAN].late
    assert outcomes[ORACLE].late < 0.06
    assert outcomes[ORACLE].machine_seconds < outcomes[STATIC_PEAK].machine_seconds
    assert outcomes[ELASTIC].machine_seconds >= outcomes[PLANNED].machine_seconds
    assert outcomes[PLANNED].loss <= made.terms.limits.max_loss * 1.5
    assert all(len(outcome.phases) == len(found.demand) for outcome in outcomes.values())


def test_a_plan_follows_its_trace(made: Made) -> None:
    found = made.plan
    assert found.start_s == pytest.approx(1.7e9 + len(made.demand) * made.terms.phase_seconds)
    assert len(found.upcoming.machines) == made.terms.horizon and len(made.said) == 7
    chosen = zip(found.upcoming.offers.tolist(), found.upcoming.machines.tolist(), strict=True)
    capacity = [made.tables[offer].rate(machines) for offer, machines in chosen]
    assert (np.array(capacity) >= found.upcoming.demand_rps).all()


def test_short_traces_are_refused() -> None:
    with pytest.raises(ValueError, match="history of"):
        split_phases(20, Terms(OBJECTIVE, Limits(0.01), 60.0, 10))


def test_a_week_is_planned_from_its_profile() -> None:
    mean = 20 + 15 * np.sin(2 * np.pi * np.arange(HOURS) / 24)
    ones = (deployment(60.0, 0.0), deployment(20.0, 0.01, trial=1))
    offers = offers_of(ones, [MachineKind("small", 1, price_per_hour=1.0, most=12)])
    workload = poisson_workload(np.array([100]), 0)
    terms = Terms(OBJECTIVE, Limits(0.005), PHASE_S, 24, simulated=10_000)
    given = [capacity_table(one, workload, OBJECTIVE, 0) for one in offers]
    plans, demand, outcomes = plan_week(
        given, WeeklyProfile(mean, 1.2 * mean), np.array([100]), terms, lambda line: None
    )
    assert len(plans.machines) == len(demand) == HOURS
    assert plans.demand_rps == pytest.approx(1.2 * mean) and demand.counts == pytest.approx(3600 * mean, abs=1)
    assert list(outcomes) == [STATIC_MEAN, STATIC_PEAK, REACTIVE, PLANNED, ELASTIC, ORACLE]
    assert outcomes[PLANNED].late < 0.05 and outcomes[PLANNED].money < outcomes[STATIC_PEAK].money
    assert outcomes[REACTIVE].late < outcomes[STATIC_MEAN].late
    assert outcomes[ELASTIC].machine_seconds >= outcomes[PLANNED].machine_seconds
    assert outcomes[ORACLE].machine_seconds < outcomes[PLANNED].machine_seconds, "the plan is for 1.2 times the mean"
    assert sum(phase.rate_rps for phase in outcomes[PLANNED].phases) == pytest.approx(mean.sum(), rel=0.05)
    with pytest.raises(ValueError, match="168 hours"):
        WeeklyProfile(mean[:24], mean[:24])


def busy_noons() -> WeeklyProfile:
    """A profile of 2 requests/s, and 30 (p95: 45) from noon to one."""
    noon = np.arange(HOURS) % 24 == 12
    return WeeklyProfile(np.where(noon, 30.0, 2.0), np.where(noon, 45.0, 3.0))


@pytest.mark.parametrize("hours", [1, 6, 24, 36, 13.5, 400])
def test_phases_of_hours_expect_their_sum_and_are_sized_for_the_busiest(hours: float) -> None:
    profile, phases = busy_noons(), max(1, round(HOURS / hours))
    # Hour by half hour, over as many weeks as the phases reach.
    halves = np.arange(round(2 * hours * phases)).reshape(phases, -1) // 2 % HOURS
    assert profile.demand(3600 * hours).counts == pytest.approx(1800 * profile.mean_rps[halves].sum(1))
    assert profile.demanded_rps(3600 * hours).tolist() == profile.p95_rps[halves].max(1).tolist()


@pytest.mark.parametrize("minutes", [1, 15, 20, 1 / 3])
def test_phases_within_an_hour_have_its_rates(minutes: float) -> None:
    profile = busy_noons()
    hours = np.repeat(np.arange(HOURS), round(60 / minutes))
    assert profile.demand(60 * minutes).rates_rps == pytest.approx(profile.mean_rps[hours])
    assert profile.demanded_rps(60 * minutes).tolist() == profile.p95_rps[hours].tolist()


@pytest.mark.parametrize("simulated", [20_000, 10**7])
def test_days_are_planned_for_noon_and_judged_on_it(simulated: int) -> None:
    profile = busy_noons()
    terms = Terms(OBJECTIVE, Limits(0.005), 86_400.0, 1, simulated=simulated)
    seen: list[Arrivals] = []

    def replay(offers: object, trajectory: object, arrivals: Arrivals, *rest: object) -> SimpleNamespace:
        seen.append(arrivals)
        return SimpleNamespace(late=0.0, replica_seconds=0.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("planning.plan.replay", replay)
        plans, demand, _ = plan_week(tables(), profile, np.array([100]), terms, lambda line: None)
    assert demand.counts == pytest.approx(3600 * profile.mean_rps.reshape(7, 24).sum(1))
    assert plans.demand_rps.tolist() == [45.0] * 7 and not plans.short.any()
    # As many arrivals in each hour of the day as its rate says, over seven days, within four standard deviations.
    hour = (seen[0].seconds // 3600).astype(np.int64) % 24
    drawn = np.bincount(hour, minlength=24)
    expected = 7 * 3600 * profile.mean_rps[:24] / seen[0].weights[0]
    assert np.all(np.abs(drawn - expected) < 4 * np.sqrt(expected)) and seen[0].end_s == 7 * 86_400
