"""Benchmarks of a deployment beside the baseline: latency and throughput, footprint, and quick ratios."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from objectives.held_out_rows import read_requests
from objectives.jobs.requests import BenchmarkRequest, BenchmarkResponse, QuickBenchmarkRequest
from objectives.measure.deployment import Deployment, open_deployment, open_targets, quiet, warm_up
from objectives.measurement.interference import InterferenceMonitor, calm_share
from objectives.measurement.latency import Load, Window, measure_latency
from objectives.measurement.load_generator import Request
from objectives.measurement.load_target import LoadTarget
from objectives.measurement.pace import Pace, ServiceTimer
from objectives.measurement.profile.footprint import cpu_seconds_per_1000, peak_memory_bytes
from objectives.measurement.recording import Recording, Visit, read_recording, slo_of, write_recording
from objectives.measurement.throughput import Probe, RateSearch, measure_capacity, search_rates
from objectives.records import Footprint, QuickBenchmark
from spaces.serialization import from_plain, to_plain

_WEIGH_SECONDS = 100
# Of a quick benchmark.
_TIMER_REPEATS = 5
_SATURATION_REPEATS = 3
_SATURATION_SECONDS = 0.1


def benchmark(request: BenchmarkRequest) -> BenchmarkResponse:
    """Measure latency at the study's load and throughput under the SLO, paired with the baseline, and write the raw
    timings to a file.

    Raises:
        NotFiniteError: too many requests were refused, or the baseline keeps the SLO at no rate.
    """
    holdout, recording, load, window = Path(request.holdout), Path(request.recording), request.load, request.window
    # First: a recording belongs to a timing that nothing behind it can undo.
    footprint = Footprint(request.candidate.artifact.model_bytes)
    if request.weighed:
        footprint = weigh(holdout, request.candidate)
    requests = read_requests(holdout)
    visits = list(read_recording(recording).visits) if request.append else []
    sides = (request.candidate, request.baseline)
    for number in range(len(visits), len(visits) + window.visits):
        # On newly opened pools: the location of a process in memory and on the cores is part of the variance between
        # visits. Which one is opened first alternates.
        turn = 1 if number % 2 == 0 else -1
        first, second = sides[::turn]
        with open_targets(first, second, requests) as opened:
            candidate, baseline = opened[::turn]
            visits.append(measure_visit(candidate, baseline, requests, load, window, request.seed + 1000 * number))
    recorded = Recording(tuple(visits), load.slo_ms, load.percent, request.seed)
    latency, throughput = recorded.summarize(request.noise)
    write_recording(recorded, recording)
    return BenchmarkResponse(latency, throughput, footprint)


def weigh(holdout: Path, deployment: Deployment) -> Footprint:
    """Measure the footprint of a deployment in a fresh process: bytes, peak memory and CPU time.

    Raises:
        RuntimeError: the process failed or took too long; the message has its last line.
    """
    plain = json.dumps({"holdout": str(holdout), "deployment": to_plain(deployment)})
    command = [sys.executable, "-P", "-m", "objectives.measure", "weigh"]
    try:
        done = subprocess.run(command, input=plain, capture_output=True, text=True, timeout=_WEIGH_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"The footprint could not be measured within {_WEIGH_SECONDS} s.") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise RuntimeError(f"The footprint could not be measured: {lines[-1]}")
    return Footprint(deployment.artifact.model_bytes, **json.loads(done.stdout))


def weigh_here(holdout: str, deployment: object) -> dict[str, float]:
    """Measure memory and CPU time in this process, the child of `weigh`."""
    requests, of = read_requests(Path(holdout)), from_plain(Deployment, deployment)
    with quiet(), open_deployment(of) as pool:
        warm_up(pool.submit, requests, of.placement)
        cpu = cpu_seconds_per_1000(pool.submit, requests, of.placement.replicas)
        return {"peak_memory_bytes": peak_memory_bytes(), "cpu_seconds_per_1000": cpu}


def measure_visit(
    candidate: LoadTarget,
    baseline: LoadTarget,
    requests: Sequence[Request],
    load: Load,
    window: Window,
    seed: int,
    monitor: Callable[[], InterferenceMonitor] = InterferenceMonitor,
) -> Visit:
    """Measure the latency of both deployments in alternating blocks, then their capacity and their rate under one SLO
    in turn.

    Capacity and rates are measured after the latency, when the machine may have another speed: they follow its pace,
    and are scaled to that during the latency measurement.
    """
    targets = (candidate, baseline)
    pace = Pace(targets, requests)
    # A share of the saturated rate would give a higher load, since a saturated deployment never has to wake up.
    initial_rps = load.share * 1000 / pace.service_ms[1]

    def rate_rps(first: int) -> float:
        return initial_rps / pace(first)

    timings = measure_latency(candidate, baseline, requests, load.traffic, rate_rps, window, seed, monitor)
    kept = timings.kept()
    rate = float(np.median(kept.rate_rps))

    def slowness(first: int) -> float:
        return pace(first) * rate / initial_rps

    calm = calm_share(timings.taken.max(axis=1))
    capacity = measure_capacity(targets, requests, slowness, calm, monitor)
    sides = ((kept.candidate, kept.candidate_service), (kept.baseline, kept.baseline_service))
    searches = [
        RateSearch((Probe(rate, loop),), bursts, service)
        for (loop, service), bursts in zip(sides, capacity.T, strict=True)
    ]
    limit = slo_of(timings, load.slo_ms, load.percent)
    ours, theirs = search_rates(targets, searches, requests, load, limit, window, seed, slowness, calm, monitor)
    return Visit(timings, ours, theirs)


def quick_benchmark(request: QuickBenchmarkRequest) -> QuickBenchmark:
    """Compare both deployments in closed loops that alternate, in one or two seconds."""
    requests = read_requests(Path(request.holdout))
    with open_targets(request.candidate, request.baseline, requests) as targets:
        return compare_quickly(*targets, requests)


def compare_quickly(candidate: LoadTarget, baseline: LoadTarget, requests: list[Request]) -> QuickBenchmark:
    """Return the median ratios of a few paired measurements."""
    candidate.settle()
    timer = ServiceTimer(candidate, requests)
    candidate.settle()
    their_timer = ServiceTimer(baseline, requests)
    service, most = [], []
    for _ in range(_TIMER_REPEATS):
        baseline.settle()
        mine = timer()
        candidate.settle()
        service.append(mine / their_timer())
    for _ in range(_SATURATION_REPEATS):
        baseline.settle()
        mine = candidate.saturated(requests, _SATURATION_SECONDS)
        candidate.settle()
        most.append(mine / baseline.saturated(requests, _SATURATION_SECONDS))
    return QuickBenchmark(statistics.median(service), statistics.median(most))
