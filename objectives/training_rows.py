"""Rows of train, kept once, and put together into batches anew in each epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

Inputs = Mapping[str, Tensor]
# (numbers of rows, generator) -> inputs that belong to these rows and are drawn anew each time.
Draw = Callable[[Tensor, torch.Generator], Inputs]
# Batch normalisation takes no fewer.
FEWEST = 2


@dataclass(frozen=True, eq=False)
class Block:
    """Rows of one shape: inputs by name and labels in any nesting, (rows, ...) each."""

    inputs: Inputs
    labels: Any

    @property
    def rows(self) -> int:
        return len(next(iter(self.inputs.values())))


@dataclass(frozen=True, eq=False)
class NumberedBatch:
    """Inputs and labels of some rows, and the rows' numbers among all of train, (rows,)."""

    rows: Tensor
    inputs: Inputs
    labels: Any


@dataclass(frozen=True, eq=False)
class TrainingRows:
    """All that there is to learn from.

    blocks: rows of different shapes, as histories of several lengths, stand in different ones
    batch_size: the most rows of a batch; the rows of a block are shared out evenly, so that no batch is much smaller
    draw: inputs that are no part of the rows, as negatives
    """

    blocks: tuple[Block, ...]
    batch_size: int
    draw: Draw | None = None

    def __post_init__(self) -> None:
        if self.batch_size < FEWEST:
            raise ValueError(f"batch_size: must be at least {FEWEST}, but got {self.batch_size}")
        if not any(block.rows >= FEWEST for block in self.blocks):
            raise ValueError(
                f"training rows: must be {FEWEST} or more of one shape, but got {[block.rows for block in self.blocks]}"
            )

    @property
    def rows(self) -> int:
        return sum(block.rows for block in self.blocks)

    @property
    def batches_per_epoch(self) -> int:
        return sum(self._batches(block) - self._too_small(block) for block in self.blocks)

    def epoch(self, generator: torch.Generator) -> Iterator[NumberedBatch]:
        """Each row once, in an order that the generator draws; a batch of one row is left out."""
        picks = [
            (block, first, pick)
            for block, first in self._numbered()
            for pick in torch.randperm(block.rows, generator=generator).tensor_split(self._batches(block))
            if len(pick) >= FEWEST
        ]
        for at in torch.randperm(len(picks), generator=generator).tolist():
            block, first, pick = picks[at]
            inputs = {name: values[pick] for name, values in block.inputs.items()}
            drawn = {} if self.draw is None else self.draw(first + pick, generator)
            yield NumberedBatch(first + pick, {**inputs, **drawn}, over_labels(itemgetter(pick), block.labels))

    def in_order(self) -> Iterator[tuple[int, Inputs]]:
        """The number of the first row, and the kept inputs of it and the next rows of its shape, batch by batch; rows
        that no epoch has are left out."""
        for block, first in self._numbered():
            if block.rows < FEWEST:
                continue
            for part in torch.arange(block.rows).tensor_split(self._batches(block)):
                start, end = int(part[0]), int(part[-1]) + 1
                yield first + start, {name: values[start:end] for name, values in block.inputs.items()}

    def sample(self, rows: int) -> Iterator[Inputs]:
        """About so many rows at even distances, or all of them, one block after the other."""
        step = max(1, -(-self.rows // rows))
        for block in self.blocks:
            for start in range(0, block.rows, step * self.batch_size):
                some = slice(start, start + step * self.batch_size, step)
                yield {name: values[some] for name, values in block.inputs.items()}

    def _numbered(self) -> Iterator[tuple[Block, int]]:
        ends = accumulate((block.rows for block in self.blocks), initial=0)
        return zip(self.blocks, ends, strict=False)

    def _batches(self, block: Block) -> int:
        return -(-block.rows // self.batch_size)

    def _too_small(self, block: Block) -> int:
        """Of its batches, those of one row; the first ones have a row more where the rows do not go up evenly."""
        smallest, larger = divmod(block.rows, self._batches(block))
        return self._batches(block) - larger if smallest < FEWEST else 0


def over_labels(call: Callable[..., Tensor], *labels: Any) -> Any:
    """What the call gives of the tensors of labels that are nested alike, nested as they are."""
    first = labels[0]
    if isinstance(first, Mapping):
        return {name: over_labels(call, *(of[name] for of in labels)) for name in first}
    if isinstance(first, (list, tuple)):
        return type(first)(over_labels(call, *parts) for parts in zip(*labels, strict=True))
    return call(*labels)
