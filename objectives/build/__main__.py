"""The builder process: trains and exports models. Run as `python -m objectives.build`."""

from __future__ import annotations

import torch

from objectives.build.custom_metric import evaluate_custom_metric
from objectives.build.stages import export, fit, open_once, prepare
from objectives.jobs.protocol import Jobs, Progress, serve
from objectives.jobs.requests import (
    CustomMetricRequest,
    EvaluateResponse,
    ExportRequest,
    ExportResponse,
    FitRequest,
    FitResponse,
    PrepareRequest,
)
from objectives.records import Prepared


def _prepare(request: PrepareRequest, progress: Progress) -> Prepared:
    torch.set_num_threads(request.threads)
    return prepare(request.task, progress)


def _fit(request: FitRequest, progress: Progress) -> FitResponse:
    torch.set_num_threads(request.threads)
    return fit(request.task, request.weights, progress)


def _export(request: ExportRequest, progress: Progress) -> ExportResponse:
    torch.set_num_threads(request.threads)
    return ExportResponse(*export(request.task, request.weights, request.precision, request.form, progress))


def _custom_metric(request: CustomMetricRequest, progress: Progress) -> EvaluateResponse:
    torch.set_num_threads(request.threads)
    return EvaluateResponse(evaluate_custom_metric(open_once(request.task, progress), request))


JOBS: Jobs = {
    PrepareRequest: _prepare,
    FitRequest: _fit,
    ExportRequest: _export,
    CustomMetricRequest: _custom_metric,
}

if __name__ == "__main__":
    serve(JOBS)
