"""Results that a caller waits for, and the jobs that produce them."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from objectives.arrays import Arrays

Scores = NDArray[np.float32]
Run = Callable[[Arrays], Scores]


class Receiver(Protocol):
    """Receiver of a request's result.

    A replica calls `begin` once, unless the request runs on its caller's thread. Where `begin` returns True, one of the
    other methods is called once; where it raises, `fail`.
    """

    def begin(self) -> bool:
        """Begin the request when its turn comes; False where nobody waits for it any more.

        Raises:
            RefusedError: the deadline has passed.
        """
        ...

    def finish(self, scores: Scores, finished_ns: int, together: int = 1) -> None: ...

    def fail(self, error: BaseException) -> None: ...


class PendingResult(Future[Scores]):
    """Future of the scores of a request, (rows,).

    It can be cancelled until its turn comes, and awaited through `asyncio.wrap_future`.

    finished_ns: time (time.perf_counter_ns) of its completion
    together: number of requests that were run as one batch, this one included
    """

    finished_ns: int = 0
    together: int = 1

    def begin(self) -> bool:
        return self.set_running_or_notify_cancel()

    def finish(self, scores: Scores, finished_ns: int, together: int = 1) -> None:
        self.finished_ns, self.together = finished_ns, together
        self.set_result(scores)

    def fail(self, error: BaseException) -> None:
        self.finished_ns = time.perf_counter_ns()
        self.set_exception(error)


class Job(NamedTuple):
    """A request, or a part of one, on its way to a replica.

    whole: what the parts of one request have in common; None for a request that is not split
    """

    answer: Receiver
    request: Arrays
    rows: int
    submitted_ns: int
    whole: object | None = None


def rows_of(request: Arrays) -> int:
    """Return the rows of a request: those of its longest array, since an input of the user's may be given once.

    Raises:
        ValueError: there is no array, or one has no rows.
    """
    try:
        return max(len(values) for values in request.values())
    except (ValueError, TypeError) as error:
        shapes = {name: np.shape(values) for name, values in request.items()}
        raise ValueError(f"A request holds arrays of (rows, ...), but got shapes {shapes}.") from error


def is_even(request: Arrays, rows: int) -> bool:
    """Return whether all arrays have this number of rows, which joining requests row by row requires."""
    return all(values.shape[:1] == (rows,) for values in request.values())


def cut_rows(request: Arrays, start: int, end: int) -> Arrays:
    """Slice the rows of each array; an array of a single row is the user's and stays whole."""
    return {name: values if len(values) == 1 else values[start:end] for name, values in request.items()}


def is_divisible(request: Arrays, rows: int) -> bool:
    """Return whether a request can be split by rows: each array has this number of rows, or a single one."""
    return all(values.shape[:1] in ((rows,), (1,)) for values in request.values())
