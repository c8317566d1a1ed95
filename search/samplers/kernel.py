"""Matern 5/2 kernel with a length scale for each feature, and its fit to data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.linalg import LinAlgError, cholesky
from scipy.linalg.lapack import dpotri
from scipy.optimize import minimize

from search.front import Floats

# Bounds of the variance, the length scales, in units of features from 0 to 1, and the noise.
_VARIANCE, _LENGTHS, _NOISE = (0.1, 30.0), (0.05, 20.0), (1e-4, 0.3)
_FIRST_NOISE = 1e-2
# Steps of the optimizer.
_STEPS = 20
# Added to the diagonal, for the factorisation.
_JITTER = 1e-8


@dataclass(frozen=True, eq=False)
class Kernel:
    """Covariance of a function's values at two rows of features, and the noise of each value.

    lengths: (features,)
    """

    variance: float
    lengths: Floats
    noise: float

    @classmethod
    def plain(cls, features: int) -> Kernel:
        """Return the kernel from which a fit begins."""
        return cls(1.0, np.ones(features), _FIRST_NOISE)

    def between(self, rows: Floats, others: Floats) -> Floats:
        """Return the covariances, (n, m), of (n, features) and (m, features) rows, without the noise."""
        root = _distances(rows / self.lengths, others / self.lengths)
        return _matern(root, self.variance * np.exp(-root))

    def factor(self, rows: Floats) -> Floats:
        """Return the lower Cholesky factor, (n, n), of the covariances of values with their noise."""
        covariances = self.between(rows, rows)
        covariances.flat[:: len(rows) + 1] += self.noise + _JITTER
        factor: Floats = cholesky(covariances, lower=True, overwrite_a=True, check_finite=False)
        return factor


def fitted(rows: Floats, values: Floats) -> Kernel:
    """Return the kernel of (n, features) rows and (n,) values that maximises the marginal likelihood, in a few steps.

    A length scale at its upper bound is meant: the feature does not matter.
    """
    rows = np.ascontiguousarray(rows)
    theta = np.exp(_fitted_logs(rows.tobytes(), rows.shape[1], values.tobytes()))
    return Kernel(float(theta[0]), theta[1:-1], float(theta[-1]))


@lru_cache(maxsize=32)
def _fitted_logs(rows: bytes, features: int, values: bytes) -> tuple[float, ...]:
    """Fit a kernel, and return the logarithms of its variance, its length scales and its noise."""
    known, targets = np.frombuffer(rows).reshape(-1, features), np.frombuffer(values)
    start = np.log([1.0, *np.ones(features), _FIRST_NOISE])
    bounds = np.log([_VARIANCE, *[_LENGTHS] * features, _NOISE])

    def loss(theta: Floats) -> tuple[float, Floats]:
        likelihood, gradient = log_likelihood(theta, known, targets)
        return -likelihood, -gradient

    found = minimize(loss, start, method="L-BFGS-B", jac=True, bounds=bounds, options={"maxiter": _STEPS})
    return tuple(found.x.tolist())


def log_likelihood(logs: Floats, rows: Floats, values: Floats) -> tuple[float, Floats]:
    """Return the logarithm of the marginal likelihood of (n,) values at (n, features) rows, and its gradient.

    The gradient is by the logarithms of variance, length scales and noise, (features + 2,).

    Rasmussen and Williams (2006), equations 2.30 and 5.9. The derivative by a length scale sums, over all pairs of
    rows, a weight times the squared difference of a feature, which is a matrix product: no array of all pairs by
    features is made.
    """
    theta = np.exp(logs)
    variance, scaled, noise = theta[0], rows / theta[1:-1], theta[-1]
    root = _distances(scaled, scaled)
    decay = variance * np.exp(-root)
    smooth = _matern(root, decay)
    covariances = smooth.copy()
    covariances.flat[:: len(rows) + 1] += noise + _JITTER
    try:
        factor = cholesky(covariances, lower=True, check_finite=False)
    except LinAlgError:
        return -np.inf, np.zeros_like(logs)
    inverse, _ = dpotri(factor, lower=True)
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    weights = inverse @ values
    excess = np.multiply.outer(weights, weights) - inverse
    pairs = excess * decay * (1 + root) * (5 / 3)
    by_length = pairs.sum(axis=1) @ scaled**2 - (scaled * (pairs @ scaled)).sum(axis=0)
    gradient = np.array([(excess * smooth).sum() / 2, *by_length, noise * np.trace(excess) / 2])
    likelihood = -values @ weights / 2 - np.log(factor.diagonal()).sum() - len(values) / 2 * np.log(2 * np.pi)
    return float(likelihood), gradient


def _distances(rows: Floats, others: Floats) -> Floats:
    """Return sqrt(5) times the distance of each of n rows, (n, features), to each of m others, (n, m)."""
    squared: Floats = rows @ (-10 * others.T)
    squared += 5 * (rows**2).sum(axis=1)[:, None]
    squared += 5 * (others**2).sum(axis=1)
    return np.sqrt(np.maximum(squared, 0.0, out=squared), out=squared)


def _matern(root: Floats, decay: Floats) -> Floats:
    """Return (1 + r + r^2 / 3) times the decay, at distances r; in place, since most time goes to memory."""
    found: Floats = root / 3
    found += 1
    found *= root
    found += 1
    found *= decay
    return found
