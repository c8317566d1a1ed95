"""A fleet of machines that fail, slow down and are deployed to, for a trace or a weekly profile of any rate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from objectives.measurement.request_log import RequestLog
from objectives.measurement.service_curve import OutsideRangeError
from planning.capacity import Objective
from planning.demand import DAY_SECONDS, Counts, Demand, demand_of, unit_gaps
from planning.fleet import Deployment
from planning.virtual_fleet.approximation import approximate
from planning.virtual_fleet.comparison import Scenario, scenarios
from planning.virtual_fleet.exact import exact
from planning.virtual_fleet.incidents import FleetSpec
from planning.virtual_fleet.latency_table import LatencyTable
from planning.virtual_fleet.outcome import FleetOutcome
from search.cli.console import Console
from search.errors import ConfigError
from search.format import column_percent, significant
from search.home import write_json
from search.plan.deployments import Menu, menu_of
from search.plan.fleet.document import FleetDocument, scenario_row
from search.plan.fleet.fleet_file import read_fleet
from search.plan.inputs import read_log, read_profile
from search.plan.machines import read_machines
from search.plan.run import menu_warnings, own_machine
from search.session import Session
from search.verdict import subject

FILE, PAGE = "fleet.json", "fleet.html"
# Most requests that are simulated one by one.
_MOST_EXACT = 2_000_000
# Requests of a phase below which the noise of a trace counts as its rate, and the variation of its gaps that is bursty.
_FEW, _BURSTY = 100, 1.5
# Share of the requests near saturation that is worth a word.
_NEAR = 0.01


@dataclass(frozen=True)
class FleetRequest:
    """Options of a fleet; None for the study's own value, or the default.

    trace, profile: one of them
    rate_rps: mean rate that the traffic is scaled to
    trial: that every machine serves
    tolerated: share of late requests for which the fewest machines are looked for
    exact: simulate every request
    """

    fleet: Path
    trace: Path | None
    profile: Path | None
    machines: Path | None
    rows_column: str | None
    phase_s: float
    rate_rps: float | None
    trial: int | None
    slo_ms: float | None
    tolerated: float | None
    exact: bool
    seed: int


def simulate(session: Session, request: FleetRequest, out: Path, console: Console) -> FleetDocument:
    """Simulate, and write fleet.json and fleet.html into `out`.

    Raises:
        ConfigError: an input is wrong, or they do not fit one another.
    """
    if request.phase_s > DAY_SECONDS:
        raise ConfigError(f"--phase-minutes: must be at most a day, but got {request.phase_s / 60:g}")
    kinds = own_machine(session) if request.machines is None else read_machines(request.machines)
    log = None if request.trace is None else read_log(request.trace, "--trace", request.rows_column, request.seed)
    demand = _demand(log, request)
    menu = menu_of(session, console)
    spec = read_fleet(request.fleet, _deployment(session, menu, request.trial), kinds)
    rows = menu.rows if log is None or log.rows is None else log.rows
    objective = Objective(request.slo_ms or menu.slo_ms, menu.percent)
    try:
        table = LatencyTable(spec, rows, objective, request.seed)
        found = tuple(_scenarios(spec, demand, rows, table, objective, request, console))
    except OutsideRangeError as error:
        raise ConfigError(f"--trace: must have requests of sizes that the study measured, but: {error}") from error
    knobs = spec.offers[0].deployment.placement.knobs()
    document = FleetDocument(
        study=session.config.name,
        trial=spec.offers[0].deployment.trial,
        source=str(request.trace or request.profile),
        machines={offer.kind.name: count for offer, count in zip(spec.offers, spec.counts, strict=True)},
        balancer=spec.policy,
        placement={name.removeprefix("placement."): value for name, value in knobs.items()},
        slo_ms=objective.slo_ms,
        percent=objective.percent,
        rate_rps=float(demand.rates_rps.mean()),
        peak_rps=float(demand.rates_rps.max()),
        capacity_rps=float(table.capacity_rps(np.array(spec.counts), np.zeros(len(spec.counts), np.int64))),
        phase_seconds=demand.phase_seconds,
        start_s=demand.start_s,
        seed=request.seed,
        tolerated=request.tolerated,
        exact=request.exact,
        distributions=table.simulated,
        scenarios=tuple(map(scenario_row, found)),
        warnings=(*menu_warnings(session, menu), *_warnings(log, request, found)),
    )
    write_json(document, out / FILE)
    from search.plan.fleet.page import write_page  # plotly is loaded last

    write_page(document, out / PAGE)
    return document


def _demand(log: RequestLog | None, request: FleetRequest) -> Demand:
    """Return the traffic in phases, at the rate that was asked for."""
    if log is None:
        assert request.profile is not None, "the parser requires a trace or a profile"
        found = read_profile(request.profile).demand(request.phase_s)
    else:
        try:
            found = demand_of(log, request.phase_s)
        except ValueError as error:
            raise ConfigError(f"--trace: must be long enough for its phases, but {error}") from error
    if not found.counts.any():
        raise ConfigError("--trace, --profile: must have a request in a phase, but has none")
    found = found if request.rate_rps is None else found.at_rate(request.rate_rps)
    if request.exact and (requests := float(found.counts.sum())) > _MOST_EXACT:
        raise ConfigError(f"--exact: must be of at most {_MOST_EXACT:,} requests, but the traffic has {requests:,.0f}")
    return found


def _deployment(session: Session, menu: Menu, trial: int | None) -> Deployment:
    """Return the point of a trial, by default the chosen one, else the best compromise on the front.

    It is the baseline where nothing is on the front.
    """
    offered = {each.trial: each for each in menu.deployments}
    known = ", ".join(map(str, offered))
    if trial is None:
        point = subject(session.front())
        trial = 0 if point is None else point.trial
        if trial not in offered:
            reason = menu.left_out.get(trial, "it is not on the front")
            raise ConfigError(f"--trial: must be given, one of {known}, since trial {trial} is left out: {reason}")
    if trial not in offered:
        raise ConfigError(f"--trial: must be one of {known}, but got {trial}")
    return offered[trial]


def _scenarios(
    spec: FleetSpec,
    demand: Demand,
    rows: Counts,
    table: LatencyTable,
    objective: Objective,
    request: FleetRequest,
    console: Console,
) -> Iterator[Scenario]:
    def evaluate(fleet: FleetSpec) -> FleetOutcome:
        if request.exact:
            found = exact(fleet, demand, rows, table, objective, request.seed)
            if not found.requests:
                expected = significant(float(demand.counts.sum()))
                raise ConfigError(f"--exact: must be of a request or more, but drew none where {expected} are expected")
            return found
        return approximate(fleet, demand, table, objective, request.seed)

    for scenario in scenarios(spec, evaluate, request.tolerated):
        needed = "" if scenario.needed is None else f", {scenario.needed:,} machines needed"
        console.say(f"{scenario.name}: {column_percent(scenario.outcome.late)} of the requests late{needed}")
        yield scenario


def _warnings(log: RequestLog | None, request: FleetRequest, found: tuple[Scenario, ...]) -> Iterator[str]:
    """Yield what weakens the numbers, in sentences."""
    given = found[0].outcome
    if not request.exact and given.near_saturation > _NEAR:
        yield (
            f"{column_percent(given.near_saturation)} of the requests arrive at a utilisation of 0.9 or more, where "
            "the approximation errs most; docs/planning.md tells by how much"
        )
    if log is not None:
        variation = _variation(log, request.phase_s)
        if variation > _BURSTY:
            yield (
                f"arrivals cluster within the phases of the trace (variation of the gaps {significant(variation)}, "
                "Poisson has 1); those of the fleet are Poisson within a phase: shorter phases follow the trace closer"
            )
        if request.rate_rps is not None and len(log.seconds) * request.phase_s < _FEW * float(log.seconds[-1]):
            yield f"a phase of the trace has fewer than {_FEW} requests in the mean: its noise is scaled with its rate"
    if request.tolerated is not None and (lacking := [each.name for each in found if each.needed is None]):
        yield f"not found with 32 times as many machines: what keeps {request.tolerated:g} late ({', '.join(lacking)})"


def _variation(log: RequestLog, phase_s: float) -> float:
    """Return the coefficient of variation of the gaps on a clock that runs at the rate of each phase."""
    gaps = unit_gaps(log.seconds, phase_s)
    return float(gaps.std() / gaps.mean())
