"""Surrogate models of cost and loss, over everything that the trials of a study have shown."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

import numpy as np

from search.config.loss_limits import WORST_LOSS, Limits
from search.expected_cost import QUALITY, correction, deviations, is_ratio, shrunk_values, simulated_values
from search.front import BEST_P95_RATIO, Floats
from search.samplers.encoded import Encoded, encoded
from search.samplers.gaussian_process import DRAWS, MOST_ROWS, ROWS_STEP, GaussianProcess
from search.trials import EndedTrial, sought
from search.workers.meter_jobs import SHAPES_IN_STEP
from spaces.candidate import Candidate

# Most seconds of a fit that only read what was trained.
_REUSED = 0.5
# Fewest trainings whose seconds are modelled by what is trained.
_FEWEST_FITS = 4
# Smallest value whose logarithm is taken.
_LEAST = 1e-9


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predictions of n candidates.

    units: (draws, n, objectives), coordinates of the hypervolume in the unit cube; 0 beyond a tolerated loss
    lossless: the same if no candidate lost anything
    expected: (n, objectives), the same at the expected cost and loss
    cost_seconds, build_seconds, benchmark_seconds: (n,), of a builder, of the stages before training, from training to
        evaluation, and after it
    """

    units: Floats
    lossless: Floats
    expected: Floats
    cost_seconds: Floats
    build_seconds: Floats
    benchmark_seconds: Floats


