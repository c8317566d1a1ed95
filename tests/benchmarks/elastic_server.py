"""The elastic controller on one machine and two real traces: `python -m tests.benchmarks.elastic_server`.

The deployments of `tests.benchmarks.plan`, which are made up, on one machine of 8 cores. The last half of each trace is
served on the virtual clock, in its own time and with the windows of Knative's autoscaler; the plan's rates are
forecasts of the phases of a minute, five at a time.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

import numpy as np

from objectives.measurement.request_log import RequestLog
from objectives.serving.control.options import ControlPlan, Option, PlannedPhase, with_queue
from objectives.serving.control.windows import KPA, Windows
from objectives.serving.pool.virtual_pool import ServiceTime
from planning.capacity import capacity_table, service_of
from planning.demand import Workload, demand_of, unit_gaps
from planning.elastic import MachineOutcome, machine_outcome, policies, simulate_elastic
from planning.fleet import MachineKind, Offer, layouts_of, offers_of
from planning.forecast import select
from planning.plan import Terms, Trace, split_phases
from planning.policies import LEAD, Limits, planned
from tests.benchmarks.plan import OBJECTIVE, ROWS, cases, deployments

# One machine has to do: every variant is tolerated.
LIMITS = Limits(0.01, headroom=0.9)
KIND = MachineKind("large", cores=8, price_per_hour=0.38, most=1)


def option_of(layout: Offer, workload: Workload, seed: int) -> Option:
    """Return a layout with its capacity."""
    one = layout.deployment
    rate = capacity_table(layout, workload, OBJECTIVE, seed).rate(1)
    return with_queue(Option(one.name, layout.loss, one.placement, rate, one.load_seconds, one.cores), OBJECTIVE.slo_ms)


def outcomes(log: RequestLog, terms: Terms, windows: Windows) -> dict[str, MachineOutcome]:
    """Return the outcome of each policy on the held-out end of a log."""
    trace, demand = Trace.of(log, ROWS, terms.seed), demand_of(log, terms.phase_seconds)
    known = split_phases(len(demand), terms)
    before, after = demand.split(known)
    cut = known * demand.phase_seconds
    end_s = len(after) * demand.phase_seconds
    workload = Workload(unit_gaps(log.seconds[log.seconds < cut], terms.phase_seconds), ROWS)
    offers = offers_of(deployments(), (KIND,))
    tables = [capacity_table(offer, workload, OBJECTIVE, terms.seed) for offer in offers]
    selected = select(before.counts.astype(np.float64), demand.per_day, terms.horizon + LEAD)
    plans = planned(tables, before, after, selected, LIMITS, terms.horizon)
    options = tuple(option_of(layout, workload, terms.seed) for offer in offers for layout in layouts_of(offer))
    phases = tuple(
        PlannedPhase(rate, offers[at].loss)
        for rate, at in zip(plans.demand_rps.tolist(), plans.offers.tolist(), strict=True)
    )
    usable, allowed = tuple(each for each in options if each.capacity_rps > 0), 1 - OBJECTIVE.percent / 100
    control = ControlPlan(usable, phases, demand.phase_seconds, slo_ms=OBJECTIVE.slo_ms, allowed_late=allowed)
    first, last = np.searchsorted(trace.seconds, [cut, cut + end_s])
    seconds, rows = trace.seconds[first:last] - cut, trace.rows[first:last]
    named = {each.name: each for each in deployments()}

    def service(option: Option) -> ServiceTime:
        return service_of(replace(named[option.variant], placement=option.placement), KIND.speed, terms.seed)

    return {
        name: machine_outcome(
            simulate_elastic(policy, windows, seconds, rows, service, KIND.cores),
            policy.options,
            end_s,
            OBJECTIVE,
            KIND.price_per_hour / KIND.cores,
        )
        for name, policy in policies(control).items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["code", "conv"], metavar="code|conv")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--panic", type=float, default=KPA.panic, help="rate over what serves that starts a panic")
    options = parser.parse_args()
    for seed in options.seeds:
        for name, (log, terms) in cases(options.names, seed, sys.maxsize).items():
            print(f"{name}, seed {seed}")
            print(f"  {'policy':<20}{'late':>9}{'refused':>9}{'p95, s':>9}{'loss':>9}{'replica-s':>12}{'switches':>10}")
            for policy, found in outcomes(log, terms, replace(KPA, panic=options.panic)).items():
                p95 = "-" if found.p95_ms is None else f"{found.p95_ms / 1e3:.2f}"
                print(
                    f"  {policy:<20}{found.late:>9.3%}{found.refused:>9.3%}{p95:>9}{found.loss:>9.3%}"
                    f"{found.replica_seconds:>12,.0f}{found.switches:>10}"
                )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
