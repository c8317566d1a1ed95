"""One complete choice, identified by the hash of its content."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

from spaces.domains import Scalar
from spaces.serialization import digest
from spaces.techniques.placement import Placement
from spaces.techniques.quantization import BATCH_DEPENDENT, STATIC, Precision
from spaces.weights import Weights


@dataclass(frozen=True)
class Candidate:
    """Weights, precision and placement of one trial; the baseline (trial 0) has every default."""

    weights: Weights = field(default_factory=Weights)
    precision: Precision = field(default_factory=Precision)
    placement: Placement = field(default_factory=Placement)

    def __post_init__(self) -> None:
        learned = self.weights.quantization_aware
        if not set(learned) <= set(self.precision.groups(STATIC)):
            raise ValueError(
                f"The groups that learn with rounding are among those held in {STATIC}, but got {list(learned)} and "
                f"{list(self.precision.groups(STATIC))}."
            )
        placement = self.placement
        if self.precision.depends_on_batch and (placement.batching is not None or placement.split_rows is not None):
            raise ValueError(
                f"Requests are scored whole and one by one where groups are held in {sorted(BATCH_DEPENDENT)}, whose "
                f"ranges are those of the rows that are scored together, but got {placement}."
            )

    def __hash__(self) -> int:
        return self._hash

    def __getstate__(self) -> dict[str, object]:
        """Leave the hash out of a pickle, since another process has other hashes of text."""
        return {name: value for name, value in self.__dict__.items() if name != "_hash"}

    @cached_property
    def _hash(self) -> int:
        """Hash of the content, computed once: a sampler finds each candidate of a study again in every proposal."""
        return hash((self.weights, self.precision, self.placement))

    @property
    def variant_id(self) -> str:
        """Identify the model file: `v` and 12 hex digits of the hash of weights and precision."""
        return "v" + digest(self.weights, self.precision)[:12]

    @property
    def id(self) -> str:
        """Identify the candidate: `c` and 12 hex digits of the hash of its content."""
        return "c" + digest(self)[:12]

    @property
    def untrained(self) -> Candidate:
        """The same choice with weights before training, which cost as much to run.

        Where the model's own weights stay in fp32, the precision is the default one, so that equal choices are equal;
        and the calibration always is, which changes values only.
        """
        if self.keeps_model:
            return Candidate(placement=self.placement)
        precision = replace(self.precision, calibration=Precision().calibration)
        return Candidate(self.weights.untrained, precision, self.placement)

    @property
    def keeps_model(self) -> bool:
        """Return True if the candidate runs the baseline's own model in fp32, in any placement."""
        if self.weights.distillation is not None or self.weights != Weights():
            return False
        return self.precision.compute == "fp32" and all(width == "fp32" for _, width in self.precision.widths)

    @property
    def is_baseline(self) -> bool:
        """Return True if nothing differs from the baseline but the policy of admission, which is the user's."""
        return self.keeps_model and self.placement == Placement(admission=self.placement.admission)

    def trained_with(self, seed: int) -> Candidate:
        """Return the same choice with weights trained from another seed; without distillation, the candidate itself."""
        learning = self.weights.distillation
        if learning is None:
            return self
        return replace(self, weights=replace(self.weights, distillation=replace(learning, seed=seed)))

    def knobs(self) -> dict[str, Scalar]:
        """Return every choice by its dotted name, for tables and for the ledger."""
        knobs = self.weights.knobs()
        knobs |= {f"precision.{group}": width for group, width in self.precision.widths}
        knobs |= {"precision.compute": self.precision.compute}
        if set(self.precision.groups(STATIC)) - set(self.weights.quantization_aware):
            knobs["precision.calibration"] = self.precision.calibration
        return knobs | self.placement.knobs()
