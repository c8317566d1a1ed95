"""Surrogate models of cost and loss, over everything that the trials of a study have shown."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from search.config.loss_limits import WORST_LOSS, Limits
from search.expected_cost import QUALITY, ExpectedCosts, expected_costs, is_ratio, simulated_values
from search.front import BEST_P95_RATIO, Floats
from search.samplers.encoded import encoded
from search.samplers.expected_seconds import ExpectedSeconds
from search.samplers.gaussian_process import DRAWS, MOST_ROWS, ROWS_STEP, GaussianProcess
from search.trials import EndedTrial, sought
from spaces.candidate import Candidate

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

    cost_knobs, loss_knobs: of what the models of cost and of loss were fitted to, in their order
    """

    def __init__(
        self,
        ended: Sequence[EndedTrial],
        objectives: Sequence[str],
        limits: Limits,
        seed: int,
        builders: int = 1,
        costs: ExpectedCosts | None = None,
    ) -> None:
        """Fit the models to the trials that ended.

        Args:
            costs: expected costs, None to compute them from these trials

        Raises:
            NoEvidenceError: the baseline was not measured.
        """
        self._objectives, self._limits = tuple(objectives), limits
        self._others = [name for name in objectives if name != QUALITY]
        telling = [t for t in ended if t.outcome.informative and t.candidate.weights.reference is None]
        baseline = next((t.measurement for t in telling if t.candidate.is_baseline and t.measurement), None)
        if baseline is None:
            raise NoEvidenceError("Surrogates need the measured baseline.")
        own = zip(self._others, _logs(sought(baseline, self._others)), strict=True)
        self._base = np.array([0.0 if is_ratio(name) else log for name, log in own])
        self._expected = expected_costs(ended, objectives) if costs is None else costs
        self._shrunk = {number: _logs(row) for number, row in self._expected.measured.items()}
        self._runs = [(encoded(trial.candidate), trial) for trial in telling]
        self._costs, self._losses = self._known_costs(), self._known_losses()
        quality = ((of, trial.outcome.evaluated) for of, trial in self._runs)
        self._beyond = {of.variant for of, found in quality if found is not None and not limits.kept(found)}
        by_cost, by_loss = {of.untrained: of for of, _ in self._runs}, {of.variant: of for of, _ in self._runs}
        costed = [by_cost[key] for key in self._costs]
        self._seconds = ExpectedSeconds([(of, t.outcome) for of, t in self._runs], costed, builders, seed)
        # A long study has more simulated than the model takes, which are not to displace what was measured.
        self._measured = {of.untrained for of, trial in self._runs if trial.measurement is not None}
        modelled = {key: self._costs[key] for key in newest([*self._costs], self._measured)}
        # Each draw has one of the errors of the simulation, the same for all candidates, and takes them in turn.
        seen = self._expected.deviations
        self._deviations = seen[np.resize(np.random.default_rng(seed).permutation(len(seen)), DRAWS)]
        self.cost_knobs = [by_cost[key].cost_knobs for key in modelled]
        self.loss_knobs = [by_loss[key].loss_knobs for key in self._losses]
        features, targets = [by_cost[key].cost_features for key in modelled], np.array([*modelled.values()])
        self.cost = GaussianProcess(features, targets, seed)
        losses = np.minimum([[loss] for loss in self._losses.values()], WORST_LOSS * limits.max_loss)
        self.loss = GaussianProcess([by_loss[key].loss_features for key in self._losses], losses, seed + 1)

    @property
    def objectives(self) -> int:
        """Number of objectives."""
        return len(self._objectives)

    def measured(self, passed_over: Collection[int] = ()) -> Floats:
        """Return the coordinates that are expected of the measured trials that keep the limits, (n, objectives).

        Args:
            passed_over: numbers of trials that are left out
        """
        ended = (trial for _, trial in self._runs if trial.number not in passed_over)
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
            *self._seconds(of),
        )

    def expected_loss(self, candidate: Candidate) -> float | None:
        """Return the loss that is expected of a candidate, None where it is known.

        Losses beyond `WORST_LOSS` times the tolerated loss count as that.
        """
        of = encoded(candidate)
        return None if of.variant in self._losses else float(self.loss.mean([of.loss_features])[0, 0])

    def _known_costs(self) -> dict[Hashable, list[float]]:
        """Return the logarithms of all objectives but quality, by untrained candidate.

        They are those expected of measured ones, else simulated ones, corrected by the median ratio of measured to
        simulated values.
        """
        simulated, measured = dict[Hashable, tuple[float, ...]](), dict[Hashable, list[float]]()
        for of, trial in self._runs:
            ratios = trial.outcome.simulated
            if ratios is not None and (values := simulated_values(ratios, self._objectives)) is not None:
                simulated[of.untrained] = values
            if trial.measurement is not None:
                measured[of.untrained] = self._shrunk[trial.number]
        table = np.reshape([*simulated.values()], (len(simulated), len(self._others))) * self._expected.correction
        return dict(zip(simulated, np.log(np.maximum(table, _LEAST)).tolist(), strict=True)) | measured

    def _known_losses(self) -> dict[Hashable, float]:
        """Return the loss by variant; of a training that was stopped, the loss that was expected."""
        expected, evaluated = dict[Hashable, float](), dict[Hashable, float]()
        for of, trial in self._runs:
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
