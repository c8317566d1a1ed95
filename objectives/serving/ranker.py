"""A bundle inside a program: scores and ranks the candidates of requests, on the pool that was measured."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from objectives.arrays import Array
from objectives.records import InputSpec
from objectives.serving.bundle import open_verified
from objectives.serving.http.inputs import check_inputs
from objectives.serving.http.json_data import RequestError, shown
from objectives.serving.http.limits import Limits
from objectives.serving.pool.pending_result import PendingResult, Scores

_UNLIMITED = Limits(rows=sys.maxsize, body_bytes=sys.maxsize)


class Ranking(NamedTuple):
    """The candidates of a request from best to worst.

    order: numbers of the request's rows, int64 (rows,), by descending score; equal scores keep the request's order
    scores: by the request's rows, float32 (rows,), or (rows, outputs) of a model with several, the main one first
    """

    order: NDArray[np.int64]
    scores: Scores


class Ranker:
    """An open bundle, which may be used from several threads at once."""

    def __init__(self, folder: Path) -> None:
        """Read the bundle, open its pool, and compare the scores of its example.

        Raises:
            BundleError: the folder is no valid bundle, or cannot run here.
        """
        self.bundle, self._pool, _ = open_verified(folder)
        self._repeats_user = not self.bundle.candidate.placement.user_once

    def submit(self, request: Mapping[str, ArrayLike]) -> PendingResult:
        """Submit a request of named arrays, (rows, ...), one row for each candidate.

        An input of the user's side may have a single row. Bags are taken flat with offsets, or padded.

        Returns:
            A future of the scores, by the request's rows, or of a RefusedError or the engine's error.

        Raises:
            RequestError: an input is missing, unknown, or of another shape or type.
            UnseenIdError: an id is no row of its table, and the manifest defines no other row for it.
        """
        specs = {spec.name: spec for spec in self.bundle.inputs}
        given = {name: _array(name, values, specs.get(name)) for name, values in request.items()}
        arrays, _ = check_inputs(self.bundle.inputs, given, _UNLIMITED, self._repeats_user)
        return self._pool.submit(arrays)

    def score(self, request: Mapping[str, ArrayLike]) -> Scores:
        """Return the scores of a request, by its rows; errors are those of `submit` and of its future."""
        return self.submit(request).result()

    def rank(self, request: Mapping[str, ArrayLike]) -> Ranking:
        """Rank the candidates of a request; errors are those of `score`."""
        scores = self.score(request)
        main = scores if scores.ndim == 1 else scores.reshape(len(scores), -1)[:, 0]
        return Ranking(np.argsort(-main, kind="stable"), scores)

    def close(self) -> None:
        """Finish the submitted requests, then release the engines."""
        self._pool.close()

    def __enter__(self) -> Ranker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _array(name: str, values: ArrayLike, spec: InputSpec | None) -> Array:
    """Return an array as it is, and a list of Python numbers in the dtype of its input, to which it rounds."""
    try:
        array: Array = np.asarray(values)
    except ValueError as error:
        raise RequestError(f"input {shown(name)}: must be an array, but got {shown(str(error))}") from error
    if array.dtype.kind not in "biuf":
        raise RequestError(f"input {shown(name)}: must hold numbers, but got {shown(array.dtype)}")
    number = array.dtype.kind in "iuf" and not isinstance(values, (np.ndarray, np.generic))
    if spec is not None and number and np.dtype(spec.dtype).kind == "f":
        return array.astype(spec.dtype)
    return array
