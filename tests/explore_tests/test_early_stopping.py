"""Early stopping: predictions against closed forms, and whole searches over scripted workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objectives.records import EarlyLoss, Outcome
from search.config.study_file import load
from search.explore import early_stopping
from search.explore.early_stopping import goes_on, loss_at_the_end, remaining_share, saves
from search.study import Study
from search.trials import EndedTrial
from spaces.candidate import Candidate
from spaces.domains import Choice
from spaces.serialization import to_plain
from spaces.techniques.distillation import Distillation
from spaces.techniques.pruning import Pruning
from spaces.techniques.quantization import Precision
from spaces.weights import Weights
from tests.explore_tests.test_explorer import answers, each, parts, search, timed
from tests.search_tests.measurements import complete_outcome, in_memory

__all__ = ["parts"]  # a fixture


@given(st.lists(st.integers(-100, 3000), min_size=8, max_size=40, unique=True), st.floats(0, 1), st.floats(-0.02, 0.02))
def test_losses_on_a_line_are_continued(early: list[int], slope: float, intercept: float) -> None:
    """Losses to a hundredth of a percent: much smaller steps would be lost in the sums."""
    pairs = [(loss / 1e4, intercept + slope * loss / 1e4) for loss in early]
    found = loss_at_the_end(pairs, 0.2)
    assert found is not None
    assert found == pytest.approx((intercept + 0.2 * slope,) * 2, abs=1e-9)


def test_the_least_loss_is_that_of_the_luckiest_tenth() -> None:
    """The least loss is the tenth percentile of all ends where there is no slope; one that falls counts as none."""
    ends = np.random.default_rng(0).normal(size=50)
    for early in (np.zeros(50), -np.sort(ends)):
        found = loss_at_the_end(list(zip(early, np.sort(ends), strict=True)), 3.0)
        assert found == pytest.approx((np.median(ends), np.quantile(ends, 0.1)))


@pytest.mark.parametrize("count", [0, 1, 7])
def test_nothing_is_expected_before_enough_have_ended(count: int) -> None:
    assert loss_at_the_end([(0.1, 0.0)] * count, 0.1) is None
    assert loss_at_the_end([(0.1, 0.0)] * 8, 0.1) == (0.0, 0.0)


def test_one_training_in_ten_goes_on() -> None:
    learning = Distillation(1.0, 0.0, 2)
    ids = [Weights(pruning=Pruning((("mlp", 0.001 * n),)), distillation=learning).id for n in range(1, 900)]
    assert 0.07 < np.mean([goes_on(one) for one in ids]) < 0.13
    assert [goes_on(one) for one in ids] == [goes_on(one) for one in ids]


def _evaluated(loss: float, cycles: int, ratio: float, width: str = "fp32") -> EndedTrial:
    learning = Distillation(1.0, 0.5, 2, cycles=cycles)
    weights = Weights(pruning=Pruning((("mlp", ratio),)), distillation=learning)
    candidate = Candidate(weights, Precision((("mlp", width),)))
    return EndedTrial(0, candidate, complete_outcome(loss=loss), 1.0)


def test_of_a_loss_remains_what_the_best_tenth_of_the_cycles_left_in_each() -> None:
    """Ten shapes keep 50%, 55% ... 95% of their loss after a second cycle, and one of them 30% of that after a third.

    The 10% quantile of the eleven shares is the second smallest, 50%. Another width, a shape whose first cycle was not
    evaluated, and one that lost nothing tell nothing.
    """
    shares = [0.5 + 0.05 * place for place in range(10)]
    ended = [_evaluated(0.1, 1, 0.3 + 0.01 * place) for place in range(10)]
    ended += [_evaluated(0.1 * share, 2, 0.3 + 0.01 * place) for place, share in enumerate(shares)]
    ended += [_evaluated(0.3 * 0.05, 3, 0.3)]
    ended += [_evaluated(0.0, 2, 0.3, "int8-dynamic"), _evaluated(0.0, 2, 0.7)]
    ended += [_evaluated(-0.01, 1, 0.8), _evaluated(0.02, 2, 0.8)]
    assert remaining_share(ended, 2) == pytest.approx(0.5) and remaining_share(ended, 4) == pytest.approx(0.125)
    assert remaining_share(ended, 1) == 1.0


def test_without_evidence_any_gain_is_possible() -> None:
    assert remaining_share([_evaluated(0.05, 1, 0.5)], 4) == 0.0
    worse = [_evaluated(0.05, 1, 0.5), _evaluated(0.06, 2, 0.5)]
    assert remaining_share(worse, 4) == 1.0


def test_a_training_is_not_stopped_for_what_a_further_cycle_may_mend(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search is that of the test below, but trainings may go on, and none has shown what that gains."""
    monkeypatch.setattr(early_stopping, "loss_at_the_end", lambda pairs, loss: (loss, loss) if len(pairs) > 3 else None)
    space = parts["space"]
    parts["space"] = replace(space, weights=replace(space.weights, cycles=Choice((1, 2))))
    # How many trainings of one cycle TPE proposes depends on the order in which trials end.
    parts["config"] = config = load("ml-100k", ["sampler=random", "space.distillation.cycles=2"])
    parts["study"] = Study("r", in_memory(), config.objectives, config.quality.limits, config.seed, config.sampler)
    monkeypatch.setattr(early_stopping, "remaining_share", lambda ended, cycles: 0.0 if cycles == 2 else 1.0)
    told, evaluated = run(parts, monkeypatch, lambda number: 0.01 if number <= 4 else 0.3, 120)
    assert len(evaluated) > 8
    assert not any("is tolerated" in (t.outcome.reason or "") for t in told)


