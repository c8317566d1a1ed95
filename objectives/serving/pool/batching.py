"""Requests that are run together: joined row by row, and their scores cut apart."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from objectives.arrays import Array
from objectives.serving.pool.pending_result import Job, Run, Scores, is_even


def run_together(jobs: Sequence[Job], run: Run) -> list[Scores]:
    """Compute the scores of each job from one run.

    Raises:
        ValueError, TypeError: the requests differ in more than their rows, or there is not one score per row.
    """
    rows = [job.rows for job in jobs]
    scores = run(join(jobs))
    if scores.shape[:1] != (sum(rows),):
        raise ValueError(f"A batch of {sum(rows)} rows has as many scores, but got {scores.shape}.")
    return [scores[end - count : end] for count, end in zip(rows, itertools.accumulate(rows), strict=True)]


def join(jobs: Sequence[Job]) -> dict[str, Array]:
    """Concatenate the requests' arrays along axis 0, without casts.

    A type that an engine would refuse stays refused.
    """
    first = jobs[0].request
    for job in jobs:
        if job.request.keys() != first.keys() or not is_even(job.request, job.rows):
            raise ValueError("Requests of one batch have the same inputs, and each has as many rows in all of them.")
    return {
        name: np.concatenate([job.request[name] for job in jobs], dtype=values.dtype, casting="no")
        for name, values in first.items()
    }
