"""One complete choice, named by its content."""

from __future__ import annotations

from dataclasses import dataclass, field

from spaces.architecture import Architecture
from spaces.canonical import digest
from spaces.distillation import Distillation
from spaces.domains import Scalar
from spaces.placement import Placement
from spaces.precision import Precision
from spaces.pruning import Pruning


@dataclass(frozen=True)
class Weights:
    """Everything that shapes or trains the weights; nothing of it is the baseline's own weights, untouched."""

    architecture: Architecture | None = None
    pruning: Pruning | None = None
    distillation: Distillation | None = None

    def __post_init__(self) -> None:
        changed = self.architecture is not None or self.pruning is not None
        if changed != (self.distillation is not None):
            raise ValueError("Weights are distilled exactly when their shape or pruning differs from the baseline's.")

    @property
    def origin(self) -> str:
        if self.architecture is not None:
            return "student"
        return "pruned" if self.pruning is not None else "baseline"

    @property
    def id(self) -> str:
        return "w" + digest(self)[:12]


@dataclass(frozen=True)
class Candidate:
    """Weights, precision and placement; trial 0 is the one with every default."""

    weights: Weights = field(default_factory=Weights)
    precision: Precision = field(default_factory=Precision)
    placement: Placement = field(default_factory=Placement)

    @property
    def variant_id(self) -> str:
        return "v" + digest(self.weights, self.precision)[:12]

    @property
    def id(self) -> str:
        return "c" + digest(self)[:12]

    @property
    def is_baseline(self) -> bool:
        """Whether nothing differs from the baseline, its widths said or not."""
        widths = {width for _, width in self.precision.widths} | {self.precision.compute}
        return self.weights == Weights() and widths == {"fp32"} and self.placement == Placement()

    def knobs(self) -> dict[str, Scalar]:
        """Every choice by its dotted name, for tables and for the ledger."""
        knobs: dict[str, Scalar] = {"weights.origin": self.weights.origin}
        if self.weights.architecture is not None:
            knobs |= {f"architecture.{name}": value for name, value in self.weights.architecture.sizes}
        if self.weights.pruning is not None:
            knobs |= {f"pruning.{group}": ratio for group, ratio in self.weights.pruning.ratios}
        if self.weights.distillation is not None:
            knobs["distillation.temperature"] = self.weights.distillation.temperature
            knobs["distillation.teacher_weight"] = self.weights.distillation.teacher_weight
            knobs["distillation.passes"] = self.weights.distillation.passes
        knobs |= {f"precision.{group}": width for group, width in self.precision.widths}
        knobs["precision.compute"] = self.precision.compute
        return knobs | self.placement.knobs()
