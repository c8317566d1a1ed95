"""Knowledge distillation from the baseline into a smaller model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from spaces.domains import Scalar
from spaces.serialization import formerly


@dataclass(frozen=True)
class Distillation:
    """Settings of a distillation: the temperature of both softened outputs, the weight of the teacher's term (labels
    get the rest) and the epochs, 0 for weights that are not trained.

    feature_weight: weight of the squared distance to the teacher's hidden features, added to the outputs' loss; 0 for
        none
    seed: added to the study's seed, for trainings that differ in nothing else
    """

    temperature: float
    teacher_weight: float
    epochs: int = field(metadata=formerly("passes"))
    feature_weight: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 1.0):
            raise ValueError(f"A temperature is at least 1, but got {self.temperature}.")
        if not 0.0 <= self.teacher_weight <= 1.0:
            raise ValueError(f"The teacher's weight lies in [0, 1], but got {self.teacher_weight}.")
        if self.epochs < 0:
            raise ValueError(f"There are 0 epochs or more, but got {self.epochs}.")
        if self.seed < 0:
            raise ValueError(f"A seed is at least 0, but got {self.seed}.")
        if not (math.isfinite(self.feature_weight) and self.feature_weight >= 0.0):
            raise ValueError(f"The weight of features is at least 0, but got {self.feature_weight}.")

    def knobs(self) -> dict[str, Scalar]:
        """Return every choice by its dotted name; the seed where it is not the study's."""
        names = ("temperature", "teacher_weight", "feature_weight", "epochs", *(("seed",) if self.seed else ()))
        return {f"distillation.{name}": getattr(self, name) for name in names}
