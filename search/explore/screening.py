"""Which candidates are not worth timing: those that surely lose too much, and those that are outrun at a glance."""

from __future__ import annotations

from collections.abc import Mapping

from objectives.measure.quick_benchmark import QuickBenchmark
from objectives.records import Measurement, Quality
from search.config.loss_limits import Limits
from search.front import loses_no_more

# A glance may be wrong by this much in each of its ratios.
_MARGIN = 1.25
# Objectives that a glance tells nothing of.
UNSEEN = frozenset({"model_bytes", "peak_memory_bytes", "cpu_seconds_per_1000"})


def loses(quality: Quality, limits: Limits) -> str | None:
    """Why a candidate need not be timed for its quality, or None: its whole interval lies beyond the tolerated loss."""
    reason = limits.lost(quality)
    return None if reason is None else f"not timed: {reason}"


def dominated(
    quick_benchmark: QuickBenchmark, loss: float, front: Mapping[int, Measurement], resolution: float
) -> str | None:
    """Why a candidate need not be timed for its speed, or None: it is slower than the baseline, whatever its quality,
    or than a candidate of the front that loses no more as far as the data can show; one by one and saturated, by more
    than a glance errs.

    Args:
        front: by trial, without the baseline. What is itself dominated stops nobody: losses that are equal to its own
            need not be equal to those of the point that dominates it.
    """
    told = (
        f"not timed: at a glance {quick_benchmark.service_ratio:.3g} of the baseline's time and "
        f"{quick_benchmark.saturated_ratio:.3g} of its throughput"
    )
    if _slower(quick_benchmark, 1.0, 1.0):
        return told
    for trial, rival in front.items():
        if not loses_no_more(rival.quality.loss, loss, resolution):
            continue
        most = rival.throughput.capacity_ratio
        if _slower(quick_benchmark, rival.latency.service_p50_ratio, most):
            return f"{told}, where trial {trial} has {rival.latency.service_p50_ratio:.3g} and {most:.3g}"
    return None


def _slower(quick_benchmark: QuickBenchmark, service_ratio: float, saturated_ratio: float) -> bool:
    return (
        quick_benchmark.service_ratio > _MARGIN * service_ratio
        and _MARGIN * quick_benchmark.saturated_ratio < saturated_ratio
    )
