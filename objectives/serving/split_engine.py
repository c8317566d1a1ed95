"""A graph cut at its tables: the embeddings are looked up by one engine, the rest is computed by another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

# Both lie beside the model file that they were cut from.
TABLES = "tables.onnx"
DENSE = "dense.onnx"

Arrays = Mapping[str, NDArray[Any]]
Shape = tuple[int | None, ...]


class Graph(Protocol):
    """One loaded graph whose inputs and outputs go by name. Run by one thread at a time."""

    takes: Mapping[str, Shape]  # the shape of each input, None where a dimension is open
    gives: tuple[str, ...]  # the outputs, in the graph's order

    @property
    def once(self) -> frozenset[str]:
        """Inputs that the graph takes once a request: it is given one row of these."""
        ...

    def run(self, inputs: Arrays) -> NDArray[np.float32]:
        """Arrays as the graph takes them -> the first output, of (rows,), which the caller may keep."""
        ...

    def outputs(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Arrays as the graph takes them -> all outputs by name, good until the next call."""
        ...


def taken_once(takes: Mapping[str, Shape]) -> frozenset[str]:
    """Inputs whose first dimension is fixed at 1 where another's is open; none where none is open."""
    if all(shape[:1] != (None,) for shape in takes.values()):
        return frozenset()
    return frozenset(name for name, shape in takes.items() if shape[:1] == (1,))


class Staged:
    """An engine of two graphs: `tables` turns ids into embeddings, `dense` these and the other inputs into scores.

    An output of the first is the input of the same name of the second; all else is taken from the request.

    Raises:
        ValueError: the second does not take what the first gives.
    """

    def __init__(self, tables: Graph, dense: Graph) -> None:
        stray = [name for name in tables.gives if name not in dense.takes]
        if stray:
            raise ValueError(
                f"{DENSE} must take whatever {TABLES} gives; it takes {sorted(dense.takes)}, but got {stray}."
            )
        others = {name: shape for name, shape in dense.takes.items() if name not in tables.gives}
        # Told of the whole request: tables of the user alone have no open dimension to be told apart by.
        self.once = taken_once({**tables.takes, **others})
        self._ids, self._others = tuple(tables.takes), tuple(others)
        self._tables, self._dense = tables, dense

    def run(self, inputs: Arrays) -> NDArray[np.float32]:
        """Arrays as the two graphs take them -> scores of (rows,), in the order of the rows."""
        parts = self._tables.outputs({name: inputs[name] for name in self._ids})
        for name in self._others:
            parts[name] = inputs[name]
        return self._dense.run(parts)
