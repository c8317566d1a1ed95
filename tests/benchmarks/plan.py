"""Policies of serving, on two real traces and on made-up weeks with launches.

    python -m tests.benchmarks.plan [code] [conv] [week] [--seeds 0 1 2] [--study STUDY --home FOLDER --rate RPS]

The deployments are made up: four variants, each half as slow as the one before, on replicas of one core. With --study
they are those of a study's front, with the service curves and load times that were measured, its requests and its SLO,
and the arrivals of a trace are multiplied to a mean rate: each becomes a Poisson number of arrivals within half a
second of it.

Traces of the folder LEANREC_TEST_DATA/arrivals are planned in phases of a minute, five at a time; weeks in phases of
half an hour, a day at a time. Policies are judged on the last half of a trace and on the last week, of which every
request is simulated, unless --requests says fewer.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from objectives.measurement.request_log import RequestLog, read_request_log
from objectives.measurement.service_curve import Line, ServiceCurve
from planning.capacity import CapacityTable, Objective, capacity_table
from planning.demand import Counts, Workload, demand_of, unit_gaps
from planning.fleet import Deployment, MachineKind, offers_of
from planning.plan import Backtested, Terms, Trace, backtest_policies, split_phases
from planning.policies import Limits
from search.cli.console import Console
from search.config.study_file import load
from search.home import Home
from search.plan.deployments import menu_of
from search.session import open_session
from spaces.techniques.placement import InstanceGroup, Placement
from tests.benchmarks.synthetic_week import WeekSettings, arrivals, minute_rates

ROWS = np.random.default_rng(0).integers(100, 300, 2000)
OBJECTIVE = Objective(slo_ms=3000.0)
KINDS = (
    MachineKind("small", cores=2, price_per_hour=0.10, start_seconds=30.0, most=40),
    MachineKind("large", cores=8, price_per_hour=0.38, start_seconds=45.0, most=10),
)
MAX_LOSS = 0.004
WEEKS = WeekSettings(weeks=4)
_A_DAY = 48


@dataclass(frozen=True, eq=False)
class Menu:
    """Deployments, rows of requests and limits of a plan.

    rate_rps: mean rate that the arrivals are multiplied to, None for their own
    """

    deployments: tuple[Deployment, ...]
    rows: Counts
    objective: Objective
    max_loss: float
    rate_rps: float | None = None


def deployments() -> tuple[Deployment, ...]:
    """Return four variants: 1.2 s down to 0.15 s of 200 rows, and losses up to 1%."""
    quantiles = np.exp(0.25 * np.random.default_rng(0).normal(size=400))
    spread = tuple(np.quantile(quantiles, (np.arange(50) + 0.5) / 50).tolist())
    found = []
    for number, loss in enumerate((0.0, 0.002, 0.005, 0.01)):
        ns = 1200e6 / 2**number
        line = Line((50.0, 400.0), (0.4 * ns, 1.8 * ns), spread)
        curve = ServiceCurve(line, line, line, line, 0.0, 0.0, 0, 50, 400)
        placement = Placement(InstanceGroup(threads=1))
        found.append(Deployment(number, f"variant {number}", placement, (curve,), 1, loss, 5.0))
    return tuple(found)


def made_up() -> Menu:
    return Menu(deployments(), ROWS, OBJECTIVE, MAX_LOSS)


def measured(study: str, home: Path, rate_rps: float) -> Menu:
    """Return the deployments of a study that was run, opening its models where it is not known how long that takes."""
    config = load(study, [])
    session = open_session(config, Home(home.resolve()))
    found = menu_of(session, Console(quiet=True, as_json=False))
    objective = Objective(found.slo_ms, found.percent)
    return Menu(found.deployments, found.rows, objective, config.quality.max_loss, rate_rps)


def multiplied(log: RequestLog, rate_rps: float, seed: int) -> RequestLog:
    """Return arrivals at a mean rate, in the place of those of a log."""
    random = np.random.default_rng(seed)
    times = rate_rps * float(log.seconds[-1]) / len(log.seconds)
    seconds = np.repeat(log.seconds, random.poisson(times, len(log.seconds)))
    seconds = np.sort(seconds + random.uniform(-0.5, 0.5, len(seconds)))
    return RequestLog(seconds - seconds[0])


def tables(menu: Menu, workload: Workload, terms: Terms) -> list[CapacityTable]:
    """Return the tables of all offers; days choose among small machines only, for the solver's sake."""
    kinds = KINDS if terms.horizon < _A_DAY else KINDS[:1]
    return [capacity_table(offer, workload, menu.objective, terms.seed) for offer in offers_of(menu.deployments, kinds)]


