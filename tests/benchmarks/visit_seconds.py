"""Seconds of one visit of a group of candidates beside the baseline, by part and by what was done.

    python tests/benchmarks/visit_seconds.py [--candidates 2] [--rows 200] [--windows before,search] [--placement 1x1]

The models are students of the same size, which a search has many of. Printed for each window: seconds of each part of
the visit (opening, pace, latency, capacity, rates), of what was done to the deployments in all parts, and the ratios
with their intervals, so that windows of different lengths can be compared. Repeat it to see what a ratio varies by.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from objectives.measure import benchmark
from objectives.measure.deployment import Deployment
from objectives.measure.targets import open_pace_target, open_targets
from objectives.measurement import latency, load_target
from objectives.measurement.arrivals import Traffic
from objectives.measurement.latency import Load, Window
from objectives.measurement.load_target import LiveTarget
from objectives.measurement.recording import Recording
from objectives.records import Artifact
from search.workers.meter_jobs import SCREEN
from spaces.techniques.placement import InstanceGroup, Placement
from tests.benchmarks.models import SMALL_STUDENT, STUDENT, baseline_model, lognormal_requests, write_model

WINDOWS = {"before": Window(), "search": SCREEN.extended(95)}
LOAD = Load(Traffic(), 0.4, 95, None)
PARTS: dict[tuple[Any, str], str] = {
    (benchmark, "PaceTimer"): "pace, at first",
    (benchmark, "service_and_pace_ms"): "the baseline's service time and the pace",
    (benchmark, "measure_latency"): "latency",
    (benchmark, "measure_capacity"): "capacity",
    (benchmark, "search_rates"): "rates",
    (latency, "_warm_ups"): "latency: utilisation",
    (latency, "_block"): "latency: blocks",
    (load_target, "open_loop"): "all: open loop",
    (load_target, "saturated"): "all: saturated",
    (load_target, "closed_loop"): "all: closed loop, pace and service",
    (load_target, "settle"): "all: settling",
    (LiveTarget, "_prime"): "all: priming",
}


@contextmanager
def timed(seconds: dict[str, float]) -> Iterator[None]:
    """Add the seconds of each part while it is open."""
    kept = {place: getattr(*place) for place in PARTS}

    def wrapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                seconds[name] += time.perf_counter() - start

        return run

    for (owner, attribute), name in PARTS.items():
        setattr(owner, attribute, wrapped(name, kept[owner, attribute]))
    try:
        yield
    finally:
        for (owner, attribute), function in kept.items():
            setattr(owner, attribute, function)


def side(model: Path, placement: Placement) -> Deployment:
    return Deployment(Artifact("a", "a", {}, 1, 0.0, {}), str(model), placement, "fp32")


def visit(sides: list[Deployment], rows: int, window: Window, seed: int) -> None:
    requests, seconds = lognormal_requests(300, seed=1, median=rows), defaultdict[str, float](float)
    start = time.perf_counter()
    with (
        timed(seconds),
        open_targets(sides, requests, None) as opened,
        open_pace_target(sides[-1], requests, opened[0]) as pace_target,
    ):
        seconds["opening"] = time.perf_counter() - start
        visits = benchmark.measure_visit(opened, pace_target, requests, LOAD, window, seed)
    print(f"  {time.perf_counter() - start:.1f} s; turns {len(visits[0].timings.rate_rps)}, ", end="")
    print("; ".join(f"{name} {each:.1f}" for name, each in seconds.items()))
    for one in visits:
        found, throughput = Recording((one,), None, LOAD.percent, seed).summarize()
        low, high = found.p95_ratio_interval
        print(
            f"  p95 {found.p95_ratio:.3f} [{low:.3f}, {high:.3f}], service p50 {found.service_p50_ratio:.3f}, "
            f"throughput {throughput.ratio:.2f} [{throughput.ratio_interval[0]:.2f}, "
            f"{throughput.ratio_interval[1]:.2f}], capacity {throughput.capacity_ratio:.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=2)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--windows", default=",".join(WINDOWS))
    parser.add_argument("--patience", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kinds = [write_model(Path(folder) / "0", STUDENT), write_model(Path(folder) / "1", SMALL_STUDENT)]
        lean = Placement(InstanceGroup(threads=1))
        sides = [side(kinds[number % len(kinds)], lean) for number in range(options.candidates)]
        sides.append(side(baseline_model(Path(folder) / "baseline"), Placement()))
        for name in options.windows.split(","):
            print(f"{options.candidates} candidates, {name}")
            visit(sides, options.rows, replace(WINDOWS[name], patience_seconds=options.patience), options.seed)


if __name__ == "__main__":
    main()
