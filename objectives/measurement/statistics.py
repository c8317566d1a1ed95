"""Percentiles with intervals, by order statistics and by the bootstrap; AUC and mean under row weights.

Arrays in, numbers out. A percentile is an order statistic, never interpolated: a refused request has infinite latency.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RESAMPLES = 1000
# Number of weights held at the same time: 8 MB, or four resamples of many rows, 32 bytes a row.
_AT_ONCE, _LEAST_AT_ONCE = 1 << 20, 4


class TooFewSamplesError(ValueError):
    """Too few samples for a percentile."""


@lru_cache
def fewest_samples(percent: float) -> int:
    """Return the fewest samples for a percentile: with 99% confidence two of them or more lie beyond it.

    MLPerf's early stopping rule with one query over the limit (Inference Rules, appendix early stopping): 64 for a p90,
    662 for a p99.
    """
    beyond = 1 - percent / 100
    count = 2
    while (1 - beyond) ** count + count * beyond * (1 - beyond) ** (count - 1) > 0.01:
        count += 1
    return count


def percentile(samples: Floats, percent: float) -> float:
    """Return the smallest sample that at least `percent` per cent of all samples do not exceed."""
    return float(np.percentile(samples, percent, method="inverted_cdf"))


def percentile_interval(samples: Floats, percent: float, confidence: float = 0.95) -> tuple[float, tuple[float, float]]:
    """Return a percentile and its interval by order statistics, without any assumption on the distribution.

    The number of samples below the true percentile is binomial (n, q), which bounds the ranks it lies between (David
    and Nagaraja, Order Statistics, 2003, section 7.1). It takes samples as independent; queueing correlates them, and
    then the interval is somewhat too narrow. The block bootstrap of ratios does not have this limitation.

    Args:
        samples: of any shape

    Raises:
        TooFewSamplesError: fewer than `fewest_samples`.
    """
    count = samples.size
    if count < (fewest := fewest_samples(percent)):
        raise TooFewSamplesError(f"A p{percent:g} needs {fewest} samples or more, but got {count}.")
    low, high = _ranks(count, percent / 100, confidence)
    ordered = np.sort(samples, axis=None)
    return percentile(samples, percent), (float(ordered[low]), float(ordered[high]))


@lru_cache
def _ranks(count: int, share: float, confidence: float) -> tuple[int, int]:
    """Return the indices (from 0) of the ordered samples between which the percentile lies."""
    k = np.arange(count + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    choose = log_factorial[count] - log_factorial - log_factorial[::-1]
    below = np.cumsum(np.exp(choose + k * math.log(share) + (count - k) * math.log1p(-share)))
    tail = (1 - confidence) / 2
    low = int(np.searchsorted(below, tail, side="right"))  # P(fewer than low) <= tail
    high = int(np.searchsorted(below, 1 - tail))  # P(more than high) <= tail
    return max(low - 1, 0), min(high, count - 1)


def interval(samples: Floats, confidence: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of bootstrap samples, (resamples,)."""
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2], method="inverted_cdf")
    return float(low), float(high)


def block_percentiles(blocks: Floats, percent: float, picks: NDArray[np.int64]) -> Floats:
    """Return the pooled percentile of each resample, (resamples,), of blocks, (blocks, samples of each).

    Args:
        picks: (resamples, blocks), which blocks each resample holds
    """
    pooled = blocks[picks].reshape(len(picks), -1)
    result: Floats = np.percentile(pooled, percent, axis=1, method="inverted_cdf")
    return result


def block_picks(blocks: int, seed: int, resamples: int = RESAMPLES) -> NDArray[np.int64]:
    """Draw indices of blocks with replacement, (resamples, blocks)."""
    return np.random.default_rng(seed).integers(0, blocks, size=(resamples, blocks))


def ratio_of_percentiles(
    candidate: Floats, baseline: Floats, percent: float, seed: int, confidence: float = 0.95
) -> tuple[float, tuple[float, float]]:
    """Return the ratio of pooled percentiles and its interval by the paired block bootstrap.

    Paired blocks of both deployments are resampled together, so that common disturbances cancel. The mean of the
    blocks' own ratios would be biased, since a percentile of few samples is.

    Args:
        candidate, baseline: (blocks, samples of each), paired block by block

    Raises:
        ValueError: the numbers of blocks differ, or are below 2.
    """
    if len(candidate) != len(baseline) or len(candidate) < 2:
        raise ValueError(
            f"Both deployments have the same two blocks or more, but got {len(candidate)} and {len(baseline)}."
        )
    ratios = _resampled_ratios(candidate, baseline, percent, seed)
    point = percentile(candidate, percent) / percentile(baseline, percent)
    return point, interval(ratios, confidence)


