"""Early stopping: after the first epochs of a training, whether it goes on, by how others ended after theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from scipy.stats import theilslopes

from objectives.records import EarlyLoss, Outcome
from search.explore.running_trial import RunningTrial
from search.explore.screening import Screening
from search.study import Study
from search.trials import EndedTrial

# Trainings that were evaluated early and ended, before one is stopped, and those that count, the last ones.
_FEWEST, _MOST = 8, 300
# Share of them that ended better than what is held against a training.
_BEST = 0.1
# One in so many trainings that would be stopped goes on, which tells how often stopping is wrong.
_GOES_ON = 10


@dataclass(frozen=True)
class EarlyStopping:
    """Decisions after the first epochs of a training.

    cycles: most cycles that a training may have
    """

    study: Study
    screening: Screening
    cycles: int = 1

    def applies(self, running: RunningTrial) -> bool:
        """Return whether a trial's training is evaluated early.

        This holds where it may be stopped, and that is expected to save more seconds than the evaluation takes.
        """
        early = running.candidate.weights.early
        if early is None or early.distillation is None or not self.screening.applies(running):
            return False
        if not self.screening.config.space.distillation.early_stopping:
            return False
        learning = early.distillation
        one_cycle = [t.outcome for t in self.study.ended() if len(t.candidate.weights.trainings) == 1]
        return saves(one_cycle, 1 - learning.stopped_after / learning.epochs)

    def decide(
        self, running: RunningTrial, loss: float, waiting: Sequence[RunningTrial]
    ) -> tuple[EarlyLoss, str | None]:
        """Return what a loss after the first epochs tells, and the reason if the training is stopped for it."""
        ended = self.study.ended()
        outcomes = [trial.outcome for trial in ended]
        pairs = [(o.early.loss, q.loss) for o in outcomes if o.early is not None and (q := o.evaluated) is not None]
        expected = loss_at_the_end(pairs, loss)
        if expected is None:
            return EarlyLoss(loss), None
        middle, least = expected
        lowest = least * remaining_share(ended, self.cycles) if least > 0 else least
        reason = self._prunes(running, lowest, waiting)
        found = EarlyLoss(loss, middle, least, reason is not None)
        if reason is None or goes_on(running.candidate.weights.id):
            return found, None
        at_best = f"at best {max(0.0, lowest):.2%} is expected" + (" after further cycles" if lowest < least else "")
        return found, f"pruned: lost {loss:.2%} after its first epochs, and {at_best}; {reason}"

    def _prunes(self, running: RunningTrial, least: float, waiting: Sequence[RunningTrial]) -> str | None:
        tolerated = self.screening.config.quality.max_loss
        if least > tolerated:
            return f"{tolerated:.2%} is tolerated"
        reason = self.screening.dominated(running, waiting, max(0.0, least))
        return None if reason is None else reason.removeprefix("pruned: ")


def loss_at_the_end(pairs: Sequence[tuple[float, float]], loss: float) -> tuple[float, float] | None:
    """Return the expected and the least loss at the end of a training, None before there are enough pairs.

    A line is fitted through others' losses, (early, at the end); its slope is the median of all slopes (Theil and Sen).
    The expected loss adds the median deviation from the line, the least loss the 10% quantile of the deviations.
    """
    if len(pairs) < _FEWEST:
        return None
    early, final = np.array(pairs[-_MOST:]).T
    slope = 0.0 if np.ptp(early) == 0 else max(0.0, float(theilslopes(final, early).slope))
    deviations = final - slope * early
    middle, least = np.quantile(deviations, (0.5, _BEST))
    return float(slope * loss + middle), float(slope * loss + least)


def remaining_share(ended: Sequence[EndedTrial], cycles: int) -> float:
    """Return the share of the loss after the first cycle that may remain after the last one, 0 to 1.

    Each further cycle counts as one that gained more than nine in ten that were seen, as a share of the loss before it,
    without quantization-aware training. Where none was seen, nothing need remain.
    """
    if cycles == 1:
        return 1.0
    plain = [t for t in ended if not t.candidate.weights.quantization_aware]
    losses = {(t.candidate.weights, t.candidate.precision): q.loss for t in plain if (q := t.outcome.evaluated)}
    shares = [
        min(max(loss / shorter, 0.0), 1.0)
        for (weights, precision), loss in losses.items()
        if weights.previous is not None and (shorter := losses.get((weights.previous, precision), 0.0)) > 0
    ]
    return float(np.quantile(shares, _BEST, method="lower")) ** (cycles - 1) if shares else 0.0


def goes_on(weights: str) -> bool:
    """Return whether a training that would be stopped goes on, by its weights' id: the same whenever it is asked."""
    return int(weights[1:], 16) % _GOES_ON == 0


def saves(outcomes: Sequence[Outcome], left: float) -> bool:
    """Return whether an early evaluation is expected to save seconds.

    Seconds are saved if the share of the trainings whose trial was stopped afterwards, times their mean seconds and the
    share of them that is `left`, exceeds the seconds of an export and an evaluation. Trainings that were evaluated
    early do not count, since their seconds are of both.
    """
    whole = [o for o in outcomes if o.early is None]
    trained = [o for o in whole if o.seconds.get("fit", 0.0) > 0 and "fit" not in o.reused]
    if not trained:
        return False
    stopped = (sum(o.state == "stopped" for o in trained) + 1) / (len(trained) + 2)
    evaluating = fmean(o.seconds.get("export", 0.0) + o.seconds.get("judge", 0.0) for o in trained)
    return stopped * left * fmean(o.seconds["fit"] for o in trained) > evaluating
