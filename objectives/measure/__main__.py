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
from objectives.measure.benchmark import benchmark, weigh_here
from objectives.measure.deployment import quiet
from objectives.measure.evaluate import evaluate, score
from objectives.measure.quick_benchmark import QuickBenchmark, quick_benchmark
from objectives.measurement.profile.profile import median_request, profile_model
from objectives.measurement.profile.roofline import measure_roofline


def _evaluate(request: EvaluateRequest, progress: Progress) -> EvaluateResponse:
    return evaluate(request)


def _score(request: ScoreRequest, progress: Progress) -> ScoreResponse:
    return score(request)


def _quick_benchmark(request: QuickBenchmarkRequest, progress: Progress) -> QuickBenchmark:
    return quick_benchmark(Path(request.holdout), request.candidate, request.baseline)


def _benchmark(request: BenchmarkRequest, progress: Progress) -> BenchmarkResponse:
    return benchmark(request)


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