def ended(state: Any, fit: float, evaluating: float, reused: tuple[str, ...] = ()) -> Outcome:
    seconds = {"fit": fit, "export": evaluating / 2, "judge": evaluating / 2}
    whole = complete_outcome()
    if state == "complete":
        return replace(whole, seconds=seconds, reused=reused)
    return Outcome(state, "lost", seconds=seconds, reused=reused)


@pytest.mark.parametrize(
    ("fit", "expected"),
    # 3 of 4 in vain, (3 + 1) / (4 + 2); three quarters are left: half of the seconds of a fit against 1.
    [(2.1, True), (1.9, False)],
)
def test_evaluating_early_is_worth_the_seconds_that_it_saves(fit: float, expected: bool) -> None:
    outcomes = [ended("complete", fit, 1.0), *[ended("stopped", fit, 1.0)] * 3]
    assert saves([*outcomes, ended("stopped", 0.0, 9.0), ended("complete", 99.0, 0.1, ("fit",))], 0.75) == expected


def test_nothing_is_saved_before_something_was_trained() -> None:
    assert not saves([], 0.75)


def test_trainings_that_were_evaluated_early_do_not_count() -> None:
    """A training that was evaluated early took the seconds of a part, or of two evaluations."""
    outcomes = [ended("complete", 2.1, 1.0), *[ended("stopped", 2.1, 1.0)] * 3]
    early = replace(ended("stopped", 0.5, 2.0), early=EarlyLoss(0.3, 0.3, 0.3, True))
    assert saves([*outcomes, *[early] * 50], 0.75)


LEARNING = Distillation(2.0, 0.5, 8)


@pytest.mark.parametrize(
    ("weights", "after"),
    [
        (Weights(pruning=Pruning((("mlp", 0.5),)), distillation=LEARNING), 2),
        (Weights(distillation=replace(LEARNING, epochs=2)), 1),
        (Weights(distillation=replace(LEARNING, epochs=1)), None),
        (Weights(), None),
        (Weights(pruning=Pruning((("mlp", 0.5),), steps=3), distillation=LEARNING), None),
        (Weights(quantization_aware=("mlp",), distillation=LEARNING), None),
        (Weights(distillation=replace(LEARNING, feature_weight=0.1)), None),
        (Weights(pruning=Pruning((("mlp", 0.5),)), distillation=replace(LEARNING, elastic_epochs=3)), None),
        (Weights(distillation=replace(LEARNING, stopped_after=2)), None),
    ],
)
def test_trainings_in_one_part_can_be_evaluated_after_a_quarter(weights: Weights, after: int | None) -> None:
    early = weights.early
    assert (early and early.distillation and early.distillation.stopped_after) == after
    if early is not None:
        assert early.id != weights.id and early.untrained == weights.untrained
        assert early.knobs() == weights.knobs() | {"distillation.stopped_after": after}


