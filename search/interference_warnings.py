"""Warnings about the conditions of a benchmark, in sentences."""

from __future__ import annotations

from objectives.measurement.interference import BUSY
from objectives.records import Latency
from search.format import percent, ranged, times

_DRIFT = 1.5
_LATE = 0.1
# Ratio of an interval's ends from which it is uninformative.
_WIDE = 1.5


def interference_warnings(latency: Latency) -> list[str]:
    """Sentences on a wide interval, other processes, a machine that changed its speed, and a late load generator."""
    found = []
    low, high = latency.p95_ratio_interval
    if high > _WIDE * low:
        found.append(
            f"the interval of the p95 ratio, [{low:.3f}, {high:.3f}], is wide: rely on the service p50 ratio, "
            f"{ranged(latency.service_p50_ratio, latency.service_p50_ratio_interval)}, and on the capacity ratio"
        )
    if latency.p95_ratio_all is not None and not low <= latency.p95_ratio_all <= high:
        found.append(
            f"over all {latency.pairs} pairs of blocks, the disturbed ones too, the p95 ratio is "
            f"{latency.p95_ratio_all:.3f}, outside the interval [{low:.3f}, {high:.3f}] of the {latency.blocks} kept"
        )
    if latency.busy_share > BUSY:
        found.append(f"other processes took {percent(latency.busy_share)} of a core meanwhile")
    if latency.drift > _DRIFT:
        found.append(f"the baseline's own time changed {times(latency.drift)} within a visit")
    if latency.lateness > _LATE:
        found.append(
            f"the load generator was late by {percent(latency.lateness)} of the p95, which counts as latency: leave it "
            "a core, or lower the load"
        )
    return found
