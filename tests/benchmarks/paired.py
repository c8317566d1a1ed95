"""Coverage of a benchmark's intervals: real pools, through the whole path.

    python tests/benchmarks/paired.py same      # A/A: a deployment against itself, two kinds of request
    python tests/benchmarks/paired.py planted   # one that takes twice as long, and one that takes a tenth longer
    python tests/benchmarks/paired.py hour      # one student 20 times, with other work in between
    python tests/benchmarks/paired.py together  # A/A of two beside one baseline and a student, as in a final benchmark

Options: --runs N, --folder DIR (raw timings; runs that are there are not run again), --burn (another process burns a
core a quarter of the time).
"""

from __future__ import annotations

import argparse
import contextlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from objectives.held_out_rows import write_requests
from objectives.jobs.requests import VisitRequest
from objectives.measure.benchmark import measure_visit, visit_together
from objectives.measure.deployment import Deployment, load_target, quiet, warm_up
from objectives.measurement.arrivals import Traffic
from objectives.measurement.latency import Load, Window
from objectives.measurement.recording import Recording, Visit, read_recording, write_recording
from objectives.records import Artifact, Latency, Throughput
from objectives.serving.engines import open_engine
from objectives.serving.pool import Pool
from objectives.serving.split_engine import Engine
from search.workers.meter_jobs import ratio_noise
from spaces.techniques.placement import InstanceGroup, Placement
from tests.benchmarks.models import ONE_THREAD, STUDENT, Requests, baseline_model, lognormal_requests, write_model

NEAR = Window(visits=3, probes=4)  # a point that would enter the front
CONFIRM = Window(visits=6, probes=4)  # what `leanrec choose` measures
LOAD = Load(Traffic(), 0.4, 95, None)
# One that takes twice as long is near its capacity at the load above, where a visit is spent on warming up; and it has
# hardly any rate under an SLO of twice the p95 of the baseline.
LIGHT = Load(Traffic(), 0.2, 95, 10.0)
# Median rows of a request.
KINDS = {"20 rows": 20, "200 rows": 200}
RATIOS = ("p95", "service p50", "throughput", "capacity")


class Slower:
    """An engine that takes longer by a busy wait, which leaves the interpreter to others."""

    def __init__(self, engine: Engine, share: float) -> None:
        self._engine, self._share = engine, share
        self.once = engine.once

    def run(self, inputs: Mapping[str, Any]) -> Any:
        start = time.perf_counter_ns()
        scores = self._engine.run(inputs)
        end = time.perf_counter_ns()
        until = end + int(self._share * (end - start))
        while time.perf_counter_ns() < until:
            time.sleep(0)
        return scores


@dataclass(frozen=True)
class Pair:
    """A candidate's model, how much longer it takes than it would, the baseline's model, and the load of both."""

    candidate: Path
    slower: float
    baseline: Path
    load: Load = LOAD


def measure(pair: Pair, requests: Requests, window: Window, seed: int) -> Recording:
    """Measure as a study's meter does, but with the engine that waits."""
    visits = tuple(_visit(pair, requests, window, seed, number) for number in range(window.visits))
    return Recording(visits, pair.load.slo_ms, pair.load.percent, seed)


def _visit(pair: Pair, requests: Requests, window: Window, seed: int, number: int) -> Visit:
    def candidate(instance_group: InstanceGroup) -> Engine:
        engine = open_engine(instance_group.engine, pair.candidate, instance_group.device, instance_group.threads)
        return Slower(engine, pair.slower) if pair.slower else engine

    def baseline(instance_group: InstanceGroup) -> Engine:
        return open_engine(instance_group.engine, pair.baseline, instance_group.device, instance_group.threads)

    placement, turn = Placement(), 1 if number % 2 == 0 else -1
    first, second = (candidate, baseline)[::turn]
    with quiet(), Pool(placement, first) as one, Pool(placement, second) as other, Pool(ONE_THREAD, baseline) as third:
        for pool, of in ((one, placement), (other, placement), (third, ONE_THREAD)):
            warm_up(pool.submit, requests, of)
        pace_target = load_target(third, ONE_THREAD, requests)
        ours, theirs = [load_target(pool, placement, requests) for pool in (one, other)][::turn]
        return measure_visit((ours, theirs), pace_target, requests, pair.load, window, seed + number)[0]


def together(models: Mapping[str, Path], baseline: Path, options: argparse.Namespace) -> dict[str, list[Recording]]:
    """Measure several models beside one baseline, as the final benchmark does, through the meter's own job."""
    holdout = options.folder / "holdout"
    holdout.mkdir(exist_ok=True)
    write_requests(lognormal_requests(300, seed=1, median=200), holdout)
    deployments = [_deployment(model) for model in models.values()]
    found: dict[str, list[Recording]] = {name: [] for name in models}
    for number in range(options.runs or 15):
        paths = [
            options.folder / f"together-{number}" / f"{name.replace(' ', '-').replace('/', '')}.npz" for name in models
        ]
        start = time.monotonic()
        for visit in range(0 if paths[0].exists() else NEAR.visits):
            recordings = tuple(map(str, paths))
            visit_together(
                VisitRequest(
                    str(holdout),
                    tuple(deployments),
                    _deployment(baseline),
                    LOAD,
                    NEAR,
                    1000 * number,
                    visit,
                    recordings,
                )
            )
        for name, path in zip(models, paths, strict=True):
            found[name].append(read_recording(path))
            print(f"{name} {number:>2}: {_line(*found[name][-1].summarize())}", flush=True)
        print(f"in {time.monotonic() - start:.0f} s", flush=True)
    return found


def _deployment(model: Path) -> Deployment:
    artifact = Artifact(model.parent.name, model.name, {}, model.stat().st_size, 0.0)
    return Deployment(artifact, str(model), Placement(), "fp32")


