"""Plan of a study's front for a trace or a weekly profile, written as plan.json and as a page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from objectives.measurement.request_log import RequestLog
from objectives.measurement.service_curve import OutsideRangeError
from objectives.serving.control.plan_file import WEEK_SECONDS
from objectives.serving.devices import cores_allowed
from planning.capacity import CapacityTable, Objective
from planning.demand import DAY_SECONDS, Demand, Workload, demand_of, unit_gaps
from planning.fleet import MachineKind, Offer, offers_of
from planning.plan import Terms, Trace, make_plan, split_phases
from planning.policies import Limits, PhasePlans
from planning.replay import Outcome
from planning.schedule import NoScheduleError, OutOfTimeError
from planning.weekly_profile import plan_week, poisson_workload
from search.cli.console import Console
from search.errors import ConfigError, JobError
from search.format import significant
from search.home import write_json
from search.plan.capacities import Capacities
from search.plan.deployments import Menu, menu_of, with_bundles
from search.plan.document import (
    ForecastRow,
    PlanDocument,
    forecast_row,
    machine_warnings,
    offer_rows,
    phase_rows,
    policy_rows,
    warnings_of,
)
from search.plan.inputs import read_log, read_profile
from search.plan.machines import read_machines
from search.session import Session

FILE, PAGE = "plan.json", "plan.html"
# Gaps of a trace's history from which capacities are simulated: the last ones.
_GAPS = 200_000
# A horizon is at most this share of the phases, so that a forecast of it can be backtested.
_HORIZONS = 10
# Defaults of a trace: quantile of its forecast that machines suffice for, and share of it to judge on.
_HEADROOM, _HELD_OUT = 0.9, 0.3


@dataclass(frozen=True)
class Request:
    """Options of a plan; None for the study's own value, or the default.

    trace, profile: one of them
    rows_column, headroom, held_out: of a trace only
    horizon_s: seconds that are planned at a time
    max_money: of a day
    simulated: most requests of a policy on the virtual clock
    bundles: of the points that may be planned; none for all points
    """

    trace: Path | None
    profile: Path | None
    machines: Path | None
    rows_column: str | None
    phase_s: float
    horizon_s: float | None
    slo_ms: float | None
    max_loss: float | None
    max_money: float | None
    headroom: float | None
    held_out: float | None
    simulated: int
    seed: int
    bundles: tuple[Path, ...] = ()


def plan(session: Session, request: Request, out: Path, console: Console) -> PlanDocument:
    """Plan, and write plan.json and plan.html into `out`.

    Raises:
        ConfigError: an input is wrong, too short, or no choice of machines keeps the limits.
        JobError: the time of the solver was too short.
    """
    if request.phase_s > DAY_SECONDS:
        raise ConfigError(f"--phase-minutes: must be at most a day, but got {request.phase_s / 60:g}")
    if (request.trace is None) == (request.profile is None):
        raise ConfigError("--trace: must be given, or --profile, and not both")
    kinds = own_machine(session) if request.machines is None else read_machines(request.machines)
    if request.profile is not None:
        if not math.isclose(math.remainder(WEEK_SECONDS, request.phase_s), 0.0, abs_tol=1e-6):
            raise ConfigError(f"--phase-minutes: must divide a week with --profile, but got {request.phase_s / 60:g}")
        for name in ("rows_column", "headroom", "held_out"):
            if (value := getattr(request, name)) is not None:
                option = name.replace("_", "-")
                raise ConfigError(f"--{option}: must be left out with --profile, which has no trace, but got {value}")
    log = None if request.trace is None else read_log(request.trace, "--trace", request.rows_column, request.seed)
    menu = with_bundles(menu_of(session, console), request.bundles)
    offers = offers_of(menu.deployments, kinds)
    if not offers:
        raise ConfigError(
            "--machines: must have a kind with the cores and the memory of a measured point, but has none"
        )
    console.say(f"plan: {len(offers)} offers of {len(menu.deployments)} points; capacities are simulated")
    try:
        solved = (
            _of_profile(session, request, menu, offers, console)
            if log is None
            else _of_trace(session, request, menu, offers, log, console)
        )
    except OutOfTimeError as error:
        raise JobError(f"{error}: fewer phases at a time take less (--phase-minutes, --horizon-hours)") from error
    except NoScheduleError as error:
        raise ConfigError(f"--max-loss, --max-money, --slo-ms: must leave a choice, but {error}") from error
    except OutsideRangeError as error:
        raise ConfigError(f"--trace: must have requests of sizes that the study measured, but: {error}") from error
    found = _document(session, request, menu, solved)
    write_json(found, out / FILE)
    from search.plan.page import write_page  # plotly is loaded last

    write_page(found, out / PAGE)
    return found


def own_machine(session: Session) -> tuple[MachineKind, ...]:
    return (MachineKind("this machine", cores_allowed(), price_per_hour=session.config.price_per_hour or 1.0),)


class _Solved(NamedTuple):
    """A plan with what it stands on.

    layouts: tables of the layouts of each offer, as one process on a machine
    forecast: None for a profile
    """

    tables: list[CapacityTable]
    layouts: list[list[CapacityTable]]
    terms: Terms
    demand: Demand
    plans: PhasePlans
    outcomes: Mapping[str, Outcome]
    forecast: ForecastRow | None
    start_s: float | None


def _terms(session: Session, request: Request, menu: Menu, longest: int) -> Terms:
    """Return the terms; a horizon that was not given is a day, and at most `longest` phases."""
    config = session.config
    objective = Objective(request.slo_ms or menu.slo_ms, menu.percent)
    a_day = max(1, int(DAY_SECONDS / request.phase_s))
    asked = longest if request.horizon_s is None else round(request.horizon_s / request.phase_s)
    horizon = min(a_day, max(1, asked))
    loss = config.quality.max_loss if request.max_loss is None else request.max_loss
    limits = Limits(loss, request.max_money, _HEADROOM if request.headroom is None else request.headroom)
    held_out = _HELD_OUT if request.held_out is None else request.held_out
    return Terms(objective, limits, request.phase_s, horizon, held_out, request.simulated, seed=request.seed)


def _of_trace(
    session: Session, request: Request, menu: Menu, offers: tuple[Offer, ...], log: RequestLog, console: Console
) -> _Solved:
    try:
        demand = demand_of(log, request.phase_s)
        terms = _terms(session, request, menu, len(demand) // _HORIZONS)
        known_s = split_phases(len(demand), terms) * request.phase_s
    except ValueError as error:
        raise ConfigError(f"--trace: must be long enough for its phases, but {error}") from error
    known = log.seconds < known_s
    if known.sum() < 2:
        raise ConfigError("--trace: must have requests before its held-out end, but has fewer than 2")
    gaps = unit_gaps(log.seconds[known], request.phase_s)[-_GAPS:]
    workload = Workload(gaps, menu.rows if log.rows is None else log.rows[known])
    capacities = _capacities(session, workload, terms)
    tables = capacities.tables(offers)
    found = make_plan(tables, log, Trace.of(log, menu.rows, request.seed), terms, console.say)
    layouts = capacities.of_layouts(offers)
    capacities.keep()
    return _Solved(
        tables, layouts, terms, demand, found.upcoming, found.backtested.outcomes, forecast_row(found), found.start_s
    )


def _of_profile(session: Session, request: Request, menu: Menu, offers: tuple[Offer, ...], console: Console) -> _Solved:
    assert request.profile is not None
    profile = read_profile(request.profile)
    terms = _terms(session, request, menu, int(DAY_SECONDS / request.phase_s))
    capacities = _capacities(session, poisson_workload(menu.rows, request.seed), terms)
    tables = capacities.tables(offers)
    plans, demand, outcomes = plan_week(tables, profile, menu.rows, terms, console.say)
    layouts = capacities.of_layouts(offers)
    capacities.keep()
    return _Solved(tables, layouts, terms, demand, plans, outcomes, None, None)


def _capacities(session: Session, workload: Workload, terms: Terms) -> Capacities:
    file = session.home.service_curves(session.config.name).with_name("capacities.json")
    return Capacities(file, workload, terms.objective, terms.seed)


def menu_warnings(session: Session, menu: Menu) -> tuple[str, ...]:
    """Return what a simulation of the pool with a study's service curves leaves out, in sentences."""
    found = []
    if session.config.traffic.through != "pool":
        found.append(
            "the study measured through HTTP; capacities are those of the pool, without what HTTP adds to a request"
        )
    if menu.measured_on is not None:
        found.append(
            f"service curves are those of the study's machine ({menu.measured_on}), load times those of this one: a "
            "machine of speed 1 is the study's"
        )
    return tuple(found)


