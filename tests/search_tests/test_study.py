"""Trials survive kills: an outcome that was kept is told, a trial without one waits to be asked for again."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from objectives.records import NotFiniteError, Outcome, Quality
from search.config.loss_limits import Limits
from search.samplers.expected_gain import ExpectedGainSampler
from search.study import Study
from search.trials import sought
from spaces.candidate import Candidate
from spaces.domains import Choice
from spaces.search_space import SearchSpace
from spaces.serialization import from_plain
from tests.search_tests.measurements import complete_outcome, small_space


@pytest.fixture
def space() -> SearchSpace:
    return small_space()


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'optuna.db'}"


def open_study(storage: str) -> Study:
    return Study("s", storage, ["latency_p95", "throughput", "quality"], Limits(0.01), seed=0)


def test_an_outcome_comes_back_whole_after_reopening(space: SearchSpace, storage: str) -> None:
    study = open_study(storage)
    trial, candidate = study.ask(space)
    told = complete_outcome()
    study.tell(trial.number, told, 1.5)
    again = open_study(storage)
    (found,) = again.ended()
    assert (found.outcome, found.candidate, found.minutes) == (told, candidate, 1.5)
    (raw,) = again.finished()
    assert raw.values == [0.5, 0.5, 0.001] and raw.params == found.knobs


def test_an_outcome_of_the_version_before_is_read(space: SearchSpace, storage: str) -> None:
    study = open_study(storage)
    trial, _ = study.ask(space)
    study.tell(trial.number, complete_outcome(), 1.5)
    raw = optuna.load_study(study_name="s", storage=storage)
    plain = json.loads(raw.trials[0].user_attrs["outcome"]) | {"quick_benchmark": None}
    del plain["simulated"]
    older, _ = study.ask(space)
    older.set_user_attr("outcome", json.dumps(plain))
    study._study.tell(older, raw.trials[0].values)
    assert [trial.outcome for trial in open_study(storage).ended()] == [complete_outcome()] * 2


def test_a_study_that_is_begun_anew_has_started_from_nothing(storage: str) -> None:
    study = open_study(storage)
    study.note(started_from=["other"], resolution=0.1)
    study.restart()
    assert study.facts == {"resolution": 0.1} == open_study(storage).facts


def test_optuna_sees_the_tolerated_loss_as_a_constraint(space: SearchSpace, storage: str) -> None:
    study = open_study(storage)
    for loss in (0.005, 0.02):
        trial, _ = study.ask(space)
        study.tell(trial.number, complete_outcome(loss=loss), 0)
    raw = optuna.load_study(study_name="s", storage=storage)
    assert [t.constraints["loss on all rows"] for t in raw.trials] == pytest.approx([-0.005, 0.01])
    assert [t.number for t in raw.best_trials] == [0]


def test_a_kill_between_keeping_and_telling_loses_nothing(
    space: SearchSpace, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study(storage)
    trial, _ = study.ask(space)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "_close", killed)
    with pytest.raises(KeyboardInterrupt):
        study.tell(trial.number, complete_outcome(), 0)
    again = open_study(storage)
    assert again.finished() == []
    again.sweep()
    assert [trial.outcome for trial in again.ended()] == [complete_outcome()]
    assert [trial.state for trial in again.finished()] == [optuna.trial.TrialState.COMPLETE]


def test_an_interrupted_trial_waits_with_its_number_and_choice(space: SearchSpace, storage: str) -> None:
    trial, candidate = open_study(storage).ask(space)
    again = open_study(storage)
    again.sweep()
    assert again.ended() == [] and again.finished() == [] and again.spent() == 0
    repeated, same = again.ask(space)
    assert (repeated.number, same) == (trial.number, candidate)
    again.tell(repeated.number, complete_outcome(), 1.0)
    assert [ended.candidate for ended in again.ended()] == [candidate]
    assert again.ended()[0].knobs == trial.params


def test_an_interrupted_choice_is_asked_for_where_the_space_no_longer_offers_it(
    space: SearchSpace, storage: str
) -> None:
    """Another sampler trains one cycle only, and a choice of several was interrupted."""
    cycled = replace(space, weights=replace(space.weights, cycles=Choice((1, 2, 3))))
    study = open_study(storage)
    while (learning := study.ask(cycled)[1].weights.distillation) is None or learning.cycles == 1:
        continue
    choices = [from_plain(Candidate, trial.user_attrs["candidate"]) for trial in study._study.get_trials()]
    study.sweep()
    assert [study.ask(space)[1] for _ in choices] == choices


def test_a_choice_that_was_interrupted_half_made_is_made_whole(
    space: SearchSpace, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was suggested of it stays."""
    study, suggest, half = open_study(storage), optuna.Trial._suggest, dict[str, Any]()

    def killed(trial: Any, name: str, domain: Any) -> Any:
        if len(half) == 2:
            raise KeyboardInterrupt
        half[name] = suggest(trial, name, domain)
        return half[name]

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Trial, "_suggest", killed)
        with pytest.raises(KeyboardInterrupt):
            study.ask(space)
    study.sweep()
    trial, _ = study.ask(space)
    assert trial.number == 0 and len(trial.params) > 2 and half.items() <= trial.params.items()


