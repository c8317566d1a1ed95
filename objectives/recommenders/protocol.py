"""What leanrec asks of a recommender."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from objectives.record import InputSpec
from spaces.anatomy import Anatomy
from spaces.architecture import Architecture

Part = Literal["train", "validation", "test"]
Inputs = Mapping[str, Tensor]
# Inputs by name and labels, (rows, ...) each.
Batch = tuple[Inputs, Tensor]
# How a model is asked in training: inputs by name -> logits, (rows,) or (lists, candidates).
Method = Literal["forward", "positions"]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What a model is judged on: n rows with labels, or n users and the item that came next for each.

    inputs: by name, (n, ...) each; of a ranking without the one that takes items
    labels: (n,) 0 or 1; of a ranking the next item's code
    groups: (n,) the user or request that a row belongs to
    slices: (n,) bool by name
    seen: of a ranking, codes of the items that a user had before, (n, longest), 0 as padding
    items: of a ranking, codes of the catalogue, (items,)
    """

    inputs: Mapping[str, NDArray[Any]]
    labels: NDArray[Any]
    groups: NDArray[np.int64]
    slices: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    seen: NDArray[np.int64] | None = None
    items: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if (self.seen is None) != (self.items is None):
            raise ValueError("A ranking has both a catalogue and what was seen of it, but got one of them.")


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
        """Trained; its forward takes named tensors and returns (rows,) scores, higher is better."""
        ...

    @property
    def inputs(self) -> tuple[InputSpec, ...]: ...

    @property
    def once(self) -> frozenset[str]:
        """Inputs that a request gives once, (1, ...), by the model's own form."""
        ...

    @property
    def hidden(self) -> str:
        """Dotted name of the module, in the model and its siblings, whose outputs are its features."""
        ...

    @property
    def method(self) -> Method:
        """Of the model and its siblings, what is run in training."""
        ...

    def outputs(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Logits in training, (rows,) or (lists, candidates)."""
        ...

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean over the rows or lists."""
        ...

    def train_rows(self) -> Batch | None:
        """All of train, where each pass has the same rows; None where they are drawn anew."""
        ...

    def lessons(self, generator: Any) -> Iterator[Batch]:
        """One pass over train in batches, in an order that the torch generator draws."""
        ...

    @property
    def per_pass(self) -> int:
        """Batches of `lessons`."""
        ...

    def serving_rows(self, count: int) -> dict[str, Tensor]:
        """Rows as requests give them, (count, ...) each, from train: to trace, calibrate and compare with."""
        ...

    def counts(self) -> Mapping[str, Tensor]:
        """How often each id is looked up in train, (rows,), by the table's dotted name."""
        ...

    def held_out(self, part: Literal["validation", "test"]) -> HeldOut: ...

    def requests(self, seed: int) -> Iterable[Mapping[str, NDArray[Any]]]:
        """Named arrays of one request each, in the sizes that production sends."""
        ...

    def optimizer(self, model: nn.Module) -> Any:
        """The torch optimizer for fine-tuning."""
        ...

    def build(self, architecture: Architecture) -> nn.Module:
        """An untrained smaller sibling with the same inputs and outputs."""
        ...

    def anatomy(self, model: nn.Module) -> Anatomy:
        """Of the model or of a sibling, as built."""
        ...

    def student(self) -> Mapping[str, Any]:
        """Sizes that a student may take, in the study file's notation of a domain."""
        ...

    def history(self) -> int | None:
        """Positions of the history that the model reads, None where it reads none."""
        ...

    def facts(self) -> Facts: ...
