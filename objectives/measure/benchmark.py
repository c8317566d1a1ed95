"""Time: latency and throughput of an arm beside the baseline's, and what it weighs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from objectives.held_out_rows import read_requests
from objectives.measure.deployment import Deployment, load_target, open_deployment, quiet, warm_up
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
    """How both deployments are loaded.

    share: the baseline's utilisation, a share of what its replica answers one by one at that moment, since machines
        differ from hour to hour
    percent: the percentile of the SLO
    slo_ms: None for twice the baseline's own percentile at that load
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
    """Latency at the study's load and throughput under the SLO, both beside the baseline; the raw timings go to a file.

    Args:
        noise: how ratios differ between visits, by earlier benchmarks of the study
        append: go on with the recording that is there: its visits count too

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
    """Bytes, peak memory and CPU time of a fresh process that holds this arm alone.

    Raises:
        RuntimeError: the process failed, with its last line.
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


def weigh_here(holdout: str, deployment: Any) -> dict[str, float]:
    """The child's side of `weigh`."""
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
    """Latency of both in alternating blocks, then the capacity and the rate under one SLO of both, in turn.

    Capacity and rates come after the latency, on a machine that may have another speed by then: they follow the
    baseline's pace, and are reported as they would be at the pace of the latency.
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
        baseline.settle()  # a deployment that has just gone idle would hold a core
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
    """One visit of pools that are opened for it: where a process lies in memory and on the cores is part of what
    differs between visits."""
    with quiet(), open_deployment(candidate) as ours, open_deployment(baseline) as theirs:
        warm_up(ours.submit, requests, candidate.placement)
        warm_up(theirs.submit, requests, baseline.placement)
        targets = (load_target(ours, candidate.placement, requests), load_target(theirs, baseline.placement, requests))
        return measure_visit(*targets, requests, load, window, seed)


def _rate(pace: ServiceTimer, share: float) -> float:
    """Requests per second that are a share of what is answered one by one at the moment: in an open loop the
    utilisation. A share of what is answered when saturated would be more, since then nothing has to wake up."""
    return share * 1000 / pace()
