"""Running trials of a study, and which of them advances next."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from optuna.trial import Trial

from objectives.jobs.requests import ScoreResponse
from objectives.records import Artifact, EarlyLoss, Quality, SimulatedRatios
from search.study import EXPECTED_LOSS
from search.workers.meter_jobs import CurvePart
from search.workers.processes import Worker
from spaces.candidate import Candidate

# The cost of new weights is simulated before they are trained, from a service curve for each instance group. A training
# may be judged after its first epochs; before that of a slice, its elastic network is trained. Evaluation is one stage,
# or two with a custom metric.
Stage = Literal[
    "export_untrained", "curve", "fit_network", "fit_early", "export_early", "evaluate_early", "fit", "export",
    "evaluate", "score", "custom_metric", "benchmark",
]  # fmt: skip
# The shorter ones first; of fits, that which others wait for.
BUILDING: tuple[Stage, ...] = (
    "custom_metric", "export_untrained", "evaluate_early", "evaluate", "score", "export_early", "export",
    "fit_network", "fit_early", "fit",
)  # fmt: skip
# Evaluation of many users takes as long as training.
LONG: tuple[Stage, ...] = (
    "fit_network", "fit_early", "evaluate_early", "fit", "evaluate", "score", "custom_metric",
)  # fmt: skip
FITS: tuple[Stage, ...] = ("fit_network", "fit_early", "fit")
# Stages that have the machine to themselves.
TIMING: tuple[Stage, ...] = ("benchmark", "curve")


@dataclass
class RunningTrial:
    """A trial that is being carried through the stages.

    repeated: whether a job of it was killed and begun once more
    """

    trial: Trial
    candidate: Candidate
    stage: Stage
    seconds: dict[str, float] = field(default_factory=dict)
    reused: list[str] = field(default_factory=list)
    worker: Worker | None = None
    untrained: Artifact | None = None
    artifact: Artifact | None = None
    early: EarlyLoss | None = None
    quality: Quality | None = None
    curve_part: CurvePart | None = None
    simulated: SimulatedRatios | None = None
    scored: ScoreResponse | None = None
    repeated: bool = False

    @property
    def number(self) -> int:
        return self.trial.number

    @property
    def reference(self) -> str | None:
        """Name of the reference point that the trial measures."""
        name: str | None = self.trial.user_attrs.get("reference")
        return name

    @property
    def expected_loss(self) -> float | None:
        """Loss that the sampler expected of the candidate."""
        loss: float | None = self.trial.user_attrs.get(EXPECTED_LOSS)
        return loss

    @property
    def early_candidate(self) -> Candidate | None:
        """The candidate after the first epochs of its training; None where it cannot be judged then."""
        weights = self.candidate.weights.early
        return None if weights is None else replace(self.candidate, weights=weights)

    @property
    def waiting(self) -> bool:
        """Return whether the trial waits for its benchmark, which is made of several together."""
        return self.stage == "benchmark" and self.worker is None


def next_job(running_trials: Sequence[RunningTrial], builders_idle: int, meter_idle: bool) -> RunningTrial | None:
    """Select the trial to advance by itself, the oldest within its stage.

    Measuring comes before building, and short stages come before fits. Two fits of the same weights, after any number
    of cycles, never run together; slices wait while their elastic network is trained.
    """
    waiting = [f for f in running_trials if f.worker is None]
    fitting = {_fitted(f) for f in running_trials if f.worker is not None and f.stage in FITS}
    measuring = (f for f in waiting if meter_idle and f.stage == "curve")
    free = [f for f in waiting if builders_idle and not (f.stage in FITS and _fitted(f) in fitting)]
    if builders_idle < 2 and any(f.worker is not None and f.stage == "fit_network" for f in running_trials):
        free = [f for f in free if f.stage != "fit_network"]  # the last builder is for other trials
    building = (f for stage in BUILDING for f in free if f.stage == stage)
    return next(itertools.chain(measuring, building), None)


def waiting_for_network(running_trials: Sequence[RunningTrial]) -> list[RunningTrial]:
    """Return the trials that cannot go on before an elastic network is trained.

    They are those whose jobs train one, and further slices, of another network too. There are none where no network is
    being trained.
    """
    of_networks = [running for running in running_trials if running.stage == "fit_network"]
    return of_networks if any(running.worker is not None for running in of_networks) else []


def _fitted(running: RunningTrial) -> str:
    """Identify what a fit trains: the weights, or an elastic network of students or of pruned models."""
    weights = running.candidate.weights
    return weights.origin if running.stage == "fit_network" else weights.first_cycle.id
