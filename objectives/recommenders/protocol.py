"""What leanrec asks of a recommender."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from spaces.anatomy import Anatomy
from spaces.architecture import Architecture

Part = Literal["train", "validation", "test"]
# Inputs by name, each (rows, ...); labels (rows,); groups (rows,), the user or request that a row belongs to.
Batch = tuple[dict[str, Tensor], Tensor, Tensor]


class Recommender(Protocol):
    """A trained model with what is needed to judge it, shrink it and send it requests.

    Made once in a builder process, used by one thread; `model` is never changed.
    """

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> nn.Module:
        """Trained; its forward takes named tensors and returns (rows,) scores, higher is better."""
        ...

    @property
    def metric(self) -> str: ...

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean over the rows."""
        ...

    def batches(self, part: Part) -> Iterator[Batch]: ...

    def requests(self, seed: int) -> Iterable[Mapping[str, NDArray[np.generic]]]:
        """Named arrays of one request each, in the sizes that production sends."""
        ...

    def optimizer(self, model: nn.Module) -> Any:
        """The torch optimizer for fine-tuning."""
        ...

    def build(self, architecture: Architecture) -> nn.Module:
        """An untrained smaller sibling with the same inputs and outputs."""
        ...

    def anatomy(self) -> Anatomy: ...

    def student(self) -> Mapping[str, Any]:
        """Sizes that a student may take, in the study file's notation of a domain."""
        ...
