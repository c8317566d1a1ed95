"""Paired evaluation on the same rows, all and by slice: the relative loss and its interval by a bootstrap over users.

A metric is given as a function of row weights; this module knows no particular metric.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from objectives.arrays import Numbers
from objectives.measurement.statistics import Floats, group_weights, interval
from objectives.records import Interval, Quality, SliceQuality

Groups = NDArray[np.int64]
Mask = NDArray[np.bool_]
# A deployment's metric on k rows: (k, resamples) weights, the same within a group -> (resamples,) values, higher is
# better, NaN where the metric is undefined on the rows with weight.
Resampled = Callable[[Floats], Floats]
# A metric on the k of n rows that an (n,) mask keeps; raises UndefinedLossError where it is undefined on these.
Metric = Callable[[Mask], Resampled]

# The interval covers only the resamples on which the loss is defined, so at most this share may be without one.
_MOST_UNTOLD = 0.05
# Resamples that must lie beyond either end of an interval for that end to be stable, and the most that are drawn, which
# are enough for the tenth use of one test set.
_BEYOND = 20
_MOST_RESAMPLES = 100_000


class UndefinedLossError(ValueError):
    """The metric, its relative loss, or the interval of that loss is undefined on these rows."""


def paired_loss(
    metric: str,
    candidate: Metric,
    baseline: Metric,
    groups: Groups,
    seed: int,
    confidence: float,
    slices: Mapping[str, Mask],
    baseline_key: str | None = None,
) -> Quality:
    """Evaluate the relative loss of a candidate against the baseline with a bootstrap over groups.

    One bootstrap draws groups for all rows, and each slice uses its part of the draw, so that its interval includes the
    randomness of the number of its users.

    Args:
        groups: (n,)
        slices: (n,) masks by name
        baseline_key: what `content_key` gives of the baseline: its values in the resamples are kept for the next
            candidates; None where they are not

    Raises:
        ValueError: a slice is not an (n,) mask.
        UndefinedLossError: the loss is undefined on all rows together. A slice on which it is undefined has the reason
        in its record instead.
    """
    for name, mask in slices.items():
        if mask.dtype != np.bool_ or mask.shape != groups.shape:
            rule = f"The slice {name!r} must be a mask of {len(groups)} rows"
            raise ValueError(f"{rule}, but got {mask.dtype} of the shape {mask.shape}.")
    metrics = candidate, baseline
    whole = _pair(metrics, groups, np.ones(len(groups), dtype=np.bool_))
    pairs: dict[str, _Pair] = {}
    reasons: dict[str, str] = {}
    for name, kept in slices.items():
        try:
            pairs[name] = _pair(metrics, groups, kept)
        except UndefinedLossError as error:
            reasons[name] = str(error)
    key = None if baseline_key is None else (baseline_key, *pairs)
    of_whole, *of_slices = _losses((whole, *pairs.values()), groups, seed, resamples_for(confidence), key)
    found = {}
    for (name, pair), drawn in zip(pairs.items(), of_slices, strict=True):
        try:
            found[name] = pair.summarize(drawn, confidence)
        except UndefinedLossError as error:
            reasons[name] = str(error)
    parts = []
    for name, kept in slices.items():
        rows, users = int(kept.sum()), _count(groups[kept])
        if name in found:
            parts.append(SliceQuality(name, rows, users, *found[name]))
        else:
            parts.append(SliceQuality(name, rows, users, reason=reasons[name]))
    numbers = whole.summarize(of_whole, confidence)
    return Quality(metric, *numbers, len(groups), _count(groups), confidence, tuple(parts))


def content_key(metric: str, scores: Numbers, labels: Numbers, groups: Groups, slices: Mapping[str, Mask]) -> str:
    """Return a digest of a deployment's metric on rows, (n,) each, by their values and by slice."""
    made = blake2b(f"{metric} {[*slices]}".encode(), digest_size=16)
    for values in (scores, labels, groups, *slices.values()):
        made.update(f"{values.dtype}".encode())
        made.update(np.ascontiguousarray(values).data)
    return made.hexdigest()


def resamples_for(confidence: float) -> int:
    """Return the resamples for 20 of them to lie beyond either end of the interval, up to a feasible number."""
    return min(_MOST_RESAMPLES, math.ceil(_BEYOND / ((1 - confidence) / 2)))


