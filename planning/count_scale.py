"""Scale on which errors of forecast counts are alike whether few or many requests are expected."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from planning.demand import Floats

# Counts of a Poisson distribution, plus this, have square roots of nearly one deviation (Anscombe 1948).
_SHIFT = 3 / 8
# Least dispersion, at which the scale is that of square roots; and the most, at which it is that of logarithms.
_LEAST, _MOST = 1e-12, 1e4


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

    The dispersion is that at which the squared errors are, in the mean, their variance (Pearson's statistic; Breslow
    1984). An expectation below one request counts as one.
    """
    mean = np.maximum(expected, 1.0)
    squares = (actual - expected) ** 2

    def excess(dispersion: float) -> float:
        return float((squares / (mean + dispersion * mean**2)).mean()) - 1

    if excess(_LEAST) <= 0:
        return CountScale()
    return CountScale(_MOST if excess(_MOST) >= 0 else float(brentq(excess, _LEAST, _MOST)))
