"""Every job has one request, one function and one response, which comes through the pipe as it was."""

from __future__ import annotations

import inspect
import json
import typing

from objectives.build.__main__ import JOBS as BUILDER_JOBS
from objectives.jobs import requests as jobs
from objectives.jobs.protocol import Request, response_type, write_request
from objectives.jobs.requests import ExportRequest, FitRequest
from objectives.measure.__main__ import JOBS as METER_JOBS
from objectives.task import Task
from spaces.candidate import Candidate
from spaces.serialization import from_plain
from spaces.techniques.distillation import Distillation
from spaces.techniques.pruning import Pruning
from spaces.techniques.quantization import Precision
from spaces.weights import Weights

TASK = Task("home", "dcn-v2", "ml-100k", "auc", 200, 0.6, 1000, 0, sizes={"width": 8}, slice_by=("item",))
WEIGHTS = Weights(pruning=Pruning((("mlp", 0.5),)), distillation=Distillation(2.0, 0.5, 1))


def test_each_request_is_answered_by_one_function() -> None:
    requests = {kind for _, kind in inspect.getmembers(jobs, inspect.isclass) if issubclass(kind, Request)} - {Request}
    assert sorted(kind.__name__ for kind in (*BUILDER_JOBS, *METER_JOBS)) == sorted(kind.__name__ for kind in requests)


def test_each_function_takes_its_request_and_gives_the_response_that_it_names() -> None:
    for request, work in {**BUILDER_JOBS, **METER_JOBS}.items():
        hints = typing.get_type_hints(work)
        assert (hints["request"], hints["return"]) == (request, response_type(request))


def test_a_request_comes_through_the_pipe_as_it_was() -> None:
    precision = Precision((("mlp", "int8"),))
    for request in (FitRequest(TASK, WEIGHTS, 2), ExportRequest(TASK, Candidate(WEIGHTS, precision), 2)):
        line = json.loads(write_request(request))
        assert line["job"] == type(request).__name__
        assert from_plain(type(request), line["arguments"]) == request
