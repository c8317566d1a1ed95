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
from search.errors import JobError
from search.results import timing_numbers
from search.workers.meter_jobs import MeterJobs, Side
from search.workers.processes import Worker, call
from spaces.serialization import fields_in


@dataclass(frozen=True, kw_only=True)
class AtLoad:
    """Latency of a deployment in milliseconds at a load, and its ratios to the baseline in the same visits.

    rate_rps: of the requests
    baseline_p95_ms: of the baseline in the blocks that count for this deployment
    """

    rate_rps: float
    baseline_p95_ms: float
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
    """A trial, and an empty graph in its place, by turns with the baseline at the study's load.

    The empty graph takes the same inputs, in the same engine and placement, and its scores are zeros. What it takes is
    the time of everything but the model.
    """

    trial: AtLoad
    empty: AtLoad


def measure_floor(
    jobs: MeterJobs, meter: Worker, trial: Side, rate_rps: float | None, folder: str, say: Callable[[str], None]
) -> Floor:
    """Benchmark a trial and an empty graph in its place, in as many visits as a final benchmark has.

    Args:
        rate_rps: of the study's requests, by which the number of requests in a visit is chosen; None for the most
        folder: name of the folder of the recordings, which are made anew

    Raises:
        JobError: a visit fails, or a deployment refuses too many requests to have a p95 and a throughput.
    """
    home, names = Path(jobs.task.home), ("trial", "empty")
    recordings = [jobs.recording(f"{folder}/{name}") for name in names]
    made = (home / recordings[0]).parent
    shutil.rmtree(made, ignore_errors=True)
    sides = (trial, _emptied(home, trial, made))
    longest, seed = jobs.final_window, jobs.config.seed + 1
    window = longest if rate_rps is None else longest.at(rate_rps)
    for number in range(window.visits):
        say(f"floor: visit {number + 1} of {window.visits}, the trial and an empty graph beside the baseline")
        call(meter, jobs.visit(sides, window, seed, number, recordings), jobs.config.workers.job_seconds, say)
    try:
        numbers = [timing_numbers(*read_recording(home / path).summarize(jobs.noise)) for path in recordings]
    except NotFiniteError as error:
        raise JobError(f"floor: {error}") from error
    return Floor(**{name: AtLoad(**fields_in(AtLoad, of)) for name, of in zip(names, numbers, strict=True)})


def _emptied(home: Path, side: Side, folder: Path) -> Side:
    """Return a candidate whose model file is an empty graph, which is written to a folder."""
    artifact, candidate = side
    folder.mkdir(parents=True)
    size = save_graph(empty_graph(load_graph(home / artifact.path)), folder / "empty.onnx")
    path = str((folder / "empty.onnx").relative_to(home))
    return Artifact(f"{artifact.key}-empty", path, {}, size, 0.0), candidate
