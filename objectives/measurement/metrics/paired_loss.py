"""Both arms judged on the same rows, all and by slice: the relative loss and its interval by a bootstrap over users.

A metric comes as a function of row weights, so this file knows none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from objectives.measurement.statistics import Floats, group_weights, interval
from objectives.records import Interval, Quality, SliceQuality

Groups = NDArray[np.int64]
Mask = NDArray[np.bool_]
# One arm's metric on k rows: (resamples, k) weights, the same within a group -> (resamples,) values, higher is better,
# NaN where the rows that have weight cannot tell.
Resampled = Callable[[Floats], Floats]
# One arm: the metric on the k of n rows that an (n,) mask keeps; raises UndefinedLossError where these cannot tell it.
Metric = Callable[[Mask], Resampled]

# An interval over the resamples that can tell says nothing of the others; so there must be few of them.
_MOST_UNTOLD = 0.05
# Resamples that must lie beyond either end of an interval for that end to be steady, and the most that are drawn, which
# are enough for the tenth look at one test set.
_BEYOND = 20
_MOST_RESAMPLES = 100_000


class UndefinedLossError(ValueError):
    """These rows cannot tell the metric, its relative loss, or the interval of that."""


def paired_loss(
    metric: str,
    candidate: Metric,
    baseline: Metric,
    groups: Groups,
    seed: int,
    confidence: float,
    slices: Mapping[str, Mask],
) -> Quality:
    """One bootstrap draws groups for all rows, and each slice sees what was drawn of its own: so its interval knows
    that the number of its users is chance too.

    Args:
        groups: (n,)
        slices: by name (n,) masks

    Raises:
        ValueError: a slice is not an (n,) mask.
        UndefinedLossError: all rows together cannot tell. A slice that cannot has the reason in its record instead.
    """
    _check(slices, len(groups))
    metrics = candidate, baseline
    whole = _pair(metrics, groups, np.ones(len(groups), dtype=np.bool_))
    pairs, reasons = _by_slice(metrics, groups, slices)
    of_whole, *of_slices = _drawn([whole, *pairs.values()], groups, seed, resamples_for(confidence))
    drawn = dict(zip(pairs, of_slices, strict=True))

    def judged(name: str) -> SliceQuality:
        rows, users = int(slices[name].sum()), _count(groups[slices[name]])
        if name in reasons:
            return SliceQuality(name, rows, users, reason=reasons[name])
        try:
            return SliceQuality(name, rows, users, **asdict(_told(pairs[name], drawn[name], confidence)))
        except UndefinedLossError as error:
            return SliceQuality(name, rows, users, reason=str(error))

    return Quality(
        metric=metric,
        rows=len(groups),
        groups=_count(groups),
        confidence=confidence,
        slices=tuple(map(judged, slices)),
        **asdict(_told(whole, of_whole, confidence)),
    )


def resamples_for(confidence: float) -> int:
    """So many that 20 of them lie beyond either end of the interval, up to a number that can still be drawn."""
    return min(_MOST_RESAMPLES, math.ceil(_BEYOND / ((1 - confidence) / 2)))


def tail_interval(drawn: Floats, confidence: float) -> Interval:
    """The percentile interval of bootstrap samples (resamples,) as `resamples_for` asks for them.

    An end further out than the most resamples can show is that of the furthest steady percentile, moved away from the
    median as a normal distribution's would be.
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
    """Both arms on some rows, by their numbers, and what they have there."""

    rows: NDArray[np.int64]
    candidate: Resampled
    baseline: Resampled
    value: float
    reference: float

    def losses(self, weights: Floats) -> Floats:
        """(resamples, n) weights of all held-out rows -> (resamples,), not finite where these rows cannot tell."""
        kept = weights[:, self.rows]
        base = self.baseline(kept)
        with np.errstate(divide="ignore", invalid="ignore"):
            loss: Floats = (base - self.candidate(kept)) / base
        return loss


@dataclass(frozen=True)
class _Told:
    value: float
    baseline: float
    loss: float
    loss_interval: Interval


def _check(slices: Mapping[str, Mask], rows: int) -> None:
    for name, mask in slices.items():
        if mask.dtype != np.bool_ or mask.shape != (rows,):
            raise ValueError(
                f"The slice {name!r} must be a mask of {rows} rows, but got {mask.dtype} of the shape {mask.shape}."
            )


def _by_slice(
    metrics: tuple[Metric, Metric], groups: Groups, slices: Mapping[str, Mask]
) -> tuple[dict[str, _Pair], dict[str, str]]:
    """The slices that can tell, and of the others the reasons."""
    pairs, reasons = {}, {}
    for name, kept in slices.items():
        try:
            pairs[name] = _pair(metrics, groups, kept)
        except UndefinedLossError as error:
            reasons[name] = str(error)
    return pairs, reasons


def _pair(metrics: tuple[Metric, Metric], groups: Groups, kept: Mask) -> _Pair:
    if (count := _count(groups[kept])) < 2:
        raise UndefinedLossError(f"An interval needs rows of two groups or more, but got {count}.")
    ours, theirs = (metric(kept) for metric in metrics)
    rows = np.flatnonzero(kept)
    once = np.ones((1, len(rows)))
    value, reference = float(ours(once)[0]), float(theirs(once)[0])
    if reference <= 0:
        raise UndefinedLossError(
            f"A relative loss needs a metric above 0, higher being better, but the baseline has {reference:.4g}."
        )
    return _Pair(rows, ours, theirs, value, reference)


def _drawn(pairs: Sequence[_Pair], groups: Groups, seed: int, resamples: int) -> Floats:
    """(pairs, resamples) losses; the weights are drawn once for all."""
    return np.concatenate(
        [[pair.losses(weights) for pair in pairs] for weights in group_weights(groups, seed, resamples)], axis=1
    )


def _told(pair: _Pair, drawn: Floats, confidence: float) -> _Told:
    """A resample of users with one class only has no AUC; it says nothing about the loss."""
    finite = drawn[np.isfinite(drawn)]
    untold = 1 - len(finite) / len(drawn)
    if untold > _MOST_UNTOLD:
        raise UndefinedLossError(
            f"At most {_MOST_UNTOLD:.0%} of the resamples may lack a loss, but got {untold:.0%}: too few rows can tell."
        )
    loss = (pair.reference - pair.value) / pair.reference
    return _Told(pair.value, pair.reference, loss, tail_interval(finite, confidence))


def _count(groups: Groups) -> int:
    return len(np.unique(groups))