def judged(menu: Menu, log: RequestLog, terms: Terms) -> Backtested:
    """Judge the policies; capacities are simulated with the burstiness of the history."""
    trace, demand = Trace.of(log, menu.rows, terms.seed), demand_of(log, terms.phase_seconds)
    cut = split_phases(len(demand), terms) * terms.phase_seconds
    known = log.seconds[log.seconds < cut]
    workload = Workload(unit_gaps(known, terms.phase_seconds)[-200_000:], menu.rows)
    found = tables(menu, workload, terms)
    return backtest_policies(
        found, trace, demand, terms, lambda line: print(f"    {line}", file=sys.stderr, flush=True)
    )


def cases(
    names: list[str], seed: int, requests: int, menu: Menu | None = None, headroom: float = 0.9
) -> dict[str, tuple[RequestLog, Terms]]:
    """Return the logs that were asked for, with their terms."""
    menu = menu or made_up()
    folder = Path(os.environ.get("LEANREC_TEST_DATA", "../shared/data")) / "arrivals"
    limits, objective = Limits(menu.max_loss, headroom=headroom), menu.objective
    found = {}
    for name in names:
        if name == "week":
            seconds = arrivals(minute_rates(WEEKS, seed), seed)
            terms = Terms(objective, limits, 1800.0, _A_DAY, held_out=1 / WEEKS.weeks, simulated=requests, seed=seed)
            found[name] = RequestLog(seconds), terms
        else:
            terms = Terms(objective, limits, 60.0, 5, held_out=0.5, simulated=requests, seed=seed)
            log = read_request_log(folder / f"azure_llm_2023_{name}.csv")
            found[name] = log if menu.rate_rps is None else multiplied(log, menu.rate_rps, seed), terms
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["code", "conv", "week"], metavar="code|conv|week")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--study", help="whose deployments are planned with")
    parser.add_argument("--home", type=Path, default=Path(), help="of the study")
    parser.add_argument("--rate", type=float, default=5_000.0, help="mean requests a second of a trace, of a study")
    parser.add_argument(
        "--headroom", type=float, default=0.9, help="quantile of the forecast that machines suffice for"
    )
    parser.add_argument("--requests", type=int, default=10_000_000, help="most that are simulated of a policy")
    options = parser.parse_args()
    menu = made_up() if options.study is None else measured(options.study, options.home, options.rate)
    for one in menu.deployments:
        group = one.placement.instance_group
        print(f"{one.name}: loss {one.loss:.3%}, loaded in {one.load_seconds:.2f} s, {group.place}, {group.layout}")
    for seed in options.seeds:
        for name, (log, terms) in cases(options.names, seed, options.requests, menu, options.headroom).items():
            began = time.perf_counter()
            found = judged(menu, log, terms)
            took = time.perf_counter() - began
            print(f"{name}, seed {seed}: {took:.0f} s; MAPE {found.mape:.3f}, coverage {json.dumps(found.coverage)}")
            scores = ", ".join(f"{one.model} {one.pinball:.3f}" for one in found.selected.scores)
            print(f"  backtested before, pinball loss over the mean count: {scores}")
            print(f"  {'policy':<20}{'late':>9}{'phases':>9}{'loss':>9}{'replica-s':>12}{'money':>9}{'starts':>8}")
            for policy, outcome in found.outcomes.items():
                print(
                    f"  {policy:<20}{outcome.late:>9.3%}{outcome.phases_missed:>9.2%}{outcome.loss:>9.3%}"
                    f"{outcome.replica_seconds:>12,.0f}{outcome.money:>9.3f}{outcome.starts:>8}"
                )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
