"""What a study is about, in the plain terms that a builder needs to open it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from objectives.int8_weights import Int8WeightBits
from spaces.domains import Scalar
from spaces.serialization import digest


@dataclass(frozen=True)
class Task:
    """A recommender by name, its data, its metric, the rows of its requests, and the seed of all of it.

    Rows are log-normal, or those of a trace named by its content; cut at rows_max either way. Columns say what those of
    a table hold; sizes are those of the baseline that differ from the published ones; expected is the recommender's key
    as a study was prepared, empty before that. The loss is told of the commonest values of the columns in slice_by.
    Smaller models learn from batch_size rows at a time; None: from as many as the recommender says.
    Weights of int8 products have as many bits as the CPU that serves needs.
    """

    home: str
    recommender: str
    source: str
    metric: str
    rows_median: int
    rows_sigma: float
    rows_max: int
    seed: int
    synthetic: Mapping[str, float] | None = None
    rows_trace: str | None = None
    columns: Mapping[str, Any] | None = None
    sizes: Mapping[str, Scalar] = field(default_factory=dict)
    slice_by: tuple[str, ...] = ()
    expected: str = ""
    batch_size: int | None = None
    int8_weight_bits: Int8WeightBits = 8

    @property
    def cache(self) -> Path:
        return Path(self.home) / "mlruns" / "cache"

    @property
    def data_sets(self) -> Path:
        return Path(self.home) / "mlruns" / "data"

    def key(self, *more: object) -> str:
        """Names what follows from this task and from `more`; the home is no part of it."""
        data = [self.recommender, self.source, self.synthetic, self.columns, self.sizes]
        judged = [self.metric, self.slice_by, self.seed]
        rows = [self.rows_median, self.rows_sigma, self.rows_max, self.rows_trace and Path(self.rows_trace).name]
        return digest(data, judged, rows, self.batch_size, *more)[:20]
