"""Sections of a study file, each field with its default and its rule; presets/template.yaml explains them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, PlainValidator, ValidationInfo, field_validator, model_validator

from search.config.data_sections import SOURCES, CriteoData, DataConfig, TableData
from search.config.loss_limits import Limits
from search.config.section import Listed, Section, rule
from search.config.space_sections import SpaceConfig
from search.config.yaml_reader import nearest, show

Objective = Literal[
    "latency_p50",
    "latency_p95",
    "latency_p99",
    "throughput",
    "quality",
    "model_bytes",
    "peak_memory_bytes",
    "cpu_seconds_per_1000",
    "money_per_million",
]

# `auto` is leanrec's own; the others are Optuna's.
SamplerName = Literal["auto", "tpe", "nsga3", "gp", "random"]

_Share = Annotated[float, Field(gt=0, lt=1)]
# Largest seed that Optuna and scikit-learn accept.
_LARGEST_SEED = 2**32 - 1
BUILT_IN = ("dcn-v2", "dlrm", "sasrec")


class QualityConfig(Section):
    metric: str | None = Field(
        default=None,
        pattern=r"^(auc|gauc|ndcg@[1-9]\d*|hr@[1-9]\d*)$",
        description="auc, gauc, ndcg@K, hr@K, or null for the model family's own",
    )
    max_loss: _Share = Field(default=0.01, description="a number above 0 and below 1, such as 0.01 for 1%")
    slices: Mapping[str, _Share] = Field(
        default={}, description="a mapping of slice to a number above 0 and below 1, such as {rare items: 0.02}"
    )
    slice_by: Listed[Annotated[str, Field(min_length=1)]] = Field(
        default=(), description="a list of columns, or of inputs of one's own model"
    )

    @property
    def limits(self) -> Limits:
        return Limits(self.max_loss, dict(self.slices))


class RowsConfig(Section):
    """Candidate items of one request: log-normal, or from a request log; limited to max. Sigma 0: always the median."""

    median: int = Field(default=200, ge=1, description="a whole number, at least 1")
    sigma: float = Field(default=0.6, ge=0, description="a number, at least 0")
    max: int = Field(default=1000, validate_default=True, description="a whole number, at least the median")
    file: str | None = Field(
        default=None, min_length=1, description="a request log (CSV or Parquet) with a column rows, or null"
    )

    @field_validator("max")
    @classmethod
    def _at_least_median(cls, value: int, info: ValidationInfo) -> int:
        median = info.data.get("median", value)
        if value < median:
            raise rule(f"must be a whole number, at least the median ({median}), but got {value}")
        return value


_PATTERNS = ("poisson", "deterministic", "bursts", "diurnal")


class TrafficConfig(Section):
    """Traffic of a study; seconds, quiet and depth are settings of bursts and of a daily curve.

    through: how requests reach the deployments that are measured
    overhead_ms: of each request, spent elsewhere
    """

    pattern: str = Field(
        default="poisson",
        pattern=rf"^({'|'.join(_PATTERNS)}|log:.+)$",
        description=f"{', '.join(_PATTERNS)} or log:FILE, a request log in CSV or Parquet",
    )
    load: _Share = Field(
        default=0.4, description="a number above 0 and below 1, a share of what the baseline answers one by one"
    )
    through: Literal["pool", "http"] = "pool"
    overhead_ms: float = Field(default=0.0, ge=0, description="milliseconds, at least 0")
    rows: RowsConfig = RowsConfig()
    on_seconds: float = Field(default=0.5, ge=0.001, description="seconds, at least 0.001")
    off_seconds: float = Field(default=0.5, ge=0.001, description="seconds, at least 0.001")
    quiet: float = Field(default=0.0, ge=0, le=1, description="a number from 0 to 1")
    period_seconds: float = Field(default=60.0, ge=0.001, description="seconds, at least 0.001")
    depth: float = Field(default=0.8, ge=0, le=1, description="a number from 0 to 1")

    @property
    def log(self) -> Path | None:
        """Path of the user's own request log, whose arrivals are replayed."""
        kind, _, file = self.pattern.partition(":")
        return Path(file) if kind == "log" else None


