"""Optuna's samplers on a conditional space, beside themselves on a flat one."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from search.samplers.optuna_samplers import FlattenedSampler, gp, nsga3, own_seed
from search.study import Study
from spaces.candidate import Candidate
from tests.samplers_tests.problem import LIMITS, OBJECTIVES, SPACE, Problem
from tests.search_tests.measurements import in_memory


def flat(trial: optuna.Trial) -> tuple[float, float]:
    """Return two objectives of knobs that every trial has, which are drawn in the order of their names."""
    c, n, x = trial.suggest_categorical("c", ("a", "b")), trial.suggest_int("n", 1, 8), trial.suggest_float("x", 0, 1)
    return (x - 0.3) ** 2 + 0.1 * (c == "b"), abs(n - 5) + x


def study_of(sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    return optuna.create_study(directions=["minimize"] * 2, sampler=sampler)


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: optuna.samplers.GPSampler(seed=seed, n_startup_trials=6),
        lambda seed: optuna.samplers.NSGAIIISampler(seed=seed, population_size=8),
    ],
)
def test_where_every_trial_has_every_knob_it_proposes_as_the_other_does(
    make: Callable[[int], optuna.samplers.BaseSampler],
) -> None:
    """The twentieth trial after nineteen random ones, with the other sampler on the study itself as the oracle."""
    first = study_of(optuna.samplers.RandomSampler(seed=0))
    first.optimize(flat, 19)
    trials = first.trials
    for place, trial in enumerate(trials):
        trial._system_attrs["NSGAIIISampler:generation"] = place // 8
        trial.set_constraint("most", 0.0)

    def proposed(sampler: optuna.samplers.BaseSampler) -> dict[str, Any]:
        study = study_of(sampler)
        study.add_trials(trials)
        trial = study.ask()
        flat(trial)
        return trial.params

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert proposed(FlattenedSampler(make, 100)) == proposed(make(own_seed(100, 19)))


@pytest.mark.parametrize("name", ["nsga3", "gp"])
def test_knobs_that_some_candidates_lack_are_proposed_beside_reference_points(
    name: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The baseline has no pruning ratios, and the reference point no knob; nothing but what is unknown is random."""
    problem = Problem(name, 0)
    problem.study.enqueue_reference("tuned baseline", Candidate())
    for _ in range(12):
        problem.step()
    complete = [t for t in problem.study.finished() if t.state == TrialState.COMPLETE]
    assert any(not trial.params for trial in complete) and len({len(trial.params) for trial in complete}) > 2
    random: Counter[str] = Counter()
    sample = FlattenedSampler.sample_independent

    def counted(self: FlattenedSampler, study: Any, trial: Any, name: str, domain: Any) -> Any:
        random[name] += 1
        return sample(self, study, trial, name, domain)

    monkeypatch.setattr(FlattenedSampler, "sample_independent", counted)
    known = {name for trial in complete for name in trial.params}
    problem.step()
    assert set(random).isdisjoint(known)


def test_a_stopped_trial_is_the_worst_of_the_copy_and_violates_a_constraint(monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of(nsga3(0))
    study.optimize(flat, 6)
    only = {"x": optuna.distributions.FloatDistribution(0, 1)}
    for number in range(60):
        if number:
            study.enqueue_trial({"x": number / 100})
        trial = study.ask(only if number else None)
        if number == 1:
            trial.set_constraint("loss", 0.25)
        study.tell(trial, state=TrialState.PRUNED)
    # A choice that was measured is made again, and one that was stopped twice more.
    for params in (study.trials[2].params, {"x": 0.4}, {"x": 0.4}):
        study.enqueue_trial(params)
        trial = study.ask(only if len(params) == 1 else None)
        if len(params) > 1:
            flat(trial)
        study.tell(trial, state=TrialState.PRUNED)
    added = list[optuna.trial.FrozenTrial]()
    add = optuna.Study.add_trials

    def copied(self: optuna.Study, trials: Any) -> None:
        added.extend(trials)
        add(self, trials)

    monkeypatch.setattr(optuna.Study, "add_trials", copied)
    flat(study.ask())
    complete, stopped = added[:6], added[6:]
    assert len(stopped) == 50, "the last ones, and none that has no knob"
    assert sorted(trial.params["x"] for trial in stopped) == [number / 100 for number in range(10, 60)]
    assert all(max(trial.constraints.values()) <= 0 for trial in complete)
    worst = [max(values) for values in zip(*(trial.values for trial in complete), strict=True)]
    assert all(trial.values == worst and trial.state == TrialState.COMPLETE for trial in stopped)
    assert all(trial.constraints == {"most": 1.0} and set(trial.params) == {"x", "n", "c"} for trial in stopped)


@pytest.mark.parametrize("name", ["tpe", "nsga3", "gp"])
def test_a_study_goes_on_with_the_same_choice_after_an_interruption(name: Any) -> None:
    whole, parts = Problem(name, 3), Problem(name, 3)
    ids = [whole.step().id for _ in range(9)]
    again = [parts.step().id for _ in range(6)]
    parts.study = Study("s", parts.study._storage, OBJECTIVES, LIMITS, 3, name)
    again += [parts.step().id for _ in range(3)]
    assert ids == again


@pytest.mark.parametrize("make", [nsga3, gp])
def test_a_choice_that_was_enqueued_is_taken_as_it_is(make: Callable[[int], optuna.samplers.BaseSampler]) -> None:
    study = study_of(make(0))
    study.optimize(flat, 3)
    study.enqueue_trial({"x": 0.25, "n": 3, "c": "b"})
    trial = study.ask()
    flat(trial)
    assert trial.params == {"x": 0.25, "n": 3, "c": "b"}


def test_a_study_without_trials_is_explored_at_random() -> None:
    study = Study("s", in_memory(), OBJECTIVES, LIMITS, 0, "gp")
    assert len({study.ask(SPACE)[1].id for _ in range(5)}) == 5
