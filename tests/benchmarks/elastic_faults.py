"""Faults of forecast, traffic and machine on an elastic server: `python -m tests.benchmarks.elastic_faults`.

One machine of 8 cores with the made-up deployments of `tests.benchmarks.plan`, on the virtual clock, in the windows of
Knative's autoscaler. Poisson traffic of ten minutes is at a share of the largest capacity. The faults: for a minute ten
times the traffic, reached within five seconds; a plan that foresees a third, or three times, of what comes; a machine
that is half as fast as its plan believes. Time to normal: from the fault's begin to the arrival of the last request
that was refused or late as the nine before it were.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from objectives.serving.control.options import ControlPlan, Option, PlannedPhase
from objectives.serving.control.windows import KPA
from objectives.serving.pool.virtual_pool import ServiceTime
from planning.capacity import service_of
from planning.demand import Counts, Floats, Workload
from planning.elastic import machine_outcome, policies, simulate_elastic
from planning.fleet import layouts_of, offers_of
from tests.benchmarks.elastic_server import KIND, option_of
from tests.benchmarks.plan import OBJECTIVE, ROWS, deployments

SECONDS, PHASE_SECONDS = 600.0, 60.0
SURGE_BEGIN, SURGE_END, RAMP = 300.0, 360.0, 5.0
SURGE = 10.0
IN_A_ROW = 10


@dataclass(frozen=True)
class Fault:
    """A fault.

    begin_s: 0 for one that is there from the start
    surge: times of the usual traffic, for a minute
    foreseen: rate of the plan, in times of the usual traffic
    speed: of the machine, in times of what its plan believes
    """

    name: str
    begin_s: float = 0.0
    surge: float = 1.0
    foreseen: float = 1.0
    speed: float = 1.0


FAULTS = (
    Fault("none"),
    Fault("surge of 10x in 5 s", SURGE_BEGIN, surge=SURGE),
    Fault("a third foreseen", foreseen=1 / 3),
    Fault("three times foreseen", foreseen=3.0),
    Fault("half as fast", speed=0.5),
)


def traffic(rate_rps: float, surge: float, seed: int) -> tuple[Floats, Counts]:
    """Draw a Poisson process whose rate rises linearly within the ramp and falls at once, by thinning."""
    random = np.random.default_rng(seed)
    seconds = np.cumsum(random.exponential(1 / (surge * rate_rps), int(1.1 * surge * rate_rps * SECONDS)))
    seconds = seconds[seconds < SECONDS]
    risen = np.clip((seconds - SURGE_BEGIN) / RAMP, 0, 1) * (seconds < SURGE_END)
    kept = seconds[random.random(len(seconds)) * surge < 1 + (surge - 1) * risen]
    return kept, random.choice(ROWS, len(kept))


def options_here(seed: int) -> tuple[Option, ...]:
    """Return the options of the machine, with their capacities for Poisson arrivals."""
    gaps = np.random.default_rng(seed).exponential(size=20_000)
    workload = Workload(gaps, ROWS)
    layouts = [layout for offer in offers_of(deployments(), (KIND,)) for layout in layouts_of(offer)]
    options = [option_of(layout, workload, seed) for layout in layouts]
    return tuple(option for option in options if option.capacity_rps > 0)


def normal_after_s(late: np.ndarray, seconds: Floats, begin_s: float) -> float:
    """Return the seconds from the fault's begin to the arrival of the last of ten late requests in a row, else 0."""
    in_a_row = np.convolve(late, np.ones(IN_A_ROW), "valid") == IN_A_ROW
    last = seconds[IN_A_ROW - 1 :][in_a_row].max(initial=0.0)
    return float(max(last - begin_s, 0.0))


def print_fault(fault: Fault, options: Sequence[Option], rate_rps: float, seed: int) -> None:
    """Print the outcome of each policy."""
    phases = (PlannedPhase(fault.foreseen * rate_rps, 0.0),) * round(SECONDS / PHASE_SECONDS)
    allowed = 1 - OBJECTIVE.percent / 100
    control = ControlPlan(tuple(options), phases, PHASE_SECONDS, slo_ms=OBJECTIVE.slo_ms, allowed_late=allowed)
    seconds, rows = traffic(rate_rps, fault.surge, seed)
    named = {each.name: each for each in deployments()}

    def service(option: Option) -> ServiceTime:
        return service_of(replace(named[option.variant], placement=option.placement), fault.speed, seed)

    for name, policy in policies(control).items():
        served = simulate_elastic(policy, KPA, seconds, rows, service, KIND.cores)
        found = machine_outcome(served, policy.options, SECONDS, OBJECTIVE, KIND.price_per_hour / KIND.cores)
        normal = normal_after_s(served.latency_ms > OBJECTIVE.slo_ms, seconds, fault.begin_s)
        print(
            f"{fault.name:<22}{name:<20}{found.late:>9.3%}{found.refused:>9.3%}{normal:>10.0f}{found.loss:>9.3%}"
            f"{found.replica_seconds:>12,.0f}{found.switches:>10}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--load", type=float, default=0.1, help="usual traffic, as a share of the largest capacity")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    options = options_here(given.seed)
    rate_rps = given.load * max(option.capacity_rps for option in options)
    print(f"usual traffic {rate_rps:.3g} requests/s, SLO {OBJECTIVE.slo_ms:g} ms for {OBJECTIVE.percent}%")
    print(
        f"{'fault':<22}{'policy':<20}{'late':>9}{'refused':>9}{'normal, s':>10}{'loss':>9}{'replica-s':>12}"
        f"{'switches':>10}"
    )
    for fault in FAULTS:
        print_fault(fault, options, rate_rps, given.seed)


if __name__ == "__main__":
    main()