@pytest.mark.parametrize("writes", range(3))
def test_a_kill_while_trials_are_swept_loses_no_choice(
    writes: int, space: SearchSpace, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever write is the last one, both choices wait."""
    study = open_study(storage)
    choices, left = [study.ask(space)[1] for _ in range(2)], [None] * writes
    write = optuna.storages._CachedStorage.set_trial_state_values

    def last(storage: Any, identity: int, state: Any, values: Any = None) -> bool:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return write(storage, identity, state, values)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.storages._CachedStorage, "set_trial_state_values", last)
        with contextlib.suppress(KeyboardInterrupt):
            open_study(storage).sweep()
    again = open_study(storage)
    again.sweep()
    assert [again.ask(space)[1] for _ in range(2)] == choices


def test_a_proposal_has_the_same_number_in_a_study_that_goes_on_and_in_one_that_is_opened(
    space: SearchSpace, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is that of its trial, and an interrupted one keeps its own; trials end in any order."""
    numbers = list[int]()
    study = Study("s", storage, ["latency_p95", "throughput", "quality"], Limits(0.01), 0, "auto")
    propose = ExpectedGainSampler.propose

    def noted(self: ExpectedGainSampler, evidence: Any, number: int) -> Any:
        numbers.append(number)
        return propose(self, evidence, number)

    monkeypatch.setattr(ExpectedGainSampler, "propose", noted)
    _, second, _ = (study.ask(space)[0] for _ in range(3))
    study.tell(second.number, complete_outcome(key="b"), 1)
    study.ask(space)
    study.sweep()  # the first, the third and the fourth were interrupted, and wait to be asked for again
    study.tell(study.ask(space)[0].number, complete_outcome(key="a"), 1)
    for _ in range(3):  # two that wait, and a new one
        study.ask(space)
    assert numbers == [0, 1, 2, 3, 4]
    again = Study("s", storage, ["latency_p95", "throughput", "quality"], Limits(0.01), 0, "auto")
    again.ask(space)
    study.ask(space)
    assert numbers == [0, 1, 2, 3, 4, 5, 6]


def test_the_next_number_is_known_when_a_study_is_opened(space: SearchSpace, storage: str) -> None:
    study = open_study(storage)
    for _ in range(3):
        study.tell(study.ask(space)[0].number, complete_outcome(), 1)
    assert open_study(storage).next_number == 3


def test_a_failed_and_a_stopped_trial_have_no_values(space: SearchSpace, storage: str) -> None:
    study = open_study(storage)
    for state in ("failed", "stopped"):
        trial, _ = study.ask(space)
        study.tell(trial.number, Outcome(state, "why"), 0)  # type: ignore[arg-type]
    states = [t.state for t in study.finished()]
    assert states == [optuna.trial.TrialState.FAIL, optuna.trial.TrialState.PRUNED]
    assert all(trial.constraints == {"stopped": 1.0} for trial in study.finished()), "no sampler takes them for good"


def test_restart_forgets_trials_and_keeps_facts(space: SearchSpace, storage: str) -> None:
    study = open_study(storage)
    study.note(colour="blue")
    study.failed_networks = {"student": "its loss is nan"}
    assert open_study(storage).failed_networks == {"student": "its loss is nan"}
    trial, _ = study.ask(space)
    study.tell(trial.number, complete_outcome(), 0)
    study.restart()
    assert study.finished() == [] and study.failed_networks == {}
    assert study.facts["colour"] == "blue"
    assert study.ask(space)[0].number == 0


def test_facts_of_another_process_are_read_when_they_are_refreshed(storage: str) -> None:
    ours, theirs = open_study(storage), open_study(storage)
    assert ours.facts == {}
    theirs.note(looks=[1])
    assert ours.facts == {}, "read once"
    ours.refresh_facts()
    assert ours.facts == {"looks": [1]}


def test_nothing_infinite_is_ever_told() -> None:
    with pytest.raises(NotFiniteError, match="loss"):
        Quality("auc", 0.8, 0.8, float("nan"), (0.0, 0.1), 10, 5)
    with pytest.raises(NotFiniteError, match="loss_interval"):
        Quality("auc", 0.8, 0.8, 0.0, (0.0, float("inf")), 10, 5)


def test_an_objective_that_was_not_measured_is_refused() -> None:
    measured = complete_outcome().measurement
    assert sought(measured, ["latency_p99", "model_bytes"]) == [0.5, 1000.0]


def test_each_outcome_is_parsed_once_however_often_it_is_asked_for(
    space: SearchSpace, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All trials are looked at with every event; a study begun anew has other outcomes under the same numbers."""
    parsed: list[str] = []
    read = json.loads
    monkeypatch.setattr(
        "search.study.json.loads",
        lambda text: (parsed.append(text) if text.startswith('{"state"') else None) or read(text),
    )
    study, losses = open_study(storage), [0.00123, 0.00456, 0.00789]
    for loss in losses:
        trial, _ = study.ask(space)
        study.tell(trial.number, complete_outcome(loss=loss), 0.1)
    parsed.clear()
    for _ in range(3):
        assert [m.quality.loss for m in study.measured().values()] == losses
    assert len(parsed) == 3
    study.restart()
    trial, _ = study.ask(space)
    study.tell(trial.number, complete_outcome(loss=0.00321), 0.1)
    assert [m.quality.loss for m in study.measured().values()] == [0.00321]
