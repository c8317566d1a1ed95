"""Summary of a played run: the percentiles with enough samples, and their ratios to those of Poisson arrivals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from objectives.measurement.load_generator import BehindError, check_offered
from objectives.measurement.statistics import Floats, fewest_samples, percentile_interval, ratio_of_percentiles
from objectives.measurement.timeline import Played

PERCENTS = (50, 95, 99)
# Number of blocks of the bootstrap; a play of two deployments has a multiple of this many requests.
BLOCKS = 20


def behind(played: Played) -> str | None:
    """Return the reason why a run is no measurement of the model, None where it is one."""
    try:
        check_offered(played.latency_ms, played.lag_ms, played.offered_share)
    except BehindError as error:
        return str(error)
    return None


def percentiles(latency_ms: Floats) -> dict[str, Any]:
    """Return the percentiles by name, null with too few samples or an infinite value; likewise the ends of
    an interval.
    """
    found: dict[str, Any] = {}
    for percent in PERCENTS:
        told = None
        if latency_ms.size >= fewest_samples(percent):
            point, ends = percentile_interval(latency_ms, percent)
            told = {"value": point, "interval": [_finite(end) for end in ends]} if math.isfinite(point) else None
        found[f"p{percent}"] = told
    return found


def beside_poisson(ours: Played, theirs: Played, seed: int) -> dict[str, Any]:
    """Ratios of the percentiles to those of Poisson arrivals at the same rate; null as the percentiles are."""
    blocks = [p.latency_ms.reshape(BLOCKS, -1) for p in (ours, theirs)]
    found: dict[str, Any] = {"latency_ms": percentiles(theirs.latency_ms)}
    for percent in PERCENTS[1:]:
        ratio, ends = None, None
        if ours.latency_ms.size >= fewest_samples(percent):
            # What was refused took for ever, and for ever over for ever is no number.
            with np.errstate(invalid="ignore"):
                point, interval = ratio_of_percentiles(blocks[0], blocks[1], percent, seed)
            if all(math.isfinite(value) for value in (point, *interval)):
                ratio, ends = point, list(interval)
        found |= {f"p{percent}_ratio": ratio, f"p{percent}_ratio_interval": ends}
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
