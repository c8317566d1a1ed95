"""The gain of distillation at the choice: which model is compared with the chosen one, and when there is none."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from objectives.records import Artifact, Quality
from search.choose.run import control
from search.errors import JobError
from spaces.candidate import Candidate
from spaces.techniques.distillation import Distillation
from spaces.techniques.pruning import Pruning
from spaces.techniques.quantization import Precision
from spaces.weights import Weights
from tests.search_tests.measurements import complete_outcome

LEARNING = Distillation(temperature=3.0, teacher_weight=0.6, epochs=4, feature_weight=0.2)
CHOSEN = Candidate(
    Weights(pruning=Pruning((("mlp", 0.5),)), distillation=LEARNING), Precision((("mlp", "int8-dynamic"),))
)
MODEL, CONTROL = (Artifact(name, f"{name}.onnx", {}, 10, 0.0) for name in ("chosen", "control"))


class Said:
    def __init__(self, refused: str | None = None) -> None:
        self.asked: list[Candidate] = []
        self.lines: list[str] = []
        self.refused, self.console, self.say = refused, self, self.lines.append
        self.sides: list[Any] = []

    def built(self, candidate: Candidate) -> Artifact:
        self.asked.append(candidate)
        if self.refused:
            raise JobError(self.refused)
        return CONTROL

    def quality(self, ours: Any, theirs: Any, part: str) -> Quality:
        self.sides.append((ours, theirs, part))
        return quality(-0.004, -0.006, -0.002)


def quality(loss: float, low: float, high: float) -> Quality:
    measured = complete_outcome(loss=loss).measurement
    assert measured is not None
    return replace(measured.quality, loss=loss, loss_interval=(low, high))


def test_the_control_learns_as_long_from_the_labels_and_is_all_the_same_else() -> None:
    pairs: Any = Said()
    found = control(pairs, (MODEL, CHOSEN))
    labels = replace(LEARNING, temperature=1.0, teacher_weight=0.0, feature_weight=0.0)
    beside = replace(CHOSEN, weights=replace(CHOSEN.weights, distillation=labels))
    assert pairs.asked == [beside]
    assert pairs.sides == [((MODEL, CHOSEN), (CONTROL, beside), "test")]
    assert found is not None and (found.gain, found.gain_interval) == (0.004, (0.002, 0.006))
    assert found.seeds == 3 and re.search(r"test.* 0\.40% of AUC \[0\.20%, 0\.60%\].* 3 seeds", found.sentence)


def test_a_model_that_learned_nothing_from_the_baseline_has_no_control() -> None:
    pairs: Any = Said("nothing is built")
    labels = replace(LEARNING, teacher_weight=0.0, feature_weight=0.0)
    assert control(pairs, (MODEL, Candidate(precision=CHOSEN.precision))) is None
    assert control(pairs, (MODEL, replace(CHOSEN, weights=replace(CHOSEN.weights, distillation=labels)))) is None
    assert pairs.asked == [] and pairs.lines == []


def test_a_control_that_cannot_be_built_is_said_and_costs_no_choice() -> None:
    pairs: Any = Said("out of memory")
    assert control(pairs, (MODEL, CHOSEN)) is None
    assert "out of memory" in pairs.lines[-1]
