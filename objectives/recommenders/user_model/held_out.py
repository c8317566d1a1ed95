"""Held-out rows from the user's own batches, and their slices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from objectives.arrays import Array, Arrays
from objectives.errors import SettingError
from objectives.held_out_rows import HeldOut, HeldPart
from objectives.recommenders.slices import LITTLE_HISTORY, RARE_ITEMS, Masks, commonest, of_values, with_heads
from objectives.recommenders.user_model.factory import FactoryError, Given, batches_of, called
from objectives.recommenders.user_model.outputs import Outputs
from objectives.recommenders.user_model.train import Train
from objectives.recommenders.user_model.user_requests import Sent, rowed, shape_of

# Share of the users by their rows in train, and of the items, that count as rare.
_FEW = 0.25


@dataclass(frozen=True, eq=False)
class _Rows:
    """One batch of held-out rows: labels (rows, outputs), groups, and the positions of the rows in their part."""

    inputs: Arrays
    labels: NDArray[np.float64]
    groups: Array
    places: NDArray[np.int64]


def gathered(
    given: Given, part: HeldPart, outputs: Outputs, train: Train, sent: Sent, by: Sequence[str]
) -> tuple[HeldOut, frozenset[object]]:
    """Collect the rows, grouped by shape since histories may have several lengths, and the set of their owners."""
    by_shape: dict[tuple[tuple[int, ...], ...], list[_Rows]] = {}
    at = 0
    for inputs, labels, groups in batches_of(given, part):
        arrays = rowed({name: values.numpy() for name, values in inputs.items()}, len(groups))
        rows = _Rows(arrays, outputs.labels(labels), groups, np.arange(at, at + len(groups)))
        at += len(groups)
        by_shape.setdefault(shape_of(arrays), []).append(rows)
    blocks = tuple(
        {name: np.concatenate([rows.inputs[name] for rows in alike]) for name in alike[0].inputs}
        for alike in by_shape.values()
    )
    every = [rows for alike in by_shape.values() for rows in alike]
    labels_of = np.concatenate([rows.labels for rows in every]).astype(np.float32)
    owners, places = (np.concatenate([getattr(rows, of) for rows in every]) for of in ("groups", "places"))
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
            raise FactoryError(
                f"{where} must be masks of {len(places)} rows, but {name!r} is {mask.dtype} of the shape {mask.shape}"
            )
    return {name: mask[places] for name, mask in masks.items()}


def _slices(blocks: Sequence[Arrays], owners: Array, train: Train, sent: Sent) -> Masks:
    """Return masks of users and items with few rows in train, each with its complement."""
    tails = {LITTLE_HISTORY: _little(owners, train.groups)}
    if (item := _item(train, sent)) is not None:
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


def _item(train: Train, sent: Sent) -> str | None:
    """Return the input that differs within a request and has the most distinct codes."""
    several = {n: c for n, c in train.codes.items() if n in sent.first and n not in sent.constant}
    return max(several, key=lambda name: len(several[name]), default=None)


def _little(values: Array, counts: Counter[object]) -> NDArray[np.bool_]:
    """Return whether each value has few rows in train: no more than the value at the first quartile."""
    most = np.quantile(list(counts.values()), _FEW)
    return np.array([counts.get(value, 0) <= most for value in values.tolist()], dtype=np.bool_)
