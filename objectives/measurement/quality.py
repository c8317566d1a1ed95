"""A candidate's metric on held-out rows, and its paired loss against the baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from objectives.measurement.statistics import Floats, group_weights, interval, weighted_auc
from objectives.record import Quality

# A metric of (n,) scores and labels under each row of (resamples, n) weights; higher is better.
Metric = Callable[[Floats, Floats, Floats], Floats]
METRICS: Mapping[str, Metric] = {"auc": weighted_auc}


def paired_quality(
    metric: str,
    candidate: NDArray[np.float32],
    baseline: NDArray[np.float32],
    labels: NDArray[np.float32],
    groups: NDArray[np.int64],
    seed: int,
    confidence: float = 0.95,
) -> Quality:
    """Loss relative to the baseline on the same rows; its interval resamples groups (users), the same for both arms.

    Args:
        candidate, baseline, labels, groups: (n,)

    Raises:
        ValueError: arrays of different lengths, scores that are not finite, or labels of one class.
    """
    if not len(candidate) == len(baseline) == len(labels) == len(groups):
        sizes = [len(candidate), len(baseline), len(labels), len(groups)]
        raise ValueError(f"Scores, labels and groups have the same rows, but got {sizes}.")
    if not np.isfinite(candidate).all():
        raise ValueError(f"Scores must be finite, but {int((~np.isfinite(candidate)).sum())} are not.")
    measure = METRICS[metric]
    ours, theirs, truth = (np.asarray(a, dtype=np.float64) for a in (candidate, baseline, labels))
    ones = np.ones((1, len(truth)))
    value, reference = float(measure(ours, truth, ones)[0]), float(measure(theirs, truth, ones)[0])
    if not np.isfinite(value):
        raise ValueError("Held-out labels must hold both classes, but got one.")
    losses = []
    for weights in group_weights(groups, seed):
        base = measure(theirs, truth, weights)
        losses.append((base - measure(ours, truth, weights)) / base)
    drawn = np.concatenate(losses)
    return Quality(
        metric=metric,
        value=value,
        baseline=reference,
        loss=(reference - value) / reference,
        # A resample of users with one class only has no AUC; it says nothing about the loss.
        loss_interval=interval(drawn[np.isfinite(drawn)], confidence),
        rows=len(truth),
        groups=len(np.unique(groups)),
        confidence=confidence,
    )


def resolution(quality: Quality) -> float:
    """The smallest loss that these rows could tell from none: half the width of the paired interval."""
    return (quality.loss_interval[1] - quality.loss_interval[0]) / 2
