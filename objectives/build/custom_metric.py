"""Evaluation of the user's own metric on scores that were written before."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from objectives.arrays import Numbers
from objectives.held_out_rows import HeldOut, read_held_out
from objectives.jobs.requests import CustomMetricRequest
from objectives.measurement.metrics.paired_loss import Mask, Resampled, content_key, paired_loss
from objectives.measurement.metrics.quality import quality_by_output
from objectives.measurement.statistics import Floats
from objectives.recommenders.protocol import Recommender
from objectives.records import Quality


def evaluate_custom_metric(recommender: Recommender, asked: CustomMetricRequest) -> Quality:
    """Evaluate the custom metric on files of scores; the counterpart of `objectives.build.evaluate.evaluate`.

    Raises:
        ValueError: the user's function fails.
        UndefinedLossError: the metric is 0 or undefined for the baseline, or undefined on too many resamples.
    """
    held, theirs = read_held_out(Path(asked.holdout), asked.part), np.load(asked.scored.baseline)
    quality = partial(custom_metric, recommender, seed=asked.seed, confidence=asked.confidence)
    found = (quality_by_output(np.load(path), theirs, held, quality) for path in asked.scored.candidates)
    return max(found, key=lambda each: each.loss)


def custom_metric(
    recommender: Recommender, candidate: Numbers, baseline: Numbers, held: HeldOut, seed: int, confidence: float
) -> Quality:
    """Return the paired quality of scores, (n,) each, by the custom metric."""

    def metric(scores: Numbers, mask: Mask) -> Resampled:
        columns = scores[mask], held.labels[mask], held.groups[mask]
        return lambda weights: np.array([_value(recommender, columns, row) for row in weights.T])

    ours, theirs = (partial(metric, scores) for scores in (candidate, baseline))
    key = content_key(f"{recommender.key} {recommender.metric}", baseline, held.labels, held.groups, held.slices)
    return paired_loss(recommender.metric, ours, theirs, held.groups, seed, confidence, held.slices, key)


def _value(recommender: Recommender, columns: tuple[Numbers, ...], row: Floats) -> float:
    """Evaluate the metric on rows repeated as often as they were drawn; a group drawn twice counts as two groups."""
    times = row.astype(np.int64)
    picks = np.repeat(np.arange(len(times)), times)
    if not len(picks):
        return float("nan")
    copies = np.arange(len(picks)) - np.repeat(np.cumsum(times) - times, times)
    scores, labels, groups = (column[picks] for column in columns)
    return recommender.evaluate_custom_metric(scores, labels, groups * int(times.max()) + copies)