class Surrogates:
    """Models of the objectives and of the seconds of the stages; of what was measured, the expected values are taken.

    A second in which a deployment is measured counts for each builder, since they all stand still.

    cost_knobs, loss_knobs: of what the models of cost and of loss were fitted to, in their order
    """

    def __init__(
        self,
        ended: Sequence[EndedTrial],
        objectives: Sequence[str],
        limits: Limits,
        seed: int,
        builders: int = 1,
        shrunk: Mapping[int, Floats] | None = None,
    ) -> None:
        """Fit the models to the trials that ended.

        Args:
            shrunk: `shrunk_values` of these trials, None to compute them

        Raises:
            NoEvidenceError: the baseline was not measured.
        """
        self._objectives, self._limits, self._builders = tuple(objectives), limits, builders
        self._others = [name for name in objectives if name != QUALITY]
        self._ended = [t for t in ended if t.outcome.informative and t.candidate.weights.reference is None]
        baseline = next((t.measurement for t in self._ended if t.candidate.is_baseline and t.measurement), None)
        if baseline is None:
            raise NoEvidenceError("Surrogates need the measured baseline.")
        own = zip(self._others, _logs(sought(baseline, self._others)), strict=True)
        self._base = np.array([0.0 if is_ratio(name) else log for name, log in own])
        expected = shrunk_values(ended, objectives) if shrunk is None else shrunk
        self._shrunk = {number: _logs(row) for number, row in expected.items()}
        self._of = [encoded(trial.candidate) for trial in self._ended]
        self._costs, self._losses = self._known_costs(), self._known_losses()
        self._beyond = {
            of.variant
            for of, trial in zip(self._of, self._ended, strict=True)
            if (quality := trial.outcome.evaluated) is not None and not limits.kept(quality)
        }
        built = [of for of, trial in zip(self._of, self._ended, strict=True) if trial.outcome.artifact is not None]
        self._trained = {training for of in built for training in of.trainings}
        self._exported = {of.variant for of in built}
        self._networks = {of.network for of in built}
        by_cost, by_loss = {of.untrained: of for of in self._of}, {of.variant: of for of in self._of}
        costed = [by_cost[key] for key in self._costs]
        self._graphs = {of.graph for of in costed}
        self._curves = {(of.graph, part) for of in costed for part in of.parts}
        # A long study has more simulated than the model takes, which are not to displace what was measured.
        measured = {of.untrained for of, t in zip(self._of, self._ended, strict=True) if t.measurement is not None}
        modelled = {key: self._costs[key] for key in newest([*self._costs], measured)}
        # Each draw has one of the errors of the simulation, the same for all candidates, and takes them in turn.
        seen = deviations(self._ended, objectives)
        self._measured = measured
        self._deviations = seen[np.resize(np.random.default_rng(seed).permutation(len(seen)), DRAWS)]
        self.cost_knobs = [by_cost[key].cost_knobs for key in modelled]
        self.loss_knobs = [by_loss[key].loss_knobs for key in self._losses]
        costs = np.array([*modelled.values()])
        self.cost = GaussianProcess([by_cost[key].cost_features for key in modelled], costs, seed)
        losses = np.minimum([[loss] for loss in self._losses.values()], WORST_LOSS * limits.max_loss)
        self.loss = GaussianProcess([by_loss[key].loss_features for key in self._losses], losses, seed + 1)
        self._seed = seed

    @property
    def objectives(self) -> int:
        """Number of objectives."""
        return len(self._objectives)

    def measured(self, passed_over: Collection[int] = ()) -> Floats:
        """Return the coordinates that are expected of the measured trials that keep the limits, (n, objectives).

        Args:
            passed_over: numbers of trials that are left out
        """
        ended = (trial for trial in self._ended if trial.number not in passed_over)
        able = [(t.number, m) for t in ended if (m := t.measurement) is not None and self._limits.kept(m.quality)]
        costs = np.reshape([self._shrunk[number] for number, _ in able], (len(able), len(self._others)))
        return self._units(costs, np.array([m.quality.loss for _, m in able]))

    def predict(self, candidates: Sequence[Candidate]) -> Prediction:
        """Predict the coordinates and the seconds of candidates.

        The cost of a candidate that was not measured has the errors that the simulation of others had, besides the
        uncertainty of the model.
        """
        of = [encoded(candidate) for candidate in candidates]
        costs = self.cost.draw([each.cost_features for each in of])
        losses = self.loss.draw([each.loss_features for each in of])[..., 0]
        for place, each in enumerate(of):
            if each.untrained in self._costs:
                costs[:, place] = self._costs[each.untrained]
            if each.untrained not in self._measured:
                costs[:, place] += self._deviations
            if each.variant in self._losses:
                losses[:, place] = self._losses[each.variant]
            if each.variant in self._beyond:  # also where only a slice, whose loss is not modelled, loses too much
                losses[:, place] = np.inf
        return Prediction(
            self._units(costs, losses),
            self._units(costs, np.where(np.isinf(losses), losses, 0.0)),
            self._units(costs.mean(axis=0), losses.mean(axis=0)),
            np.array([self._cost_seconds(each) for each in of]),
            np.array([self._build_seconds(*each) for each in zip(of, self._fit_seconds(of), strict=True)]),
            np.full(len(of), self._builders * self._seconds["time"]),
        )

    def expected_loss(self, candidate: Candidate) -> float | None:
        """Return the loss that is expected of a candidate, None where it is known.

        Losses beyond `WORST_LOSS` times the tolerated loss count as that.
        """
        of = encoded(candidate)
        return None if of.variant in self._losses else float(self.loss.mean([of.loss_features])[0, 0])

    def _cost_seconds(self, of: Encoded) -> float:
        """Return the expected seconds until the cost is known.

        A service curve, or an export, that another placement of the same graph has had costs no further seconds.
        """
        curve = self._seconds["curve"]
        if of.graph not in self._graphs:
            return max(self._seconds["cost"] - curve, 0.0) + self._builders * curve
        return 0.0 if all((of.graph, part) in self._curves for part in of.parts) else self._builders * curve

    def _build_seconds(self, of: Encoded, fit_seconds: float) -> float:
        """Return the expected seconds from training to evaluation, by those of a cycle of the training."""
        cycles = sum(training not in self._trained for training in of.trainings)
        export = 0.0 if of.variant in self._exported else self._seconds["export"]
        fit = fit_seconds * cycles
        if of.network is not None and cycles:
            # Before one was trained, a network is expected to take as long as trainings of all shapes of its steps.
            network = self._seconds.get("network", SHAPES_IN_STEP * self._seconds["fit"])
            fit = self._seconds["slice"] + (0.0 if of.network in self._networks else network)
        return fit + export + self._seconds["judge"]

    def _fit_seconds(self, of: Sequence[Encoded]) -> list[float]:
        """Return the expected seconds of a cycle of the training of candidates: larger models train longer.

        They are the mean until a few trainings were seen.
        """
        seen = self._stages.get("fit", [])
        if len(seen) < _FEWEST_FITS:
            return [self._seconds["fit"]] * len(of)
        features, logs = [each.loss_features for each, _ in seen], [_logs([seconds]) for _, seconds in seen]
        model = GaussianProcess(features, np.array(logs), self._seed)
        seconds: list[float] = np.exp(model.mean([each.loss_features for each in of])[:, 0]).tolist()
        return seconds

    def _known_costs(self) -> dict[Hashable, list[float]]:
        """Return the logarithms of all objectives but quality, by untrained candidate.

        They are those expected of measured ones, else simulated ones, corrected by the median ratio of measured to
        simulated values.
        """
        corrected = _logs(correction(self._ended, self._objectives))
        simulated, measured = dict[Hashable, list[float]](), dict[Hashable, list[float]]()
        for of, trial in zip(self._of, self._ended, strict=True):
            ratios = trial.outcome.simulated
            if ratios is not None and (values := simulated_values(ratios, self._objectives)) is not None:
                simulated[of.untrained] = [log + add for log, add in zip(_logs(values), corrected, strict=True)]
            if trial.measurement is not None:
                measured[of.untrained] = self._shrunk[trial.number]
        return simulated | measured

    def _known_losses(self) -> dict[Hashable, float]:
        """Return the loss by variant; of a training that was stopped, the loss that was expected."""
        expected, evaluated = dict[Hashable, float](), dict[Hashable, float]()
        for of, trial in zip(self._of, self._ended, strict=True):
            early, quality = trial.outcome.early, trial.outcome.evaluated
            if early is not None and early.expected is not None:
                expected[of.variant] = early.expected
            if quality is not None:
                evaluated[of.variant] = quality.loss
        return expected | evaluated

    def _units(self, costs: Floats, losses: Floats) -> Floats:
        """Return coordinates for logarithms of the costs, (..., others), and losses, (...).

        They are 0 where the loss is above the tolerated, whether quality is an objective or not.
        """
        others = iter(np.moveaxis((costs - self._base) / np.log(BEST_P95_RATIO), -1, 0))
        quality = 1 - np.maximum(losses, 0.0) / self._limits.max_loss
        columns = [quality if name == QUALITY else next(others) for name in self._objectives]
        units: Floats = np.clip(np.stack(columns, axis=-1), 0.0, 1.0)
        return np.where((losses <= self._limits.max_loss)[..., None], units, 0.0)

    @cached_property
    def _seconds(self) -> Mapping[str, float]:
        """Mean seconds of the stages where they ran, 1 where none did."""
        means = {stage: fmean(seconds for _, seconds in runs) for stage, runs in self._stages.items()}
        return defaultdict(lambda: 1.0, means)

    @cached_property
    def _stages(self) -> Mapping[str, list[tuple[Encoded, float]]]:
        """Seconds of the stages where they ran, with the candidate.

        `fit` is a cycle of a training, `slice` the fit of one from an elastic network, and `network` the training of
        that. `curve` is the cost of a graph that was exported before, `cost` that of an untrained one, with its export.
        """
        by_stage: dict[str, list[tuple[Encoded, float]]] = {}
        trained: set[Hashable] = set()
        for of, outcome in zip(self._of, (trial.outcome for trial in self._ended), strict=True):
            cycles = sum(training not in trained for training in of.trainings)
            trained.update(of.trainings if outcome.artifact is not None else ())
            for stage, seconds in outcome.seconds.items():
                if seconds <= 0 or stage in outcome.reused:
                    continue
                known = stage == "cost" and outcome.artifact is not None and outcome.seconds.get("fit", 0.0) <= _REUSED
                if stage == "fit" and of.network is None:
                    seconds /= max(1, cycles)
                name = "curve" if known else "slice" if stage == "fit" and of.network is not None else stage
                by_stage.setdefault(name, []).append((of, seconds))
        return by_stage


def newest(keys: Sequence[Hashable], kept: Collection[Hashable]) -> list[Hashable]:
    """Return the keys that are kept and the newest of the others, in their order.

    They are as many as a model takes, unless more are kept. The oldest are dropped some at a time, so that most
    proposals find the kernel that was fitted before.
    """
    excess = -(-max(0, len(keys) - MOST_ROWS) // ROWS_STEP) * ROWS_STEP
    dropped = set([key for key in keys if key not in kept][:excess])
    return [key for key in keys if key not in dropped]


class NoEvidenceError(ValueError):
    """Too few trials ended for a model."""


def _logs(values: Sequence[float] | Floats) -> list[float]:
    return [math.log(max(value, _LEAST)) for value in values]
