"""Samplers of Optuna, over a conditional space."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

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


def tpe(seed: int) -> optuna.samplers.BaseSampler:
    """Return the tree-structured Parzen estimator; the constraint of a stopped trial keeps it from the good ones."""
    with _experimental():  # grouped sampling is what a conditional space needs
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)


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


class FlattenedSampler(optuna.samplers.BaseSampler):
    """Sampler that lets another one propose on a copy of the study in which every complete trial has every knob.

    NSGA-III and the Gaussian process propose only knobs that all complete trials have: in a conditional space, with
    reference points that have none, that is no knob. A knob that a trial does not have gets the first of its values in
    the copy; one that is proposed and does not belong to the candidate is left out.
    """

    def __init__(self, make: Callable[[int], optuna.samplers.BaseSampler], seed: int) -> None:
        """`make` returns the other sampler for a seed; each trial has one of its own."""
        self._make, self._seed = make, seed
        self._random = optuna.samplers.RandomSampler(seed)
        self._proposed: dict[str, Any] = {}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Propose a value of every known knob; none for a trial that was enqueued."""
        complete = [t for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if t.params]
        space = {} if "fixed_params" in trial.system_attrs else _union([t.distributions for t in complete])
        self._proposed = {}
        if space:
            with _experimental():
                other = self._make(self._seed + trial.number)
            copy = optuna.create_study(directions=study.directions, sampler=other)
            copy.add_trials([_filled(t, space, place // _POPULATION) for place, t in enumerate(complete)])
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
        return self._random.sample_independent(study, trial, param_name, param_distribution)


def _union(spaces: Sequence[Mapping[str, BaseDistribution]]) -> dict[str, BaseDistribution]:
    """Return all knobs but those whose range differs from trial to trial."""
    found: dict[str, BaseDistribution] = {}
    for space in spaces:
        found |= space
    return {name: domain for name, domain in found.items() if all(s.get(name, domain) == domain for s in spaces)}


def _filled(trial: FrozenTrial, space: Mapping[str, BaseDistribution], generation: int) -> FrozenTrial:
    """Return a complete trial with every knob of the space, and what the other samplers read of it."""
    params = {name: trial.params.get(name, _first(domain)) for name, domain in space.items()}
    return create_trial(
        state=trial.state,
        values=trial.values,
        params=params,
        distributions=dict(space),
        # The samplers need the same constraints of every trial.
        constraints={"most": max(trial.constraints.values(), default=0.0)},
        system_attrs={f"{optuna.samplers.NSGAIIISampler.__name__}:generation": generation},
    )


def _first(domain: BaseDistribution) -> CategoricalChoiceType:
    if isinstance(domain, CategoricalDistribution):
        return domain.choices[0]
    assert isinstance(domain, IntDistribution | FloatDistribution)
    return domain.low
