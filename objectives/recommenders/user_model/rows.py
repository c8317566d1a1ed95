"""Rows of the user's own batches: those of train, read and stored once, and held-out ones with their slices."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from objectives.arrays import Array, Arrays
from objectives.errors import SettingError
from objectives.held_out_rows import HeldOut, HeldPart
from objectives.recommenders.slices import LITTLE_HISTORY, RARE_ITEMS, Masks, commonest, of_values, with_heads
from objectives.recommenders.user_model.factory import FactoryError, Given, batches_of, called
from objectives.recommenders.user_model.outputs import Outputs
from objectives.recommenders.user_model.user_requests import Sent, rowed, shape_of
from objectives.training_rows import FEWEST, Block, Labels, leaves, over_labels

# Share of the users by their rows in train, and of the items, that count as rare.
_FEW = 0.25


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


def read_train(given: Given) -> Train:
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
    of_inputs = tuple((name, values.dtype, values.shape[1:]) for name, values in sorted(block.inputs.items()))
    of_labels = tuple((values.dtype, values.shape[1:]) for values in leaves(block.labels))
    return of_inputs, of_labels, _nesting(block.labels)


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
        for name, values in (*sorted(block.inputs.items()), *(("label", values) for values in leaves(block.labels))):
            content.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
            content.update(values.detach().contiguous().numpy().data)
        content.update(_nesting(block.labels).encode())
    return content.hexdigest()


def read_held_out(
    given: Given, part: HeldPart, outputs: Outputs, train: Train, sent: Sent, by: Sequence[str]
) -> tuple[HeldOut, frozenset[object]]:
    """Read held-out rows, grouped by shape since histories may have several lengths, and the set of their owners."""
    # By shape: of each batch the inputs, the labels, (rows, outputs), the owners, and the rows' positions in the part.
    by_shape: dict[object, list[tuple[Arrays, NDArray[np.float64], Array, NDArray[np.int64]]]] = {}
    at = 0
    for inputs, labels, groups in batches_of(given, part):
        # Copies, since the user's code may reuse the same arrays.
        arrays = rowed({name: values.numpy().copy() for name, values in inputs.items()}, len(groups))
        batch = (arrays, outputs.labels(labels), groups.copy(), np.arange(at, at + len(groups)))
        at += len(groups)
        by_shape.setdefault(shape_of(arrays), []).append(batch)
    blocks = tuple(
        {name: np.concatenate([batch[0][name] for batch in alike]) for name in alike[0][0]}
        for alike in by_shape.values()
    )
    every = [batch for alike in by_shape.values() for batch in alike]
    labels_of = np.concatenate([batch[1] for batch in every]).astype(np.float32)
    owners, places = np.concatenate([batch[2] for batch in every]), np.concatenate([batch[3] for batch in every])
    own = _own_slices(given, part, places)
    held = HeldOut(
        inputs=blocks,
        labels=labels_of[:, 0],
        groups=np.unique(owners, return_inverse=True)[1].astype(np.int64),
        slices=(_slices(blocks, owners, train, sent) if own is None else own) | _by_inputs(given, blocks, train, by),
        others={str(name): labels_of[:, i] for i, name in enumerate(outputs.others, 1)},
    )
    return held, frozenset(owners.tolist())


def _own_slices(given: Given, part: HeldPart, places: NDArray[np.int64]) -> Masks | None:
    """Return the masks of the factory, in the order of the positions; None where it gives none."""
    own = getattr(given, "slices", None)
    if own is None:
        return None
    where = f"{given.name}: slices({part!r})"
    found = called(where, lambda: own(part))
    if not isinstance(found, Mapping):
        raise FactoryError(f"{where} must give masks by name, but gave {type(found).__name__}")
    masks = {str(name): np.asarray(mask) for name, mask in found.items()}
    for name, mask in masks.items():
        if mask.dtype != np.bool_ or mask.shape != places.shape:
            got = f"{name!r} is {mask.dtype} of the shape {mask.shape}"
            raise FactoryError(f"{where} must be masks of {len(places)} rows, but {got}")
    return {name: mask[places] for name, mask in masks.items()}


def _slices(blocks: Sequence[Arrays], owners: Array, train: Train, sent: Sent) -> Masks:
    """Return masks of users and items with few rows in train, each with its complement."""
    tails = {LITTLE_HISTORY: _little(owners, train.groups)}
    several = {n: c for n, c in train.codes.items() if n in sent.first and n not in sent.constant}
    if several:  # the item is what differs within a request and has the most distinct codes
        item = max(several, key=lambda name: len(several[name]))
        tails[RARE_ITEMS] = _little(np.concatenate([block[item] for block in blocks]), train.codes[item])
    return with_heads({name: mask for name, mask in tails.items() if mask.any() and not mask.all()})


def _by_inputs(given: Given, blocks: Sequence[Arrays], train: Train, names: Sequence[str]) -> Masks:
    """Return masks by the commonest values in train of the named inputs."""
    if unknown := [name for name in names if name not in train.codes]:
        raise SettingError(
            f"quality.slice_by: must name inputs of {given.name} that are one whole number a row, "
            f"{', '.join(train.codes) or 'of which there are none'}, but got {unknown[0]!r}"
        )
    wanted = {name: commonest(train.codes[name].elements()) for name in names}
    return of_values({name: np.concatenate([block[name] for block in blocks]) for name in names}, wanted)


def _little(values: Array, counts: Counter[object]) -> NDArray[np.bool_]:
    """Return whether each value has few rows in train: no more than the value at the first quartile."""
    most = np.quantile(list(counts.values()), _FEW)
    return np.array([counts.get(value, 0) <= most for value in values.tolist()], dtype=np.bool_)
