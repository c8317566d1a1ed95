"""Benchmarks of a deployment beside the baseline: latency and throughput, and footprint."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from objectives.held_out_rows import read_requests
from objectives.jobs.protocol import UNHEARD, PartProgress
from objectives.jobs.requests import (
    BenchmarkRequest,
    BenchmarkResponse,
    GroupBenchmarkRequest,
    GroupBenchmarkResponse,
    VisitRequest,
    VisitResponse,
)
from objectives.measure.deployment import Deployment, load_target, open_deployment, quiet, warm_up
from objectives.measure.targets import open_pace_target, open_targets
from objectives.measurement.interference import InterferenceMonitor, calm_share
from objectives.measurement.latency import Load, Window, measure_latency
from objectives.measurement.load_generator import Request
from objectives.measurement.load_target import LoadTarget
from objectives.measurement.pace import PaceTimer, service_and_pace_ms
from objectives.measurement.profile.footprint import cpu_seconds_per_1000, peak_memory_bytes
from objectives.measurement.recording import Recording, Visit, read_recording, slo_of, write_recording
from objectives.measurement.statistics import Floats
from objectives.measurement.throughput import Probe, RateSearch, measure_capacity, search_rates
from objectives.measurement.visits import RatioNoise
from objectives.records import Footprint, NotFiniteError
from spaces.serialization import from_plain, to_plain

_WEIGH_SECONDS = 100


def benchmark(request: BenchmarkRequest, progress: PartProgress = UNHEARD) -> BenchmarkResponse:
    """Measure latency at the study's load and throughput under the SLO, paired with the baseline.

    The raw timings are written to a file.

    Args:
        progress: called with a line before each visit, where there are several; `next_part` before each part

    Raises:
        NotFiniteError: too many requests were refused, or the baseline keeps the SLO at no rate.
    """
    holdout, load, window = Path(request.holdout), request.load, request.window
    # First: a recording belongs to a timing that nothing behind it can undo.
    footprint = _footprint(holdout, request.candidate, request.weighed)
    requests, sides = read_requests(holdout), (request.candidate, request.baseline)
    visits, start = list[Visit](), time.monotonic()
    for number in range(window.visits):
        if window.visits > 1:
            progress(f"timing: visit {number + 1} of {window.visits}, {time.monotonic() - start:.0f} s")
        visits.append(_visit(sides, requests, load, window, request.seed, number, progress)[0])
    progress.next_part()
    recorded = _recording(visits, load, request.seed)
    return _summary(recorded, request.noise, footprint, Path(request.recording))


def benchmark_group(request: GroupBenchmarkRequest, progress: PartProgress = UNHEARD) -> GroupBenchmarkResponse:
    """Measure several candidates beside one baseline in one visit, and write the raw timings of each to a file.

    A candidate that refuses too many requests fails alone.
    """
    holdout, load = Path(request.holdout), request.load
    weighed = zip(request.candidates, request.weighed, strict=True)
    footprints = []
    for candidate, asked in weighed:
        progress.next_part()
        footprints.append(_footprint(holdout, candidate, asked))
    sides = (*request.candidates, request.baseline)
    visits = _visit(sides, read_requests(holdout), load, request.window, request.seed, 0, progress)
    found: list[BenchmarkResponse | None] = []
    failures: list[str | None] = []
    for visit, footprint, path in zip(visits, footprints, map(Path, request.recordings), strict=True):
        progress.next_part()
        recorded = _recording([visit], load, request.seed)
        try:
            found.append(_summary(recorded, request.noise, footprint, path))
            failures.append(None)
        except NotFiniteError as error:
            found.append(None)
            failures.append(str(error))
    return GroupBenchmarkResponse(tuple(found), tuple(failures))


def _footprint(holdout: Path, deployment: Deployment, weighed: bool) -> Footprint:
    return weigh(holdout, deployment) if weighed else Footprint(deployment.artifact.model_bytes)


def _recording(visits: Sequence[Visit], load: Load, seed: int) -> Recording:
    return Recording(tuple(visits), load.slo_ms, load.percent, seed, load.through, load.overhead_ms)


def _summary(recorded: Recording, noise: RatioNoise, footprint: Footprint, path: Path) -> BenchmarkResponse:
    """Write a recording that has all numbers; NotFiniteError where one is missing."""
    latency, throughput = recorded.summarize(noise)
    write_recording(recorded, path)
    return BenchmarkResponse(latency, throughput, footprint)


def visit_together(request: VisitRequest, progress: PartProgress = UNHEARD) -> VisitResponse:
    """Measure one more visit of several candidates beside one baseline, and append it to the recording of each."""
    load, window, requests = request.load, request.window, read_requests(Path(request.holdout))
    sides = (*request.candidates, request.baseline)
    visits = _visit(sides, requests, load, window, request.seed, request.number, progress)
    counts = []
    for path, visit in zip(map(Path, request.recordings), visits, strict=True):
        earlier = read_recording(path).visits if path.exists() else ()
        write_recording(_recording([*earlier, visit], load, request.seed), path)
        counts.append(len(earlier) + 1)
    return VisitResponse(tuple(counts))


def _visit(
    sides: Sequence[Deployment],
    requests: Sequence[Request],
    load: Load,
    window: Window,
    seed: int,
    number: int,
    progress: PartProgress,
) -> tuple[Visit, ...]:
    """Measure one visit of all candidates beside the baseline, which is the last side.

    Pools or servers are opened anew, since the location of a process in memory and on the cores is part of the variance
    between visits. Their order alternates from visit to visit.
    """
    turn = 1 if number % 2 == 0 else -1
    with (
        open_targets(sides[::turn], requests, load.served_inputs, progress.next_part) as opened,
        open_pace_target(sides[-1], requests, opened[0]) as pace_target,  # the baseline's model
    ):
        monitor = partial(InterferenceMonitor, children=opened[0].children)
        return measure_visit(opened[::turn], pace_target, requests, load, window, seed + 1000 * number, monitor)


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
        cpu = cpu_seconds_per_1000(load_target(pool, of.placement, requests), requests)
        return {"peak_memory_bytes": peak_memory_bytes(), "cpu_seconds_per_1000": cpu}


def measure_visit(
    targets: Sequence[LoadTarget],
    pace_target: LoadTarget,
    requests: Sequence[Request],
    load: Load,
    window: Window,
    seed: int,
    monitor: Callable[[], InterferenceMonitor] = InterferenceMonitor,
) -> tuple[Visit, ...]:
    """Measure the latency, the capacity and the rate under the SLO of all targets; return a visit for each candidate.

    The last target is the baseline, beside which each candidate is measured. Latency comes first, in alternating
    blocks, then capacity and the rate under one SLO for all, in turn.

    Arrivals follow the machine's pace. Capacity and rates are measured after the latency, when the machine may have
    another speed, and are scaled to that during the latency measurement.

    Args:
        pace_target: deployment that tells the machine's pace, and is not compared itself

    Raises:
        NotFiniteError: the baseline refuses requests that come one at a time, or too many at the load for an SLO.
    """
    pace = PaceTimer(pace_target, requests)
    request_ms, reference_pace_ms = service_and_pace_ms(targets[-1], requests, pace)
    if not math.isfinite(request_ms):
        raise NotFiniteError("The baseline refused some of the requests that came one at a time.")
    initial_rps = load.share * 1000 / request_ms

    def rate_rps() -> float:
        return initial_rps * reference_pace_ms / pace()

    # Several visits are joined, so their blocks have the same length whatever the pace of each; one may be shorter.
    blocks = window if window.visits > 1 else window.at(initial_rps)
    timings = measure_latency(targets, requests, load.traffic, rate_rps, blocks, seed, monitor)
    kept = [one.kept() for one in timings]
    rate = float(np.median(np.concatenate([one.rate_rps for one in kept])))

    def slowness() -> float:
        return pace() / reference_pace_ms * rate / initial_rps

    calm = calm_share(np.concatenate([one.taken.max(axis=1) for one in timings]))
    capacity = measure_capacity(targets, requests, seed, slowness, calm, monitor).T

    def search(latency_ms: Floats, service_ms: Floats, which: int) -> RateSearch:
        return RateSearch((Probe(rate, latency_ms),), capacity[which], service_ms)

    ours = [search(one.candidate, one.candidate_service, which) for which, one in enumerate(kept)]
    theirs = [search(one.baseline, one.baseline_service, -1) for one in kept]
    limit = float(np.median([slo_of(one, load.slo_ms, load.percent, load.overhead_ms) for one in timings]))
    if not math.isfinite(limit):
        raise NotFiniteError("The SLO follows from the baseline's p95, but it refused too many requests: set slo.ms.")
    searched = search_rates(targets, [*ours, theirs[0]], requests, load, limit, window, seed, slowness, calm, monitor)
    # Each candidate's undisturbed pairs hold other blocks of the baseline; its further probes are the same for all.
    (begun,) = theirs[0].probes
    further = [one for one in searched[-1].probes if one is not begun]
    return tuple(
        Visit(one, found, beside.with_probes(further))
        for one, found, beside in zip(timings, searched, theirs, strict=False)
    )
