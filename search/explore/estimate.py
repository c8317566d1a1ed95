"""Estimates of the trials that a budget holds, and of what a search gains in the time that is left.

The number of trials is a range, since the number of those stopped early is known only afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from objectives.records import Interval, Outcome
from search.format import count

# An export of untrained weights, and their service curve, with the model opened and warmed up.
COST_SECONDS = 2.0
# Share of stopped trials before the study has shown its own: at least none; in long searches 93% were.
_STOPPED = (0.0, 0.95)
# Share of trials that train: others reuse trained weights, or cost too much to be trained.
_TRAINED = (1.0, 0.1)
# Number of trials from which the study's own are more informative.
_ENOUGH = 20
# Least share of the time after which the gain of the rest is estimated: no more than two doublings ahead.
_LEAST_SHARE = 1 / 4


@dataclass(frozen=True)
class StageSeconds:
    """Seconds that a trial spends in each stage: those of the builders, evaluation, cost and benchmark."""

    fit: float
    export: float
    evaluate: float
    cost: float
    time: float


@dataclass(frozen=True)
class TrialRange:
    """Range of the number of trials in a budget."""

    fewest: int
    most: int

    @property
    def sentence(self) -> str:
        return count(self.fewest, "trial") if self.fewest == self.most else f"{self.fewest} to {self.most} trials"


def trials_in(seconds: float, stages: StageSeconds, builders: int, stopped: Interval | None = None) -> TrialRange:
    """Estimate the number of trials in a budget of seconds.

    Builders work side by side, and while candidates are evaluated; a benchmark has the machine to itself.

    Args:
        stopped: the share of trials stopped before they are benchmarked, as this study has shown it, `stages` then
            being means over its trials; None while it has not
    """
    low, high = _STOPPED if stopped is None else stopped
    few, many = _TRAINED if stopped is None else (1.0, 1.0)

    def trials(share: float, trained: float) -> int:
        beside = max((trained * stages.fit + stages.export) / builders, stages.evaluate)
        alone = stages.cost + (1 - share) * stages.time
        return max(1, round(seconds / (beside + alone)))

    return TrialRange(trials(low, few), trials(high, many))


@dataclass(frozen=True)
class Observed:
    """Observed trials of a study: mean seconds of each stage, and the share stopped early with its 95% interval."""

    stages: StageSeconds
    stopped: float
    stopped_interval: Interval


def observed(outcomes: Sequence[Outcome]) -> Observed | None:
    """Summarise trials that were built; None while they are too few, or none was stopped or measured."""
    built = [outcome for outcome in outcomes if outcome.informative]
    stopped, measured = ([o for o in built if o.state == state] for state in ("stopped", "complete"))
    if len(built) < _ENOUGH or not stopped or not measured:
        return None

    def mean(stage: str, of: Sequence[Outcome]) -> float:
        return sum(outcome.seconds.get(stage, 0.0) for outcome in of) / len(of)

    cost, network, fit, export, evaluate = (
        mean(stage, built) for stage in ("cost", "network", "fit", "export", "judge")
    )
    stages = StageSeconds(network + fit, export, evaluate, cost, mean("time", measured))
    share = len(stopped) / len(built)
    sway = 1.96 * math.sqrt(share * (1 - share) / len(built))
    return Observed(stages, share, (max(0.0, share - sway), min(1.0, share + sway)))


def remaining_gain(reached: float, at_half: float, spent_seconds: float, seconds: float) -> float | None:
    """Return the hypervolume that the rest of a search is expected to add; None in the first quarter of its time.

    Every doubling of the time is expected to add as much as the last one did, since a search finds large gains first.

    Args:
        reached: hypervolume of the points found so far, within the unit cube
        at_half: hypervolume of those that were found in the first half of the time that is spent
        spent_seconds, seconds: of the search, so far and in all
    """
    if spent_seconds <= max(0.0, _LEAST_SHARE * seconds):
        return None
    doublings = math.log2(max(1.0, seconds / spent_seconds))
    return max(0.0, min(doublings * (reached - at_half), 1.0 - reached))


def stages_reached(outcomes: Sequence[Outcome]) -> str:
    """Return how many candidates' cost is known, and how many were evaluated and benchmarked, in words."""
    costed = sum(outcome.informative for outcome in outcomes)
    evaluated = sum(outcome.evaluated is not None for outcome in outcomes)
    return f"{costed} costed, {evaluated} evaluated, {sum(o.measurement is not None for o in outcomes)} benchmarked"
