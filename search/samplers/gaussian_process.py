"""Gaussian processes over the knobs of candidates."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from search.front import Floats
from spaces.domains import Scalar

if TYPE_CHECKING:
    from sklearn.gaussian_process.kernels import Kernel

# Number of draws of a prediction.
DRAWS = 32
# A model is fitted to so many of the last rows, to a step; its kernel to fewer, the last ones of a prefix that grows by
# this factor, in so many steps.
_MOST_ROWS, _ROWS_STEP = 400, 100
_SCALED_ROWS, _STEPS, _GROWTH = 120, 20, 1.25
# Bounds of the length scales, in units of features from 0 to 1, and of the noise, as a share of the variance.
_LENGTHS, _NOISE = (0.05, 20.0), (1e-4, 0.3)


class GaussianProcess:
    """A Gaussian process for each target, with a Matern 5/2 kernel and a length scale for each feature (Rasmussen and
    Williams, 2006, chapters 2 and 5).

    Numbers are features as they are, larger ones as their logarithms; each category is one, and a list of widths such
    as 64-32 is also the logarithm of their sum. A knob that a candidate does not have counts as 0.

    The kernel, which takes longest, is fitted to a prefix of the rows, so that a row that is added at the end seldom
    needs a new one, and the same rows always give the same model.
    """

    def __init__(self, knobs: Sequence[Mapping[str, Scalar]], targets: Floats, seed: int) -> None:
        """Fit the processes to (n, m) targets, in the order of their trials."""
        # Here, since scikit-learn takes a second to load, and most commands fit nothing.
        from sklearn.feature_extraction import DictVectorizer
        from sklearn.gaussian_process import GaussianProcessRegressor

        first = -(-max(0, len(knobs) - _MOST_ROWS) // _ROWS_STEP) * _ROWS_STEP
        knobs, targets = knobs[first:], targets[first:]
        self._features = DictVectorizer(sparse=False)
        rows = self._features.fit_transform([_numbers(each) for each in knobs])
        prefix = _prefix(len(rows))
        # A feature that has not varied says nothing; one that varied later only has the length scale 1.
        self._varied = np.flatnonzero(np.ptp(rows, axis=0) > 0)
        early = np.ptp(rows[:prefix], axis=0) > 0
        ends = np.where(
            early, [rows[:prefix].min(axis=0), rows[:prefix].max(axis=0)], [rows.min(axis=0), rows.max(axis=0)]
        )
        self._low, self._range = ends[0], np.maximum(ends[1] - ends[0], 1e-12)
        scaled, fitted = self._scaled(rows), early[self._varied]
        self._normal = np.random.default_rng(seed).normal(size=(DRAWS, targets.shape[1]))
        self._mean, self._spread = targets[:prefix].mean(axis=0), np.maximum(targets[:prefix].std(axis=0), 1e-6)
        self._processes = []
        for column in ((targets - self._mean) / self._spread).T:
            kernel = _kernel(scaled[:prefix], column[:prefix], fitted)
            self._processes.append(GaussianProcessRegressor(kernel, alpha=1e-8, optimizer=None).fit(scaled, column))

    def draw(self, knobs: Sequence[Mapping[str, Scalar]]) -> Floats:
        """Return (DRAWS, n, m) draws of the targets of n candidates; a draw is equally lucky for all of them."""
        rows = self._scaled(self._features.transform([_numbers(each) for each in knobs]))
        columns = [np.empty((DRAWS, len(rows), 0))]
        for process, normal in zip(self._processes, self._normal.T, strict=True):
            mean, deviation = process.predict(rows, return_std=True)
            columns.append((mean + np.multiply.outer(normal, deviation))[..., None])
        draws: Floats = self._mean + self._spread * np.concatenate(columns, axis=-1)
        return draws

    def mean(self, knobs: Sequence[Mapping[str, Scalar]]) -> Floats:
        """Return the expected targets, (n, m), of n candidates."""
        rows = self._scaled(self._features.transform([_numbers(each) for each in knobs]))
        columns = [process.predict(rows) for process in self._processes]
        means: Floats = self._mean + self._spread * np.reshape(columns, (len(columns), len(rows))).T
        return means

    def _scaled(self, rows: Floats) -> Floats:
        scaled: Floats = ((rows - self._low) / self._range)[:, self._varied]
        return scaled if scaled.shape[1] else np.zeros((len(rows), 1))


def _prefix(count: int) -> int:
    """Return the number of rows that the kernel is fitted to: the last of a geometric sequence up to the count."""
    size = 4
    while (following := math.ceil(size * _GROWTH)) <= count:
        size = following
    return min(size, count)


def _kernel(rows: Floats, values: Floats, fitted: NDArray[np.bool_]) -> Kernel:
    """Return the kernel of (n, d) rows and (n,) values, whose `fitted` length scales, (d,), maximise the marginal
    likelihood; the others are 1."""
    lengths = np.ones(rows.shape[1])
    if not fitted.any():
        return _matern(lengths)
    known = np.ascontiguousarray(rows[-_SCALED_ROWS:, fitted])
    theta = _fitted_theta(known.tobytes(), known.shape[1], values[-_SCALED_ROWS:].tobytes())
    lengths[fitted] = np.exp(theta[1:-1])
    return _matern(lengths, np.exp(theta[0]), np.exp(theta[-1]))


@lru_cache(maxsize=32)
def _fitted_theta(rows: bytes, columns: int, values: bytes) -> tuple[float, ...]:
    """Fit a kernel, and return the logarithms of its variance, its length scales and its noise."""
    from sklearn.gaussian_process import GaussianProcessRegressor

    process = GaussianProcessRegressor(_matern(np.ones(columns)), alpha=1e-8, optimizer=_few_steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a length scale at its bound is meant: the feature does not matter
        process.fit(np.frombuffer(rows).reshape(-1, columns), np.frombuffer(values))
    return tuple(process.kernel_.theta.tolist())


def _matern(lengths: Floats, variance: float = 1.0, noise: float = 1e-2) -> Kernel:
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    return ConstantKernel(variance, (0.1, 30.0)) * Matern(lengths, _LENGTHS, nu=2.5) + WhiteKernel(noise, _NOISE)


def _few_steps(loss: Callable[..., Any], start: Floats, bounds: Floats) -> tuple[Floats, float]:
    """Minimise a function that returns its value and gradient."""
    found = minimize(loss, start, method="L-BFGS-B", jac=True, bounds=bounds, options={"maxiter": _STEPS})
    return found.x, float(found.fun)


def _numbers(knobs: Mapping[str, Scalar]) -> dict[str, Scalar]:
    found: dict[str, Scalar] = {}
    for name, value in knobs.items():
        if isinstance(value, str):
            found[name] = value
            if re.fullmatch(r"\d+(-\d+)*", value):
                found[f"{name}.sum"] = math.log2(1 + sum(map(int, value.split("-"))))
        else:
            found[name] = float(value) if abs(value) <= 1 else math.copysign(1 + math.log2(abs(value)), value)
    return found
