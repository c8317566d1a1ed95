"""The meter process: evaluates, times and profiles model files. Run as `python -m objectives.measure`.

Loads no torch and no user code: held-out rows and requests are plain arrays that a builder wrote.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from objectives.held_out_rows import read_requests
from objectives.jobs.protocol import Jobs, Progress, serve
from objectives.jobs.requests import (
    BenchmarkRequest,
    BenchmarkResponse,
    EvaluateRequest,
    EvaluateResponse,
    ProfileRequest,
    ProfileResponse,
    QuickBenchmarkRequest,
    ScoreRequest,
    ScoreResponse,
)
from objectives.measure.benchmark import time, weigh, weigh_here
from objectives.measure.deployment import quiet
from objectives.measure.evaluate import evaluate, score
from objectives.measure.quick_benchmark import QuickBenchmark, quick_benchmark
from objectives.measurement.profile.profile import median_request, profile_model
from objectives.measurement.profile.roofline import measure_roofline
from objectives.records import Footprint


def _evaluate(request: EvaluateRequest, progress: Progress) -> EvaluateResponse:
    ours, theirs = request.candidate, request.baseline
    quality, reused = evaluate(
        Path(request.cache),
        Path(request.holdout),
        request.part,
        request.metric,
        (ours.artifact, ours.deployment),
        (theirs.artifact, theirs.deployment),
        request.seed,
        request.confidence,
        request.reject_above,
        request.threads,
    )
    return EvaluateResponse(quality, reused)


def _score(request: ScoreRequest, progress: Progress) -> ScoreResponse:
    ours, theirs = request.candidate, request.baseline
    candidates, baseline, reused = score(
        Path(request.cache),
        Path(request.holdout),
        request.part,
        (ours.artifact, ours.deployment),
        (theirs.artifact, theirs.deployment),
        request.threads,
    )
    return ScoreResponse(tuple(candidates), baseline, reused)


def _quick_benchmark(request: QuickBenchmarkRequest, progress: Progress) -> QuickBenchmark:
    return quick_benchmark(Path(request.holdout), request.candidate, request.baseline)


def _benchmark(request: BenchmarkRequest, progress: Progress) -> BenchmarkResponse:
    holdout, artifact = Path(request.holdout), request.artifact
    # First: a recording belongs to a timing that nothing behind it can undo.
    footprint = weigh(holdout, artifact, request.candidate) if request.weighed else Footprint(artifact.model_bytes)
    latency, throughput = time(
        holdout,
        request.candidate,
        request.baseline,
        request.load,
        request.window,
        request.seed,
        Path(request.recording),
        request.noise,
        request.append,
    )
    return BenchmarkResponse(latency, throughput, footprint)


def _profile(request: ProfileRequest, progress: Progress) -> ProfileResponse:
    median = median_request(read_requests(Path(request.holdout)))
    with quiet():
        found = profile_model(Path(request.model), request.groups, median)
        roofline = measure_roofline(working_set=sum(group.weight_bytes for group in found.groups))
    return ProfileResponse(found, roofline)


JOBS: Jobs = {
    EvaluateRequest: _evaluate,
    ScoreRequest: _score,
    QuickBenchmarkRequest: _quick_benchmark,
    BenchmarkRequest: _benchmark,
    ProfileRequest: _profile,
}

if __name__ == "__main__":
    if sys.argv[1:] == ["weigh"]:
        sys.stdout.write(json.dumps(weigh_here(**json.loads(sys.stdin.read()))))
    else:
        serve(JOBS)
