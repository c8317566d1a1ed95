"""Screening of candidates: those with a significantly too large loss, or dominated in a quick benchmark, are not
benchmarked.
"""

from __future__ import annotations

from collections.abc import Mapping

from objectives.measure.quick_benchmark import QuickBenchmark
from objectives.records import Measurement, Quality
from search.config.loss_limits import Limits
from search.front import loses_no_more

# Error margin of a quick benchmark in each of its ratios.
_MARGIN = 1.25
# Objectives that a quick benchmark does not measure.
UNSEEN = frozenset({"model_bytes", "peak_memory_bytes", "cpu_seconds_per_1000"})


def loses(quality: Quality, limits: Limits) -> str | None:
    """Return the reason to prune a candidate for its quality, None to keep it: its whole interval exceeds the tolerated
    loss.
    """
    reason = limits.lost(quality)
    return None if reason is None else f"pruned: {reason}"


def dominated(
    quick_benchmark: QuickBenchmark, loss: float, front: Mapping[int, Measurement], resolution: float
) -> str | None:
    """Return the reason to prune a candidate for its speed, None to keep it: by more than the margin, in service time
    and in saturated throughput, it is slower than the baseline, at any quality, or than a candidate of the front that
    loses no more at the resolution of the data.

    Args:
        front: measurements by trial, without the baseline. A dominated point excludes no candidate: a loss equal to its
            own need not equal that of the point that dominates it.
    """
    told = (
        f"pruned: {quick_benchmark.service_ratio:.3g}x baseline latency and "
        f"{quick_benchmark.saturated_ratio:.3g}x throughput in a quick benchmark"
    )
    if _slower(quick_benchmark, 1.0, 1.0):
        return told
    for trial, rival in front.items():
        if not loses_no_more(rival.quality.loss, loss, resolution):
            continue
        most = rival.throughput.capacity_ratio
        if _slower(quick_benchmark, rival.latency.service_p50_ratio, most):
            ratios = f"{rival.latency.service_p50_ratio:.3g}x and {most:.3g}x"
            return f"{told}; trial {trial} has {ratios} at no higher loss"
    return None


def _slower(quick_benchmark: QuickBenchmark, service_ratio: float, saturated_ratio: float) -> bool:
    return (
        quick_benchmark.service_ratio > _MARGIN * service_ratio
        and _MARGIN * quick_benchmark.saturated_ratio < saturated_ratio
    )
