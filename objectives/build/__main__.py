"""The builder process: trains, exports and evaluates models. Run as `python -m objectives.build`."""

from __future__ import annotations

from objectives.build.custom_metric import evaluate_custom_metric
from objectives.build.evaluate import evaluate, score
from objectives.build.stages.graphs import export
from objectives.build.stages.opened import open_once
from objectives.build.stages.prepare import prepare
from objectives.build.stages.weights import fit, fit_network
from objectives.jobs import requests as jobs
from objectives.jobs.protocol import Jobs, Progress, serve, silent


def custom_metric(request: jobs.CustomMetricRequest, progress: Progress) -> jobs.EvaluateResponse:
    recommender = open_once(request.task, progress, request.threads)
    return jobs.EvaluateResponse(evaluate_custom_metric(recommender, request))


JOBS: Jobs = {
    jobs.PrepareRequest: prepare,
    jobs.FitRequest: fit,
    jobs.FitNetworkRequest: fit_network,
    jobs.ExportRequest: export,
    jobs.EvaluateRequest: silent(evaluate),
    jobs.ScoreRequest: silent(score),
    jobs.CustomMetricRequest: custom_metric,
}

if __name__ == "__main__":
    serve(JOBS)