def losing(loss: float) -> dict[str, Any]:
    measured = complete_outcome(loss=loss).measurement
    assert measured is not None
    return to_plain(measured.quality)  # type: ignore[no-any-return]


def run(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, early_loss: Any, trials: int = 60, **changes: Any
) -> tuple[list[Any], list[Mapping[str, Any]]]:
    """A search of trainings that lose 0.1% at their end, and a given loss after their first epochs."""
    evaluated: list[Mapping[str, Any]] = []

    def stopped(weights: Mapping[str, Any]) -> bool:
        return bool(weights["distillation"] and weights["distillation"]["stopped_after"])

    def evaluate(arguments: Mapping[str, Any]) -> Any:
        early = "early" in arguments["scores"]["candidate"]["model"]
        loss = early_loss(len(evaluated)) if early else 0.001
        return loss if isinstance(loss, str) else {"quality": losing(loss), "reused": False}

    def export(arguments: Mapping[str, Any]) -> Any:
        weights = arguments["candidate"]["weights"]
        artifact = dict(answers()["export"](arguments)["artifact"])
        if stopped(weights):
            evaluated.append(weights)
            artifact |= {"key": "early", "path": "early/model.onnx"}
        return {"artifact": artifact, "reused": False}

    monkeypatch.setattr(early_stopping, "saves", lambda outcomes, left: True)
    space = parts["space"]
    parts["space"] = replace(space, weights=replace(space.weights, epochs=8))
    script = answers(export=export, evaluate=evaluate, group_benchmark=each(lambda n: timed(0.5 - 0.001 * n, 2.0)))
    _, told, _ = search(parts, script | changes, trials)
    return told, evaluated


def test_trainings_that_cannot_enter_the_front_are_stopped_but_for_one_in_ten(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainings that lose 30% early are stopped, all but one in ten.

    The first four that are evaluated lose 1% early, all later ones 30%, and each loses 0.1% in the end. A line through
    these losses has no slope and would expect 0.1% of every training, so the test takes the early loss as the expected
    one.
    """
    monkeypatch.setattr(early_stopping, "loss_at_the_end", lambda pairs, loss: (loss, loss) if len(pairs) > 3 else None)
    told, evaluated = run(parts, monkeypatch, lambda number: 0.01 if number <= 4 else 0.3)
    seen = [t for t in told if t.outcome.early is not None]
    prunable = [t for t in seen if t.outcome.early.prunable]
    stopped = [t for t in prunable if t.outcome.state == "stopped" and "first epochs" in (t.outcome.reason or "")]
    assert len(evaluated) >= len(seen) > 10 and stopped
    for trial in prunable:
        assert (trial not in stopped) == goes_on(trial.candidate.weights.id)
        assert trial.outcome.early == EarlyLoss(0.3, 0.3, 0.3, True)
    for trial in stopped:
        assert trial.outcome.artifact is None and trial.outcome.evaluated is None and trial.outcome.informative
        assert "30.00% after its first epochs" in trial.outcome.reason and "1.00% is tolerated" in trial.outcome.reason
    promising = [t for t in seen if not t.outcome.early.prunable]
    assert promising and all(t.outcome.evaluated.loss == 0.001 for t in promising if t.outcome.evaluated)


def test_a_half_trained_model_that_cannot_be_evaluated_is_trained_to_its_end(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told, evaluated = run(parts, monkeypatch, lambda number: "Scores must be finite", 20)
    assert evaluated and all(t.outcome.early is None for t in told)
    assert any(t.outcome.state == "complete" and t.candidate.weights.early for t in told)


def test_it_can_be_turned_off(parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    parts["config"] = load("ml-100k", ["sampler=tpe", "space.distillation.early_stopping=false"])
    _, evaluated = run(parts, monkeypatch, lambda number: 0.3, 20)
    assert not evaluated
