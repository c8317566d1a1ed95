"""Document of a plan, as plan.json and `leanrec plan --json` have it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from objectives.serving.control.options import capacity_factor
from planning.capacity import CapacityTable
from planning.demand import DAY_SECONDS, Demand
from planning.fleet import Offer
from planning.forecast import QUANTILES, Score
from planning.plan import Planned, Terms
from planning.policies import PhasePlans
from planning.replay import Outcome
from spaces.domains import Scalar
from spaces.serialization import Json, to_plain


@dataclass(frozen=True, kw_only=True)
class LayoutRow:
    """One process of a deployment on a machine: replicas of its first instance group, and its capacity.

    load_seconds: as in `OfferRow`
    """

    replicas: int
    cores: int
    capacity_rps: float
    load_seconds: float


@dataclass(frozen=True, kw_only=True)
class OfferRow:
    """A deployment on a kind of machine; capacity in requests per second by machines, as far as it was simulated.

    most: machines of the kind that may serve at once
    cores: of a process
    variant: identifier of weights and precision, by which a bundle is recognised
    deployed: the placement as plain data
    layouts: that one process on a machine may have
    machine_cores, machine_speed: of the kind
    load_seconds: on this kind, from the decision to serve a variant until it serves
    """

    offer: int
    trial: int
    variant: str
    machine: str
    most: int
    machine_cores: int
    machine_speed: float
    copies: int
    cores: int
    replicas: int
    placement: Mapping[str, Scalar]
    loss: float
    price_per_hour: float
    load_seconds: float
    start_seconds: float
    memory_bytes: int | None
    capacity_rps: Mapping[int, float]
    deployed: Json
    layouts: tuple[LayoutRow, ...]


@dataclass(frozen=True, kw_only=True)
class PhaseRow:
    """Machines of a phase.

    start_s: seconds from the start of the plan
    machines_started: that are ordered so that they serve from the start of the phase on
    demand_rps: rate that the machines suffice for, a quantile of the forecast
    capacity_rps: of all machines, to which requests are dealt in turn
    alone_rps: of one such machine where all requests are its own
    short: all machines of what serves are too few for the SLO at that rate
    """

    start_s: float
    offer: int
    trial: int
    machine: str
    machines: int
    machines_started: int
    replicas: int
    expected_rps: float
    demand_rps: float
    capacity_rps: float
    alone_rps: float
    short: bool


@dataclass(frozen=True, kw_only=True)
class PolicyRow(Outcome):
    """A policy with its outcome on the held-out part of the trace."""

    policy: str


@dataclass(frozen=True, kw_only=True)
class ForecastRow:
    """The forecasting model with its backtest on all of the trace, and the errors of forecasts of its held-out part.

    held_out_model: of those forecasts, the best of a backtest on what lies before
    """

    model: str
    reason: str | None
    scores: tuple[Score, ...]
    held_out_model: str
    mape: float
    coverage: Mapping[float, float]


@dataclass(frozen=True, kw_only=True)
class PlanDocument:
    """Plan of the phases that follow a trace, and every policy on the trace's held-out end.

    source: the trace, or the weekly profile
    start_s: start of the plan in seconds since the epoch, None where the trace does not tell
    gap: share by which the money, or the loss, may be above the optimum
    forecast: None for a weekly profile
    left_out: points that could not be offered, by trial
    """

    study: str
    source: str
    slo_ms: float
    percent: int
    max_loss: float
    max_money: float | None
    headroom: float
    phase_seconds: float
    start_s: float | None
    seed: int
    offers: tuple[OfferRow, ...]
    left_out: Mapping[int, str]
    phases: tuple[PhaseRow, ...]
    money: float
    loss: float
    gap: float
    forecast: ForecastRow | None
    policies: tuple[PolicyRow, ...]
    warnings: tuple[str, ...]


def offer_rows(tables: Sequence[CapacityTable], layouts: Sequence[Sequence[CapacityTable]]) -> tuple[OfferRow, ...]:
    """Return the rows of offers, given the tables of the layouts of each."""
    return tuple(_offer_row(number, *each) for number, each in enumerate(zip(tables, layouts, strict=True)))


def _layout_row(table: CapacityTable) -> LayoutRow:
    one = table.offer.deployment
    return LayoutRow(
        replicas=one.placement.instance_group.replicas,
        cores=one.cores,
        capacity_rps=table.rate(machines=1),
        load_seconds=one.load_seconds / table.offer.kind.speed,
    )


def _offer_row(number: int, table: CapacityTable, layouts: Sequence[CapacityTable]) -> OfferRow:
    offer: Offer = table.offer
    one, kind = offer.deployment, offer.kind
    knobs = {name.removeprefix("placement."): value for name, value in one.placement.knobs().items()}
    whole = {count // offer.copies: rate for count, rate in table.known.items() if count % offer.copies == 0}
    return OfferRow(
        offer=number,
        trial=one.trial,
        variant=one.variant,
        machine=kind.name,
        most=kind.most,
        machine_cores=kind.cores,
        machine_speed=kind.speed,
        copies=offer.copies,
        cores=one.cores,
        replicas=offer.replicas,
        placement=knobs,
        loss=one.loss,
        price_per_hour=kind.price_per_hour,
        load_seconds=one.load_seconds / kind.speed,
        start_seconds=offer.start_seconds,
        memory_bytes=one.memory_bytes,
        capacity_rps=dict(sorted(whole.items())),
        deployed=to_plain(one.placement),
        layouts=tuple(_layout_row(layout) for layout in layouts),
    )


def phase_rows(tables: Sequence[CapacityTable], plans: PhasePlans, phase_seconds: float) -> tuple[PhaseRow, ...]:
    started = np.diff(plans.machines, prepend=plans.machines[:1])
    changed = np.diff(plans.offers, prepend=plans.offers[:1]) != 0
    started = np.where(changed, plans.machines, np.maximum(started, 0))
    rows = []
    for number, (at, machines) in enumerate(zip(plans.offers.tolist(), plans.machines.tolist(), strict=True)):
        offer = tables[at].offer
        rows.append(
            PhaseRow(
                start_s=number * phase_seconds,
                offer=at,
                trial=offer.deployment.trial,
                machine=offer.kind.name,
                machines=machines,
                machines_started=int(started[number]),
                replicas=machines * offer.replicas,
                expected_rps=float(plans.expected[number]) / phase_seconds,
                demand_rps=float(plans.demand_rps[number]),
                capacity_rps=tables[at].rate(machines),
                alone_rps=tables[at].rate(1),
                short=bool(plans.short[number]),
            )
        )
    return tuple(rows)


def policy_rows(outcomes: Mapping[str, Outcome]) -> tuple[PolicyRow, ...]:
    return tuple(PolicyRow(policy=name, **vars(outcome)) for name, outcome in outcomes.items())


def forecast_row(found: Planned) -> ForecastRow:
    chosen, held_out = found.selected, found.backtested
    coverage = {quantile: held_out.coverage[quantile] for quantile in QUANTILES}
    return ForecastRow(
        model=chosen.model.name,
        reason=chosen.reason,
        scores=chosen.scores,
        held_out_model=held_out.selected.model.name,
        mape=held_out.mape,
        coverage=coverage,
    )


def warnings_of(terms: Terms, plans: PhasePlans, outcomes: Mapping[str, Outcome], demand: Demand) -> tuple[str, ...]:
    """Return what weakens the plan, in sentences."""
    found = []
    if plans.short.any():
        found.append(
            f"{int(plans.short.sum())} phases are short: within the limits, no choice has enough machines for them"
        )
    if plans.gap:
        found.append(f"the solver's time ran out: the plan may be {plans.gap:.2%} above the optimum")
    lost = [name for name, outcome in outcomes.items() if outcome.loss > terms.limits.max_loss * (1 + 1e-9)]
    if lost:
        found.append(
            f"the mean loss served on the held-out phases is above max_loss with: {', '.join(lost)}; it was kept for "
            "the requests that were expected"
        )
    if terms.limits.max_money is not None:
        most = (1 + 1e-9) * terms.limits.max_money * demand.phase_seconds / DAY_SECONDS
        dear = [name for name, outcome in outcomes.items() if outcome.money > most * len(outcome.phases)]
        if dear:
            found.append(f"on the held-out phases, the money of a day is above max_money with: {', '.join(dear)}")
    served = next(iter(outcomes.values()))
    if served.simulated < served.requests:
        found.append(
            f"policies were judged on {served.simulated:,} of {served.requests:,.0f} requests, in short windows that "
            "begin with empty queues: a backlog that builds up for longer is not seen (--requests)"
        )
    if demand.counts.sum() < 100 * len(demand):
        found.append("a phase has fewer than 100 requests in the mean: shares of late requests are rough")
    return tuple(found)


def _demand_alone(phase: PhaseRow) -> float:
    """Return the capacity alone that each machine of a phase needs."""
    factor = capacity_factor(phase.capacity_rps, phase.machines, phase.alone_rps)
    return phase.demand_rps / phase.machines / factor


def machine_warnings(offers: Sequence[OfferRow], phases: Sequence[PhaseRow]) -> tuple[str, ...]:
    """Return what one process on a machine cannot do of the plan, in sentences.

    A machine that runs several processes has the memory of one of them left for a swap; one process that switches needs
    it for all of its replicas, and may have fewer than the plan counts with.
    """
    held = {row.offer: row.layouts for row in offers if max(one.replicas for one in row.layouts) < row.replicas}
    most = {offer: max(one.capacity_rps for one in layouts) for offer, layouts in held.items()}
    beyond = sum(not phase.short and _demand_alone(phase) > most.get(phase.offer, math.inf) for phase in phases)
    if not beyond:
        return ()
    return (
        f"{beyond} phases ask more of a machine than one process of leanrec serve --plan does, which needs memory for "
        "two models at a switch: it serves them by a faster point, or late",
    )
