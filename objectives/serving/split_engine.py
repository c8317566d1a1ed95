"""Execution of a split graph: one engine looks the embeddings up, another computes the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from objectives.arrays import Array, Arrays

# Both are next to the model file that they were split from.
TABLES = "tables.onnx"
DENSE = "dense.onnx"

Shape = tuple[int | None, ...]
Scores = NDArray[np.float32]


class Engine(Protocol):
    """One loaded model with its own threads: created once, run by one thread at a time, freed with the object."""

    @property
    def once(self) -> frozenset[str]:
        """Arrays that the model takes once a request, read from the graph: their first dimension is fixed at 1.

        A request holds one row of each, or as many as of the others; rows of several users are run user by user.
        """
        ...

    def run(self, inputs: Arrays) -> Scores:
        """Compute scores, (rows,) in the order of the rows, from named arrays of (rows, ...).

        The caller may keep the scores. A missing input is an error that names it.
        """
        ...


class Graph(Engine, Protocol):
    """An engine of one graph, whose first output is the scores; it is given one row of what it takes once."""

    takes: Mapping[str, Shape]  # the shape of each input, None where a dimension is open
    gives: tuple[str, ...]  # the outputs, in the graph's order

    def outputs(self, inputs: Arrays) -> dict[str, Array]:
        """Compute all outputs by name from arrays as the graph takes them; valid until the next call."""
        ...


def taken_once(takes: Mapping[str, Shape]) -> frozenset[str]:
    """Return the inputs whose first dimension is fixed at 1 where another's is open; none where none is open."""
    if all(shape[:1] != (None,) for shape in takes.values()):
        return frozenset()
    return frozenset(name for name, shape in takes.items() if shape[:1] == (1,))


class Staged:
    """An engine of two graphs: `tables` maps ids to embeddings, `dense` maps these and the other inputs to scores.

    An output of the first is the input of the same name of the second; all other inputs come from the request.

    Raises:
        ValueError: the second does not take an output of the first.
    """

    def __init__(self, tables: Graph, dense: Graph) -> None:
        stray = [name for name in tables.gives if name not in dense.takes]
        if stray:
            raise ValueError(
                f"{DENSE} must take whatever {TABLES} gives; it takes {sorted(dense.takes)}, but got {stray}."
            )
        others = {name: shape for name, shape in dense.takes.items() if name not in tables.gives}
        # Derived from all inputs: tables of the user only have no open dimension for comparison.
        self.once = taken_once({**tables.takes, **others})
        self._ids, self._others = tuple(tables.takes), tuple(others)
        self._tables, self._dense = tables, dense

    def run(self, inputs: Arrays) -> Scores:
        """Compute scores, (rows,) in the order of the rows, from arrays as the two graphs take them."""
        parts = self._tables.outputs({name: inputs[name] for name in self._ids})
        for name in self._others:
            parts[name] = inputs[name]
        return self._dense.run(parts)