def _horizon_warnings(request: Request, terms: Terms) -> tuple[str, ...]:
    """Return that a plan covers less than a day, where it was not asked to."""
    hours = terms.horizon * terms.phase_seconds / 3600
    if request.horizon_s is not None or request.trace is None or hours > 24 - terms.phase_seconds / 3600:
        return ()
    return (
        f"the plan covers the next {significant(hours, 3)} h, a tenth of the trace's length, so that forecasts can be "
        "backtested; --horizon-hours plans longer",
    )


def _document(session: Session, request: Request, menu: Menu, solved: _Solved) -> PlanDocument:
    terms, plans = solved.terms, solved.plans
    offers = offer_rows(solved.tables, solved.layouts)
    phases = phase_rows(solved.tables, plans, terms.phase_seconds)
    weak = warnings_of(terms, plans, solved.outcomes, solved.demand)
    return PlanDocument(
        study=session.config.name,
        source=str(request.trace or request.profile),
        slo_ms=terms.objective.slo_ms,
        percent=terms.objective.percent,
        max_loss=terms.limits.max_loss,
        max_money=request.max_money,
        headroom=terms.limits.headroom if solved.forecast is not None else 0.95,
        phase_seconds=terms.phase_seconds,
        start_s=solved.start_s,
        seed=terms.seed,
        offers=offers,
        left_out=menu.left_out,
        phases=phases,
        money=plans.money,
        loss=plans.loss,
        gap=plans.gap,
        forecast=solved.forecast,
        policies=policy_rows(solved.outcomes),
        warnings=(
            *menu_warnings(session, menu),
            *_horizon_warnings(request, terms),
            *weak,
            *machine_warnings(offers, phases),
        ),
    )