class SloConfig(Section):
    """Service level objective; `ms` None is twice the baseline's own percentile at the study's load."""

    percentile: Literal[50, 95, 99] = 95
    ms: float | None = Field(default=None, gt=0, description="milliseconds above 0, or null")


class TimingConfig(Section):
    """Blocks of candidate and baseline in a benchmark, by its purpose, and how long it waits for undisturbed ones."""

    screen_blocks: int = Field(default=20, ge=20, description="a whole number, at least 20")
    final_blocks: int = Field(default=60, ge=20, description="a whole number, at least 20")
    confirm_blocks: int = Field(default=120, ge=20, description="a whole number, at least 20")
    patience_seconds: float = Field(default=60.0, gt=0, description="seconds above 0")


class TrainingConfig(Section):
    """Training of smaller models. Batch size None: the recommender's own."""

    batch_size: int | None = Field(
        default=None, ge=2, description="rows (of sasrec users), a whole number, at least 2, or null"
    )


class BudgetConfig(Section):
    """Budget of a study.

    minutes: of the whole study
    final_share: share of the minutes that the final benchmark may take
    trials: that end in the search, baseline and reference points aside; None for as many as fit
    """

    minutes: float = Field(default=10.0, gt=0, description="a number above 0")
    final_share: float = Field(default=0.3, ge=0, lt=1, description="a number from 0 to below 1")
    trials: int | None = Field(default=None, ge=1, description="a whole number, at least 1, or null")


class WorkersConfig(Section):
    """Builders (None: as many as the machine supports); limits of a fit or an evaluation, and of any other job.

    A benchmark has the latter for each of its parts.
    """

    builders: int | None = Field(default=None, ge=1, description="a whole number, at least 1, or null")
    fit_seconds: float = Field(default=600.0, gt=0, description="seconds above 0")
    job_seconds: float = Field(default=120.0, gt=0, description="seconds above 0")


def _size(value: object) -> int | str:
    if type(value) is int and value >= 0:
        return value
    if isinstance(value, str) and re.fullmatch(r"[0-9]+(-[0-9]+)*", value):
        return value
    raise rule(f"must be a whole number, at least 0, or widths such as 64-32, but got {show(value)}")