def tail_interval(drawn: Floats, confidence: float) -> Interval:
    """Return the percentile interval of bootstrap samples, (resamples,), as many as `resamples_for` gives.

    An end further out than the most resamples can show is extrapolated from the furthest stable percentile, by the
    quantiles of a normal distribution around the median.
    """
    tail = (1 - confidence) / 2
    steady = _BEYOND / _MOST_RESAMPLES
    if tail >= steady:
        return interval(drawn, confidence)
    (low, high), middle = interval(drawn, 1 - 2 * steady), float(np.median(drawn))
    further = NormalDist().inv_cdf(tail) / NormalDist().inv_cdf(steady)
    return middle - further * (middle - low), middle + further * (high - middle)


@dataclass(frozen=True)
class _Pair:
    """Both deployments on some rows, given by index (None: all), and their values there."""

    rows: NDArray[np.int64] | None
    candidate: Resampled
    baseline: Resampled
    value: float
    reference: float

    def summarize(self, drawn: Floats, confidence: float) -> tuple[float, float, float, Interval]:
        """Return the metric, that of the baseline, the loss, and its interval from resampled losses, (resamples,).

        Losses that are not finite, such as those of AUC with users of one class only, are left out.

        Raises:
            UndefinedLossError: more than 5% of the resamples lack a loss.
        """
        finite = drawn[np.isfinite(drawn)]
        untold = 1 - len(finite) / len(drawn)
        if untold > _MOST_UNTOLD:
            raise UndefinedLossError(
                f"At most {_MOST_UNTOLD:.0%} of the resamples may lack a loss, but got {untold:.0%}: too few rows."
            )
        loss = (self.reference - self.value) / self.reference
        return self.value, self.reference, loss, tail_interval(finite, confidence)


def _pair(metrics: tuple[Metric, Metric], groups: Groups, kept: Mask) -> _Pair:
    if (count := _count(groups[kept])) < 2:
        raise UndefinedLossError(f"An interval needs rows of two groups or more, but got {count}.")
    ours, theirs = (metric(kept) for metric in metrics)
    once = np.ones((int(kept.sum()), 1))
    value, reference = float(ours(once)[0]), float(theirs(once)[0])
    if reference <= 0:
        raise UndefinedLossError(
            f"A relative loss needs a metric above 0, higher being better, but the baseline has {reference:.4g}."
        )
    return _Pair(None if kept.all() else np.flatnonzero(kept), ours, theirs, value, reference)


def _losses(
    pairs: Sequence[_Pair], groups: Groups, seed: int, resamples: int, baseline_key: tuple[str, ...] | None
) -> Floats:
    """Return the loss of each pair in each resample, (pairs, resamples); not finite where it is undefined.

    Args:
        baseline_key: identifies the baseline's values on the rows of all pairs; None where they are not kept
    """
    key = baseline_key, seed, resamples
    wanted = [(pair.rows, pair.candidate) for pair in pairs]
    if (theirs := _BASELINES.known(key)) is None:
        wanted += [(pair.rows, pair.baseline) for pair in pairs]
    values = _resampled(wanted, groups, seed, resamples)
    ours = values[: len(pairs)]
    if theirs is None:
        theirs = values[len(pairs) :].copy()  # without the candidate's beside them
        if baseline_key is not None:
            _BASELINES.keep(key, theirs)
    with np.errstate(divide="ignore", invalid="ignore"):
        losses: Floats = (theirs - ours) / theirs
    return losses


def _resampled(
    parts: Sequence[tuple[NDArray[np.int64] | None, Resampled]], groups: Groups, seed: int, resamples: int
) -> Floats:
    """Return a deployment's metric on each part of the rows (None: all) in each resample, (parts, resamples)."""
    chunks = group_weights(groups, seed, resamples)
    found = [
        [metric(weights if rows is None else weights.take(rows, axis=0)) for rows, metric in parts]
        for weights in chunks
    ]
    return np.concatenate(found, axis=1)


class _Kept:
    """The values of the last baselines; there are several where a model has several outputs."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: dict[Hashable, Floats] = {}

    def known(self, key: Hashable) -> Floats | None:
        """Return the values that are kept by a key, which then are the last to be dropped."""
        values = self._values.pop(key, None)
        if values is not None:
            self._values[key] = values
        return values

    def keep(self, key: Hashable, values: Floats) -> None:
        """Keep values, and drop those that were not asked for longest, above the most."""
        self._values[key] = values
        while len(self._values) > self._most:
            del self._values[next(iter(self._values))]


_BASELINES = _Kept(16)


def _count(groups: Groups) -> int:
    return len(np.unique(groups))
