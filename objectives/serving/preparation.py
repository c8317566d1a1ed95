"""Preparation of a request for a bundle's graph: ids that training has not seen, and bags that are given flat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from objectives.arrays import Array, Arrays
from objectives.bags import padded
from objectives.records import InputSpec


class UnseenIdError(ValueError):
    """An id that is no row of the table it is looked up in, and for which the manifest defines no other row."""


def preparation(specs: Sequence[InputSpec]) -> Callable[[Arrays], Arrays]:
    """Return the function that prepares requests of these inputs.

    An id outside of its vocabulary becomes the `unseen` id of its input. Left to the engine, a negative one would be
    looked up from the table's end, and what a larger one does would depend on how the table is stored.

    Raises:
        UnseenIdError: by the function, where there is no `unseen` id.
        ValueError: by the function, where offsets do not fit the values of bags.
    """
    coded = [spec for spec in specs if spec.vocabulary is not None]
    bags = tuple(spec.bags for spec in specs if spec.bags is not None)

    def prepare(request: Arrays) -> Arrays:
        for spec in coded:
            values = request.get(spec.name)
            if values is not None and values.dtype.kind in "iu" and (known := _known(values, spec)) is not values:
                request = {**request, spec.name: known}
        return padded(request, bags) if bags else request

    return prepare


def _holds(values: Array, vocabulary: int) -> bool:
    """Return whether all ids lie within a vocabulary.

    Ids of 64 bits need one comparison only, since as unsigned numbers the negative ones are the largest.
    """
    if not values.size:
        return True
    # The ufunc's own reduction: `max` takes twice the time of it on the ids of a request.
    if values.itemsize == 8:
        return bool(np.maximum.reduce(values.view(np.uint64), axis=None) < vocabulary)
    return bool(np.minimum.reduce(values, axis=None) >= 0 and np.maximum.reduce(values, axis=None) < vocabulary)


def _known(values: Array, spec: InputSpec) -> Array:
    """Return ids with those outside of the vocabulary replaced."""
    assert spec.vocabulary is not None
    if _holds(values, spec.vocabulary):
        return values
    ids = cast(NDArray[np.int64], values)
    outside = (ids < 0) | (ids >= spec.vocabulary)
    if spec.unseen is None:
        raise UnseenIdError(
            f"input {spec.name}: must hold ids from 0 to {spec.vocabulary - 1}, the rows of its table, but got "
            f"{int(values[outside].flat[0])}"
        )
    return np.where(outside, values.dtype.type(spec.unseen), values)
