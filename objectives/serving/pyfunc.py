"""Loader of a bundle as a Python function of MLflow, which runs the placement that was measured. It needs no mlflow.

`mlflow models serve --env-manager local` and `mlflow.pyfunc.load_model` find it by its module's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from objectives.serving.pool.pending_result import Scores
from objectives.serving.ranker import Ranker


class BundleFunction:
    """A bundle with the methods that MLflow calls."""

    def __init__(self, ranker: Ranker) -> None:
        self._ranker = ranker

    def predict(self, model_input: Mapping[str, ArrayLike], params: Mapping[str, object] | None = None) -> Scores:
        """Return the scores of one request, by its rows: arrays by name, or a data frame with a row per candidate."""
        return self._ranker.score({name: np.asarray(values) for name, values in model_input.items()})


def _load_pyfunc(data_path: str) -> BundleFunction:
    """Open a bundle, whose files and example are verified first."""
    return BundleFunction(Ranker(Path(data_path)))
