"""Weights that are slices of an elastic network: which shapes are, what is drawn for them, what an ablation trains."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from spaces.ablations import techniques
from spaces.candidate import Candidate
from spaces.domains import Choice, Float
from spaces.serialization import from_plain, to_plain
from spaces.techniques.architecture import Architecture
from spaces.techniques.attention import Attention
from spaces.techniques.distillation import Distillation
from spaces.techniques.low_rank import LowRank
from spaces.techniques.pruning import Pruning
from spaces.techniques.quantization import Precision
from spaces.weights import Weights, WeightsSpace

SLICED = Distillation(2.0, 0.5, 2, seed=1, elastic_epochs=7)
PRUNED, STUDENT = Pruning((("mlp", 0.5),)), Architecture((("width", 8),))


@pytest.mark.parametrize(
    ("shape", "held"),
    [
        ({"pruning": PRUNED}, True),
        ({"architecture": STUDENT}, True),
        ({"pruning": PRUNED, "quantization_aware": ("mlp",)}, True),
        ({}, False),
        ({"low_rank": LowRank((("mlp", 0.5),))}, False),
        ({"architecture": STUDENT, "attention": Attention(window=4)}, False),
        ({"pruning": PRUNED, "low_rank": LowRank((("mlp", 0.5),))}, False),
    ],
)
def test_a_shape_that_no_network_holds_is_trained_separately_for_as_long(shape: dict[str, Any], held: bool) -> None:
    weights = Weights(distillation=SLICED, **shape)
    assert weights.elastic == held
    assert weights.distillation == (SLICED if held else Distillation(2.0, 0.5, 9, seed=1))
    assert from_plain(Weights, to_plain(weights)) == weights
    assert ("distillation.elastic_epochs" in weights.knobs()) == held
    assert weights.untrained == Weights(**{**shape, "distillation": Distillation(1.0, 0.5, 1)}).untrained


def test_an_elastic_network_distils_no_features() -> None:
    with pytest.raises(ValueError, match="features"):
        Distillation(1.0, 0.5, 1, feature_weight=0.1, elastic_epochs=1)
    with pytest.raises(ValueError, match="epochs or more"):
        Distillation(1.0, 0.5, 1, elastic_epochs=-1)
    assert Distillation(1.0, 0.5, 0, elastic_epochs=1).trained and not Distillation(1.0, 0.5, 0).trained


def _space(**changes: Any) -> WeightsSpace:
    given: dict[str, Any] = {
        "architecture": {"width": Choice((8, 16, 32)), "depth": Choice((1, 2))},
        "own": {"width": 32, "depth": 2},
        "pruning": {"mlp": Choice((0.0, 0.5))},
        "distillation": {
            "temperature": Float(1.0, 4.0, log=True),
            "teacher_weight": Float(0.0, 1.0),
            "feature_weight": Choice((0.0, 0.1)),
        },
        "epochs": 3,
        "importance": Choice(("magnitude", "taylor")),
        "steps": Choice((1, 3)),
        "low_rank": {"mlp": Choice((1.0, 0.5))},
        "window": Choice((0, 8)),
        "quantization_aware": Choice((False, True)),
    }
    return WeightsSpace(**{**given, **changes})


def _drawn(space: WeightsSpace, count: int = 200) -> list[tuple[Weights, dict[str, Any]]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [study.ask() for _ in range(count)]
    return [(space.suggest(trial, ("mlp",)), trial.params) for trial in trials]


def test_slices_share_one_network_and_all_else_is_trained_separately() -> None:
    """Knobs that change nothing of a slice are not drawn for it."""
    networks = {"student": 7, "pruned": 5}
    drawn = _drawn(_space(elastic_epochs=networks, fine_tuning=Choice((0, 2))))
    sliced = [(weights, knobs) for weights, knobs in drawn if weights.elastic]
    assert {weights.sliceable for weights, _ in sliced} == {True}
    learning = {weights.origin: weights.distillation for weights, _ in sliced if weights.distillation}
    for origin, epochs in networks.items():
        expected = {Distillation(2.0, 0.5, own, elastic_epochs=epochs) for own in (0, 2)}
        assert {w.distillation for w, _ in sliced if w.origin == origin} == expected and origin in learning
    needless = {"pruning.importance", "pruning.steps", "distillation.temperature", "distillation.feature_weight"}
    assert not any(needless & knobs.keys() for _, knobs in sliced)
    assert {w.quantization_aware for w, _ in sliced} == {(), ("mlp",)}
    for weights, knobs in drawn:
        if weights.distillation is not None and not weights.elastic:
            assert not weights.sliceable and weights.distillation.epochs == 3
            assert "distillation.temperature" in knobs and "distillation.fine_tuning" not in knobs


def test_without_a_network_each_is_trained_separately() -> None:
    assert not any(weights.elastic for weights, _ in _drawn(_space()))
    drawn = _drawn(_space(elastic_epochs={"pruned": 5}))
    assert {w.origin for w, _ in drawn if w.elastic} == {"pruned"}
    assert all(w.sliceable <= (w.origin == "student" or w.elastic) for w, _ in drawn)


def test_the_first_trials_are_slices_as_they_are() -> None:
    starts = _space(elastic_epochs={"student": 7}, fine_tuning=Choice((0, 2))).starts()
    assert all(start["distillation.fine_tuning"] == 0 for start in starts)
    assert not any("distillation.fine_tuning" in start for start in _space().starts())


def test_what_distillation_gains_is_told_against_a_separate_training() -> None:
    """Another network for the labels alone would cost far more, and a technique by itself may be in none."""
    static = Precision((("mlp", "int8-static"),))
    candidate = Candidate(Weights(pruning=PRUNED, distillation=SLICED, quantization_aware=("mlp",)), static)
    found = {technique.name: technique for technique in techniques(candidate)}
    assert found.keys() >= {"pruning", "distillation", "learning with rounding"}
    assert found["distillation"].without.weights.distillation == Distillation(1.0, 0.0, 9, seed=1)
    assert found["pruning"].without.weights.distillation == Distillation(2.0, 0.5, 9, seed=1)
    assert found["pruning"].alone.weights == Weights(pruning=PRUNED, distillation=SLICED)
