"""Gaussian processes over the features of candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, solve_triangular

from search.front import Floats
from search.samplers.features import Features
from search.samplers.kernel import Kernel, fitted

# Number of draws of a prediction.
DRAWS = 32
# A model is fitted to so many of the last rows, to a step; its kernel to fewer, the last ones of a prefix that grows by
# this factor.
MOST_ROWS, ROWS_STEP = 400, 100
_SCALED_ROWS, _GROWTH = 120, 1.25


class GaussianProcess:
    """A Gaussian process for each target, with a Matern 5/2 kernel.

    Each feature has a length scale (Rasmussen and Williams, 2006, chapters 2 and 5).

    The kernel, which takes longest, is fitted to a prefix of the rows, so that a row that is added at the end seldom
    needs a new one, and the same rows always give the same model.
    """

    def __init__(self, rows: Sequence[Features], targets: Floats, seed: int) -> None:
        """Fit the processes to (n, m) targets, in the order of their trials."""
        first = -(-max(0, len(rows) - MOST_ROWS) // ROWS_STEP) * ROWS_STEP
        rows, targets = rows[first:], targets[first:]
        self._names = sorted({name for row in rows for name in row})
        table = self._table(rows)
        prefix = _prefix(len(table))
        # A feature that has not varied says nothing; one that varied later only has the length scale 1.
        varied, early = np.ptp(table, axis=0) > 0, np.ptp(table[:prefix], axis=0) > 0
        self._names = [name for name, kept in zip(self._names, varied, strict=True) if kept]
        table, early = table[:, varied], early[varied]
        known = np.where(early, table[:prefix].min(axis=0), table.min(axis=0))
        self._low = known
        self._range = np.where(early, table[:prefix].max(axis=0), table.max(axis=0)) - known
        scaled = (table - self._low) / self._range
        self._normal = np.random.default_rng(seed).normal(size=(DRAWS, targets.shape[1]))
        self._mean, self._spread = targets[:prefix].mean(axis=0), np.maximum(targets[:prefix].std(axis=0), 1e-6)
        self._processes = [
            _Process(_kernel(scaled[:prefix], column[:prefix], early), scaled, column)
            for column in ((targets - self._mean) / self._spread).T
        ]

    def draw(self, rows: Sequence[Features]) -> Floats:
        """Return (DRAWS, n, m) draws of the targets of n candidates; a draw is equally lucky for all of them."""
        scaled = self._scaled(rows)
        columns = [np.empty((DRAWS, len(rows), 0))]
        for process, normal in zip(self._processes, self._normal.T, strict=True):
            mean, deviation = process.predict(scaled)
            columns.append((mean + np.multiply.outer(normal, deviation))[..., None])
        draws: Floats = self._mean + self._spread * np.concatenate(columns, axis=-1)
        return draws

    def mean(self, rows: Sequence[Features]) -> Floats:
        """Return the expected targets, (n, m), of n candidates."""
        scaled = self._scaled(rows)
        columns = [process.mean(scaled) for process in self._processes]
        means: Floats = self._mean + self._spread * np.reshape(columns, (len(columns), len(rows))).T
        return means

    def _table(self, rows: Sequence[Features]) -> Floats:
        """Return the features of n candidates, (n, features); one that a candidate does not have counts as 0."""
        values = [[row.get(name, 0.0) for name in self._names] for row in rows]
        return np.array(values, dtype=np.float64).reshape(len(rows), len(self._names))

    def _scaled(self, rows: Sequence[Features]) -> Floats:
        scaled: Floats = (self._table(rows) - self._low) / self._range
        return scaled


class _Process:
    """A Gaussian process of mean 0 with a given kernel, conditioned on (n,) values at (n, features) rows."""

    def __init__(self, kernel: Kernel, rows: Floats, values: Floats) -> None:
        self._kernel, self._rows = kernel, rows
        self._factor = kernel.factor(rows)
        self._weights = cho_solve((self._factor, True), values, check_finite=False)

    def mean(self, rows: Floats) -> Floats:
        mean: Floats = self._kernel.between(rows, self._rows) @ self._weights
        return mean

    def predict(self, rows: Floats) -> tuple[Floats, Floats]:
        """Return the mean and the standard deviation of a value, with its noise, at (m, features) rows, (m,) each."""
        between = self._kernel.between(rows, self._rows)
        explained = solve_triangular(self._factor, between.T, lower=True, check_finite=False)
        variance = self._kernel.variance + self._kernel.noise - (explained**2).sum(axis=0)
        return between @ self._weights, np.sqrt(np.maximum(variance, 0.0))


def _prefix(count: int) -> int:
    """Return the number of rows that the kernel is fitted to: the last of a geometric sequence up to the count."""
    size = 4
    while (following := math.ceil(size * _GROWTH)) <= count:
        size = following
    return min(size, count)


def _kernel(rows: Floats, values: Floats, varied: NDArray[np.bool_]) -> Kernel:
    """Return the kernel of (n, features) rows and (n,) values.

    The length scale of a feature that has not `varied`, (features,), is 1.
    """
    if not varied.any():
        return Kernel.plain(rows.shape[1])
    found = fitted(rows[-_SCALED_ROWS:, varied], values[-_SCALED_ROWS:])
    lengths = np.ones(rows.shape[1])
    lengths[varied] = found.lengths
    return Kernel(found.variance, lengths, found.noise)
