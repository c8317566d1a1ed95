"""Sampler that proposes the candidate with the largest expected gain in hypervolume per second of work.

Cost, loss and the seconds of each stage are predicted by surrogate models of all evidence, so that placements are tried
often, other widths less often, and new weights rarely, as far as each pays.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial
from threadpoolctl import ThreadpoolController

from search.config.loss_limits import Limits
from search.expected_cost import ExpectedCosts
from search.front import Floats
from search.samplers.drawn import Drawn, draw
from search.samplers.hypervolume_gain import HypervolumeGain
from search.samplers.optuna_samplers import drawn_alone
from search.samplers.surrogates import NoEvidenceError, Prediction, Surrogates
from search.trials import EndedTrial
from spaces.candidate import Candidate
from spaces.domains import Scalar
from spaces.search_space import SearchSpace
from spaces.weights import AWARE, CYCLES, Weights

# Candidates of the pool that are drawn at random, and neighbours of members of the front.
_RANDOM, _NEIGHBOURS = 100, 200
# Most trained weights whose training may go on for another cycle.
_CONTINUED = 15
# Probability that a neighbour changes a knob: one in ten, or a third.
_CHANGES = (0.1, 0.33)
# Share of the proposals that are random, so that no part of the space is excluded by a wrong model.
_EXPLORED = 0.1
# Draws of a pool until enough candidates are new.
_TRIES = 400


@dataclass(frozen=True, eq=False)
class Evidence:
    """Evidence of a study that a proposal is made from.

    ended: trials of the study, at least the last ones and all that were measured
    known: candidates of all trials that told something, or failed
    pending: candidates of trials that are under way
    front: numbers of the trials that are expected on the front
    builders: workers that train, which stand still while a deployment is measured
    passed_over: numbers of measured trials that cannot be on the front, as a final benchmark left them out
    costs: expected costs, None to compute them from `ended`
    left: seconds of search that are left; what takes longer is proposed only where everything does
    """

    space: SearchSpace
    ended: Sequence[EndedTrial]
    known: AbstractSet[Candidate]
    pending: Sequence[Candidate]
    front: Collection[int]
    builders: int = 1
    passed_over: Collection[int] = ()
    costs: ExpectedCosts | None = None
    left: float = math.inf


class ExpectedGainSampler(optuna.samplers.BaseSampler):
    """Sampler over a study's whole space.

    `propose` returns a candidate from given evidence. Through Optuna's own interface it proposes from `evidence`, which
    is set before an ask.

    `expected_loss` is the loss that is expected of the last proposal; None where it was random, or its loss is known.

    A proposal depends on the seed, its number and the evidence only, whether or not a study was interrupted before.
    """

    evidence: Evidence | None = None
    expected_loss: float | None = None

    def __init__(self, objectives: Sequence[str], limits: Limits, seed: int, explored: float = _EXPLORED) -> None:
        """Make the sampler; `explored` is the share of its proposals that are random."""
        self._objectives, self._limits, self._seed, self._explored = tuple(objectives), limits, seed, explored
        self._proposed: Drawn | None = None

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Propose a candidate, and return the distributions of its knobs; none for a trial that was enqueued."""
        self._proposed = None
        if self.evidence is None or "fixed_params" in trial.system_attrs:
            return {}
        self._proposed = self.propose(self.evidence, trial.number)
        return dict(self._proposed.distributions)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the knobs of the proposed candidate."""
        return {} if self._proposed is None else dict(self._proposed.knobs)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return a random value of a knob that was not proposed."""
        return drawn_alone(study, trial, param_name, param_distribution, self._seed)

    def propose(self, evidence: Evidence, number: int) -> Drawn:
        """Propose a candidate, given the number of those that were chosen before."""
        # The matrices are small, and the cores are the builders': threads would wait for one another.
        with _linear_algebra().limit(limits=1, user_api="blas"):
            return self._propose(evidence, Random(f"{self._seed} {number}"))

    def _propose(self, evidence: Evidence, random: Random) -> Drawn:
        pool, self.expected_loss = _pool(evidence, random), None
        if random.random() < self._explored:
            return pool[0].step
        try:
            seed, builders, costs = random.randrange(1 << 31), evidence.builders, evidence.costs
            surrogates = Surrogates(evidence.ended, self._objectives, self._limits, seed, builders, costs)
        except NoEvidenceError:
            return pool[0].step
        predicted = surrogates.predict([*(option.target.candidate for option in pool), *evidence.pending])
        # A trial under way counts as measured where it is expected.
        front = np.concatenate([surrogates.measured(evidence.passed_over), predicted.expected[len(pool) :]])
        rates = gain_per_second(HypervolumeGain(front, surrogates.objectives), predicted)
        in_time = _shortest_seconds(predicted, builders) <= evidence.left
        best = max(range(len(pool)), key=lambda place: (in_time[place], rates[place]))
        self.expected_loss = surrogates.expected_loss(pool[best].step.candidate)
        return pool[best].step


