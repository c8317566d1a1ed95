"""Fleets on the virtual clock: `python -m tests.benchmarks.fleet exact|groups|week`.

exact: an hour with failures, slow machines and a deployment on 8 and 32 machines, every request simulated, beside the
approximation by sampled groups. groups: steady state of groups of growing size. week: a thousand machines at a million
requests per second, and how long that takes.

Service times are made up: log-normal around 24 ms of a request and 0.48 ms of each row (exact, groups), and a fiftieth
of it (week).
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence

import numpy as np

from objectives.measurement.service_curve import Line, ServiceCurve
from planning.capacity import Objective
from planning.demand import Demand
from planning.fleet import Deployment, MachineKind, Offer
from planning.virtual_fleet.approximation import approximate
from planning.virtual_fleet.comparison import scenarios
from planning.virtual_fleet.dispatch import POLICIES
from planning.virtual_fleet.exact import exact
from planning.virtual_fleet.incidents import Deployments, Failures, FleetSpec, Incidents, SlowMachines, Zones
from planning.virtual_fleet.latency_shares import LatencySummary, shares, summary
from planning.virtual_fleet.latency_table import Composition, LatencyTable
from planning.virtual_fleet.outcome import FleetOutcome
from spaces.techniques.placement import InstanceGroup, Placement
from tests.benchmarks.synthetic_week import WeekSettings, minute_rates

HOUR = 3600.0
ROWS = np.random.default_rng(0).integers(100, 300, 5000)
MEASURES = ("mean_ms", "p50_ms", "p95_ms", "p99_ms", "late", "refused")


def service(scale: float) -> Deployment:
    """A deployment of one replica, 24 ms and 0.48 ms a row times the scale, deviating by 30%."""
    quantiles = np.exp(0.3 * np.random.default_rng(0).normal(size=4000) - 0.045)
    spread = tuple(np.quantile(quantiles, (np.arange(200) + 0.5) / 200).tolist())
    ns = tuple(scale * (24e6 + 0.48e6 * rows) for rows in (50, 400))
    line = Line((50.0, 400.0), ns, spread)
    curve = ServiceCurve(line, line, line, line, 0.0, 0.0, 0, 50, 400)
    return Deployment(0, "made up", Placement(InstanceGroup(threads=1)), (curve,), 1, 0.0, 0.0)


def one_kind(machines: int, policy: str, incidents: Incidents, scale: float = 1.0, copies: int = 1) -> FleetSpec:
    offer = Offer(service(scale), MachineKind("made up", copies), copies)
    return FleetSpec((offer,), (machines,), policy, 0.05, incidents)


def eventful_hour(machines: int, policy: str) -> FleetSpec:
    """About four failures of five minutes, 5% of the machines slow, a deployment by eighths of the fleet."""
    incidents = Incidents(
        Failures(machines / 4 * HOUR, 300.0),
        SlowMachines(0.05, 0.5, 600.0),
        Deployments(2 * HOUR, machines // 8, 60.0, HOUR / 2),
        detection_s=1.0,
    )
    return one_kind(machines, policy, incidents)


def compare(machines: int, policy: str, utilisation: float, seed: int) -> tuple[FleetOutcome, FleetOutcome, float]:
    """Return the approximated and the exact outcome of an hour, and the seconds of the latter."""
    spec, objective = eventful_hour(machines, policy), Objective(500.0)
    table = LatencyTable(spec, ROWS, objective, seed)
    demand = Demand(np.array([utilisation * machines * table.saturated_rps * HOUR]), HOUR)
    began = time.perf_counter()
    simulated = exact(spec, demand, ROWS, table, objective, seed)
    took = time.perf_counter() - began
    return approximate(spec, demand, table, objective, seed), simulated, took


def written(found: LatencySummary, name: str) -> str:
    value = getattr(found, name)
    if name in ("late", "refused"):
        return f"{value:.3%}"
    return "refused" if value is None else f"{value:,.0f}"


def print_exact(
    sizes: Sequence[int], policies: Sequence[str], utilisations: Sequence[float], seeds: Sequence[int]
) -> None:
    print("approximated / exact; milliseconds, SLO 500 ms")
    print(f"| machines | policy | utilisation | seed | requests | failures | {' | '.join(MEASURES)} | exact took |")
    for machines, policy, utilisation, seed in itertools.product(sizes, policies, utilisations, seeds):
        rough, true, took = compare(machines, policy, utilisation, seed)
        cells = [f"{written(rough, name)} / {written(true, name)}" for name in MEASURES]
        head = [machines, policy, utilisation, seed, f"{true.requests:,.0f}", true.failures]
        print("| " + " | ".join(map(str, [*head, *cells, f"{took:.0f} s"])) + " |", flush=True)


def print_groups(sizes: Sequence[int], policies: Sequence[str], utilisations: Sequence[float]) -> None:
    print("p50, p95, p99 in ms of a group in steady state")
    print("| policy | utilisation | " + " | ".join(f"{size} machines" for size in sizes) + " |")
    for policy in policies:
        for utilisation in utilisations:
            cells = []
            for size in sizes:
                table = LatencyTable(one_kind(size, policy, Incidents()), ROWS, Objective(500.0), 0)
                latency = table._simulate(Composition((size,), (0,)), utilisation)
                found = summary(shares(latency, 500.0))
                cells.append(", ".join(written(found, name) for name in MEASURES[1:4]))
            print("| " + " | ".join(map(str, [policy, utilisation, *cells])) + " |", flush=True)


def print_week(machines: int, rate_rps: float, policy: str, tolerated: float | None, seed: int) -> None:
    incidents = Incidents(
        Failures(720 * HOUR, 4 * HOUR),
        SlowMachines(0.02, 0.5, HOUR),
        Deployments(24 * HOUR, machines // 50, 120.0, 20 * HOUR),
        Zones(4, 2000 * HOUR, HOUR / 2),
        0.5,
    )
    spec = one_kind(machines, policy, incidents, 0.02, 8)
    rates = minute_rates(WeekSettings(weeks=1, surge=1.5), seed)
    demand = Demand(60 * rates, 60.0).at_rate(rate_rps)
    began = time.perf_counter()
    objective = Objective(10.0)
    table = LatencyTable(spec, ROWS, objective, seed)

    def evaluate(one: FleetSpec) -> FleetOutcome:
        return approximate(one, demand, table, objective, seed)

    full_rps = float(table.capacity_rps(np.array(spec.counts), np.zeros(1, np.int64)))
    peak = float(demand.rates_rps.max())
    print(f"{machines} machines that saturate at {full_rps:,.0f}/s; busiest minute {peak:,.0f}/s, SLO 10 ms, {policy}")
    print("| fleet | late | refused | hours missed | mean | p50 | p95 | p99 | failures | machines needed | seconds |")
    for each in scenarios(spec, evaluate, tolerated):
        out, took = each.outcome, time.perf_counter() - began
        times = " | ".join(
            "refused" if ms is None else f"{ms:.2f}" for ms in (out.mean_ms, out.p50_ms, out.p95_ms, out.p99_ms)
        )
        print(
            f"| {each.name} | {out.late:.4%} | {out.refused:.4%} | {out.hours_missed:.1%} | {times} | {out.failures} | "
            f"{each.needed} | {took:.0f} |",
            flush=True,
        )
    print(f"{table.simulated} groups and utilisations; {out.requests:,.0f} requests")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("exact", "groups", "week"))
    parser.add_argument("--machines", type=int, nargs="+")
    parser.add_argument("--policies", nargs="+", choices=tuple(POLICIES), default=list(POLICIES))
    parser.add_argument("--utilisations", type=float, nargs="+", default=[0.5, 0.7, 0.85])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rate", type=float, default=1e6)
    parser.add_argument("--find", type=float)
    options = parser.parse_args()
    if options.what == "exact":
        print_exact(options.machines or [8, 32], options.policies, options.utilisations, options.seeds)
    elif options.what == "groups":
        print_groups(options.machines or [16, 64, 256], options.policies, options.utilisations)
    else:
        for policy in options.policies:
            print_week((options.machines or [1000])[0], options.rate, policy, options.find, options.seeds[0])


if __name__ == "__main__":
    main()
