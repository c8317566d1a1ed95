"""Metrics of a candidate on held-out rows, by name, and the paired loss against the baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from objectives.arrays import Numbers
from objectives.held_out_rows import HeldOut, of_output
from objectives.measurement.metrics.paired_loss import (
    Groups,
    Metric,
    Resampled,
    UndefinedLossError,
    content_key,
    paired_loss,
)
from objectives.measurement.statistics import Floats, group_auc, weighted_auc, weighted_mean
from objectives.ranking_metrics import gains, is_ranking
from objectives.records import Quality, SliceQuality


def paired_quality(
    metric: str, candidate: Numbers, baseline: Numbers, held: HeldOut, seed: int, confidence: float = 0.95
) -> Quality:
    """Evaluate the loss relative to the baseline on the same rows; the bootstrap resamples groups (users) jointly.

    Each slice is evaluated on its own rows, or has the reason why it cannot be.

    Args:
        candidate, baseline: (n,) scores; of a ranking the ranks from 1, as `ranking_metrics.ranks` gives them

    Raises:
        ValueError: the metric is not one of such rows, arrays of different lengths, scores that are not finite, ranks
            below 1 or not finite, labels other than 0 and 1, a slice that is not a mask.
        UndefinedLossError: labels of one class, rows of one group, a baseline of 0, too few rows for an interval.
    """
    ranking = held.items is not None
    if not (is_ranking(metric) if ranking else metric in _POINTWISE):
        known = "hr@K or ndcg@K (K a whole number from 1)" if ranking else " or ".join(_POINTWISE)
        raise ValueError(f"The metric of {'ranks' if ranking else 'scores'} is {known}, but got {metric!r}.")
    arrays = {"candidate": candidate, "baseline": baseline, "labels": held.labels, "groups": held.groups}
    rows = [len(array) for array in arrays.values()]
    if len(set(rows)) > 1:
        raise ValueError(f"{', '.join(arrays)} must have the same rows, but got {rows}.")
    ours, theirs, labels = (np.asarray(a, dtype=np.float64) for a in (candidate, baseline, held.labels))
    rule, least = ("Ranks must be finite and from 1", 1) if ranking else ("Scores must be finite", -np.inf)
    for name, values in {"candidate": ours, "baseline": theirs}.items():
        if not (fine := np.isfinite(values) & (values >= least)).all():
            raise ValueError(f"{rule}, but {(~fine).sum()} of the {name} are not, such as {values[~fine][0]:g}.")
    if not ranking and not (fine := np.isin(labels, (0, 1))).all():
        raise ValueError(f"Labels must be 0 or 1, but got {labels[~fine][0]:g}.")

    def metric_of(values: Floats) -> Metric:
        if not ranking:
            return lambda kept: _POINTWISE[metric](values[kept], labels[kept], held.groups[kept])
        earned = gains(metric, values)
        return lambda kept: partial(weighted_mean, earned[kept])

    metrics = metric_of(ours), metric_of(theirs)
    key = content_key(metric, theirs, labels, held.groups, held.slices)
    return paired_loss(metric, *metrics, held.groups, seed, confidence, held.slices, key)


def quality_by_output(
    candidate: Numbers, baseline: Numbers, held: HeldOut, quality: Callable[[Numbers, Numbers, HeldOut], Quality]
) -> Quality:
    """Evaluate each column of scores, (n,) or (n, outputs), by its labels.

    The first column is the main output. Another output that cannot be evaluated has the reason in its record.
    """
    ours, theirs = (scores.reshape(len(scores), -1).T for scores in (candidate, baseline))

    def told(column: int, name: str, labels: Numbers) -> SliceQuality:
        try:
            of = quality(ours[column], theirs[column], replace(held, labels=labels, slices={}))
        except ValueError as error:
            return SliceQuality(of_output(name), len(labels), len(np.unique(held.groups)), reason=str(error))
        return SliceQuality(of_output(name), of.rows, of.groups, of.value, of.baseline, of.loss, of.loss_interval)

    main = quality(ours[0], theirs[0], held)
    return replace(main, others=tuple(told(column, *item) for column, item in enumerate(held.others.items(), 1)))


def resolution(quality: Quality) -> float:
    """Return the smallest loss that these rows can distinguish from none: half the width of the paired interval."""
    return (quality.loss_interval[1] - quality.loss_interval[0]) / 2


def _auc(scores: Floats, labels: Floats, groups: Groups) -> Resampled:
    """Return the AUC over all pairs of rows, of the same user or of different users."""
    if labels.min() == labels.max():
        raise UndefinedLossError(f"Labels must hold both classes, but got {labels[0]:g} in all of {len(labels)} rows.")
    return weighted_auc(scores, labels)


def _gauc(scores: Floats, labels: Floats, groups: Groups) -> Resampled:
    """Return the mean of the users' own AUC, each weighted by the user's rows; users with one class are left out.

    Zhu et al., Optimized Cost per Click in Taobao Display Advertising, KDD 2017; as written out in Zhou et al., Deep
    Interest Network, KDD 2018, section 6.3. A user drawn twice counts twice, and is not compared with himself.
    """
    own = group_auc(scores, labels, groups)
    telling = len(np.unique(groups[~np.isnan(own)]))
    if telling < 2:
        raise UndefinedLossError(f"Two groups or more must hold both classes, but got {telling}.")
    return partial(weighted_mean, own)


_POINTWISE: Mapping[str, Callable[[Floats, Floats, Groups], Resampled]] = {"auc": _auc, "gauc": _gauc}
