"""Expected seconds of the stages of a candidate, by what they took in the trials that ended."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from statistics import fmean

import numpy as np

from objectives.records import Outcome
from search.front import Floats
from search.samplers.encoded import Encoded
from search.samplers.gaussian_process import GaussianProcess
from search.workers.meter_jobs import SHAPES_IN_STEP

# Most seconds of a fit that only read what was trained.
_REUSED = 0.5
# Fewest trainings whose seconds are modelled by what is trained.
_FEWEST_FITS = 4


class ExpectedSeconds:
    """Expected seconds of the stages of candidates.

    A stage whose output is known takes none, but for the evaluation of known scores; others take as long as in the mean
    of the trials, and a training as long as a model of its knobs expects. A second in which a deployment is measured
    counts for each builder, since they all stand still.
    """

    def __init__(
        self, runs: Sequence[tuple[Encoded, Outcome]], costed: Sequence[Encoded], builders: int, seed: int
    ) -> None:
        """Take what is known.

        Args:
            runs: the trials that ended, by number
            costed: those whose cost is known
            seed: of the model of the trainings
        """
        self._builders, self._seed = builders, seed
        built = [of for of, outcome in runs if outcome.artifact is not None]
        self._trained = {training for of in built for training in of.trainings}
        self._exported = {of.variant for of in built}
        self._networks = {of.network for of in built}
        self._scored = {scores for of, outcome in runs if outcome.evaluated is not None for scores in of.scores}
        self._graphs = {of.graph for of in costed}
        self._curves = {(of.graph, part) for of in costed for part in of.parts}
        self._stages = _stages(runs)
        means = {stage: fmean(seconds for _, seconds in runs) for stage, runs in self._stages.items()}
        self._means: Mapping[str, float] = defaultdict(lambda: 1.0, means)

    def __call__(self, candidates: Sequence[Encoded]) -> tuple[Floats, Floats, Floats]:
        """Return the seconds until the cost is known, from training to evaluation, and of the benchmark, (n,) each."""
        builds = zip(candidates, self._fits(candidates), strict=True)
        return (
            np.array([self._cost(each) for each in candidates]),
            np.array([self._build(*each) for each in builds]),
            np.full(len(candidates), self._builders * self._means["time"]),
        )

    def _cost(self, of: Encoded) -> float:
        """Return the seconds until the cost is known.

        A service curve, or an export, that another placement of the same graph has had costs no further seconds.
        """
        curve = self._means["curve"]
        if of.graph not in self._graphs:
            return max(self._means["cost"] - curve, 0.0) + self._builders * curve
        return 0.0 if all((of.graph, part) in self._curves for part in of.parts) else self._builders * curve

    def _build(self, of: Encoded, fit_seconds: float) -> float:
        """Return the seconds from training to evaluation, by those of a cycle of the training."""
        cycles = sum(training not in self._trained for training in of.trainings)
        export = 0.0 if of.variant in self._exported else self._means["export"]
        fit = fit_seconds * cycles
        if of.network is not None and cycles:
            # Before one was trained, a network is expected to take as long as trainings of all shapes of its steps.
            network = self._means.get("network", SHAPES_IN_STEP * self._means["fit"])
            fit = self._means["slice"] + (0.0 if of.network in self._networks else network)
        return fit + export + self._evaluation(of)

    def _evaluation(self, of: Encoded) -> float:
        """Return the seconds of the evaluation; of known scores they are taken to be as many until one was seen."""
        whole = self._means["judge"]
        return self._means.get("judge again", whole) if self._scored.issuperset(of.scores) else whole

    def _fits(self, of: Sequence[Encoded]) -> list[float]:
        """Return the seconds of a cycle of the training of candidates: larger models train longer.

        They are the mean until a few trainings were seen.
        """
        seen = self._stages.get("fit", [])
        if len(seen) < _FEWEST_FITS:
            return [self._means["fit"]] * len(of)
        features, logs = [each.loss_features for each, _ in seen], np.log([[seconds] for _, seconds in seen])
        model = GaussianProcess(features, logs, self._seed)
        seconds: list[float] = np.exp(model.mean([each.loss_features for each in of])[:, 0]).tolist()
        return seconds


def _stages(runs: Sequence[tuple[Encoded, Outcome]]) -> Mapping[str, list[tuple[Encoded, float]]]:
    """Return the seconds of the stages where they ran, with the candidate.

    `fit` is a cycle of a training, `slice` the fit of one from an elastic network, and `network` the training of that.
    `curve` is the cost of a graph that was exported before, `cost` that of an untrained one, with its export.
    `judge again` is an evaluation of scores that were known.
    """
    by_stage: dict[str, list[tuple[Encoded, float]]] = {}
    trained: set[Hashable] = set()
    for of, outcome in runs:
        cycles = sum(training not in trained for training in of.trainings) if "fit" in outcome.seconds else 0
        if outcome.artifact is not None:
            trained.update(of.trainings)
        for stage, seconds in outcome.seconds.items():
            again = stage in outcome.reused
            if seconds <= 0 or (again and stage != "judge"):
                continue
            known = stage == "cost" and outcome.artifact is not None and outcome.seconds.get("fit", 0.0) <= _REUSED
            if stage == "fit" and of.network is None:
                seconds /= max(1, cycles)
            name = "curve" if known else "slice" if stage == "fit" and of.network is not None else stage
            name += " again" if again else ""
            by_stage.setdefault(name, []).append((of, seconds))
    return by_stage
