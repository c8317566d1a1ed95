"""Time: latency and throughput of an arm beside the baseline's, and what it weighs."""

from __future__ import annotations

import json
import subprocess
import sys
import time as clock
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from objectives.arms import Arm, open_arm, quiet, warm_up
from objectives.holdout import read_requests
from objectives.measurement.footprint import cpu_seconds_per_1000, peak_memory_bytes
from objectives.measurement.latency import Timings, Window, check_calm, time_side_by_side
from objectives.measurement.recording import Recording, Search, write_recording
from objectives.measurement.schedule import Traffic
from objectives.measurement.statistics import percentile
from objectives.measurement.strain import DisturbedError
from objectives.measurement.throughput import Pace, Probe, Slowness, open_loop_probe, saturation, search_rates
from objectives.measurement.traffic import BehindError, Request, Submit, settle
from objectives.record import Artifact, Footprint, Latency, Throughput
from objectives.serving.pool import Pool
from spaces.canonical import from_plain, to_plain

_TRIES = 3
_WEIGH_SECONDS = 100


@dataclass(frozen=True)
class Load:
    """How the arms are loaded: a share of what the baseline's replica answers one by one, its utilisation, in the very
    run, since machines differ from hour to hour; the SLO's percentile, and its milliseconds or None for the baseline's
    own."""

    traffic: Traffic
    share: float
    percent: int
    slo_ms: float | None


def time(
    holdout: Path, candidate: Arm, baseline: Arm, load: Load, window: Window, seed: int, recording: Path
) -> tuple[Latency, Throughput]:
    """Latency at the study's load and throughput under the SLO, both beside the baseline; the raw timings go to a file.

    Raises:
        DisturbedError: the machine was busy with something else, several times over.
        BehindError: the generator was behind its schedule, several times over.
    """
    requests = read_requests(holdout)
    with quiet(), open_arm(candidate) as ours, open_arm(baseline) as theirs:
        warm_up(ours.submit, requests, candidate.placement)
        warm_up(theirs.submit, requests, baseline.placement)
        recorded = _record((ours, candidate), (theirs, baseline), requests, load, window, seed)
    judged = recorded.judged()
    write_recording(recorded, recording)
    return judged


def weigh(holdout: Path, artifact: Artifact, arm: Arm) -> Footprint:
    """Bytes, peak memory and CPU time of a fresh process that holds this arm alone.

    Raises:
        RuntimeError: the process failed, with its last line.
    """
    plain = json.dumps({"holdout": str(holdout), "arm": to_plain(arm)})
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


def weigh_here(holdout: str, arm: Any) -> dict[str, float]:
    """The child's side of `weigh`."""
    requests, of = read_requests(Path(holdout)), from_plain(Arm, arm)
    with quiet(), open_arm(of) as pool:
        warm_up(pool.submit, requests, of.placement)
        cpu = cpu_seconds_per_1000(pool.submit, requests, of.placement.replicas)
        return {"peak_memory_bytes": peak_memory_bytes(), "cpu_seconds_per_1000": cpu}


def timed(
    ours: Submit,
    theirs: Submit,
    requests: list[Request],
    load: Load,
    window: Window,
    seed: int,
    in_turn: tuple[int | None, int | None] = (None, None),
) -> tuple[Timings, Pace]:
    """Both arms side by side, anew where something disturbed them.

    Args:
        in_turn: of either arm, `Placement.in_turn`

    Returns:
        Timings, and the baseline's pace, which can be asked again.

    Raises:
        DisturbedError: the machine was busy with something else, several times over.
        BehindError: the generator was behind its schedule, several times over.
    """
    start, attempt = clock.monotonic(), 0
    while True:
        attempt += 1
        try:
            settle()
            pace = Pace(theirs, requests)
            rate = partial(_rate, pace, load.share)
            timings = time_side_by_side(
                ours, theirs, requests, load.traffic, rate, window, seed + attempt, in_turn=in_turn
            )
            check_calm(timings, window.blocks)
            return timings, pace
        except (DisturbedError, BehindError) as error:
            # A generator that is behind a model as fast as this stays behind; a neighbour may go.
            patience = window.patience_seconds if isinstance(error, DisturbedError) else 0.0
            if attempt >= _TRIES and clock.monotonic() - start >= patience:
                raise type(error)(f"{error} ({attempt} times over)") from error


def _rate(pace: Pace, share: float) -> float:
    """Requests per second that are a share of what is answered one by one at the moment: in an open loop the
    utilisation. A share of what is answered when saturated would be more, since then nothing has to wake up."""
    return share * 1000 / pace()


def _record(
    candidate: tuple[Pool, Arm],
    baseline: tuple[Pool, Arm],
    requests: list[Request],
    load: Load,
    window: Window,
    seed: int,
) -> Recording:
    """The search for rates comes after the timing, on a machine that may be another by then: it goes by the
    baseline's pace, and its rates and latencies are those at the pace of the timing."""
    (ours, our_arm), (theirs, their_arm) = candidate, baseline
    in_turn = our_arm.placement.in_turn, their_arm.placement.in_turn
    timings, pace = timed(ours.submit, theirs.submit, requests, load, window, seed, in_turn)
    kept = timings.kept()
    rate = float(np.median(kept.rate_rps))

    def slowness() -> float:
        settle()  # an arm that has just gone idle would hold a core
        now = pace() / (load.share * 1000 / rate)
        settle()
        return now

    most = saturation(theirs.submit, requests, their_arm.placement.replicas, slowness)
    limit = percentile(kept.baseline, load.percent) if load.slo_ms is None else load.slo_ms
    first = Probe(rate, kept.candidate)
    searched = Search((), most)
    if load.slo_ms is not None:
        searched = _search(*baseline, Probe(rate, kept.baseline), requests, load, limit, window.probes, seed, slowness)
    return Recording(
        timings=timings,
        slo_ms=load.slo_ms,
        percent=load.percent,
        seed=seed,
        candidate=_search(*candidate, first, requests, load, limit, window.probes, seed, slowness),
        baseline=searched,
    )


def _search(
    pool: Pool,
    arm: Arm,
    first: Probe,
    requests: list[Request],
    load: Load,
    limit_ms: float,
    probes: int,
    seed: int,
    slowness: Slowness,
) -> Search:
    most = saturation(pool.submit, requests, arm.placement.replicas, slowness)

    def probe(rate_rps: float) -> Probe:
        return open_loop_probe(pool.submit, requests, load.traffic, rate_rps, seed, slowness)

    return Search(search_rates(probe, first, float(most.mean()), limit_ms, load.percent, probes), most)