class StudyConfig(Section):
    """One study, complete and valid; convert to plain JSON by `model_dump(mode="json")`, and back by `parse`."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._-]*$",
        max_length=100,
        description="at most 100 lower-case letters, digits, '.', '_' and '-', a letter or digit first",
    )
    recommender: str = Field(default="dcn-v2", description=f"{', '.join(BUILT_IN)}, or package.module:factory")
    sizes: Mapping[str, Annotated[int | str, PlainValidator(_size)]] = Field(
        default={}, description="a mapping of those of the baseline's sizes that differ"
    )
    data: DataConfig | None = Field(default=None, description=f"a mapping with a source: {SOURCES}")
    quality: QualityConfig = QualityConfig()
    traffic: TrafficConfig = TrafficConfig()
    slo: SloConfig = SloConfig()
    timing: TimingConfig = TimingConfig()
    objectives: Listed[Objective] = Field(
        default=("latency_p95", "throughput", "quality"),
        description=f"a list of one or more different ones of {', '.join(get_args(Objective))}",
    )
    space: SpaceConfig = SpaceConfig()
    sampler: SamplerName = Field(default="auto", description=f"one of {', '.join(get_args(SamplerName))}")
    start_from: Listed[str] = Field(default=(), description="names of studies, or files with candidates")
    training: TrainingConfig = TrainingConfig()
    price_per_hour: float | None = Field(
        default=None, gt=0, description="the price of the machine for an hour, above 0, or null"
    )
    budget: BudgetConfig = BudgetConfig()
    workers: WorkersConfig = WorkersConfig()
    seed: int = Field(default=0, ge=0, le=_LARGEST_SEED, description=f"a whole number from 0 to {_LARGEST_SEED}")
    tracking_uri: str | None = Field(default=None, min_length=1, description="MLflow's address, or null")
    storage: str | None = Field(default=None, min_length=1, description="the address of Optuna's database, or null")

    @field_validator("recommender")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in BUILT_IN and not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", value):
            known = f"one of {', '.join(BUILT_IN)}, or package.module:factory"
            raise rule(f"must be {known}, but got {show(value)}{nearest(value, BUILT_IN)}")
        return value

    @property
    def own(self) -> bool:
        """Return True if the recommender is the user's own, with data, metric and requests from its factory."""
        return ":" in self.recommender

    @property
    def metric(self) -> str:
        """Metric of the study, or the model family's own; empty where it is the factory's."""
        return self.quality.metric or ("" if self.own else "ndcg@10" if self.recommender == "sasrec" else "auc")

    @model_validator(mode="after")
    def _consistent(self) -> StudyConfig:
        if self.own:
            for key, given in (("data", None if self.data is None else self.data.source), ("sizes", self.sizes)):
                if given:
                    got = show(given)
                    raise rule(
                        f"must be left out for one's own recommender, whose factory gives it, but got {got}", key
                    )
        elif self.data is None:
            raise rule(f"missing; must be {type(self).model_fields['data'].description}", "data")
        ranking, metric = self.recommender == "sasrec", self.quality.metric
        if metric is not None and ranking != ("@" in metric):
            may_be = "ndcg@K or hr@K" if ranking else "auc or gauc"
            raise rule(f"must be {may_be} for {self.recommender}, but got {show(metric)}", "quality", "metric")
        self._check_named("user", "sasrec" if ranking else "gauc" if metric == "gauc" else None)
        self._check_named("item", "sasrec" if ranking else None)
        overhead = self.traffic.overhead_ms
        if self.slo.ms is not None and self.slo.ms <= overhead:
            covered = f"traffic.overhead_ms ({overhead:g}), which it covers"
            raise rule(f"must be above {covered}, but got {self.slo.ms:g}", "slo", "ms")
        if "money_per_million" in self.objectives and self.price_per_hour is None:
            raise rule(
                "must be the price of the machine for an hour for money_per_million, but got null", "price_per_hour"
            )
        return self

    @property
    def unused_rows(self) -> tuple[str, ...]:
        """Keys of `traffic.rows` that were given and count for nothing.

        The requests of one's own recommender have sizes of their own, unless a log has others.
        """
        rows, default = self.traffic.rows, RowsConfig()
        if not self.own or rows.file is not None or self.traffic.log is not None:
            return ()
        return tuple(key for key in ("median", "sigma", "max") if getattr(rows, key) != getattr(default, key))

    def _check_named(self, who: Literal["user", "item"], needed_for: str | None) -> None:
        """Check that the data name the user or the item, where the model or the metric needs it."""
        if needed_for is None:
            return
        if isinstance(self.data, CriteoData):
            others = "ml-100k, movielens:DIR, table:FILE or synthetic"
            raise rule(f"must be {others} for {needed_for}, but got {show(self.data.source)}", "data", "source")
        if isinstance(self.data, TableData) and getattr(self.data.columns, who) is None:
            raise rule(f"must be the name of a column for {needed_for}, but got null", "data", "columns", who)

    @field_validator("objectives")
    @classmethod
    def _different(cls, values: tuple[Objective, ...]) -> tuple[Objective, ...]:
        if not values or len(set(values)) != len(values):
            raise rule(f"must be {cls.model_fields['objectives'].description}, but got {show(values)}")
        return values
