"""What leanrec asks of a recommender."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from numpy.typing import NDArray
from torch import Tensor, nn

from objectives.held_out_rows import HeldOut, HeldPart
from objectives.output_kind import OutputKind
from objectives.records import InputSpec
from objectives.training_rows import TrainingRows
from spaces.domains import Scalar
from spaces.model_structure import Table
from spaces.techniques.architecture import Architecture

Inputs = Mapping[str, Tensor]
# Inputs by name, (rows, ...) each, and labels, in whatever form the loss takes them.
Batch = tuple[Inputs, Any]
# How a model is asked in training: inputs by name -> its outputs.
Method = Literal["forward", "positions"]


@dataclass(frozen=True)
class Facts:
    """What is told of a recommender.

    split: how the data were cut, in a sentence
    rows: by part
    users: groups of all parts
    training: of the baseline
    reference_metric: of the references
    references: on test, of the baseline and of simple rules; None where one does not apply
    """

    split: str
    rows: Mapping[str, int]
    users: int
    training: Mapping[str, Any]
    reference_metric: str
    references: Mapping[str, float | None]


class Recommender(Protocol):
    """A trained model with what is needed to judge it, shrink it and send it requests.

    Made once in a builder process, used by one thread; `model` is never changed.
    """

    @property
    def key(self) -> str:
        """Names the model and its data by their content."""
        ...

    @property
    def model(self) -> nn.Module:
        """Trained; its forward takes named tensors and gives what `scores` reads."""
        ...

    @property
    def inputs(self) -> tuple[InputSpec, ...]: ...

    @property
    def once(self) -> frozenset[str]:
        """Inputs that a request gives once, (1, ...), by the model's own form."""
        ...

    @property
    def hidden(self) -> str | None:
        """Dotted name of the module, in the model and its siblings, whose outputs are its features; None where none is
        known."""
        ...

    @property
    def method(self) -> Method:
        """Of the model and its siblings, what is run in training."""
        ...

    @property
    def metric(self) -> str:
        """By name."""
        ...

    @property
    def custom_metric(self) -> bool:
        """Whether the metric is a function of the user's own, which `grade` evaluates."""
        ...

    def evaluate_custom_metric(self, scores: NDArray[Any], labels: NDArray[Any], groups: NDArray[Any]) -> float:
        """The user's own metric, higher is better, of (n,) each.

        Raises:
            ValueError: there is none, or it fails.
        """
        ...

    @property
    def output_kinds(self) -> tuple[OutputKind, ...]:
        """What the scores are, of each column; of lists once."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the scores' columns, where there are several."""
        ...

    def outputs(self, model: nn.Module, inputs: Inputs) -> Any:
        """What the model gives in training."""
        ...

    def scores(self, outputs: Any) -> Tensor:
        """Of those outputs the scores, higher is better: (rows,), (rows, outputs) with the main one first, or (lists,
        candidates)."""
        ...

    def loss(self, outputs: Any, labels: Any) -> Tensor:
        """Mean over the rows or lists."""
        ...

    def train_rows(self) -> TrainingRows:
        """All of train, held once."""
        ...

    def batches(self, generator: Any) -> Iterator[Batch]:
        """The batches of one epoch of the train rows, in an order that the torch generator draws."""
        ...

    @property
    def batches_per_epoch(self) -> int:
        """Batches of `lessons`."""
        ...

    def teacher_outputs(self, inputs: Inputs) -> Tensor:
        """What the model's own scores of train rows follow from, whatever is drawn beside the rows, (rows, ...)."""
        ...

    def teacher_scores(self, outputs: Tensor, inputs: Inputs) -> Tensor:
        """The scores that follow from such outputs of the rows and all their inputs, what was drawn included."""
        ...

    def serving_rows(self, count: int) -> dict[str, Tensor]:
        """Rows as requests give them, (count, ...) each, from train: to trace, calibrate and compare with."""
        ...

    def counts(self, model: nn.Module, tables: Sequence[Table]) -> Mapping[str, Tensor]:
        """How often each id of the model's tables is looked up in train, (rows,), by the table's dotted name, as far as
        it is known; the model is the recommender's own or a sibling of it."""
        ...

    def held_out(self, part: HeldPart) -> HeldOut: ...

    def requests(self, seed: int) -> Iterable[Mapping[str, NDArray[Any]]]:
        """Named arrays of one request each, in the sizes that production sends."""
        ...

    def optimizer(self, model: nn.Module) -> Any:
        """The torch optimizer for fine-tuning."""
        ...

    def build(self, architecture: Architecture) -> nn.Module:
        """An untrained smaller sibling with the same inputs and outputs."""
        ...

    @property
    def built(self) -> bool:
        """Whether `build` makes siblings."""
        ...

    @property
    def references(self) -> tuple[str, ...]:
        """Names of the simple references that `reference` gives."""
        ...

    def reference(self, name: str) -> nn.Module:
        """A simple reference as a model with the same inputs."""
        ...

    def student(self) -> Mapping[str, Any]:
        """Sizes that a student may take, in the study file's notation of a domain."""
        ...

    def sizes(self) -> Mapping[str, Scalar]:
        """The model's own, by the names of `student`; none where they are not known."""
        ...

    def history(self) -> int | None:
        """Positions of the history that the model reads, None where it reads none."""
        ...

    def facts(self) -> Facts: ...
