"""Time of a simulated placement: its ratios to the baseline on the virtual clock, from service curves that are given.

    python tests/benchmarks/virtual_clock.py [--repeats 5] [--models student,small] [--placements 1x1,2x1] [--profile]

Printed: for each model and placement, milliseconds of CPU time of a simulation (median of the repeats), placements per
second of it, and the ratios, so that two versions of the code can be compared.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from objectives.measure.deployment import saturating
from objectives.measure.virtual_target import SimulatedLoad, VirtualTarget
from objectives.measurement.arrivals import Traffic
from objectives.measurement.latency import Load
from objectives.measurement.load_generator import Request
from objectives.measurement.service_curve import Runs, ServiceCurve
from spaces.techniques.placement import Admission, Batching, InstanceGroup, Placement, Route

PLACEMENTS = {
    "1x1": Placement(InstanceGroup(threads=1)),
    "inline": Placement(InstanceGroup(threads=1), inline=True),
    "2x1": Placement(InstanceGroup(replicas=2, threads=1)),
    "8x1": Placement(InstanceGroup(replicas=8, threads=1)),
    "batching": Placement(InstanceGroup(threads=1), batching=Batching(600)),
    "batching 2x1": Placement(InstanceGroup(replicas=2, threads=1), batching=Batching(600, 200)),
    "split": Placement(InstanceGroup(replicas=2, threads=1), split_rows=200),
    "route": Placement(InstanceGroup(threads=1), route=Route(300, InstanceGroup(threads=1))),
    "admission": Placement(InstanceGroup(replicas=2, threads=1), admission=Admission(queue=8, deadline_ms=50.0)),
}
# Nanoseconds of a run and of each of its rows.
MODELS = {"baseline": (100_000.0, 17_000.0), "student": (30_000.0, 1_200.0), "small": (12_000.0, 100.0)}


def curve(run_ns: float, row_ns: float, others: int) -> ServiceCurve:
    """Return a curve whose runs deviate by a tenth, take a fifth longer on an idle replica and beside busy others."""
    random = np.random.default_rng(0)

    def runs(count: int, idle_ns: int, busy: int, factor: float) -> Runs:
        rows = np.minimum(random.lognormal(np.log(200), 0.5, count), 1200).astype(np.int64) + 1
        rows[:2] = 1, 2400
        ns = factor * (run_ns + row_ns * rows) * random.lognormal(0, 0.1, count)
        return Runs(rows, ns.astype(np.int64), np.full(count, idle_ns), np.full(count, busy))

    parts = [runs(300, 10 * int(run_ns), 0, 1.2), runs(300, -1, 0, 1.0)]
    parts += [runs(300, -1, others, 1.2)] if others else []
    joint = Runs(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("rows", "ns", "idle_ns", "busy"))
    )
    return ServiceCurve.fit(joint, runs(300, 1000 * int(run_ns), 0, 1.5))


def target(placement: Placement, model: str, requests: Sequence[Request]) -> VirtualTarget:
    curves = [curve(*MODELS[model], placement.replicas - 1) for _ in placement.instance_groups]
    return VirtualTarget.of(placement, curves, 1, saturating(placement, requests))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--placements", default=",".join(PLACEMENTS))
    parser.add_argument("--profile", action="store_true", help="print the functions that take longest, too")
    options = parser.parse_args()
    sizes = np.minimum(np.random.default_rng(1).lognormal(np.log(200), 0.5, 300), 1000).astype(int) + 1
    requests: list[Request] = [{"rows": np.empty(size, np.bool_)} for size in sizes]
    load = SimulatedLoad.of(target(Placement(), "baseline", requests), requests, Load(Traffic(), 0.4, 95, None), 0)
    print(f"{load.rate_rps:.0f} requests per second, SLO {load.slo_ms:.2f} ms")
    for model in options.models.split(","):
        for name in options.placements.split(","):
            one = target(PLACEMENTS[name], model, requests)
            profile, ms = cProfile.Profile(), []
            for _ in range(options.repeats):
                start = time.process_time()
                ratios = profile.runcall(load.ratios, one) if options.profile else load.ratios(one)
                ms.append(1000 * (time.process_time() - start))
            print(
                f"{model}, {name}: {np.median(ms):.1f} ms, {1000 / np.median(ms):.0f} a second; "
                f"p50 {ratios.p50_ratio:.3f}, p95 {ratios.p95_ratio:.3f}, p99 {ratios.p99_ratio:.3f}, "
                f"throughput {ratios.throughput_ratio:.3f}, capacity {ratios.capacity_ratio:.3f}",
                flush=True,
            )
            if options.profile:
                pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
