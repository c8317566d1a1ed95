"""Screening: candidates that lose too much or are dominated are not benchmarked, and the front's weights are reused."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from objectives.records import Measurement
from search.config.sections import StudyConfig
from search.expected_cost import QUALITY, is_expected, is_ratio, refusal, simulated_values
from search.explore.running_trial import RunningTrial
from search.front import Floats, loses_no_more
from search.study import Study
from search.trials import EndedTrial, sought

Ratios = Sequence[float] | Floats

# The least difference that counts, in each objective that is simulated, and what counts as no better in one that is
# known: bytes of a model file before and after training.
_MARGIN, _ALIKE = 1.15, 0.99
# From this share of the deviations, a candidate that is worse with them is not worth its benchmark.
_SURE = 0.9
# Number of ways to run weights on the front, before new ones are worth more.
_WAYS = 6


@dataclass(frozen=True)
class Rival:
    """Ratios of a trial to the baseline in all objectives but quality, lower is better, and its loss.

    measured: whether they are expected of a measured trial, and not of a simulated one
    """

    trial: int
    values: Ratios
    loss: float
    measured: bool = True


def dominated(
    expected: Ratios,
    loss: float,
    rivals: Sequence[Rival],
    objectives: Sequence[str],
    resolution: float,
    deviations: Floats,
) -> str | None:
    """Return the reason to prune a candidate for its cost, None to keep it.

    It is pruned if, with at least nine of ten deviations, it is worse by more than the margin in all objectives but
    quality, or no better where one is known: than the baseline, at any quality, or than a rival that loses no more at
    the resolution of the data.

    Args:
        expected: ratios to the baseline in these objectives but quality, lower is better
        rivals: of the front, without the baseline, and of candidates that wait to be benchmarked. A dominated point
            excludes no candidate: a loss equal to its own need not equal that of the point that dominates it.
        deviations: errors of the simulation of others, as logarithms, (n, objectives but quality); this one may be as
            far off
    """
    others = [name for name in objectives if name != QUALITY]
    possible = np.multiply(expected, np.exp(deviations))
    told = f"pruned: simulated at {_words(others, expected)} of the baseline"
    worse = _worse(possible, np.ones(len(others)), others)
    if worse.mean() >= _SURE:
        return told
    by = ["the baseline"] if worse.any() else []
    for rival in rivals:
        if not loses_no_more(rival.loss, loss, resolution):
            continue
        # Of two that were simulated, each has a deviation of its own.
        its_own = 0.0 if rival.measured else np.roll(deviations, len(deviations) // 2, axis=0)
        than_rival = _worse(possible, np.multiply(rival.values, np.exp(its_own)), others)
        if than_rival.mean() >= _SURE:
            how = "expected" if rival.measured else "simulated"
            return f"{told}; trial {rival.trial} is {how} at {_words(others, rival.values)} at no higher loss"
        if than_rival.any():
            worse |= than_rival
            by.append(f"trial {rival.trial}")
    if worse.mean() >= _SURE:
        share = f"with {worse.mean():.0%} of the errors of simulations"
        return f"{told}; {share}, {' or '.join(by)} is better at no higher loss"
    return None


def _worse(ours: Floats, theirs: Floats, objectives: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Return in which rows of ratios, (n, objectives), one is worse than another, and better in none: (n,)."""
    least = np.array([_MARGIN if is_ratio(name) else _ALIKE for name in objectives])
    worse: npt.NDArray[np.bool_] = np.all(ours >= least * theirs, axis=1) & np.any(ours > _MARGIN * theirs, axis=1)
    return worse


def _words(objectives: Sequence[str], values: Ratios) -> str:
    """Tell ratios to the baseline: `0.22x p95 and 3.4x throughput`."""
    parts = []
    for name, value in zip(objectives, values, strict=True):
        what = "bytes" if name == "model_bytes" else name.removeprefix("latency_")
        rate = name in ("throughput", "money_per_million")
        parts.append(f"{1 / value:.3g}x throughput" if rate else f"{value:.3g}x {what}")
    return " and ".join(dict.fromkeys(parts))


