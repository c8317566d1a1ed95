"""A loss between two ways of training, over several trainings of each: the luck of a seed is part of the interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, variance

from objectives.records import Interval, Quality, SliceQuality
from spaces.candidate import Candidate

SEEDS = 3


def seeds_of(ours: Candidate, theirs: Candidate) -> int:
    """Trainings that a comparison of quality takes: one where both sides hold the same weights."""
    return 1 if ours.weights == theirs.weights else SEEDS


def over_seeds(found: Sequence[Quality]) -> Quality:
    """Average trainings that differ only in their seed, `SEEDS` or a single one, evaluated on the same rows.

    The rows are one source of error and the seeds another. The rows are the same for all seeds, so their half of the
    interval is the mean of the bootstrap's, in squares; that of the seeds is Student's. Being independent, both halves
    add in squares.
    """
    if len(found) == 1:
        return found[0]
    if len(found) != SEEDS:
        raise ValueError(f"A loss is told over 1 or {SEEDS} seeds, but got {len(found)}.")
    first = found[0]
    return replace(
        first,
        value=fmean(q.value for q in found),
        baseline=fmean(q.baseline for q in found),
        loss=fmean(q.loss for q in found),
        loss_interval=_interval([q.loss for q in found], [q.loss_interval for q in found], first.confidence),
        slices=_parts([q.slices for q in found], first.confidence),
        others=_parts([q.others for q in found], first.confidence),
    )


def _parts(found: Sequence[Sequence[SliceQuality]], confidence: float) -> tuple[SliceQuality, ...]:
    return tuple(_part(parts, confidence) for parts in zip(*found, strict=True))


def _part(found: Sequence[SliceQuality], confidence: float) -> SliceQuality:
    """Combine one part's qualities; a part that is undefined for one seed has that seed's reason."""
    losses = [part.loss for part in found if part.loss is not None]
    intervals = [part.loss_interval for part in found if part.loss_interval is not None]
    if len(losses) < len(found):
        return next(part for part in found if part.loss is None)
    return replace(
        found[0],
        value=fmean(part.value for part in found if part.value is not None),
        baseline=fmean(part.baseline for part in found if part.baseline is not None),
        loss=fmean(losses),
        loss_interval=_interval(losses, intervals, confidence),
    )


def _interval(losses: Sequence[float], intervals: Sequence[Interval], confidence: float) -> Interval:
    # The upper quantile of Student's t with two degrees of freedom, SEEDS - 1, has a closed form.
    tail = (1 - confidence) / 2
    student = (1 - 2 * tail) / math.sqrt(2 * tail * (1 - tail))
    middle, seeds = fmean(losses), student * math.sqrt(variance(losses) / SEEDS)
    below = fmean((loss - low) ** 2 for loss, (low, _) in zip(losses, intervals, strict=True))
    above = fmean((high - loss) ** 2 for loss, (_, high) in zip(losses, intervals, strict=True))
    return middle - math.hypot(math.sqrt(below), seeds), middle + math.hypot(math.sqrt(above), seeds)
