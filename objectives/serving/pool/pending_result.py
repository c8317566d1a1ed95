"""What a caller holds: scores to come, and the reason where a request was refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from enum import StrEnum
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from objectives.serving.engines import Inputs

Scores = NDArray[np.float32]
Run = Callable[[Inputs], Scores]


class Refusal(StrEnum):
    QUEUE_FULL = "queue full"
    DEADLINE = "deadline"


class RefusedError(RuntimeError):
    """A request was not run, since it could not have been answered as the placement promises."""

    # How a load generator, which knows no pool, tells a refusal from a failure.
    refused = True

    def __init__(self, reason: Refusal, detail: str) -> None:
        super().__init__(f"Refused ({reason}): {detail}")
        self.reason = reason


class Receiver(Protocol):
    """Where a replica leaves what came of a request: `begin` once, and if that is true one of the others once."""

    def begin(self) -> bool:
        """Called when the turn of the request comes; False where nobody waits for it any more.

        Raises:
            RefusedError: it is too late.
        """
        ...

    def finish(self, scores: Scores, finished_ns: int) -> None: ...

    def fail(self, error: BaseException) -> None: ...


class PendingResult(Future[Scores]):
    """Scores of (rows,) to come; `finished_ns` is the moment (time.perf_counter_ns) at which they were there.

    It can be cancelled until its turn comes, and awaited through `asyncio.wrap_future`.
    """

    finished_ns: int = 0

    def begin(self) -> bool:
        return self.set_running_or_notify_cancel()

    def finish(self, scores: Scores, finished_ns: int) -> None:
        self.finished_ns = finished_ns
        self.set_result(scores)

    def fail(self, error: BaseException) -> None:
        self.finished_ns = time.perf_counter_ns()
        self.set_exception(error)


class Job(NamedTuple):
    """A request, or a part of one, on its way to a replica."""

    answer: Receiver
    request: Inputs
    rows: int
    submitted_ns: int


def rows_of(request: Inputs) -> int:
    """The rows of a request: those of its longest array, since what is the user's may be given once.

    Raises:
        ValueError: there is no array, or one has no rows.
    """
    try:
        return max(len(values) for values in request.values())
    except (ValueError, TypeError) as error:
        shapes = {name: np.shape(values) for name, values in request.items()}
        raise ValueError(f"A request holds arrays of (rows, ...), but got shapes {shapes}.") from error


def is_even(request: Inputs, rows: int) -> bool:
    """Whether all arrays have so many rows; only then can requests be joined row by row."""
    return all(values.shape[:1] == (rows,) for values in request.values())


def cut_rows(request: Inputs, start: int, end: int) -> Inputs:
    """Some rows of each array; one of a single row is the user's and whole in every part."""
    return {name: values if len(values) == 1 else values[start:end] for name, values in request.items()}


def is_divisible(request: Inputs, rows: int) -> bool:
    """Whether each array has so many rows, or a single one; only then can a request be cut row by row."""
    return all(values.shape[:1] in ((rows,), (1,)) for values in request.values())