@contextlib.contextmanager
def burning(seed: int) -> Iterator[None]:
    """Burn one core in another process, a quarter of the time.

    The process is busy for 0.1 to 2 seconds and idle for 0.5 to 6 seconds by turns.
    """
    code = (
        f"import random, time; r = random.Random({seed})\n"
        "while True:\n"
        "    end = time.monotonic() + r.uniform(0.1, 2)\n"
        "    while time.monotonic() < end: pass\n"
        "    time.sleep(r.uniform(0.5, 6))\n"
    )
    burner = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        burner.kill()
        burner.wait()


def run(
    name: str, pair: Pair, rows: int, window: Window, options: argparse.Namespace, runs: int, pause: float = 0.0
) -> list[Recording]:
    """Run so many benchmarks, each into its file."""
    requests = lognormal_requests(300, seed=1, median=rows)
    found = []
    for number in range(runs):
        path = options.folder / name.replace(" ", "-") / f"{number}.npz"
        if not path.exists():
            start = time.monotonic()
            with (
                burning(random.Random(f"{name}{number}").randrange(10**6)) if options.burn else contextlib.nullcontext()
            ):
                write_recording(measure(pair, requests, window, 1000 * number), path)
            latency, throughput = read_recording(path).summarize()
            print(f"{name} {number:>2}: {_line(latency, throughput)} in {time.monotonic() - start:.0f} s", flush=True)
            if pause:
                _other_work(pause)
        found.append(read_recording(path))
    return found


def _other_work(seconds: float) -> None:
    """Work as a builder does between two benchmarks: products of matrices, and memory taken and given back."""
    end = time.monotonic() + seconds
    values = np.random.default_rng(0).normal(size=(1500, 1500))
    while time.monotonic() < end:
        values = np.tanh(values @ values.T / 1500)
        time.sleep(0.05)


def _ratios(latency: Latency, throughput: Throughput) -> list[tuple[float, float, float]]:
    return [
        (latency.p95_ratio, *latency.p95_ratio_interval),
        (latency.service_p50_ratio, *latency.service_p50_ratio_interval),
        (throughput.ratio, *throughput.ratio_interval),
        (throughput.capacity_ratio, *throughput.capacity_ratio_interval),
    ]


def _line(latency: Latency, throughput: Throughput) -> str:
    told = ", ".join(
        f"{name} {point:.3f} [{low:.3f}, {high:.3f}]"
        for name, (point, low, high) in zip(RATIOS, _ratios(latency, throughput), strict=True)
    )
    return f"{told}; {latency.pairs} pairs, others took {latency.busy_share:.0%} of a core"


def summaries(recordings: Sequence[Recording]) -> list[list[tuple[float, float, float]]]:
    """Point and ends of each ratio, (runs, ratios).

    As in a study, each benchmark knows how the visits of earlier ones differed.
    """
    found: list[list[tuple[float, float, float]]] = []
    earlier: list[tuple[Latency, Throughput]] = []
    for recording in recordings:
        earlier.append(recording.summarize(ratio_noise(earlier)))
        found.append(_ratios(*earlier[-1]))
    return found


def table(name: str, recordings: Sequence[Recording], truth: Sequence[float] | None) -> None:
    """Medians and how often the intervals hold the truth; None for the pooled value of the runs themselves."""
    print(f"\n{name}: {len(recordings)} runs")
    columns = np.array(summaries(recordings))
    for place, ratio in enumerate(RATIOS):
        points, lows, highs = columns[:, place].T
        true = float(np.exp(np.log(points).mean())) if truth is None else truth[place]
        holds, clear = (lows <= true) & (true <= highs), (lows > 1) | (highs < 1)
        print(
            f"  {ratio:<12} median {np.median(points):.3f}, from {points.min():.3f} to {points.max():.3f}; width "
            f"{np.median(highs / lows):.2f}x; {holds.sum()} of {len(points)} hold {true:.3f}, "
            f"{clear.sum()} are clear of 1"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["same", "planted", "hour", "together"])
    parser.add_argument("--runs", type=int)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--burn", action="store_true")
    parser.add_argument("--minutes", type=float, default=60.0, help="that the runs of `hour` are spread over")
    options = parser.parse_args()
    options.folder = options.folder or Path(tempfile.mkdtemp(prefix="paired-"))
    model = baseline_model(options.folder / "baseline")
    if options.what == "same":
        for name, rows in KINDS.items():
            runs = (options.runs or 30) // len(KINDS)
            table(f"A/A, {name}", run(f"same {name}", Pair(model, 0.0, model), rows, NEAR, options, runs), [1.0] * 4)
    if options.what == "planted":
        for slower, window, load in ((1.0, NEAR, LIGHT), (0.1, CONFIRM, LOAD)):
            pair = Pair(model, slower, model, load)
            planted = run(f"slower by {slower:g}", pair, 200, window, options, options.runs or 30)
            service = 1 + slower
            table(f"{service:g} times as long", planted, [float("nan"), service, float("nan"), 1 / service])
    if options.what == "hour":
        student = write_model(options.folder / "student", STUDENT)
        runs = options.runs or 20
        pause = partial(max, 1.0)(60 * options.minutes / runs - 30)
        found = run("hour", Pair(student, 0.0, model), 200, NEAR, options, runs, pause)
        table(f"a student, over {options.minutes:g} minutes", found, None)
    if options.what == "together":
        student = write_model(options.folder / "student", STUDENT)
        models = {"A/A one": model, "A/A other": model, "student": student}
        for name, recordings in together(models, model, options).items():
            table(f"{name}, together", recordings, None if name == "student" else [1.0] * 4)
    print(f"raw timings: {options.folder}")


if __name__ == "__main__":
    main()
