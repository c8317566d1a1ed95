"""The builder process: trains and exports models. Run as `python -m objectives.build`."""

from __future__ import annotations

import torch

from objectives.build.custom_metric import evaluate_custom_metric
from objectives.build.stages import export, fit, open_once, prepare
from objectives.jobs import requests as jobs
from objectives.jobs.protocol import Jobs, Progress, serve
from objectives.records import Prepared


def _prepare(request: jobs.PrepareRequest, progress: Progress) -> Prepared:
    torch.set_num_threads(request.threads)
    return prepare(request.task, progress)


def _fit(request: jobs.FitRequest, progress: Progress) -> jobs.FitResponse:
    torch.set_num_threads(request.threads)
    return fit(request.task, request.weights, progress)


def _export(request: jobs.ExportRequest, progress: Progress) -> jobs.ExportResponse:
    torch.set_num_threads(request.threads)
    return jobs.ExportResponse(*export(request.task, request.weights, request.precision, request.form, progress))


def _custom_metric(request: jobs.CustomMetricRequest, progress: Progress) -> jobs.EvaluateResponse:
    torch.set_num_threads(request.threads)
    return jobs.EvaluateResponse(evaluate_custom_metric(open_once(request.task, progress), request))


JOBS: Jobs = {
    jobs.PrepareRequest: _prepare,
    jobs.FitRequest: _fit,
    jobs.ExportRequest: _export,
    jobs.CustomMetricRequest: _custom_metric,
}

if __name__ == "__main__":
    serve(JOBS)
