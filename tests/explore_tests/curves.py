"""Service curves that are given, for searches over scripted workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from objectives.held_out_rows import write_requests
from objectives.jobs.requests import ServiceCurveResponse
from objectives.measurement.service_curve import Line, ServiceCurve
from search.explore.cost_model import BASELINE, CostModel
from search.workers.meter_jobs import MeterJobs
from spaces.serialization import to_plain

ROWS = tuple(np.random.default_rng(0).integers(50, 400, 60).tolist())


def curve(times: float) -> ServiceCurve:
    """Return the curve of a model whose runs take so many times 1 ms and 10 us a row."""
    line = Line((50.0, 400.0), (times * 1.5e6, times * 5e6), (1.0,))
    return ServiceCurve(line, line, line, line, 0.0, 0.0, 0, 25, 1000)


def curve_answer(times: float, model_bytes: int | None = None) -> dict[str, Any]:
    """Return a meter's response, in plain data."""
    plain: dict[str, Any] = to_plain(ServiceCurveResponse(curve(times), 3.0, model_bytes))
    return plain


def cost_model(jobs: MeterJobs, folder: Path) -> CostModel:
    """Return a cost model that knows the baseline's curve and the sizes of the requests."""
    holdout = Path(jobs.prepared.holdout)
    holdout.mkdir(exist_ok=True)
    write_requests([{"item": np.zeros(rows, np.int64)} for rows in ROWS], holdout)
    model = CostModel(jobs, folder / "curves.jsonl")
    for part in model.missing(BASELINE):
        model.learn(BASELINE, part, ServiceCurveResponse(curve(1.0), 3.0))
    return model
