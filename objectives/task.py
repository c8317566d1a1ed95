"""Subject of a study, in the plain terms that a builder needs to open it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from objectives.int8_weights import Int8WeightBits
from spaces.domains import Scalar
from spaces.serialization import digest

_DRY_BATCHES = 3


@dataclass(frozen=True)
class Task:
    """A recommender by name, its data, its metric, the rows of its requests, and the seed of all of it.

    rows_median, rows_sigma: the log-normal distribution of the rows of a request
    rows_trace: a trace of rows, named by its content, in place of that distribution
    rows_max: upper limit of the rows in both cases
    columns: roles of a table's columns
    sizes: sizes of the baseline that differ from the published ones
    expected: the recommender's key when the study was prepared, empty before that
    slice_by: columns whose commonest values define slices with a loss of their own
    batch_size: rows per batch when a smaller model is trained; None for the recommender's own
    int8_weight_bits: bits of the weights in int8 products that the serving CPU needs
    dry_run: folder that a dry run has in place of the cache: an epoch has a few batches, and a built-in baseline is not
        trained; empty for a study
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
    columns: Mapping[str, object] | None = None
    sizes: Mapping[str, Scalar] = field(default_factory=dict)
    slice_by: tuple[str, ...] = ()
    expected: str = ""
    batch_size: int | None = None
    int8_weight_bits: Int8WeightBits = 8
    dry_run: str = ""

    @property
    def cache(self) -> Path:
        return Path(self.dry_run or Path(self.home) / "mlruns" / "cache")

    @property
    def most_batches(self) -> int | None:
        """Batches of an epoch of train at most; None for all."""
        return _DRY_BATCHES if self.dry_run else None

    @property
    def data_sets(self) -> Path:
        return Path(self.home) / "mlruns" / "data"

    def key(self, *more: object) -> str:
        """Hash this task and `more` for cache names; the home is not part of it."""
        data = [self.recommender, self.source, self.synthetic, self.columns, self.sizes]
        judged = [self.metric, self.slice_by, self.seed]
        rows = [self.rows_median, self.rows_sigma, self.rows_max, self.rows_trace and Path(self.rows_trace).name]
        return digest(data, judged, rows, self.batch_size, *more)[:20]
