"""Benchmark: paired latency and throughput of a deployment and the baseline, and the deployment's footprint."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from objectives.held_out_rows import read_requests
from objectives.measure.deployment import Deployment, open_deployment, open_targets, quiet, warm_up
from objectives.measurement.arrivals import Traffic
from objectives.measurement.footprint import cpu_seconds_per_1000, peak_memory_bytes
from objectives.measurement.interference import InterferenceMonitor, calm_share
from objectives.measurement.latency import Window, measure_latency
from objectives.measurement.load_generator import Request
from objectives.measurement.load_target import LoadTarget
from objectives.measurement.recording import (
    NO_RATIO_NOISE,
    RatioNoise,
    Recording,
    Visit,
    read_recording,
    slo_of,
    write_recording,
)
from objectives.measurement.throughput import Probe, RateSearch, ServiceTimer, measure_capacity, search_rates
from objectives.records import Artifact, Footprint, Latency, Throughput
from spaces.serialization import from_plain, to_plain

_WEIGH_SECONDS = 100


@dataclass(frozen=True)
class Load:
    """Load of both deployments.

    share: utilisation of the baseline: the request rate over the rate at which its replica serves requests one by one
        at that moment, since machines differ from hour to hour
    percent: the percentile of the SLO
    slo_ms: the SLO in milliseconds; None for twice the baseline's own percentile at that load
    """

    traffic: Traffic
    share: float
    percent: int
    slo_ms: float | None


def time(
    holdout: Path,
    candidate: Deployment,
    baseline: Deployment,
    load: Load,
    window: Window,
    seed: int,
    recording: Path,
    noise: RatioNoise = NO_RATIO_NOISE,
    append: bool = False,
) -> tuple[Latency, Throughput]:
    """Measure latency at the study's load and throughput under the SLO, paired with the baseline, and write the raw
    timings to a file.

    Args:
        noise: variance of the ratios between visits, from earlier benchmarks of the study
        append: extend the existing recording, whose visits count too

    Raises:
        NotFiniteError: too many requests were refused, or the baseline keeps the SLO at no rate.
    """
    requests = read_requests(holdout)
    before = read_recording(recording).visits if append else ()
    visits = list(before)
    for number in range(len(before), len(before) + window.visits):
        visits.append(_visit(candidate, baseline, requests, load, window, seed + 1000 * number))
    recorded = Recording(tuple(visits), load.slo_ms, load.percent, seed)
    found = recorded.summarize(noise)
    write_recording(recorded, recording)
    return found


def weigh(holdout: Path, artifact: Artifact, deployment: Deployment) -> Footprint:
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
    found = json.loads(done.stdout)
    return Footprint(artifact.model_bytes, found["peak_memory_bytes"], found["cpu_seconds_per_1000"])


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

    Capacity and rates are measured after the latency, when the machine may have another speed: they follow the
    baseline's service time, and are scaled to its value during the latency measurement.
    """
    for target in (candidate, baseline):
        target.settle()
    pace = ServiceTimer(baseline, requests)
    timings = measure_latency(
        candidate, baseline, requests, load.traffic, partial(_rate, pace, load.share), window, seed, monitor
    )
    kept = timings.kept()
    rate = float(np.median(kept.rate_rps))

    def slowness() -> float:
        baseline.settle()  # a deployment that has just become idle would still occupy a core
        return pace() / (load.share * 1000 / rate)

    targets = (candidate, baseline)
    calm = calm_share(timings.taken.max(axis=1))
    capacity = measure_capacity(targets, requests, slowness, calm, monitor)
    searches = [
        RateSearch((Probe(rate, loop),), capacity[:, which], service)
        for which, (loop, service) in enumerate(
            ((kept.candidate, kept.candidate_service), (kept.baseline, kept.baseline_service))
        )
    ]
    limit = slo_of(timings, load.slo_ms, load.percent)
    ours, theirs = search_rates(
        targets,
        searches,
        requests,
        load.traffic,
        limit,
        load.percent,
        window.probes,
        window.probe_requests,
        seed,
        slowness,
        calm,
        monitor,
    )
    return Visit(timings, ours, theirs)


def _visit(
    candidate: Deployment, baseline: Deployment, requests: list[Request], load: Load, window: Window, seed: int
) -> Visit:
    """Measure one visit on newly opened pools: the location of a process in memory and on the cores is part of the
    variance between visits.
    """
    with open_targets(candidate, baseline, requests) as targets:
        return measure_visit(*targets, requests, load, window, seed)


def _rate(pace: ServiceTimer, share: float) -> float:
    """Return the rate, in requests per second, that gives this utilisation of one-by-one service at the moment. A share
    of the saturated rate would give a higher load, since a saturated deployment never has to wake up.
    """
    return share * 1000 / pace()
