"""Per-user execution: a model that takes a user's inputs once is run on each user's rows of a request."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from objectives.arrays import Array, Arrays, are_rows_equal, groups_of_equal_rows
from objectives.serving.split_engine import Engine, Scores


class PerUser:
    """An engine whose model takes one row of some inputs, run once for each user of a request.

    A request whose rows agree on these inputs, as those of one user do, takes one run. Any other takes one run for each
    group of rows that agree, so that every row is scored with its own user.
    """

    def __init__(self, engine: Engine) -> None:
        self._run, self.once = engine.run, engine.once

    def run(self, inputs: Arrays) -> Scores:
        """Compute scores, in the order of the rows, from named arrays of (rows, ...).

        An array has one row where all rows share it.

        Raises:
            ValueError: rows are of several users, and the arrays do not all have the same number of rows, or one.
        """
        given = dict(inputs)
        for name in self.once:
            values = inputs[name]
            if len(values) > 1:
                if not are_rows_equal(values):
                    return self._user_by_user(inputs)
                given[name] = values[:1]
        return self._run(given)

    def _user_by_user(self, inputs: Arrays) -> Scores:
        warnings.warn(
            "A request holds rows of several users, and the model takes a user's inputs once: it is run for each of "
            "them, which takes longer than a request of one user.",
            RuntimeWarning,
            stacklevel=2,
        )
        rows = {name: len(values) for name, values in inputs.items()}
        count = max(rows.values())
        if any(of not in (1, count) for of in rows.values()):
            raise ValueError(f"Arrays must have the same rows, or one, but got {rows}.")
        groups = groups_of_equal_rows([inputs[name] for name in self.once if rows[name] > 1])
        parts = [self._run({name: self._of(name, values, of) for name, values in inputs.items()}) for of in groups]
        scores = np.empty((count, *parts[0].shape[1:]), parts[0].dtype)
        scores[np.concatenate(groups)] = np.concatenate(parts)
        return scores

    def _of(self, name: str, values: Array, rows: NDArray[np.int64]) -> Array:
        """Select one user's rows of an input."""
        if len(values) == 1:
            return values
        return values[rows[:1]] if name in self.once else values[rows]
