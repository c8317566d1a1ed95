"""Knowledge distillation from the baseline into a smaller model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from spaces.domains import Scalar
from spaces.serialization import added_later, formerly


@dataclass(frozen=True)
class Distillation:
    """Settings of a distillation.

    temperature: of both softened outputs
    teacher_weight: weight of the teacher's term; labels get the rest
    epochs: number of epochs; 0 for weights that are not trained
    feature_weight: weight of the squared distance to the teacher's hidden features, added to the outputs' loss; 0 for
        none
    seed: added to the study's seed, for trainings that differ in nothing else
    elastic_epochs: epochs of the elastic network that the weights are a slice of, before their own epochs, of which
        there may be none; 0 for weights that are trained separately
    stopped_after: epochs after which the training was stopped, without the rest; 0 where it ran to its end
    cycles: cycles of the learning rate, of so many epochs each; a cycle starts from the weights that the one before it
        left (warm restarts, Loshchilov and Hutter 2017)
    """

    temperature: float
    teacher_weight: float
    epochs: int = field(metadata=formerly("passes"))
    feature_weight: float = 0.0
    seed: int = 0
    elastic_epochs: int = 0
    stopped_after: int = 0
    cycles: int = field(default=1, metadata=added_later())

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 1.0):
            raise ValueError(f"A temperature is at least 1, but got {self.temperature}.")
        if not 0.0 <= self.teacher_weight <= 1.0:
            raise ValueError(f"The teacher's weight lies in [0, 1], but got {self.teacher_weight}.")
        for epochs in (self.epochs, self.elastic_epochs):
            if epochs < 0:
                raise ValueError(f"There are 0 epochs or more, but got {epochs}.")
        if self.elastic_epochs > 0 and self.feature_weight > 0:
            raise ValueError(f"An elastic network distils no features, but got a weight of {self.feature_weight}.")
        if not 0 <= self.stopped_after <= max(0, self.epochs - 1):
            stopped = self.stopped_after
            raise ValueError(f"A training is stopped before its last of {self.epochs} epochs, but got {stopped}.")
        if self.cycles < 1 or (self.cycles > 1 and (self.elastic_epochs or self.stopped_after)):
            raise ValueError(
                "A training has 1 cycle, or more where it is neither stopped nor of a slice of an elastic network, but "
                f"got {self.cycles}."
            )
        if self.seed < 0:
            raise ValueError(f"A seed is at least 0, but got {self.seed}.")
        if not (math.isfinite(self.feature_weight) and self.feature_weight >= 0.0):
            raise ValueError(f"The weight of features is at least 0, but got {self.feature_weight}.")

    @property
    def trained(self) -> bool:
        return self.epochs + self.elastic_epochs > 0

    def separate(self) -> Distillation:
        """Return the settings of a training that starts from no network, for as many epochs in all."""
        return replace(self, epochs=self.epochs + self.elastic_epochs, elastic_epochs=0)

    def knobs(self) -> dict[str, Scalar]:
        """Return every choice by its dotted name.

        The seed is included where it is not the study's, the elastic network's epochs where there is one, and the
        epochs of a training that was stopped.
        """
        optional = tuple(name for name in ("seed", "elastic_epochs", "stopped_after") if getattr(self, name))
        names = ("temperature", "teacher_weight", "feature_weight", "epochs", "cycles", *optional)
        return {f"distillation.{name}": getattr(self, name) for name in names}
