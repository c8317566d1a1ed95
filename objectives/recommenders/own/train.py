"""Train as the user's own batches yield it, looked at once."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from objectives.recommenders.own.factory import FactoryError, Given, batches_of


@dataclass(frozen=True)
class Train:
    """
    batches: of two rows or more
    groups: how often each was there
    codes: how often each value was there, by the name of an input that is one whole number a row
    content: a digest of all of it
    """

    rows: int
    batches: int
    groups: Counter[Any]
    codes: Mapping[str, Counter[int]]
    content: str


def look(given: Given) -> Train:
    """
    Raises:
        FactoryError: there is no batch to learn from.
    """
    rows = batches = 0
    groups: Counter[Any] = Counter()
    codes: dict[str, Counter[int]] = {}
    content = hashlib.sha256()
    for inputs, labels, owners in batches_of(given, "train"):
        for part in (*inputs.values(), *_leaves(labels)):
            content.update(part.detach().contiguous().numpy().tobytes())
        rows, batches = rows + len(owners), batches + (len(owners) > 1)
        groups.update(owners.tolist())
        for name, values in inputs.items():
            if values.ndim == 1 and not values.is_floating_point():
                codes.setdefault(name, Counter()).update(values.tolist())
    if batches == 0:
        raise FactoryError(f"{given.name}: batches('train') must yield a batch of two rows or more, but yielded none")
    return Train(rows, batches, groups, codes, content.hexdigest())


def _leaves(labels: Any) -> Iterator[Tensor]:
    """Of labels in any nesting, the tensors."""
    if isinstance(labels, Tensor):
        yield labels
    else:
        for part in labels.values() if isinstance(labels, Mapping) else labels:
            yield from _leaves(part)
