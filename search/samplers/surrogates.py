"""Surrogate models of cost and loss, over everything that the trials of a study have shown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

import numpy as np
import numpy.typing as npt

from search.config.loss_limits import Limits
from search.expected_cost import QUALITY, correction, simulated_values
from search.front import BEST_P95_RATIO, Floats
from search.samplers.gaussian_process import GaussianProcess
from search.trials import EndedTrial, sought
from search.workers.meter_jobs import curve_parts
from spaces.candidate import Candidate
from spaces.domains import Scalar
from spaces.techniques.quantization import Precision
from spaces.weights import Weights

# Knobs that the cost does not depend on, since they change trained weights only, and those that the loss does not.
_TRAINING = (
    "distillation.", "weights.quantization_aware", "pruning.importance", "pruning.steps", "precision.calibration",
)  # fmt: skip
_SERVING = ("placement.",)
# Multiple of the tolerated loss beyond which no loss is worse.
_WORST_LOSS = 5.0
# Most seconds of a fit that only read what was trained.
_REUSED = 0.5
# Smallest value whose logarithm is taken.
_LEAST = 1e-9
# Permutations of a knob's values.
_PERMUTATIONS = 5
Variant = tuple[Weights, Precision]


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predictions of n candidates.

    units: (draws, n, objectives), coordinates of the hypervolume in the unit cube
    lossless: the same if no candidate lost anything
    cost_seconds, build_seconds, benchmark_seconds: (n,), of the stages before training, from training to evaluation,
        and after it
    """

    units: Floats
    lossless: Floats
    cost_seconds: Floats
    build_seconds: Floats
    benchmark_seconds: Floats


class Surrogates:
    """Models of the objectives and of the seconds of the stages; what was measured is not modelled."""

    def __init__(self, ended: Sequence[EndedTrial], objectives: Sequence[str], limits: Limits, seed: int) -> None:
        """Fit the models to the trials that ended.

        Raises:
            NoEvidenceError: the baseline was not measured.
        """
        self._objectives, self._limits = tuple(objectives), limits
        self._others = [name for name in objectives if name != QUALITY]
        self._ended = [t for t in ended if t.outcome.informative and t.candidate.weights.reference is None]
        baseline = next((t.measurement for t in self._ended if t.candidate.is_baseline and t.measurement), None)
        if baseline is None:
            raise NoEvidenceError("Surrogates need the measured baseline.")
        self._base = _log(sought(baseline, self._others))
        self._costs, self._losses = self._known_costs(), self._known_losses()
        built = [t.candidate for t in self._ended if t.outcome.artifact is not None]
        self._trained, self._exported = {c.weights for c in built}, {_variant(c) for c in built}
        self._graphs = {_variant(key) for key in self._costs}
        self._curves = {(_variant(key), part) for key in self._costs for part in curve_parts(key.placement)}
        by_cost = {t.candidate.untrained: _knobs(t.candidate, _TRAINING) for t in self._ended}
        by_loss = {_variant(t.candidate): _knobs(t.candidate, _SERVING) for t in self._ended}
        self._cost_knobs = [by_cost[key] for key in self._costs]
        self._loss_knobs = [by_loss[key] for key in self._losses]
        self._cost = GaussianProcess(self._cost_knobs, np.stack([*self._costs.values()]), seed)
        losses = np.minimum([[loss] for loss in self._losses.values()], _WORST_LOSS * limits.max_loss)
        self._loss = GaussianProcess(self._loss_knobs, losses, seed + 1)

    @property
    def objectives(self) -> int:
        """Number of objectives."""
        return len(self._objectives)

    def measured(self) -> Floats:
        """Return the coordinates of the measured trials that keep the limits, (n, objectives)."""
        able = [m for t in self._ended if (m := t.measurement) is not None and self._limits.kept(m.quality)]
        costs = np.reshape([_log(sought(m, self._others)) for m in able], (len(able), len(self._others)))
        return self._units(costs, np.array([m.quality.loss for m in able]))

    def importance(self, seed: int) -> dict[str, dict[str, float]]:
        """Return the importance of each knob by objective, as shares of 1: by how much predictions change in the mean
        square if the knob's values are permuted among the candidates (Breiman, 2001, section 10)."""
        costs = permutation_importance(self._cost, self._cost_knobs, seed)
        losses = permutation_importance(self._loss, self._loss_knobs, seed)
        columns = iter(costs)
        return {name: losses[0] if name == QUALITY else next(columns) for name in self._objectives}

    def predict(self, candidates: Sequence[Candidate]) -> Prediction:
        """Predict the coordinates and the seconds of candidates."""
        costs = self._cost.draw([_knobs(candidate, _TRAINING) for candidate in candidates])
        losses = self._loss.draw([_knobs(candidate, _SERVING) for candidate in candidates])[..., 0]
        for place, candidate in enumerate(candidates):
            costs[:, place] = self._costs.get(candidate.untrained, costs[:, place])
            losses[:, place] = self._losses.get(_variant(candidate), losses[:, place])
        build = [self._build_seconds(candidate) for candidate in candidates]
        return Prediction(
            self._units(costs, losses),
            self._units(costs, np.zeros_like(losses)),
            np.array([self._cost_seconds(candidate) for candidate in candidates]),
            np.array(build),
            np.full(len(candidates), self._seconds["time"]),
        )

    def _cost_seconds(self, candidate: Candidate) -> float:
        """Return the expected seconds until the cost is known: without those of a service curve, or of an export, that
        another placement of the same graph has had."""
        graph = _variant(candidate.untrained)
        if all((graph, part) in self._curves for part in curve_parts(candidate.placement)):
            return 0.0
        return self._seconds["curve" if graph in self._graphs else "cost"]

    def _build_seconds(self, candidate: Candidate) -> float:
        """Return the expected seconds from training to evaluation."""
        trains = candidate.weights.distillation is not None and candidate.weights not in self._trained
        export = 0.0 if _variant(candidate) in self._exported else self._seconds["export"]
        return self._seconds["fit"] * trains + export + self._seconds["judge"]

    def _known_costs(self) -> dict[Candidate, Floats]:
        """Return the logarithms of all objectives but quality, by untrained candidate: as they were measured, else as
        they were simulated, corrected by the median ratio of the two where both were made.
        """
        timed = {t.candidate.untrained: m for t in self._ended if (m := t.measurement) is not None}
        known = {key: _log(sought(measurement, self._others)) for key, measurement in timed.items()}
        corrected = _log(correction(self._ended, self._objectives))
        simulated = {t.candidate.untrained: s for t in self._ended if (s := t.outcome.simulated) is not None}
        values = {key: simulated_values(ratios, self._objectives) for key, ratios in simulated.items()}
        return {key: _log(each) + corrected for key, each in values.items() if each is not None} | known

    def _known_losses(self) -> dict[Variant, float]:
        """Return the loss by variant; of a training that was stopped, the loss that was expected."""
        judged = [(_variant(t.candidate), t.outcome.early) for t in self._ended if t.outcome.early is not None]
        expected = {variant: early.expected for variant, early in judged if early.expected is not None}
        evaluated = {_variant(t.candidate): q for t in self._ended if (q := t.outcome.evaluated) is not None}
        return expected | {variant: quality.loss for variant, quality in evaluated.items()}

    def _units(self, costs: Floats, losses: Floats) -> Floats:
        """Return coordinates for logarithms of the costs, (..., others), and losses, (...)."""
        others = iter(np.moveaxis((costs - self._base) / np.log(BEST_P95_RATIO), -1, 0))
        quality = 1 - np.maximum(losses, 0.0) / self._limits.max_loss
        columns = [quality if name == QUALITY else next(others) for name in self._objectives]
        units: Floats = np.clip(np.stack(columns, axis=-1), 0.0, 1.0)
        return units

    @cached_property
    def _seconds(self) -> Mapping[str, float]:
        """Mean seconds of the stages where they ran; `curve` is the cost of a graph that was exported before, `cost`
        that of an untrained one, with its export."""
        by_stage: dict[str, list[float]] = {}
        for outcome in (trial.outcome for trial in self._ended):
            for stage, seconds in outcome.seconds.items():
                known = stage == "cost" and outcome.artifact is not None and outcome.seconds.get("fit", 0.0) <= _REUSED
                if seconds > 0 and stage not in outcome.reused:
                    by_stage.setdefault("curve" if known else stage, []).append(seconds)
        means = {stage: fmean(seconds) for stage, seconds in by_stage.items()}
        return defaultdict(lambda: 1.0, means)


