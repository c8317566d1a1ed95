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
        difference, many = np.abs(ours - theirs), len(theirs) >= FEWEST_RANKED
        mean = theirs.mean(axis=0)
        return self + ScoreDifferences(
            len(theirs),
            tuple(mean.tolist()),
            tuple(((theirs - mean) ** 2).sum(axis=0).tolist()),
            tuple(difference.sum(axis=0).tolist()),
            tuple(difference.max(axis=0).tolist()),
            int(many),
            top_overlap(theirs[:, 0], ours[:, 0], TOP) if many else 0.0,
        )

    def __add__(self, other: ScoreDifferences) -> ScoreDifferences:
        """Return the sums over the requests of both, which have as many outputs.

        Chan, Golub and LeVeque 1979, equations 2.1: sums of raw squares would lose the digits of a large mean.
        """
        if not (self.rows and other.rows):
            return self if self.rows else other
        rows = self.rows + other.rows
        means, squares, absolute, largest = (
            np.array([getattr(one, name) for one in (self, other)])
            for name in ("mean", "squares", "absolute", "largest")
        )
        step = means[1] - means[0]
        return ScoreDifferences(
            rows,
            tuple((means[0] + step * other.rows / rows).tolist()),
            tuple((squares.sum(axis=0) + step**2 * self.rows * other.rows / rows).tolist()),
            tuple(absolute.sum(axis=0).tolist()),
            tuple(largest.max(axis=0).tolist()),
            self.ranked + other.ranked,
            self.agreement + other.agreement,
        )

    @property
    def mean_difference(self) -> float | None:
        """Mean absolute difference in units of the spread of the champion's scores; None before the first request.

        Of several outputs, it is that of the output where it is largest.

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
        """Mean share of the champion's top rows that are the challenger's too; None if no request has enough rows."""
        return self.agreement / self.ranked if self.ranked else None

    @property
    def _unit(self) -> NDArray[np.float64]:
        return score_unit(np.sqrt(np.array(self.squares) / self.rows), np.array(self.mean))


def top_overlap(first: NDArray[np.float64], second: NDArray[np.float64], top: int) -> float:
    """Return the share of the `top` highest rows of the first, (rows,), that are among those of the second.

    Of equal scores, the earlier row is the higher.
    """
    both = (set(np.argsort(-scores, kind="stable")[:top].tolist()) for scores in (first, second))
    return len(set.intersection(*both)) / top


def _columns(scores: Array) -> NDArray[np.float64]:
    return np.asarray(scores, np.float64).reshape(len(scores), -1)
