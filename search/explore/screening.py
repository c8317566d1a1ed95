"""Screening of candidates: those with a significantly too large loss, or dominated in a quick benchmark, are not
benchmarked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from objectives.measure.quick_benchmark import QuickBenchmark
from objectives.records import Measurement, Quality
from search.config.loss_limits import Limits
from search.config.sections import StudyConfig
from search.explore.reference_points import cost
from search.explore.running_trial import RunningTrial
from search.front import loses_no_more
from search.study import Study, candidate_of, front_of, measured, outcome_of, reference_of

# Error margin of a quick benchmark in each of its ratios.
_MARGIN = 1.25
# Objectives that a quick benchmark does not measure.
_UNSEEN = frozenset({"model_bytes", "peak_memory_bytes", "cpu_seconds_per_1000"})
# Seconds of evaluation from which the quick benchmark comes before it.
_LONG_EVALUATION = 10.0


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


@dataclass(frozen=True)
class Screening:
    """Decisions on running trials, by the trials of the study that have ended."""

    config: StudyConfig
    study: Study

    def applies(self, running: RunningTrial) -> bool:
        """Return whether the trial may be stopped early: not before one candidate completed every stage, since it and
        the baseline are the references. A reference point is always measured.
        """
        if running.number == 0 or running.reference is not None:
            return False
        candidates = [t for t in self.study.finished() if t.number > 0 and reference_of(t) is None]
        return bool(measured(candidates))

    def rejects(self, running: RunningTrial) -> str | None:
        """Return the reason why an evaluated trial is not benchmarked, None where it is: it loses or is dominated; the
        loss of a simple model is too large for an alternative to the baseline.
        """
        quality, limits = running.quality, self.config.quality.limits
        assert quality is not None
        if running.candidate.weights.reference is not None and not limits.kept(quality):
            return f"pruned: its loss of {quality.loss:.2%} is above the tolerated"
        return loses(quality, limits) or self.dominated(running) if self.applies(running) else None

    def benchmarks_first(self, running: RunningTrial) -> bool:
        """Return whether the quick benchmark comes before a long evaluation, so that candidates slower than the
        baseline need not be evaluated. Cached scores do not count for the duration.
        """
        if not self.applies(running) or _UNSEEN & set(self.config.objectives):
            return False
        outcomes = filter(None, map(outcome_of, self.study.finished()))
        return any("judge" not in o.reused and o.seconds.get("judge", 0.0) >= _LONG_EVALUATION for o in outcomes)

    def dominated(self, running: RunningTrial) -> str | None:
        """Return the reason why the trial is dominated, as far as known: before its evaluation, by the
        baseline only.
        """
        if running.quick_benchmark is None or _UNSEEN & set(self.config.objectives):
            return None
        if running.quality is None:
            return dominated(running.quick_benchmark, 0.0, {}, 0.0)
        if running.candidate.keeps_model:
            # The search for the best tuned baseline is independent of smaller models.
            kept = {n: m for n, m in self._of_kept_model().items() if n > 0}
            return dominated(running.quick_benchmark, 0.0, kept, math.inf)
        able = self._able()
        on_front = front_of(list(able.values()), self.config.objectives, self.study.resolution)
        front = {number: able[number] for number, kept in zip(able, on_front, strict=True) if kept and number > 0}
        return dominated(running.quick_benchmark, running.quality.loss, front, self.study.resolution)

    def _able(self) -> dict[int, Measurement]:
        """Return the measurements within the tolerated losses, by trial."""
        limits = self.config.quality.limits
        return {n: m for n, m in measured(self.study.finished()).items() if limits.kept(m.quality)}

    def _of_kept_model(self) -> dict[int, Measurement]:
        """Return the measurements of the baseline's own model, by trial."""
        kept = [t for t in self.study.finished() if (c := candidate_of(t)) is not None and c.keeps_model]
        return measured(kept)

    def worth_longer(self, running: RunningTrial, measurement: Measurement) -> bool:
        """Return whether the trial may be a point of comparison: of the front, or a reference."""
        if running.reference is not None or self._would_enter(measurement):
            return True
        if not running.candidate.keeps_model:
            return False
        known = [cost(m.latency.p95_ratio, m.throughput.ratio) for m in self._of_kept_model().values()]
        return cost(measurement.latency.p95_ratio, measurement.throughput.ratio) < min(known, default=math.inf)

    def _would_enter(self, measurement: Measurement) -> bool:
        """Return whether a screened point is feasible and not dominated by a measured one, and so needs a longer
        measurement.
        """
        if not self.config.quality.limits.kept(measurement.quality):
            return False
        return front_of([measurement, *self._able().values()], self.config.objectives, self.study.resolution)[0]
