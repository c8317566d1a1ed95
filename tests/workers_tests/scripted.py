"""Answers of scripted workers, in the plain data of requests and responses."""

from __future__ import annotations

import re
from typing import Any

from objectives.jobs.protocol import Request, response_type
from search.workers.processes import Done
from spaces.serialization import from_plain


def job_of(request: Request[object]) -> str:
    """The job by name: `service_curve` of a `ServiceCurveRequest`."""
    name = type(request).__name__.removesuffix("Request")
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def done(request: Request[object], answer: Any, seconds: float = 0.1) -> Done:
    """Return a worker's result for an answer: the words of an error, or a response as plain data."""
    if isinstance(answer, str):
        return Done(None, answer, seconds)
    try:
        return Done(from_plain(response_type(type(request)), answer), None, seconds)
    except ValueError as error:
        return Done(None, str(error), seconds)
