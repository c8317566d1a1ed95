"""Paired quality of plain arrays: held-out rows that hold nothing else, of scores or of ranks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from objectives.held_out_rows import HeldOut
from objectives.measurement.metrics import quality
from objectives.records import Quality

NO_SLICES: Mapping[str, np.ndarray] = {}


def paired_quality(
    metric: str, candidate: np.ndarray, baseline: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int,
    confidence: float = 0.95, slices: Mapping[str, np.ndarray] = NO_SLICES,
) -> Quality:  # fmt: skip
    return quality.paired_quality(metric, candidate, baseline, HeldOut((), labels, groups, slices), seed, confidence)


def paired_ranking(
    metric: str, candidate: np.ndarray, baseline: np.ndarray, groups: np.ndarray, seed: int, confidence: float = 0.95,
    slices: Mapping[str, np.ndarray] = NO_SLICES,
) -> Quality:  # fmt: skip
    nothing = np.zeros(len(groups), np.int64)
    held = HeldOut((), nothing, groups, slices, seen=nothing[:, None], items=nothing)
    return quality.paired_quality(metric, candidate, baseline, held, seed, confidence)
