"""Protocol of a recommender, with defaults for most models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from objectives.arrays import Arrays, Numbers
from objectives.held_out_rows import HeldOut, HeldPart
from objectives.output_kind import OutputKind
from objectives.recommenders.lookup_counts import counted
from objectives.records import InputSpec
from objectives.tensor_layout import Layout
from objectives.training_rows import Inputs, Labels, TrainingRows
from spaces.domains import Scalar
from spaces.model_structure import Table
from spaces.techniques.architecture import Architecture

# Method of the model that runs in training: inputs by name -> its outputs.
Method = Literal["forward", "positions"]


@dataclass(frozen=True)
class Facts:
    """Facts about a recommender for reports.

    split: description of the split in a sentence
    rows: number of rows by part
    users: number of groups in all parts, 0 where the data name no users
    training: facts of the baseline's training
    reference_metric: metric of the references
    references: the reference metric on test, of the baseline and of simple rules; None where one does not apply
    """

    split: str
    rows: Mapping[str, int]
    users: int
    training: Mapping[str, object]
    reference_metric: str
    references: Mapping[str, float | None]


class Recommender(Protocol):
    """Trained model with everything needed to evaluate it, compress it and send it requests.

    Made once in a builder process, used by one thread; `model` is never changed. A method with a body is a default for
    subclasses.

    key: hash of the model and its data
    model: trained model; its forward takes named tensors and returns the outputs that `scores` reads
    once: inputs that a request gives once, (1, ...), by the model's own form
    hidden: dotted name of the module, in the model and its siblings, whose outputs are its features, if known
    method: method of the model and its siblings that runs in training
    metric: name of the metric
    custom_metric: True if the metric is a function of the user's own, which `evaluate_custom_metric` computes
    output_kinds: kind of the scores in each column; one kind for lists
    columns: names of the scores' columns, where there are several
    built: True if `build` is available
    references: names of the simple references that `reference` builds
    """

    @property
    def key(self) -> str: ...
    @property
    def model(self) -> nn.Module: ...
    @property
    def inputs(self) -> tuple[InputSpec, ...]: ...
    @property
    def once(self) -> frozenset[str]: ...
    @property
    def hidden(self) -> str | None: ...
    @property
    def method(self) -> Method: ...
    @property
    def metric(self) -> str: ...
    @property
    def custom_metric(self) -> bool: ...
    @property
    def output_kinds(self) -> tuple[OutputKind, ...]: ...
    @property
    def columns(self) -> tuple[str, ...]: ...
    @property
    def built(self) -> bool: ...
    @property
    def references(self) -> tuple[str, ...]: ...

    @property
    def encoding(self) -> str:
        """Hash of what codes of the inputs stand for, where the data decide it; else empty."""
        return ""

    def evaluate_custom_metric(self, scores: Numbers, labels: Numbers, groups: Numbers) -> float:
        """Compute the user's own metric, higher is better, from arrays of (n,) each.

        Raises:
            ValueError: there is none, or it fails.
        """
        raise ValueError(f"{self.metric} is no function of the user's own.")

    def outputs(self, model: nn.Module, inputs: Inputs) -> object:
        """Return the model's outputs in training."""
        return model(**inputs)

    def scores(self, outputs: object) -> Tensor:
        """Return the scores, higher is better: (rows,), (rows, outputs), the main one first, or (lists, candidates)."""

    def loss(self, outputs: object, labels: Labels) -> Tensor:
        """Return the training loss, the mean over the rows or lists."""

    def train_rows(self) -> TrainingRows:
        """Return all rows of train, held once."""

    def teacher_outputs(self, inputs: Inputs) -> Tensor:
        """Compute what can be cached of the model's scores of train rows, (rows, ...): it reads no drawn inputs."""
        return self.scores(self.outputs(self.model, inputs))

    def teacher_scores(self, outputs: Tensor, inputs: Inputs) -> Tensor:
        """Compute the scores from the rows' teacher outputs and all of their inputs, drawn ones included."""
        return outputs

    def serving_rows(self, count: int) -> dict[str, Tensor]:
        """Return rows of train in the form of requests, (count, ...) each, for tracing, calibration and comparison."""

    def counts(self, model: nn.Module, tables: Sequence[Table]) -> Mapping[str, Tensor]:
        """Return the known lookups of each id of the model's tables in train, (rows,), by the table's dotted name.

        The model is the recommender's own or a sibling of it.
        """
        return counted(model, tables, (block.inputs for block in self.train_rows().blocks), self.outputs)

    def held_out(self, part: HeldPart) -> HeldOut: ...

    def requests(self, seed: int) -> Iterable[Arrays]:
        """Iterate over requests, named arrays each, with production's sizes."""

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Make the optimizer for fine-tuning."""

    def build(self, architecture: Architecture) -> nn.Module:
        """Build an untrained smaller sibling with the same inputs and outputs."""

    def layout(self, architecture: Architecture | None) -> Layout | None:
        """Return the layout of the tensors of a sibling, or of the model itself for None; None where it is unknown."""
        return None

    def reference(self, name: str) -> nn.Module:
        """Build a simple reference as a model with the same inputs."""
        known = ", ".join(self.references) or "none, since this model has no simple references"
        raise ValueError(f"reference must be one of {known}, but got {name!r}")

    def student(self) -> Mapping[str, tuple[Scalar, ...]]:
        """Return the sizes that a student may take, by name."""

    def sizes(self) -> Mapping[str, Scalar]:
        """Return the model's own sizes, by the names of `student`; empty where they are unknown."""
        return {}

    def history(self) -> int | None:
        """Return the positions of the history that the model reads, None where it reads none."""
        return None

    def facts(self) -> Facts: ...
