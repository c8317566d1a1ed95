"""Deployments of a plan: the offers that it uses, as processes of `leanrec serve`, and their load."""

from __future__ import annotations

from dataclasses import dataclass

from search.plan.document import OfferRow, PhaseRow, PlanDocument
from search.plan.manifests.names import dns_label
from search.plan.manifests.timetable import Calendar, Stretch, stretches


@dataclass(frozen=True)
class ServedOffer:
    """An offer that a plan uses.

    name: of its point and its machine, which stays when the plan is made anew
    machines: over the whole plan, 0 where another offer serves
    process_rps: requests per second within the SLO of one process, the least of all phases
    expected: requests that the plan expects it to serve
    """

    row: OfferRow
    name: str
    machines: tuple[Stretch, ...]
    process_rps: float
    expected: float

    @property
    def most_processes(self) -> int:
        return self.row.most * self.row.copies

    def processes(self) -> tuple[Stretch, ...]:
        """Return its processes over the whole plan."""
        return tuple(Stretch(each.start_s, each.end_s, each.value * self.row.copies) for each in self.machines)


@dataclass(frozen=True)
class ServedPlan:
    """A plan as it is served.

    study: name of its service
    headroom: least ratio of the rate that the machines of a phase suffice for to the expected one, at least 1
    capacity: requests per second within the SLO of the planned machines, over the whole plan
    loss: quality loss of the planned point, over the whole plan; a gain counts as none
    """

    study: str
    slo_ms: float
    percent: int
    max_loss: float
    calendar: Calendar
    offers: tuple[ServedOffer, ...]
    headroom: float
    capacity: tuple[Stretch, ...]
    loss: tuple[Stretch, ...]

    @property
    def slo_seconds(self) -> float:
        return self.slo_ms / 1000

    def reactive_rps(self, offer: ServedOffer) -> float:
        """Return the observed rate for each process above which one more is wanted.

        At the expected load, processes then have the plan's headroom.
        """
        return offer.process_rps / self.headroom


def served_plan(plan: PlanDocument) -> ServedPlan:
    """Return what a plan serves and when."""
    calendar = Calendar.of(plan)
    used = {phase.offer for phase in plan.phases}
    offers = (_served(plan, row, calendar) for row in plan.offers if row.offer in used)
    losses = {row.offer: max(row.loss, 0.0) for row in plan.offers}
    ratios = [phase.demand_rps / phase.expected_rps for phase in plan.phases if phase.expected_rps > 0]
    return ServedPlan(
        study=dns_label(plan.study),
        slo_ms=plan.slo_ms,
        percent=plan.percent,
        max_loss=plan.max_loss,
        calendar=calendar,
        offers=tuple(offers),
        headroom=max(1.0, min(ratios, default=1.0)),
        capacity=stretches(plan.phases, calendar.seconds, lambda phase: phase.capacity_rps),
        loss=stretches(plan.phases, calendar.seconds, lambda phase: losses[phase.offer]),
    )


def _served(plan: PlanDocument, row: OfferRow, calendar: Calendar) -> ServedOffer:
    own = [phase for phase in plan.phases if phase.offer == row.offer]

    def machines(phase: PhaseRow) -> float:
        return phase.machines if phase.offer == row.offer else 0

    return ServedOffer(
        row=row,
        name=dns_label(f"trial-{row.trial}", row.machine),
        machines=stretches(plan.phases, calendar.seconds, machines),
        process_rps=min(phase.capacity_rps / phase.machines for phase in own) / row.copies,
        expected=sum(phase.expected_rps for phase in own) * plan.phase_seconds,
    )
