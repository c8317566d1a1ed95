"""Samplers of Optuna, over a conditional space."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalChoiceType,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

# Candidates of a generation: a search benchmarks a few dozen in all.
_POPULATION = 8
# Stopped trials that a sampler is told of, the last ones.
_STOPPED = 50


def tpe(seed: int) -> optuna.samplers.BaseSampler:
    """Return the tree-structured Parzen estimator; the constraint of a stopped trial keeps it from the good ones."""

    def make(own: int) -> optuna.samplers.BaseSampler:
        with _experimental():  # grouped sampling is what a conditional space needs
            return optuna.samplers.TPESampler(seed=own, multivariate=True, group=True)

    return PerTrialSampler(make, seed)


def nsga3(seed: int) -> optuna.samplers.BaseSampler:
    """Return NSGA-III (Deb and Jain, 2014)."""
    return FlattenedSampler(lambda own: optuna.samplers.NSGAIIISampler(seed=own, population_size=_POPULATION), seed)


def gp(seed: int) -> optuna.samplers.BaseSampler:
    """Return Optuna's Gaussian process, which proposes by the expected hypervolume improvement."""
    return FlattenedSampler(lambda own: optuna.samplers.GPSampler(seed=own), seed)


@contextmanager
def _experimental() -> Iterator[None]:
    """Suppress the warning of what Optuna marks as experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


class PerTrialSampler(optuna.samplers.BaseSampler):
    """Sampler that lets another one propose, with a seed of its own for each trial.

    So a proposal does not depend on those that were made since the study was opened.
    """

    def __init__(self, make: Callable[[int], optuna.samplers.BaseSampler], seed: int) -> None:
        """`make` returns the other sampler for a seed."""
        self._make, self._seed = make, seed
        self._own = make(seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return what the other sampler proposes together."""
        self._own = self._make(own_seed(self._seed, trial.number))
        return self._own.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the knobs that the other sampler proposes together."""
        return self._own.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return a value of a knob by itself."""
        return self._own.sample_independent(study, trial, param_name, param_distribution)


def own_seed(*of: object) -> int:
    """Return a seed for a trial of a study, by the study's seed, the trial's number and whatever else it is of."""
    return zlib.crc32(" ".join(map(str, of)).encode())


def drawn_alone(study: optuna.Study, trial: FrozenTrial, name: str, domain: BaseDistribution, seed: int) -> Any:
    """Draw a knob of a trial at random: the same one whenever it is asked for, whatever was drawn before."""
    sampler = optuna.samplers.RandomSampler(own_seed(seed, trial.number, name))
    return sampler.sample_independent(study, trial, name, domain)


class FlattenedSampler(optuna.samplers.BaseSampler):
    """Sampler that lets another one propose on a copy of the study in which every ended trial has every knob.

    NSGA-III and the Gaussian process propose only knobs that all complete trials have: in a conditional space, with
    reference points that have none, that is no knob. A knob that a trial does not have gets the first of its values in
    the copy; one that is proposed and does not belong to the candidate is left out. They see complete trials only: in
    the copy a stopped one is complete too, with the worst values of all and a constraint that it violates.
    """

    def __init__(self, make: Callable[[int], optuna.samplers.BaseSampler], seed: int) -> None:
        """`make` returns the other sampler for a seed; each trial has one of its own."""
        self._make, self._seed = make, seed
        self._proposed: dict[str, Any] = {}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Propose a value of every known knob; none for a trial that was enqueued."""
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        complete = [t for t in ended if t.params and t.state == TrialState.COMPLETE]
        space = {} if "fixed_params" in trial.system_attrs else _union([t.distributions for t in complete])
        self._proposed = {}
        if space:
            with _experimental():
                other = self._make(own_seed(self._seed, trial.number))
            copy = optuna.create_study(directions=study.directions, sampler=other)
            stopped = [t for t in _stopped(ended) if _within(t, space)][-_STOPPED:]
            worst = np.max([t.values for t in complete], axis=0).tolist()
            known = sorted([*complete, *stopped], key=lambda t: t.number)
            copy.add_trials([_filled(t, space, place // _POPULATION, worst) for place, t in enumerate(known)])
            self._proposed = copy.ask(dict(space)).params
        return space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the proposed knobs."""
        return self._proposed

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return a random value of a knob that no complete trial has."""
        return drawn_alone(study, trial, param_name, param_distribution, self._seed)


def _union(spaces: Sequence[Mapping[str, BaseDistribution]]) -> dict[str, BaseDistribution]:
    """Return all knobs but those whose range differs from trial to trial."""
    found: dict[str, BaseDistribution] = {}
    for space in spaces:
        found |= space
    return {name: domain for name, domain in found.items() if all(s.get(name, domain) == domain for s in spaces)}


def _stopped(ended: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that were stopped, each choice once: none that was measured, before or afterwards."""
    measured = {_choice(trial) for trial in ended if trial.state == TrialState.COMPLETE}
    last = {_choice(trial): trial for trial in ended if trial.state == TrialState.PRUNED}
    return sorted((trial for choice, trial in last.items() if choice not in measured), key=lambda t: t.number)


def _choice(trial: FrozenTrial) -> frozenset[tuple[str, Any]]:
    return frozenset(trial.params.items())


def _within(trial: FrozenTrial, space: Mapping[str, BaseDistribution]) -> bool:
    """Return whether a trial has knobs of the space, and each within its range there."""
    own = [name for name in trial.params if name in space]
    return bool(own) and all(space[name]._contains(space[name].to_internal_repr(trial.params[name])) for name in own)


def _filled(
    trial: FrozenTrial, space: Mapping[str, BaseDistribution], generation: int, worst: Sequence[float]
) -> FrozenTrial:
    """Return a trial as a complete one with every knob of the space, and what the other samplers read of it.

    Args:
        worst: values of one that was stopped
    """
    params = {name: trial.params.get(name, _first(domain)) for name, domain in space.items()}
    return create_trial(
        state=TrialState.COMPLETE,
        values=trial.values if trial.state == TrialState.COMPLETE else list(worst),
        params=params,
        distributions=dict(space),
        # The samplers need the same constraints of every trial.
        constraints={"most": _constraint(trial)},
        system_attrs={f"{optuna.samplers.NSGAIIISampler.__name__}:generation": generation},
    )


def _constraint(trial: FrozenTrial) -> float:
    """Return the largest constraint of a trial, which is violated above 0; a stopped one violates one."""
    own = max(trial.constraints.values(), default=0.0)
    return own if trial.state == TrialState.COMPLETE or own > 0 else 1.0


def _first(domain: BaseDistribution) -> CategoricalChoiceType:
    if isinstance(domain, CategoricalDistribution):
        return domain.choices[0]
    assert isinstance(domain, IntDistribution | FloatDistribution)
    return domain.low
