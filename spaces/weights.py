"""Techniques that change or train the weights of a candidate."""

from __future__ import annotations

from dataclasses import dataclass, field

from spaces.domains import Scalar
from spaces.serialization import digest, formerly
from spaces.techniques.architecture import Architecture
from spaces.techniques.attention import Attention
from spaces.techniques.distillation import Distillation
from spaces.techniques.embeddings import MixedDimensions, QuotientRemainder, TableForm
from spaces.techniques.low_rank import LowRank
from spaces.techniques.pruning import Pruning

# Prefix of the knob of each group that may train quantization-aware.
AWARE = "weights.quantization_aware"


@dataclass(frozen=True)
class Weights:
    """Techniques applied to the weights; the defaults are the baseline's own weights, unchanged. The stages run in the
    order of the fields.

    quantization_aware: groups trained with the rounding of static int8 in the loop
    reference: name of a simple reference model in the baseline's place
    """

    architecture: Architecture | None = None
    quotient_remainder: tuple[QuotientRemainder, ...] = field(default=(), metadata=formerly("shared_rows"))
    mixed_dimensions: tuple[MixedDimensions, ...] = ()
    attention: Attention | None = None
    pruning: Pruning | None = None
    low_rank: LowRank | None = None
    distillation: Distillation | None = None
    quantization_aware: tuple[str, ...] = field(default=(), metadata=formerly("quantisation_aware"))
    reference: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "quantization_aware", tuple(sorted(self.quantization_aware)))
        changed = self.reshaped or bool(self.quantization_aware)
        if changed and self.distillation is None:
            raise ValueError("Weights that differ from the baseline's are distilled, but got no distillation.")
        if self.reference is not None and self.distillation is not None:
            raise ValueError(f"A simple reference is taken as it is, but {self.reference!r} got a distillation.")
        if self.architecture is not None and self.pruning is not None:
            raise ValueError("A student has the sizes of its own, so it is not pruned, but got both.")
        tables = [form.group for form in self.table_forms]
        if len(set(tables)) != len(tables):
            raise ValueError(f"The tables of a group are held in one form, but got {tables}.")

    @property
    def table_forms(self) -> tuple[TableForm, ...]:
        return (*self.quotient_remainder, *self.mixed_dimensions)

    @property
    def reshaped(self) -> bool:
        """True if any shape differs from the baseline's."""
        return any((self.architecture, self.table_forms, self.attention, self.pruning, self.low_rank))

    @property
    def origin(self) -> str:
        if self.reference is not None:
            return self.reference.replace("_", " ")
        if self.architecture is not None:
            return "student"
        return "baseline" if self.distillation is None else "pruned"

    @property
    def id(self) -> str:
        return "w" + digest(self)[:12]

    def knobs(self) -> dict[str, Scalar]:
        """Return every choice by its dotted name."""
        knobs: dict[str, Scalar] = {"weights.origin": self.origin}
        if self.architecture is not None:
            knobs |= {f"architecture.{name}": value for name, value in self.architecture.sizes}
        knobs |= {f"tables.{form.group}.full_rows_share": form.full_rows_share for form in self.quotient_remainder}
        knobs |= {f"tables.{form.group}.temperature": form.temperature for form in self.mixed_dimensions}
        if self.attention is not None:
            knobs |= {"attention.window": self.attention.window or 0, "attention.history": self.attention.history or 0}
        if self.pruning is not None:
            knobs |= {f"pruning.{group}": ratio for group, ratio in self.pruning.ratios}
            knobs |= {"pruning.importance": self.pruning.importance, "pruning.steps": self.pruning.steps}
        if self.low_rank is not None:
            knobs |= {f"low_rank.{group}": share for group, share in self.low_rank.shares}
        if self.distillation is not None:
            knobs["distillation.temperature"] = self.distillation.temperature
            knobs["distillation.teacher_weight"] = self.distillation.teacher_weight
            knobs["distillation.feature_weight"] = self.distillation.feature_weight
            knobs["distillation.epochs"] = self.distillation.epochs
            if self.distillation.seed:
                knobs["distillation.seed"] = self.distillation.seed
            knobs |= {f"{AWARE}.{group}": True for group in self.quantization_aware}
        return knobs