def permutation_importance(
    model: GaussianProcess, knobs: Sequence[Mapping[str, Scalar]], seed: int
) -> list[dict[str, float]]:
    """Return the importance of each knob for each target of a model, as shares of 1; none where nothing varies."""
    random, expected = np.random.default_rng(seed), model.mean(knobs)
    changed: dict[str, Floats] = {}
    for name in sorted({name for each in knobs for name in each}):
        moved = np.zeros(expected.shape[1])
        for _ in range(_PERMUTATIONS):
            order = random.permutation(len(knobs))
            shuffled = [_with(each, name, knobs[other]) for each, other in zip(knobs, order, strict=True)]
            moved += ((model.mean(shuffled) - expected) ** 2).mean(axis=0)
        changed[name] = moved
    total = sum(changed.values(), np.zeros(expected.shape[1]))
    return [
        {name: float(moved[target] / total[target]) for name, moved in changed.items()} if total[target] > 0 else {}
        for target in range(expected.shape[1])
    ]


def _with(knobs: Mapping[str, Scalar], name: str, other: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return knobs with one of them as another candidate has it, or has it not."""
    kept = {key: value for key, value in knobs.items() if key != name}
    return {**kept, name: other[name]} if name in other else kept


class NoEvidenceError(ValueError):
    """Too few trials ended for a model."""


def _variant(candidate: Candidate) -> Variant:
    """Return what the loss depends on; as keys, the records themselves are found faster than their digests."""
    return candidate.weights, candidate.precision


def _knobs(candidate: Candidate, without: tuple[str, ...]) -> dict[str, Scalar]:
    return {name: value for name, value in candidate.knobs().items() if not name.startswith(without)}


def _log(values: npt.ArrayLike) -> Floats:
    logs: Floats = np.log(np.maximum(np.asarray(values, dtype=np.float64), _LEAST))
    return logs
