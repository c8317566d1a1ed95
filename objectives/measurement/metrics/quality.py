"""Metrics of a candidate on held-out rows, by name, and the paired loss against the baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np

from objectives.arrays import Array, Numbers
from objectives.held_out_rows import HeldOut, of_output
from objectives.measurement.metrics.paired_loss import Groups, Mask, Metric, Resampled, UndefinedLossError, paired_loss
from objectives.measurement.statistics import Floats, group_auc, weighted_auc, weighted_mean
from objectives.ranking_metrics import gains, is_ranking
from objectives.records import Quality, SliceQuality

_NO_SLICES: Mapping[str, Mask] = {}


def metric_kind(name: str) -> Literal["pointwise", "ranking"]:
    """Return whether a metric is of scores and labels or of ranks; an unknown name is a ValueError."""
    if name in _POINTWISE:
        return "pointwise"
    if is_ranking(name):
        return "ranking"
    known = ", ".join([*_POINTWISE, "hr@K", "ndcg@K"])
    raise ValueError(f"A metric is one of {known} (K a whole number from 1), but got {name!r}.")


def paired_quality(
    metric: str,
    candidate: Numbers,
    baseline: Numbers,
    labels: Numbers,
    groups: Groups,
    seed: int,
    confidence: float = 0.95,
    slices: Mapping[str, Mask] = _NO_SLICES,
) -> Quality:
    """Evaluate the loss relative to the baseline on the same rows; the bootstrap resamples groups (users) jointly.

    Args:
        candidate, baseline: (n,) scores
        labels: (n,) of 0 and 1
        groups: (n,)
        slices: (n,) masks by name; each is evaluated on its own rows, or has the reason why it cannot be

    Raises:
        ValueError: not a pointwise metric, arrays of different lengths, scores that are not finite, labels other than 0
        and 1, a slice that is not a mask.
        UndefinedLossError: labels of one class, rows of one group, a baseline of 0, too few rows for an interval.
    """
    if metric_kind(metric) != "pointwise":
        raise ValueError(f"The metric of scores and labels is one of {', '.join(_POINTWISE)}, but got {metric!r}.")
    _check_lengths(candidate=candidate, baseline=baseline, labels=labels, groups=groups)
    ours, theirs, truth = (np.asarray(a, dtype=np.float64) for a in (candidate, baseline, labels))
    for name, scores in {"candidate": ours, "baseline": theirs}.items():
        if not np.isfinite(scores).all():
            raise ValueError(f"Scores must be finite, but {int((~np.isfinite(scores)).sum())} of the {name} are not.")
    if not (fine := np.isin(truth, (0, 1))).all():
        raise ValueError(f"Labels must be 0 or 1, but got {truth[~fine][0]:g}.")

    def judged(scores: Floats) -> Metric:
        return lambda kept: _POINTWISE[metric](scores[kept], truth[kept], groups[kept])

    return paired_loss(metric, judged(ours), judged(theirs), groups, seed, confidence, slices)


def paired_ranking(
    metric: str,
    candidate_ranks: Floats,
    baseline_ranks: Floats,
    groups: Groups,
    seed: int,
    confidence: float = 0.95,
    slices: Mapping[str, Mask] = _NO_SLICES,
) -> Quality:
    """Evaluate the loss as `paired_quality` does, from the ranks of held-out items.

    Args:
        candidate_ranks, baseline_ranks: (n,) from 1, as `ranking.ranks` gives them
        groups: (n,)
        slices: by name (n,) masks

    Raises:
        ValueError: not a ranking metric, arrays of different lengths, ranks below 1 or not finite, a slice that is not
            a mask.
        UndefinedLossError: rows of one group, a baseline that has no item within the first K, or too few.
    """
    if metric_kind(metric) != "ranking":
        raise ValueError(f"The metric of ranks is one of hr@K and ndcg@K, but got {metric!r}.")
    _check_lengths(candidate_ranks=candidate_ranks, baseline_ranks=baseline_ranks, groups=groups)
    for name, ranks in {"candidate": candidate_ranks, "baseline": baseline_ranks}.items():
        if not (fine := np.isfinite(ranks) & (ranks >= 1)).all():
            raise ValueError(f"Ranks must be finite and from 1, but the {name} got {ranks[~fine][0]:g}.")

    def judged(ranks: Floats) -> Metric:
        earned = gains(metric, ranks)
        return lambda kept: partial(weighted_mean, earned[kept])

    return paired_loss(metric, judged(candidate_ranks), judged(baseline_ranks), groups, seed, confidence, slices)


def quality_by_output(
    held: HeldOut, candidate: Numbers, baseline: Numbers, quality: Callable[[Numbers, Numbers, HeldOut], Quality]
) -> Quality:
    """Evaluate each column of scores, (n,) or (n, outputs), by its labels: the main output, and the others, or the
    reason why not.
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


def _check_lengths(**arrays: Array) -> None:
    sizes = {name: len(array) for name, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"{', '.join(sizes)} must have the same rows, but got {list(sizes.values())}.")


_POINTWISE: Mapping[str, Callable[[Floats, Floats, Groups], Resampled]] = {"auc": _auc, "gauc": _gauc}