@cache
def _linear_algebra() -> ThreadpoolController:
    """Return the controller of the threads of NumPy's and SciPy's libraries, which are loaded by now."""
    return ThreadpoolController()


def gain_per_second(gain: HypervolumeGain, predicted: Prediction) -> Floats:
    """Return the expected gain in hypervolume per expected second, (n,).

    A candidate is trained with the probability that it would gain if it lost nothing, and benchmarked with the
    probability that it gains.
    """
    gains, lossless = gain(predicted.units), gain(predicted.lossless)
    trained, timed = (lossless > 0).mean(axis=0), (gains > 0).mean(axis=0)
    seconds = predicted.cost_seconds + trained * predicted.build_seconds + timed * predicted.benchmark_seconds
    return np.asarray(gains.mean(axis=0) / np.maximum(seconds, 1e-3))


def _shortest_seconds(predicted: Prediction, builders: int) -> Floats:
    """Return a lower bound of the expected seconds until candidates that begin at once are benchmarked, (n,).

    Measuring has the machine to itself, so that its seconds count once here and not for each builder. The export of
    untrained weights is divided with them, though one builder makes it.
    """
    measuring = predicted.cost_seconds + predicted.benchmark_seconds
    return predicted.build_seconds + measuring / builders


@dataclass(frozen=True, eq=False)
class Option:
    """A candidate that a proposal weighs, and the step that is proposed on the way to it.

    The step is the same candidate after the next cycle of its training, so that no training goes on before what it has
    reached is known.
    """

    target: Drawn
    step: Drawn


def _pool(evidence: Evidence, random: Random) -> list[Option]:
    """Draw different candidates whose next steps are neither known nor under way.

    The first candidate is random, the last ones are longer trainings. Where the space has no other candidate, the pool
    is one that is known.
    """
    space, members = evidence.space, [t.knobs for t in evidence.ended if t.number in evidence.front and t.knobs]
    evaluated = {t.candidate.weights for t in evidence.ended if t.outcome.evaluated is not None}
    pool: dict[Candidate, Option] = {}

    def option(target: Drawn) -> Option:
        trainings = target.candidate.weights.trainings
        reached = max((n for n, weights in enumerate(trainings, 1) if weights in evaluated), default=0)
        if reached + 1 >= len(trainings):
            return Option(target, target)
        unaware = {name: False for name in target.knobs if name.startswith(AWARE)}
        return Option(target, draw(space, random, {**target.knobs, **unaware, CYCLES: reached + 1}, change=0.0))

    def add(target: Drawn) -> None:
        found = option(target)
        if found.step.candidate not in evidence.known and found.step.candidate not in evidence.pending:
            pool.setdefault(target.candidate, found)

    for turn in range(_TRIES):
        if len(pool) >= _RANDOM + (_NEIGHBOURS if members else 0):
            break
        if turn < _RANDOM or not members:
            add(draw(space, random))
            continue
        near = random.choice(members)
        if random.random() < 0.5:
            near = space.weights_knobs(near)
        add(draw(space, random, near, _CHANGES[turn % len(_CHANGES)]))
    for knobs in _longer(evidence, evaluated):
        add(draw(space, random, knobs, change=0.0))
    return [*pool.values()] or [option(draw(space, random))]


def _longer(evidence: Evidence, evaluated: AbstractSet[Weights]) -> list[Mapping[str, Scalar]]:
    """Return the knobs of evaluated trials with each number of further cycles of training.

    The weights are those that lose something and did not go on yet: those of least loss, once each.
    """
    found: dict[Weights, list[Mapping[str, Scalar]]] = {}
    losses = [(quality.loss, t.number, t) for t in evidence.ended if (quality := t.outcome.evaluated) is not None]
    for loss, _, trial in sorted(losses):
        if len(found) == _CONTINUED:
            break
        weights, learning = trial.candidate.weights, trial.candidate.weights.distillation
        if loss <= 0 or CYCLES not in trial.knobs or learning is None:
            continue
        following = replace(weights, distillation=replace(learning, cycles=learning.cycles + 1))
        further = [cycles for cycles in evidence.space.weights.cycles.values if int(cycles) > learning.cycles]
        if further and following not in evaluated:
            found.setdefault(weights, [{**trial.knobs, CYCLES: cycles} for cycles in further])
    return [knobs for of in found.values() for knobs in of]
