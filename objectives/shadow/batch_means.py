"""Batch means of a series that is observed over time, and an interval of its mean that holds at every look.

Values that are near in time are alike, so that their number says little about how well the mean is known: means of
batches that grow with the series are nearly independent (Schmeiser 1982, Operations Research 30; Yeh and Schmeiser
2000, Operations Research Letters 27, who merge pairs of batches as here).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from objectives.records import Interval

# Batches of an interval. The first look is at so many values, each later one at twice as many.
BATCHES = 32
# Highest correlation of neighbouring batches that is estimated: with more, the number of independent ones is unknown.
_MOST_CORRELATION = 0.8


@dataclass(frozen=True)
class BatchMeans:
    """Means of the batches of a series, from its start on; their number is bounded.

    means: of full batches, in the order of time, fewer than twice `BATCHES`
    length: values of a batch, a power of 2
    rest: newest values, of the batch that is not full
    """

    means: tuple[float, ...] = ()
    length: int = 1
    rest: tuple[float, ...] = ()

    def with_value(self, value: float) -> BatchMeans:
        """Return the means with one more value; once there are twice `BATCHES`, pairs of them are merged."""
        rest = (*self.rest, value)
        if len(rest) < self.length:
            return BatchMeans(self.means, self.length, rest)
        means = (*self.means, math.fsum(rest) / self.length)
        if len(means) < 2 * BATCHES:
            return BatchMeans(means, self.length)
        pairs = zip(means[::2], means[1::2], strict=True)
        return BatchMeans(tuple((first + second) / 2 for first, second in pairs), 2 * self.length)

    @property
    def values(self) -> int:
        """Number of values so far."""
        return len(self.means) * self.length + len(self.rest)

    @property
    def looks(self) -> int:
        """Number of looks so far: one at `BATCHES` values, and one each time that their number has doubled."""
        return self.length.bit_length() if len(self.means) >= BATCHES else 0


def mean_interval(series: Sequence[BatchMeans], confidence: float = 0.95) -> tuple[float, Interval] | None:
    """Return the mean and its interval as of the last look; None before the first one.

    The interval is that of Student's t, with the variance between batches. A positive correlation of neighbouring
    batches widens it: the variance of the mean is that of an autoregressive series of order 1, and the degrees of
    freedom are those of the independent batches that it is worth (Steiger et al. 2005, ACM TOMACS 15, do so for means
    of batches; the bias of the correlation by Marriott and Pope 1954, Biometrika 41). The correlation is taken one
    standard error above its estimate, since one that is taken too low makes the interval too narrow. Look k may miss in
    (1 - confidence) / (k (k + 1)) of all cases, which add up to 1 - confidence, so that all looks together hold with
    this confidence, whenever somebody stops (alpha spending, Lan and DeMets 1983, Biometrika 70, by the union bound).
    Between two looks the interval stays what it was.

    Args:
        series: of the same kind, such as those of several servers; their means are those of their last looks, and
            weighted by the number of values then. A look at any of them counts as one. Their errors are added as if
            they had the same cause, such as a machine that they share
    """
    seen = [one for one in series if one.looks]
    if not seen:
        return None
    look, values = sum(one.looks for one in seen), sum(one.length for one in seen)
    beyond = (1 - confidence) / (look * (look + 1))
    mean = half = 0.0
    for one in seen:
        part, variance, degrees = _estimate(one.means[:BATCHES])
        mean += one.length / values * part
        half += one.length / values * t_quantile(beyond, degrees) * math.sqrt(variance)
    return mean, (mean - half, mean + half)


def _estimate(means: Sequence[float]) -> tuple[float, float, int]:
    """Return the mean of batches, its variance, and the degrees of freedom of that."""
    values = np.array(means)
    count, mean = len(values), float(values.mean())
    deviations = values - mean
    squares = float((deviations**2).sum())
    if not squares:
        return mean, 0.0, 1
    raw = float((deviations[1:] * deviations[:-1]).sum()) / squares
    upper = raw + (1 + 3 * raw) / count + 1 / math.sqrt(count)
    correlation = min(max(upper, 0.0), _MOST_CORRELATION)
    inflation = (1 + correlation) / (1 - correlation)
    return mean, inflation * squares / (count - 1) / count, max(math.floor(count / inflation) - 1, 1)


def t_quantile(beyond: float, degrees: int) -> float:
    """Return the t that the absolute value of Student's t exceeds with probability `beyond`.

    It is found by bisection of the closed form (Abramowitz and Stegun 26.7.3 and 26.7.4), since a light install, which
    serves, has no SciPy.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(80):
        angle = (low + high) / 2
        low, high = (angle, high) if 1 - _within(angle, degrees) > beyond else (low, angle)
    return math.sqrt(degrees) * math.tan(low)


def _within(angle: float, degrees: int) -> float:
    """Return the probability that Student's t lies within its square root of `degrees` times the angle's tangent."""
    odd = degrees % 2
    term = total = (math.cos(angle) if degrees > 1 else 0.0) if odd else 1.0
    for i in range(3 if odd else 2, degrees, 2):
        term *= (i - 1) / i * math.cos(angle) ** 2
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
