"""What it gains and costs to keep an idle engine warm, through the whole path of a benchmark.

    python tests/benchmarks/keep_warm.py STUDY --home DIR --trial N [--every 0.5,1,2,4] [--visits 3]

A trial of a finished study, inline and on a thread of its own, and the baseline are each run without it and with a row
after each of so many milliseconds, beside the study's baseline in the same visits; the baseline without it is an A/A.
Printed: latencies and ratios with their intervals, and the share of a core that each takes at the study's rate.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from objectives.held_out_rows import read_requests
from objectives.measure.deployment import Deployment, load_target, open_deployment, quiet, warm_up
from objectives.measurement.arrivals import gaps
from objectives.measurement.load_generator import drawn_requests
from search.config.study_file import load as load_study
from search.home import Home
from search.session import Session, open_session
from spaces.techniques.placement import Placement
from tests.benchmarks.side_by_side import found_in, judge

_COUNTED = 1000


def variants(trial: Deployment, baseline: Deployment, every: list[float]) -> dict[str, Deployment]:
    """Return what is measured, by name."""
    alone = replace(trial.placement, inline=False, keep_warm_ms=None)
    forms = {"thread": (trial, alone), "baseline": (baseline, Placement())}
    if trial.placement.instance_group.replicas == 1 and trial.placement.batching is None:
        forms["inline"] = trial, replace(alone, inline=True)
    return {
        f"{name}-{warm:g}": replace(of, placement=replace(placement, keep_warm_ms=warm or None))
        for name, (of, placement) in forms.items()
        for warm in (0.0, *every)
    }


def core_shares(session: Session, deployments: Mapping[str, Deployment], rate_rps: float) -> dict[str, float]:
    """Return the CPU seconds per second of each at a rate, the load generator's included, in one stream each."""
    jobs, found = session.jobs(session.front()), {}
    requests = read_requests(Path(jobs.prepared.holdout))
    for name, each in deployments.items():
        with quiet(), open_deployment(each) as pool:
            warm_up(pool.submit, requests, each.placement)
            target = load_target(pool, each.placement, requests)
            target.settle()
            chosen = drawn_requests(requests, _COUNTED, 0)
            cpu, start = time.process_time(), time.perf_counter()
            target.open_loop(chosen, gaps(jobs.traffic, rate_rps, _COUNTED, 0))
            found[name] = (time.process_time() - cpu) / (time.perf_counter() - start)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--trial", type=int, required=True)
    parser.add_argument("--every", default="0.5,1,2,4", help="milliseconds")
    parser.add_argument("--visits", type=int, default=3)
    options = parser.parse_args()
    config, home = load_study(options.study, []), options.home.resolve()
    session = open_session(config, Home(home))
    points = {point.trial: point.deployment for point in found_in(home, config.name).points}
    deployments = variants(points[options.trial], points[0], [float(one) for one in options.every.split(",")])
    with tempfile.TemporaryDirectory() as scratch:
        judged = judge(session, points[0], deployments, Path(scratch), options.visits)
    rate_rps = next(iter(judged.values()))[0].rate_rps
    shares = core_shares(session, deployments, rate_rps)
    print(f"{config.name}, trial {options.trial}, {rate_rps:.0f} requests per second")
    print(f"{'':<14}{'p50 ms':>8}{'p95 ms':>8}{'p50':>8}{'p95':>24}{'service p50':>24}{'throughput':>12}{'cores':>7}")
    for name, (latency, throughput) in judged.items():
        p95 = "{:.3f} [{:.3f}, {:.3f}]".format(latency.p95_ratio, *latency.p95_ratio_interval)
        service = "{:.3f} [{:.3f}, {:.3f}]".format(latency.service_p50_ratio, *latency.service_p50_ratio_interval)
        print(
            f"{name:<14}{latency.candidate.p50_ms:>8.3f}{latency.candidate.p95_ms:>8.3f}{latency.p50_ratio:>8.3f}"
            f"{p95:>24}{service:>24}{throughput.ratio:>12.2f}{shares[name]:>7.2f}"
        )


if __name__ == "__main__":
    main()
