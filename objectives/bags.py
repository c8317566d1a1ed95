"""Bags of values of any length in a model's inputs: flat with offsets, as clients send them, or padded. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from objectives.arrays import Arrays


@dataclass(frozen=True)
class Bags:
    """Inputs that hold a bag of values for each row, as for nn.EmbeddingBag.

    Flat, the values of all bags are one array, (n, ...), and the offsets are the positions where the bags begin.
    Padded, as leanrec and an exported graph have them, the values are (rows, length, ...), and the input of the offsets
    is a mask, (rows, length), True at values, which come first.

    offsets: name of the input of the offsets, (rows,), or (rows + 1,) with their end
    values: names of the inputs of ids, and of what belongs to each id
    end: True if n is the last offset, as with include_last_offset
    inferred: True where the factory does not declare them
    """

    offsets: str
    values: tuple[str, ...]
    end: bool = False
    inferred: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.values, self.offsets)


def padded(
    inputs: Arrays, every: Sequence[Bags], length: Callable[[str, int], int] = lambda offsets, longest: longest
) -> Arrays:
    """Return the inputs with their flat bags padded to `length`, of the offsets' name and the longest bag; others stay.

    Raises:
        ValueError: offsets do not fit the values.
    """
    found = dict(inputs)
    for bags in every:
        if not inputs.keys() >= set(bags.names) or inputs[bags.offsets].ndim != 1:
            continue
        offsets, counts = inputs[bags.offsets], {len(inputs[name]) for name in bags.values}
        count = counts.pop()
        bounds = (offsets if bags.end else np.append(offsets, count)).astype(np.int64)
        sizes = np.diff(bounds)
        if counts or len(bounds) == 0 or bounds[0] != 0 or bounds[-1] != count or (sizes < 0).any():
            raise ValueError(
                f"{bags.offsets}: must ascend from 0 and fit {', '.join(bags.values)}, but got {offsets} for "
                f"{[len(inputs[name]) for name in bags.values]} values"
            )
        # At least 2, since torch.export takes an axis of 1 for a constant.
        mask = np.arange(length(bags.offsets, max(2, int(sizes.max(initial=0))))) < sizes[:, None]
        for name in bags.values:
            values = inputs[name]
            # Filled up with one of the values, which any lookup takes.
            found[name] = np.full((*mask.shape, *values.shape[1:]), values[0] if count else 0, values.dtype)
            found[name][mask] = values
        found[bags.offsets] = mask
    return found
