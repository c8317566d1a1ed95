"""Parity of scores: the difference between computed and expected scores, in units of the spread of the latter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from objectives.arrays import Numbers

# In units of the scores' spread: a thousandth of it affects neither a ranking nor a calibration.
LIMIT = 1e-3
# The unit is at least this share of the mean: however little scores differ, the limit is 17 steps of fp32 there, which
# sums lose;
_OF_MEAN = 2e-3
# and so much that the limit is two steps of fp32 at 1: ONNX Runtime's sigmoid is off by 1.3e-7 however small it is.
_SMALLEST = 2 * float(np.finfo(np.float32).eps) / LIMIT


class ParityError(RuntimeError):
    """Scores differ from the expected ones, or are not finite."""


def compare_scores(
    computed: Sequence[Numbers],
    expected: Sequence[Numbers],
    limit: float | None = LIMIT,
    sides: tuple[str, str] = ("graph", "model"),
) -> float:
    """Return the largest difference of scores in units of their spread, each output by its own.

    The spread is that of what is expected, as in `score_unit`.

    Args:
        computed: scores of one run after another, (rows,) or (rows, outputs) each
        expected: of the same runs; the standard deviation is taken over the rows of all
        limit: the largest difference that is allowed; None for any
        sides: what computed the scores, and what they are expected of

    Raises:
        ParityError: a shape differs, a score on either side is NaN or infinite, or the difference exceeds the limit.
    """
    for ours, theirs in zip(computed, expected, strict=True):
        if ours.shape != theirs.shape:
            raise ParityError(f"The {sides[0]} must give scores of shape {theirs.shape}, but got {ours.shape}.")
    got, wanted = (_columns(scores) for scores in (computed, expected))
    for side, scores in zip(sides, (got, wanted), strict=True):
        if wrong := int((~np.isfinite(scores)).sum()):
            raise ParityError(f"Scores of the {side} must be finite, but {wrong} of {scores.size} are NaN or infinite.")
    unit = score_unit(wanted.std(axis=0), wanted.mean(axis=0))
    largest = np.abs(got - wanted).max(axis=0)
    column = int((largest / unit).argmax())
    difference = float(largest[column] / unit[column])
    if limit is not None and difference > limit:
        raise ParityError(
            f"Scores of {sides[0]} and {sides[1]} must agree within {limit:g} of their spread, but differ by "
            f"{difference:.3g} of it: by {largest[column]:.3g} at a spread of {unit[column]:.3g}."
        )
    return difference


def score_unit(deviation: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the unit of differences of scores, (outputs,): the standard deviation of the scores.

    Of scores that hardly differ, it is 0.2% of their absolute mean. It is never below 2.4e-4.

    Args:
        deviation, mean: (outputs,)
    """
    return np.maximum(np.maximum(deviation, _OF_MEAN * np.abs(mean)), _SMALLEST)


def _columns(scores: Sequence[Numbers]) -> NDArray[np.float64]:
    """Stack the scores of all runs as (rows of all runs, outputs)."""
    return np.concatenate([np.asarray(of, np.float64).reshape(len(of), -1) for of in scores])
