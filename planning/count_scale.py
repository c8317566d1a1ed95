"""Scale on which errors of forecast counts are alike whether few or many requests are expected."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, minimize_scalar

from planning.demand import Floats

# Counts of a Poisson distribution, plus this, have square roots of nearly one deviation (Anscombe 1948).
_SHIFT = 3 / 8
# A squared error counts as so many variances at most, so that a single incident is not the scale of all; and the mean
# of the squares of standard normal numbers that count so.
_MOST_SQUARE, _MEAN_SQUARE = 9.0, 0.995
# Least dispersion, at which the scale is that of square roots; and the most, at which it is that of logarithms.
_LEAST, _MOST = 1e-12, 1e4
# Dispersions that are tried before the likeliest one is searched for between two of them.
_GRID = 33


@dataclass(frozen=True)
class CountScale:
    """A scale on which counts of mean m and variance m + dispersion * m^2 have a spread of 1.

    It is an inverse hyperbolic sine of the root. Without dispersion, as for a Poisson law, it is twice the root.
    With it, it becomes that of logarithms where many requests are expected (Anscombe 1948).

    dispersion: squared relative deviation of the mean itself, above 0
    """

    dispersion: float = _LEAST

    def scaled(self, counts: Floats) -> Floats:
        """Return counts, 0 or more, on the scale."""
        root = np.sqrt(self.dispersion)
        return np.asarray(2 / root * np.arcsinh(root * np.sqrt(counts + _SHIFT)), np.float64)

    def counts(self, scaled: Floats) -> Floats:
        """Return the counts, 0 or more, of values on the scale."""
        root = np.sqrt(self.dispersion)
        return np.asarray(np.maximum((np.sinh(np.maximum(scaled, 0.0) * root / 2) / root) ** 2 - _SHIFT, 0.0))


def fit_scale(expected: Floats, actual: Floats) -> CountScale:
    """Return the scale of forecasts and of the counts that came, of one shape.

    Errors have the variance factor * (m + dispersion * m^2): a forecast from few counts adds to the noise of single
    arrivals in proportion. The dispersion is the most probable one for normal errors, with a robust estimate of the
    factor (Huber's proposal 2, 1964), so that a single incident does not decide it. A weak prior, a log-normal one
    around a factor of 1, decides where all expectations are alike, which does not tell the two apart. An expectation
    below one request counts as one.
    """
    mean = np.maximum(expected, 1.0).ravel()
    squares = np.ravel((actual - expected) ** 2) / mean

    def negative_log_posterior(log_dispersion: float) -> float:
        spread = 1 + np.exp(log_dispersion) * mean
        factor = np.log(_factor(squares / spread))
        return float(len(mean) * factor + np.log(spread).sum() + factor**2) / 2

    if _factor(squares) <= 1:
        return CountScale()
    grid = np.linspace(np.log(_LEAST), np.log(_MOST), _GRID)
    best = int(np.argmin([negative_log_posterior(each) for each in grid]))
    within = grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)]
    return CountScale(float(np.exp(minimize_scalar(negative_log_posterior, bounds=within, method="bounded").x)))


def _factor(squares: Floats) -> float:
    """Return the variance of normal numbers by their squares, each of which counts as nine variances at most.

    It is 0 where all but a few squares are 0.
    """
    if (squares > 0).mean() * _MOST_SQUARE <= _MEAN_SQUARE:
        return 0.0

    def excess(variance: float) -> float:
        return float(np.minimum(squares / variance, _MOST_SQUARE).mean()) - _MEAN_SQUARE

    positive = squares[squares > 0]
    return float(brentq(excess, positive.min() / 10, 2 * squares.mean(), rtol=1e-6))
