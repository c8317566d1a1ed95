"""Screening: candidates that lose too much or are dominated are not benchmarked, and the front's weights are reused."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from objectives.records import Measurement, QuickBenchmark
from search.config.sections import StudyConfig
from search.explore.running_trial import RunningTrial
from search.front import loses_no_more
from search.study import Study
from search.trials import EndedTrial

# Error margin of a quick benchmark in each of its ratios.
_MARGIN = 1.25
# Objectives that a quick benchmark does not measure.
_UNSEEN = frozenset({"model_bytes", "peak_memory_bytes", "cpu_seconds_per_1000"})
# Number of ways to run weights on the front, before new ones are worth more.
_WAYS = 6


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
    rivals = [(told, 1.0, 1.0)]
    for trial, rival in front.items():
        if loses_no_more(rival.quality.loss, loss, resolution):
            service, most = rival.latency.service_p50_ratio, rival.throughput.capacity_ratio
            reason = f"{told}; trial {trial} has {service:.3g}x and {most:.3g}x at no higher loss"
            rivals.append((reason, service, most))
    for reason, service, most in rivals:
        if quick_benchmark.service_ratio > _MARGIN * service and _MARGIN * quick_benchmark.saturated_ratio < most:
            return reason
    return None


@dataclass(frozen=True)
class Screening:
    """Decisions on running trials, by the trials of the study that have ended."""

    config: StudyConfig
    study: Study

    def applies(self, running: RunningTrial) -> bool:
        """Return whether the trial may be stopped early: no reference point, and none before one candidate completed
        every stage."""
        if running.number == 0 or running.reference is not None:
            return False
        candidates = (t for t in self.study.ended() if t.number > 0 and t.reference is None)
        return any(candidate.measurement is not None for candidate in candidates)

    def rejects(self, running: RunningTrial) -> str | None:
        """Return the reason why an evaluated trial is not benchmarked, None where it is: it loses or is dominated; the
        loss of a simple model is too large for an alternative to the baseline."""
        quality, limits = running.quality, self.config.quality.limits
        assert quality is not None
        if running.candidate.weights.reference is not None and not limits.kept(quality):
            return f"pruned: its loss of {quality.loss:.2%} is above the tolerated"
        if not self.applies(running):
            return None
        return f"pruned: {lost}" if (lost := limits.lost(quality)) else self.dominated(running)

    def compares_cost(self, running: RunningTrial) -> bool:
        """Return whether the cost decides if the trial goes on: every objective but quality follows from it."""
        return self.applies(running) and not _UNSEEN & set(self.config.objectives)

    def dominated(self, running: RunningTrial) -> str | None:
        """Return the reason why the trial is dominated, before its evaluation even if it lost nothing."""
        if running.quick_benchmark is None or not self.compares_cost(running):
            return None
        if running.candidate.keeps_model:
            # The search for the best tuned baseline is independent of smaller models.
            kept = {n: m for n, m in self._of_kept_model().items() if n > 0}
            return dominated(running.quick_benchmark, 0.0, kept, math.inf)
        front = {number: m for number, m in self.study.front(self.study.contenders()).items() if number > 0}
        loss = 0.0 if running.quality is None else running.quality.loss
        return dominated(running.quick_benchmark, loss, front, self.study.resolution)

    def least_tried(self, flying: Sequence[str]) -> EndedTrial | None:
        """Return the trial on the front whose weights, with those `flying` (ids), were tried in the fewest precisions
        and placements, which count as much for the cost; None where all were tried in enough."""
        trials = self.study.ended()
        front = self.study.front({number: m for number, m in self.study.contenders().items() if number > 0})
        tried = Counter([*(trial.candidate.weights.id for trial in trials), *flying])
        ways = (trial for trial in trials if trial.number in front and trial.knobs)
        least = min(ways, key=lambda trial: tried[trial.candidate.weights.id], default=None)
        return least if least is not None and tried[least.candidate.weights.id] < _WAYS else None

    def _of_kept_model(self) -> dict[int, Measurement]:
        """Return the measurements of the baseline's own model, by trial."""
        kept = (trial for trial in self.study.ended() if trial.candidate.keeps_model)
        return {trial.number: m for trial in kept if (m := trial.measurement) is not None}
