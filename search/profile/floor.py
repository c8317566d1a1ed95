"""Floor of a trial's latency: what its placement takes at the study's load where the graph computes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from objectives.compression.graph_passes.empty_graph import empty_graph
from objectives.measurement.recording import read_recording
from objectives.onnx_graph import load_graph, save_graph
from objectives.records import Artifact, Interval, NotFiniteError
from objectives.store import make_once
from search.errors import ConfigError
from search.results import timing_numbers
from search.workers.meter_jobs import MeterJobs, Side, ratio_noise
from search.workers.processes import Worker, call
from spaces.serialization import fields_in

_FILE = "model.onnx"


@dataclass(frozen=True, kw_only=True)
class AtLoad:
    """Latency of a deployment in milliseconds at a load, and its ratios to the baseline, of the same visits."""

    p50_ms: float
    p95_ms: float
    p50_ratio: float
    p50_ratio_interval: Interval
    p95_ratio: float
    p95_ratio_interval: Interval
    throughput_ratio: float
    throughput_ratio_interval: Interval
    capacity_ratio: float
    capacity_ratio_interval: Interval


@dataclass(frozen=True)
class Floor:
    """A trial, and an empty graph in its place, in turns with the baseline at the study's load.

    The empty graph takes the same inputs, in the same engine and placement, and its scores are zeros. What it takes is
    the engine's, the pool's and the machine's, for any model that small.

    rate_rps: of the requests
    baseline_p95_ms: of the baseline
    """

    rate_rps: float
    baseline_p95_ms: float
    trial: AtLoad
    empty: AtLoad


def measure_floor(jobs: MeterJobs, meter: Worker, trial: Side, folder: str, say: Callable[[str], None]) -> Floor:
    """Benchmark a trial and an empty graph in its place, in as many visits as a final benchmark has.

    Args:
        folder: name of the folder of the recordings

    Raises:
        ConfigError: the trial or the baseline refuses too many requests to have a p95 or a throughput.
        JobError: a visit fails.
    """
    sides, home = (trial, emptied(jobs, trial)), Path(jobs.task.home)
    recordings = [jobs.recording(f"{folder}/{name}") for name in ("trial", "empty")]
    shutil.rmtree((home / recordings[0]).parent, ignore_errors=True)
    window, seed = jobs.window("final"), jobs.config.seed + 1
    for number in range(window.visits):
        say(f"floor: visit {number + 1} of {window.visits}, the trial and an empty graph beside the baseline")
        call(meter, jobs.visit(sides, window, seed, number, recordings), jobs.config.workers.job_seconds, say)
    try:
        alone = [read_recording(home / path).summarize() for path in recordings]
        noise = ratio_noise(alone)
        found = [timing_numbers(*read_recording(home / path).summarize(noise)) for path in recordings]
    except NotFiniteError as error:
        raise ConfigError(f"--floor: the trial and an empty graph must keep the study's SLO, but {error}") from error
    ours, empty = (AtLoad(**fields_in(AtLoad, numbers)) for numbers in found)
    return Floor(found[0]["rate_rps"], found[0]["baseline_p95_ms"], ours, empty)


def emptied(jobs: MeterJobs, side: Side) -> Side:
    """Return a candidate whose model file is an empty graph."""
    artifact, candidate = side
    key = f"{artifact.key}-empty"
    folder = jobs.task.cache / "artifacts" / key

    def write(into: Path) -> None:
        save_graph(empty_graph(load_graph(Path(jobs.task.home, artifact.path))), into / _FILE)

    make_once(folder, write)
    path = folder / _FILE
    held = Artifact(key, str(path.relative_to(jobs.task.home)), {}, path.stat().st_size, 0.0)
    return held, candidate
