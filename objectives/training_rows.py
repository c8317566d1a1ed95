"""Rows of train, stored once, and assembled into new batches in each epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter
from typing import TypeAlias

import torch
from torch import Tensor

Inputs = Mapping[str, Tensor]
# Labels of rows, (rows, ...) each, in any nesting.
Labels: TypeAlias = "Tensor | dict[str, Labels] | list[Labels] | tuple[Labels, ...]"
# (indices of rows, generator) -> inputs that belong to these rows and are drawn anew each time.
Draw = Callable[[Tensor, torch.Generator], Inputs]
# Batch normalisation needs at least two rows.
FEWEST = 2


@dataclass(frozen=True, eq=False)
class Block:
    """Rows of one shape: inputs by name and labels in any nesting, (rows, ...) each."""

    inputs: Inputs
    labels: Labels

    @property
    def rows(self) -> int:
        return len(next(iter(self.inputs.values())))


@dataclass(frozen=True, eq=False)
class NumberedBatch:
    """Inputs and labels of some rows, and the rows' numbers among all of train, (rows,)."""

    rows: Tensor
    inputs: Inputs
    labels: Labels


@dataclass(frozen=True, eq=False)
class TrainingRows:
    """All rows of train.

    blocks: rows by shape; histories of different lengths are in different blocks
    batch_size: the most rows of a batch; the rows of a block are split evenly, so that no batch is much smaller
    draw: draws inputs that are not stored with the rows, such as negatives
    most_batches: batches of an epoch at most, for a dry run; None for all
    """

    blocks: tuple[Block, ...]
    batch_size: int
    draw: Draw | None = None
    most_batches: int | None = None

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
        every = sum(map(self._counted, self.blocks))
        return every if self.most_batches is None else min(every, self.most_batches)

    def epoch(self, generator: torch.Generator) -> Iterator[NumberedBatch]:
        """Iterate over the batches of an epoch, in an order that the generator draws.

        They hold each row once, or are the first `most_batches` of that order. Batches of one row are left out.
        """
        picks = [
            (block, first, pick)
            for block, first in self._numbered()
            for pick in torch.randperm(block.rows, generator=generator).tensor_split(self._batches(block))
            if len(pick) >= FEWEST
        ]
        for at in torch.randperm(len(picks), generator=generator).tolist()[: self.most_batches]:
            block, first, pick = picks[at]
            inputs = {name: values[pick] for name, values in block.inputs.items()}
            drawn = {} if self.draw is None else self.draw(first + pick, generator)
            yield NumberedBatch(first + pick, {**inputs, **drawn}, over_labels(itemgetter(pick), block.labels))

    def batches(self, generator: torch.Generator) -> Iterator[tuple[Inputs, Labels]]:
        """Iterate over inputs and labels of the batches of an epoch."""
        return ((batch.inputs, batch.labels) for batch in self.epoch(generator))

    def in_order(self) -> Iterator[tuple[int, Inputs]]:
        """Iterate over each batch's first row number and stored inputs, in order, without blocks of a single row."""
        for block, first in self._numbered():
            if block.rows < FEWEST:
                continue
            for part in torch.arange(block.rows).tensor_split(self._batches(block)):
                start, end = int(part[0]), int(part[-1]) + 1
                yield first + start, {name: values[start:end] for name, values in block.inputs.items()}

    def sample(self, rows: int) -> Iterator[Inputs]:
        """Iterate over about this many rows at even distances, or all of them, one block after the other."""
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

    def _counted(self, block: Block) -> int:
        """Return the number of the block's batches of two rows or more; where uneven, the first have one more."""
        smallest, larger = divmod(block.rows, self._batches(block))
        return larger if smallest < FEWEST else self._batches(block)


def leaves(labels: Labels) -> Iterator[Tensor]:
    """Iterate over the tensors of labels in any nesting."""
    if isinstance(labels, Tensor):
        yield labels
    else:
        for part in labels.values() if isinstance(labels, dict) else labels:
            yield from leaves(part)


def over_labels(call: Callable[..., Tensor], *labels: Labels) -> Labels:
    """Apply the call to the tensors of labels that are nested alike, and nest the results in the same way."""
    return _nested(labels[0], map(call, *map(leaves, labels)))


def _nested(labels: Labels, tensors: Iterator[Tensor]) -> Labels:
    if isinstance(labels, Tensor):
        return next(tensors)
    if isinstance(labels, dict):
        return {name: _nested(part, tensors) for name, part in labels.items()}
    return type(labels)(_nested(part, tensors) for part in labels)