@dataclass(frozen=True)
class Screening:
    """Decisions on running trials, by the trials of the study that have ended."""

    config: StudyConfig
    study: Study

    def applies(self, running: RunningTrial) -> bool:
        """Return whether the trial may be stopped early.

        Neither the baseline nor a reference point may, nor any trial before one candidate completed every stage.
        """
        if running.number == 0 or running.reference is not None:
            return False
        return any(trial.number > 0 and trial.reference is None for trial in self.study.measured_trials())

    def reject_above(self, running: RunningTrial) -> float | None:
        """Return the loss beyond which that of a trial need not be known exactly, None where it must be."""
        return self.config.quality.limits.max_loss if self.applies(running) else None

    def rejects(self, running: RunningTrial, waiting: Sequence[RunningTrial] = ()) -> str | None:
        """Return the reason why an evaluated trial is not benchmarked, None where it is.

        The trial loses too much for the front, or another one, which may itself wait for its benchmark, equals or
        dominates it. A simple model is rejected where its loss is too large for an alternative to the baseline.
        """
        assert running.quality is not None
        applies, violated = self.applies(running), self.config.quality.limits.violated(running.quality)
        if violated and (applies or running.candidate.weights.reference is not None):
            return f"pruned: {violated}"
        return self.equalled(running, waiting) or self.dominated(running, waiting) if applies else None

    def equalled(self, running: RunningTrial, waiting: Sequence[RunningTrial] = ()) -> str | None:
        """Return the reason why an evaluated trial need not be benchmarked, None where it must be.

        The reason is a trial of the same cost, which differs in its training only, may be on the front, and loses no
        more at the resolution of the data.
        """
        assert running.quality is not None
        untrained, loss, resolution = running.candidate.untrained, running.quality.loss, self.study.resolution
        ended, able = [t for t in self.study.measured_trials() if not t.reference], self.study.contenders()
        alike = [
            (t.number, able[t.number].quality) for t in ended if t.number in able and t.candidate.untrained == untrained
        ]
        alike += [(f.number, f.quality) for f in waiting if f.quality and f.candidate.untrained == untrained]
        for number, quality in alike:
            if loses_no_more(quality.loss, loss, resolution):
                return f"pruned: trial {number} differs in its training only, and loses no more"
        return None

    def compares_cost(self, running: RunningTrial) -> bool:
        """Return whether the cost decides if the trial goes on: every objective but quality follows from it."""
        return self.applies(running) and is_expected(self.config.objectives)

    def dominated(
        self, running: RunningTrial, waiting: Sequence[RunningTrial] = (), least_loss: float = 0.0
    ) -> str | None:
        """Return the reason why the trial is dominated; before its evaluation, if it loses no more than the least."""
        objectives = self.config.objectives
        if not self.compares_cost(running) or (expected := self.expected(running)) is None:
            return None
        if running.simulated is not None and (refused := refusal(running.simulated, objectives)):
            return f"pruned: {refused}"
        others = [name for name in objectives if name != QUALITY]
        front = {n: m for n, m in self.study.expected_front(self.study.contenders()).items() if n > 0}
        loss, resolution = least_loss if running.quality is None else running.quality.loss, self.study.resolution
        if running.candidate.keeps_model:
            # The search for the best tuned baseline is independent of smaller models.
            front = {number: m for number, m in self._of_kept_model().items() if number > 0}
            waiting = [rival for rival in waiting if rival.candidate.keeps_model]
            loss, resolution = 0.0, math.inf
        baseline = self._baseline(others)
        costs = self.study.expected_costs()
        rivals = [Rival(number, costs.measured[number] / baseline, m.quality.loss) for number, m in front.items()]
        for rival in waiting:
            if rival.quality is not None and (values := self.expected(rival)) is not None:
                rivals.append(Rival(rival.number, values / baseline, rival.quality.loss, measured=False))
        return dominated(expected / baseline, loss, rivals, objectives, resolution, costs.deviations)

    def expected(self, running: RunningTrial) -> Floats | None:
        """Return the expected values of all objectives but quality, None where one is not known.

        Lower is better. The simulated values are corrected by what others measured.
        """
        if running.simulated is None:
            return None
        simulated = simulated_values(running.simulated, tuple(self.config.objectives))
        return None if simulated is None else np.multiply(simulated, self.study.expected_costs().correction)

    def by_promise(self, waiting: Sequence[RunningTrial]) -> list[RunningTrial]:
        """Sort the trials that wait for their benchmark, the most promising first.

        The baseline comes first, since without it a study has not begun. Trials of which nothing was simulated follow,
        then the others by the product of their expected values.
        """

        def promise(one: RunningTrial) -> tuple[bool, float]:
            expected = self.expected(one)
            return one.number > 0, 0.0 if expected is None else math.prod(expected)

        return sorted(waiting, key=promise)

    def least_tried(self, running: Sequence[str]) -> EndedTrial | None:
        """Return the trial on the front whose weights were tried least, None where all were tried enough.

        Its weights were tried in the fewest precisions and placements, which count as much for the cost. Trials that
        are `running`, given by the ids of their weights, count as well.
        """
        trials = self.study.ended()
        front = self.study.expected_front({n: m for n, m in self.study.contenders().items() if n > 0})
        tried = Counter([*(trial.candidate.weights.id for trial in trials), *running])
        ways = (trial for trial in trials if trial.number in front and trial.knobs)
        least = min(ways, key=lambda trial: tried[trial.candidate.weights.id], default=None)
        return least if least is not None and tried[least.candidate.weights.id] < _WAYS else None

    def _baseline(self, others: Sequence[str]) -> Floats:
        """Return the baseline's values of the objectives but quality, 1 where they are ratios to it."""
        own = sought(self.study.measured()[0], others)
        return np.array([1.0 if is_ratio(name) else value for name, value in zip(others, own, strict=True)])

    def _of_kept_model(self) -> dict[int, Measurement]:
        """Return the measurements of the baseline's own model, by trial."""
        kept = (trial for trial in self.study.measured_trials() if trial.candidate.keeps_model)
        return {trial.number: m for trial in kept if (m := trial.measurement) is not None}
