"""Trainings of several cycles: what each starts from, and what the space offers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from optuna.trial import FixedTrial

from spaces.candidate import Candidate
from spaces.domains import Choice
from spaces.search_space import SearchSpace
from spaces.serialization import digest, to_plain
from spaces.techniques.architecture import Architecture
from spaces.techniques.distillation import Distillation
from spaces.techniques.placement import PlacementSpace
from spaces.techniques.quantization import PrecisionSpace
from spaces.weights import CYCLES, Weights, WeightsSpace

STUDENT = Architecture((("dim", 4),))
LEARNING = Distillation(2.0, 0.5, 4, cycles=3)


def _space(cycles: tuple[int, ...], **more: Any) -> WeightsSpace:
    distillation = {"temperature": Choice((2.0,)), "teacher_weight": Choice((0.5,)), "feature_weight": Choice((0.0,))}
    sizes = {"dim": Choice((4, 8))}
    return WeightsSpace(sizes, {}, distillation, 4, own={"dim": 16}, cycles=Choice(cycles), **more)


def test_each_cycle_starts_from_the_same_weights_with_one_less() -> None:
    weights = Weights(architecture=STUDENT, distillation=LEARNING, quantization_aware=("mlp",))
    chain = [weights]
    while (previous := chain[-1].previous) is not None:
        chain.append(previous)
    assert [one.distillation and one.distillation.cycles for one in chain] == [3, 2, 1]
    assert [one.quantization_aware for one in chain] == [("mlp",), (), ()]
    assert {one.architecture for one in chain} == {STUDENT} and {one.first_cycle for one in chain} == {chain[-1]}
    assert len({one.id for one in chain}) == 3 and len({one.untrained for one in chain}) == 1


def test_the_own_weights_have_no_cycle() -> None:
    assert Weights().previous is None and Weights().first_cycle == Weights()


def test_only_the_first_cycle_is_evaluated_early() -> None:
    weights = Weights(architecture=STUDENT, distillation=LEARNING)
    assert weights.early is None and weights.first_cycle.early is not None


@pytest.mark.parametrize("more", [{"cycles": 0}, {"elastic_epochs": 2}, {"stopped_after": 1}])
def test_cycles_are_of_a_whole_training(more: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="cycle"):
        replace(LEARNING, **more)


@pytest.mark.parametrize("cycles", [(2,), (1, 3), (2, 1)])
def test_cycles_are_offered_from_one_on(cycles: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="cycles must be 1, 2"):
        _space(cycles)


def test_a_student_is_drawn_with_its_cycles_and_a_slice_without() -> None:
    given = {"weights.origin": "student", "architecture.dim": 4, CYCLES: 2}
    drawn = _space((1, 2)).suggest(FixedTrial(given), ())
    assert drawn.distillation is not None and drawn.knobs()[CYCLES] == drawn.distillation.cycles == 2
    sliced = _space((1, 2), elastic_epochs={"student": 3}).suggest(FixedTrial(given), ())
    assert sliced.elastic and sliced.previous is None


def _starts(weights: WeightsSpace) -> list[Candidate]:
    space = SearchSpace(weights, PrecisionSpace({}), PlacementSpace(Choice(("onnxruntime",)), Choice(("1xauto",))))
    return [space.suggest(FixedTrial(start)) for start in space.starts()]


def test_the_first_start_that_is_no_slice_is_tried_with_a_second_cycle() -> None:
    (longer,) = (start.weights for start in _starts(_space((1, 2, 3))) if start.weights.previous is not None)
    first = next(start.weights for start in _starts(_space((1, 2, 3))) if start.weights.trainings)
    assert longer.previous == first
    slices = _starts(_space((1, 2), elastic_epochs={"student": 3}, fine_tuning=Choice((0,))))
    assert any(start.weights.elastic for start in slices)
    for starts in (slices, _starts(_space((1,)))):
        assert not any(start.weights.previous for start in starts)


def test_one_cycle_leaves_the_hash_as_it_was_before_there_were_several() -> None:
    """The hash is that of the JSON without the field."""
    learning = replace(LEARNING, cycles=1)
    plain = to_plain(learning)
    assert plain.pop("cycles") == 1 and digest(learning) == digest(plain)
    assert digest(LEARNING) == digest(to_plain(LEARNING)) != digest(learning)
