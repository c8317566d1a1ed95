"""Requests made from a bundle's own inputs: their sizes, and what is in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from objectives.arrays import Array
from objectives.measurement.load_generator import Request
from objectives.records import InputSpec
from search.config.sections import RowsConfig
from search.errors import ConfigError

# Users that are drawn; each request is one user's first rows, so memory does not grow with the number of requests.
_USERS = 64


def parse_rows(text: str) -> RowsConfig:
    """Parse the number of rows in a request, always the same or log-normal.

    `200` is always 200 rows. `200,0.6,1000` is log-normal by its median and sigma, cut at the last number.

    Raises:
        ConfigError: the text is anything else.
    """
    try:
        median, *spread = text.split(",")
        sigma, most = spread or ("0", median)
        return RowsConfig(median=int(median), sigma=float(sigma), max=int(most))
    except ValueError as error:  # pydantic's is one too
        raise ConfigError(
            f"--rows: must be a whole number above 0, or MEDIAN,SIGMA,MAX such as 200,0.6,1000, but got {text!r}"
        ) from error


def draw_requests(inputs: Sequence[InputSpec], rows: NDArray[np.int64], seed: int) -> list[Request]:
    """Draw a request for each of `rows`, (n,), made of views.

    Codes are uniform below the vocabulary, and other numbers standard normal. Inputs of the user's side are the same in
    all rows of a request.
    """
    random = np.random.default_rng(seed)
    most = int(rows.max())
    users = [{spec.name: _values(spec, most, random) for spec in inputs} for _ in range(min(_USERS, len(rows)))]
    return [
        {name: values[:size] for name, values in users[i % len(users)].items()} for i, size in enumerate(rows.tolist())
    ]


def _values(spec: InputSpec, rows: int, random: np.random.Generator) -> Array:
    """Draw values of an input, (rows, *shape)."""
    shape = (1 if spec.side == "user" else rows, *(size or 1 for size in spec.shape))
    if spec.vocabulary is None:
        drawn = random.standard_normal(shape).astype(spec.dtype)
    else:
        drawn = random.integers(0, spec.vocabulary, size=shape).astype(spec.dtype)
    # Whole in memory: an engine would copy what is only repeated by its strides.
    return np.repeat(drawn, rows, axis=0) if spec.side == "user" else drawn
