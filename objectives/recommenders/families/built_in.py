"""Common part of the built-in recommenders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from objectives.arrays import Numbers
from objectives.task import Task


@dataclass(frozen=True, eq=False)
class BuiltIn:
    """Recommender with a baseline that leanrec trains; what it lacks of `Recommender` depends on the family.

    training: facts of the baseline's training
    """

    task: Task
    training: Mapping[str, object]
    key: str
    custom_metric: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = ()
    built: ClassVar[bool] = True

    @property
    def metric(self) -> str:
        return self.task.metric

    def evaluate_custom_metric(self, scores: Numbers, labels: Numbers, groups: Numbers) -> float:
        raise ValueError(f"{self.metric} is no function of the user's own.")

    def scores(self, outputs: object) -> Tensor:
        assert isinstance(outputs, Tensor)
        return outputs