def paired_log_variance(candidate: Floats, baseline: Floats, percent: float, seed: int) -> float:
    """Return the variance of the logarithm of the ratio, by the bootstrap of `ratio_of_percentiles` and its blocks."""
    return float(np.var(np.log(_resampled_ratios(candidate, baseline, percent, seed))))


def _resampled_ratios(candidate: Floats, baseline: Floats, percent: float, seed: int) -> Floats:
    """Return the ratios of pooled percentiles, (resamples,), with blocks of both drawn together."""
    picks = block_picks(len(candidate), seed)
    return block_percentiles(candidate, percent, picks) / block_percentiles(baseline, percent, picks)


def weighted_auc(scores: Floats, labels: Floats) -> Callable[[Floats], Floats]:
    """Return a function of row weights that returns the area under the ROC curve.

    The function takes weights, (n, resamples) and not negative, and returns the area for each resample, (resamples,),
    NaN where one class has no weight. Tied scores count half (Mann and Whitney 1947).

    Args:
        scores: (n,)
        labels: (n,) of 0 and 1
    """
    order = np.argsort(scores, kind="stable")
    positives, negatives = order[labels[order] == 1], order[labels[order] == 0]
    # For each positive, the number of negatives below it, and of negatives not above it.
    below, upto = (np.searchsorted(scores[negatives], scores[positives], side) for side in ("left", "right"))

    def auc(weights: Floats) -> Floats:
        ours = weights.take(positives, axis=0)
        theirs = np.zeros((len(negatives) + 1, weights.shape[1]))
        np.cumsum(weights.take(negatives, axis=0), axis=0, out=theirs[1:])
        won = np.einsum("nr,nr->r", ours, theirs.take(below, axis=0) + theirs.take(upto, axis=0)) / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            result: Floats = won / (ours.sum(axis=0) * theirs[-1])
        return result

    return auc


def group_auc(scores: Floats, labels: Floats, groups: NDArray[np.int64]) -> Floats:
    """Return for each row the AUC in its own group, (n,), NaN in groups of one class; tied scores count half.

    Args:
        scores, groups: (n,)
        labels: (n,) of 0 and 1
    """
    _, group = np.unique(groups, return_inverse=True)
    order = np.lexsort((scores, group))
    starts = (np.diff(group[order], prepend=-1) > 0) | (np.diff(scores[order], prepend=-np.inf) > 0)
    ties = np.flatnonzero(starts)
    positive = np.add.reduceat(labels[order], ties)
    negative = np.add.reduceat(1 - labels[order], ties)
    owner = group[order][ties]
    positives, negatives = np.bincount(owner, positive), np.bincount(owner, negative)
    in_groups_before = np.cumsum(negatives) - negatives
    below = np.cumsum(negative) - negative - in_groups_before[owner]
    won = np.bincount(owner, positive * (below + negative / 2))
    with np.errstate(invalid="ignore"):
        result: Floats = (won / (positives * negatives))[group]
    return result


def weighted_mean(values: Floats, weights: Floats) -> Floats:
    """Return the mean of values, (n,), for each column of weights, (n, resamples) and not negative: (resamples,).

    Values that are NaN are left out. The mean is NaN where no value has weight.
    """
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        result: Floats = (np.where(there, values, 0.0) @ weights) / (there.astype(np.float64) @ weights)
    return result


def group_weights(groups: NDArray[np.int64], seed: int, resamples: int = RESAMPLES) -> Iterator[Floats]:
    """Yield row weights of a bootstrap that draws whole groups (users) with replacement, in chunks of (n, k).

    The weights of one row are adjacent in memory, which makes reading rows in any order faster.
    """
    numbers, row_group = np.unique(groups, return_inverse=True)
    generator, count = np.random.default_rng(seed), len(numbers)
    chunk = max(_LEAST_AT_ONCE, _AT_ONCE // len(groups))
    for start in range(0, resamples, chunk):
        drawn = generator.integers(count, size=(min(chunk, resamples - start), count))
        times = np.stack([np.bincount(one, minlength=count) for one in drawn], axis=1)
        yield times.astype(np.float64).take(row_group, axis=0)
