"""Gaussian processes over the knobs of candidates."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import minimize

from search.front import Floats
from spaces.domains import Scalar

if TYPE_CHECKING:
    from sklearn.gaussian_process import GaussianProcessRegressor

# Number of draws of a prediction.
DRAWS = 32
# A model is fitted to so many rows at most, and its length scales to fewer, the last ones, in so many steps.
_MOST_ROWS, _SCALED_ROWS, _STEPS = 400, 120, 20
# Bounds of the length scales, in units of features from 0 to 1, and of the noise, as a share of the variance.
_LENGTHS, _NOISE = (0.05, 20.0), (1e-4, 0.3)


class GaussianProcess:
    """A Gaussian process for each target, with a Matern 5/2 kernel and a length scale for each feature (Rasmussen and
    Williams, 2006, chapters 2 and 5).

    Numbers are features as they are, larger ones as their logarithms; each category is one, and a list of widths such
    as 64-32 is also the logarithm of their sum. A knob that a candidate does not have counts as 0.
    """

    def __init__(self, knobs: Sequence[Mapping[str, Scalar]], targets: Floats, seed: int) -> None:
        """Fit the processes to (n, m) targets."""
        # Here, since scikit-learn takes a second to load, and most commands fit nothing.
        from sklearn.feature_extraction import DictVectorizer

        knobs, targets = knobs[-_MOST_ROWS:], targets[-_MOST_ROWS:]
        self._features = DictVectorizer(sparse=False)
        rows = self._features.fit_transform([_numbers(each) for each in knobs])
        # A feature that has not varied says nothing.
        self._varied = np.flatnonzero(np.ptp(rows, axis=0) > 0)
        self._low, self._range = rows.min(axis=0), np.maximum(np.ptp(rows, axis=0), 1e-12)
        scaled = self._scaled(rows)
        self._normal = np.random.default_rng(seed).normal(size=(DRAWS, targets.shape[1]))
        self._mean, self._spread = targets.mean(axis=0), np.maximum(targets.std(axis=0), 1e-6)
        self._processes = [_fitted(scaled, column) for column in ((targets - self._mean) / self._spread).T]

    def draw(self, knobs: Sequence[Mapping[str, Scalar]]) -> Floats:
        """Return (DRAWS, n, m) draws of the targets of n candidates; a draw is equally lucky for all of them."""
        rows = self._scaled(self._features.transform([_numbers(each) for each in knobs]))
        columns = [np.empty((DRAWS, len(rows), 0))]
        for process, normal in zip(self._processes, self._normal.T, strict=True):
            mean, deviation = process.predict(rows, return_std=True)
            columns.append((mean + np.multiply.outer(normal, deviation))[..., None])
        draws: Floats = self._mean + self._spread * np.concatenate(columns, axis=-1)
        return draws

    def _scaled(self, rows: Floats) -> Floats:
        scaled: Floats = ((rows - self._low) / self._range)[:, self._varied]
        return scaled if scaled.shape[1] else np.zeros((len(rows), 1))


def _fitted(rows: Floats, values: Floats) -> GaussianProcessRegressor:
    """Fit one process to (n,) values; length scales maximise the marginal likelihood."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    lengths = np.ones(rows.shape[1])
    kernel = ConstantKernel(1.0, (0.1, 30.0)) * Matern(lengths, _LENGTHS, nu=2.5) + WhiteKernel(1e-2, _NOISE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a length scale at its bound is meant: the feature does not matter
        scales = GaussianProcessRegressor(kernel, alpha=1e-8, optimizer=_few_steps)
        scales.fit(rows[-_SCALED_ROWS:], values[-_SCALED_ROWS:])
        return GaussianProcessRegressor(scales.kernel_, alpha=1e-8, optimizer=None).fit(rows, values)


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
