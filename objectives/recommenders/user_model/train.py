"""Rows of train from the user's own batches, read and stored once."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from objectives.recommenders.user_model.factory import FactoryError, Given, batches_of
from objectives.training_rows import FEWEST, Block, Labels, leaves, over_labels


@dataclass(frozen=True, eq=False)
class Train:
    """Rows of train.

    blocks: the rows grouped by shape, in the order in which they came
    groups: number of rows of each group
    codes: number of rows of each value, by the name of an input that is one integer a row
    content: a digest of all rows, independent of their batches
    """

    blocks: tuple[Block, ...]
    groups: Counter[object]
    codes: Mapping[str, Counter[object]]
    content: str

    @property
    def rows(self) -> int:
        return sum(block.rows for block in self.blocks)


def look(given: Given) -> Train:
    """Read the rows of train.

    Raises:
        FactoryError: there are no rows to train on.
    """
    groups: Counter[object] = Counter()
    codes: dict[str, Counter[object]] = {}
    by_shape: dict[tuple[object, ...], list[Block]] = {}
    for inputs, labels, owners in batches_of(given, "train"):
        groups.update(owners.tolist())
        # Copies, since the user's code may reuse the same arrays.
        kept = {name: values.expand(len(owners), *values.shape[1:]).clone() for name, values in inputs.items()}
        for name, values in kept.items():
            if values.ndim == 1 and not values.is_floating_point():
                codes.setdefault(name, Counter()).update(values.tolist())
        block = Block(kept, over_labels(Tensor.clone, labels))
        by_shape.setdefault(_shape(block), []).append(block)
    blocks = tuple(_joined(by_shape.pop(shape)) for shape in list(by_shape))
    if not any(block.rows >= FEWEST for block in blocks):
        raise FactoryError(
            f"{given.name}: batches('train') must yield {FEWEST} rows or more with inputs of one shape, but yielded "
            f"{', '.join(str(block.rows) for block in blocks)}"
        )
    return Train(blocks, groups, codes, _content(blocks))


def _shape(block: Block) -> tuple[object, ...]:
    """Return the properties that rows must share to be stored in one tensor."""
    told = tuple((name, values.dtype, values.shape[1:]) for name, values in sorted(block.inputs.items()))
    of_labels = tuple((values.dtype, values.shape[1:]) for values in leaves(block.labels))
    return told, of_labels, _nesting(block.labels)


def _nesting(labels: Labels) -> str:
    return repr(over_labels(lambda part: None, labels))  # type: ignore[arg-type, return-value]


def _joined(parts: Sequence[Block]) -> Block:
    """Concatenate column by column, so that at most one column exists twice."""
    held = [dict(part.inputs) for part in parts]
    labels = over_labels(lambda *columns: torch.cat(columns), *(part.labels for part in parts))
    names = list(held[0])
    del parts
    return Block({name: torch.cat([inputs.pop(name) for inputs in held]) for name in names}, labels)


def _content(blocks: Sequence[Block]) -> str:
    content = hashlib.sha256()
    for block in blocks:
        for name, values in _columns(block):
            content.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
            content.update(values.detach().contiguous().numpy().data)
        content.update(_nesting(block.labels).encode())
    return content.hexdigest()


def _columns(block: Block) -> Iterator[tuple[str, Tensor]]:
    yield from sorted(block.inputs.items())
    yield from (("label", values) for values in leaves(block.labels))
