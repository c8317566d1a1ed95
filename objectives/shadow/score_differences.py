"""Differences of two models' scores on the same requests, as sums that grow with each request."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from objectives.arrays import Array
from objectives.parity import score_unit

# Rows whose membership in the top is compared, and the fewest rows of a request in which that tells anything.
TOP = 10
FEWEST_RANKED = 2 * TOP


class NotFiniteScoresError(ValueError):
    """Scores hold NaN or infinity."""


@dataclass(frozen=True)
class ScoreDifferences:
    """Sums over requests, from which the differences follow.

    rows: of all requests
    mean, squares: (outputs,) mean of the champion's scores, and sum of their squared deviations from it
    absolute, largest: (outputs,) sum and maximum of the absolute differences
    ranked: number of requests of `FEWEST_RANKED` rows or more
    agreement: sum over these of the share of the champion's top rows that are the challenger's too
    """

    rows: int = 0
    mean: tuple[float, ...] = ()
    squares: tuple[float, ...] = ()
    absolute: tuple[float, ...] = ()
    largest: tuple[float, ...] = ()
    ranked: int = 0
    agreement: float = 0.0

    def with_request(self, champion: Array, challenger: Array) -> ScoreDifferences:
        """Add a request.

        Args:
            champion, challenger: (rows,), or (rows, outputs), the main output first

        Raises:
            NotFiniteScoresError: the challenger's scores are not finite.
            ValueError: the shapes differ, from each other or from those of earlier requests.
        """
        theirs, ours = _columns(champion), _columns(challenger)
        if champion.shape != challenger.shape or (self.rows and theirs.shape[1] != len(self.mean)):
            raise ValueError(
                f"Scores of the challenger must have the shape {champion.shape} of the champion's, but got "
                f"{challenger.shape}."
            )
        if wrong := int((~np.isfinite(ours)).sum()):
            raise NotFiniteScoresError(f"{wrong} of the challenger's {ours.size} scores are NaN or infinite.")
        nothing = np.zeros(theirs.shape[1])
        before = np.array([self.mean, self.squares, self.absolute, self.largest]) if self.rows else [nothing] * 4
        mean, squares = _merged(self.rows, before[0], before[1], theirs)
        difference, many = np.abs(ours - theirs), len(theirs) >= FEWEST_RANKED
        return ScoreDifferences(
            self.rows + len(theirs),
            tuple(mean.tolist()),
            tuple(squares.tolist()),
            tuple((before[2] + difference.sum(axis=0)).tolist()),
            tuple(np.maximum(before[3], difference.max(axis=0)).tolist()),
            self.ranked + many,
            self.agreement + (top_overlap(theirs[:, 0], ours[:, 0], TOP) if many else 0.0),
        )

    @property
    def mean_difference(self) -> float | None:
        """Mean absolute difference in units of the spread of the champion's scores, of the output where it is largest;
        None before the first request.

        Scores that are unrelated, of equal spread and normally distributed, differ by 2 / sqrt(pi) = 1.13 on average;
        of correlation r, by that times sqrt(1 - r).
        """
        return float((np.array(self.absolute) / self.rows / self._unit).max()) if self.rows else None

    @property
    def max_difference(self) -> float | None:
        """Largest absolute difference in the same unit; None before the first request."""
        return float((np.array(self.largest) / self._unit).max()) if self.rows else None

    @property
    def rank_agreement(self) -> float | None:
        """Mean share of the champion's top rows that are the challenger's too; None where no request has enough
        rows.
        """
        return self.agreement / self.ranked if self.ranked else None

    @property
    def _unit(self) -> NDArray[np.float64]:
        return score_unit(np.sqrt(np.array(self.squares) / self.rows), np.array(self.mean))


def top_overlap(first: NDArray[np.float64], second: NDArray[np.float64], top: int) -> float:
    """Return the share of the `top` highest rows of the first, (rows,), that are among those of the second; of equal
    scores, the earlier row is the higher.
    """
    both = (set(np.argsort(-scores, kind="stable")[:top].tolist()) for scores in (first, second))
    return len(set.intersection(*both)) / top


def _merged(
    rows: int, mean: NDArray[np.float64], squares: NDArray[np.float64], scores: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and sum of squared deviations, (outputs,), of earlier rows and new ones, (new rows, outputs).

    Chan, Golub and LeVeque 1979, equations 2.1: sums of raw squares would lose the digits of a large mean.
    """
    new, here = len(scores), scores.mean(axis=0)
    step = here - mean
    total = rows + new
    return mean + step * new / total, squares + ((scores - here) ** 2).sum(axis=0) + step**2 * rows * new / total


def _columns(scores: Array) -> NDArray[np.float64]:
    return np.asarray(scores, np.float64).reshape(len(scores), -1)
