"""Simulated against measured latency: the virtual clock with measured service curves beside the real open loop.

    python tests/benchmarks/simulated.py [--repeats 5] [--models baseline,student] [--rows 200]

For each model and placement, the service curve is measured once, then p50, p95 and p99 at three loads several times,
in turn with the baseline's placement. Printed: the simulated value over the median of the measured ones, and next to it
how far the repeats of the measurement lie apart (the largest over the smallest).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from objectives.measure.deployment import load_target, quiet, warm_up
from objectives.measure.service_curves import further_sizes, measure_service_curve
from objectives.measure.virtual_target import VirtualTarget
from objectives.measurement.arrivals import Traffic, gaps
from objectives.measurement.load_generator import drawn_requests
from objectives.measurement.load_target import LoadTarget
from objectives.measurement.statistics import percentile
from objectives.serving.engines import open_engine
from objectives.serving.pool import Pool
from search.workers.meter_jobs import curve_parts
from spaces.techniques.placement import Batching, InstanceGroup, Placement, Route
from tests.benchmarks.models import SMALL_STUDENT, STUDENT, Requests, baseline_model, lognormal_requests, write_model

PLACEMENTS = {
    "baseline": Placement(),
    "1x1": Placement(InstanceGroup(threads=1)),
    "inline": Placement(InstanceGroup(threads=1), inline=True),
    "2x1": Placement(InstanceGroup(replicas=2, threads=1)),
    "batching": Placement(InstanceGroup(threads=1), batching=Batching(600)),
    "split": Placement(InstanceGroup(replicas=2, threads=1), split_rows=200),
    "route": Placement(InstanceGroup(threads=1), route=Route(300, InstanceGroup(threads=1))),
}
LOADS = (0.4, 0.6, 0.8)
PERCENTS = (50, 95, 99)
REQUESTS = 600


def percentiles(target: LoadTarget, requests: Requests, rate: float, seed: int) -> list[float]:
    chosen = drawn_requests(requests, REQUESTS, seed)
    target.settle()
    found = target.open_loop(chosen, gaps(Traffic(), rate, REQUESTS, seed)).latency_ms[100:]
    return [percentile(found, percent) for percent in PERCENTS]


def compare(name: str, model: Path, placement: Placement, requests: Requests, repeats: int) -> None:
    parts = curve_parts(placement)
    start = time.monotonic()
    with quiet():
        curves = [
            measure_service_curve(
                lambda group: open_engine(group.engine, model, group.device, group.threads),
                part.placement, [*requests, *further_sizes(requests, part.batch_rows, part.split_over)], seed,
            )
            for seed, part in enumerate(parts)
        ]  # fmt: skip
        took = time.monotonic() - start
        with Pool.open(model, placement) as pool:
            warm_up(pool.submit, requests, placement)
            real = load_target(pool, placement, requests)
            virtual = VirtualTarget(placement, [curve.sampler(1) for curve in curves], real.outstanding)
            capacity = float(np.median([real.saturated(requests, 0.1, 1) for _ in range(5)]))
            start = time.monotonic()
            simulated_capacity = virtual.saturated(requests, 0.1, 1)
            print(f"{name}: curve in {took:.1f} s; capacity {simulated_capacity / capacity:.2f}")
            for load in LOADS:
                rate = load * capacity
                measured = np.array([percentiles(real, requests, rate, seed) for seed in range(repeats)])
                start = time.monotonic()
                simulated = np.array([percentiles(virtual, requests, rate, seed) for seed in range(repeats)])
                ms = 1000 * (time.monotonic() - start) / repeats
                middle = np.median(measured, axis=0)
                print(
                    f"  load {load}: "
                    + ", ".join(
                        f"p{percent} {one / real_ms:.2f} of {real_ms:.3f} ms (repeats {spread:.2f}x)"
                        for percent, one, real_ms, spread in zip(
                            PERCENTS,
                            np.median(simulated, axis=0),
                            middle,
                            measured.max(axis=0) / measured.min(axis=0),
                            strict=True,
                        )
                    )
                    + f"; simulated in {ms:.0f} ms",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--models", default="baseline,student")
    parser.add_argument("--placements", default=",".join(PLACEMENTS))
    options = parser.parse_args()
    requests = lognormal_requests(300, seed=1, median=options.rows)
    with tempfile.TemporaryDirectory() as folder:
        made = {
            "baseline": lambda at: baseline_model(at),
            "student": lambda at: write_model(at, STUDENT),
            "small": lambda at: write_model(at, SMALL_STUDENT),
        }
        for model in options.models.split(","):
            path = made[model](Path(folder) / model)
            for name in options.placements.split(","):
                compare(f"{model}, {name}", path, PLACEMENTS[name], requests, options.repeats)


if __name__ == "__main__":
    main()
