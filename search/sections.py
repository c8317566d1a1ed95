"""What a study file may say: its sections, each leaf with its default and its rule."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    PlainValidator,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from search.study_yaml import nearest, show
from spaces.domains import Choice, Domain, Float, Integer, Scalar
from spaces.placement import Seat, parse_layout, parse_place
from spaces.precision import LINEAR_WIDTHS, TABLE_WIDTHS, Compute

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

_WIDTHS = tuple(dict.fromkeys((*LINEAR_WIDTHS, *TABLE_WIDTHS)))
_DOMAIN_FORMS = "a value, a list of values, or {low, high} with step or log if need be"
# Optuna and scikit-learn take no larger seed.
_LARGEST_SEED = 2**32 - 1


def _rule(message: str, *at: str | int) -> PydanticCustomError:
    """A broken rule of our own; `at` leads from the place of the error further in."""
    return PydanticCustomError("rule", "{message}", {"message": message.removesuffix("."), "at": at})


class Section(BaseModel):
    """A part of the study file. Each leaf's description says what it may be: it completes "must be ..."."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, value: Any) -> Any:
        # `slo:` with nothing under it (all of it commented out) reads as null.
        return {} if value is None else value


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _rule(f"must be a number, but got {show(value)}")
    return value


_Number = Annotated[int | float, PlainValidator(_number)]  # as it is: two whole ends make a range of whole numbers


class Range(Section):
    low: _Number = Field(description="a number")
    high: _Number = Field(description="a number")
    step: _Number | None = None
    log: bool = Field(default=False, description="true or false")


class _ReadsDomain:
    """Reads a knob's domain from its written form; a real knob takes numbers within bounds, and makes them floats."""

    def __init__(self, bounds: tuple[float, float] | None = None, rule: str = "", open_ends: bool = False) -> None:
        self.bounds, self.rule, self.open_ends = bounds, rule, open_ends

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        form = Annotated[
            Annotated[Range, Tag("<range>")] | Annotated[Any, Tag("<values>")],
            Discriminator(lambda v: "<range>" if isinstance(v, (Mapping, Range)) else "<values>"),
        ]
        schema = core_schema.no_info_before_validator_function(_written, handler.generate_schema(form))
        return core_schema.no_info_after_validator_function(
            self._read, schema, serialization=core_schema.plain_serializer_function_ser_schema(_written)
        )

    def _read(self, form: Any) -> Domain:
        try:
            domain = _domain(form, real=self.bounds is not None)
        except ValueError as error:  # PydanticCustomError is one too, and is complete already
            text = str(error)
            raise error if isinstance(error, PydanticCustomError) else _rule(text[0].lower() + text[1:]) from error
        values = domain.values if isinstance(domain, Choice) else (domain.low, domain.high)
        for value in values if self.bounds else ():
            if isinstance(value, (str, bool)) or not self._allowed(value):
                raise _rule(f"must be {self.rule}, but got {show(value)}")
        return domain

    def _allowed(self, value: float) -> bool:
        low, high = self.bounds or (-math.inf, math.inf)
        return (low < value < high) if self.open_ends else (low <= value <= high)


def _domain(form: Any, real: bool) -> Domain:
    """The domain that a list, a single value or a range stands for; in a real knob whole numbers become floats."""
    if isinstance(form, Range):
        low, high, step = form.low, form.high, form.step
        if not real and isinstance(low, int) and isinstance(high, int) and (step is None or isinstance(step, int)):
            return Integer(low, high, 1 if step is None else step, form.log)
        return Float(float(low), float(high), None if step is None else float(step), form.log)
    values: list[Scalar] = []
    for index, value in enumerate(form if isinstance(form, list) else [form]):
        finite = not isinstance(value, float) or math.isfinite(value)
        if not isinstance(value, (str, int, float)) or not finite:
            at, may_be = ((index,), "text, true, false or a number") if isinstance(form, list) else ((), _DOMAIN_FORMS)
            raise _rule(f"must be {may_be}, but got {show(value)}", *at)
        values.append(float(value) if real and type(value) is int else value)
    return Choice(tuple(values))


def _written(value: Any) -> Any:
    """A domain as the study file writes it; anything else as it is, a tuple as a list."""
    if isinstance(value, Choice):
        return list(value.values)
    if isinstance(value, (Integer, Float)):
        return {"low": value.low, "high": value.high, "step": value.step, "log": value.log}
    return list(value) if isinstance(value, tuple) else value


AnyDomain = Annotated[Domain, _ReadsDomain()]
# These bounds are those of spaces.pruning.Pruning and spaces.distillation.Distillation; a test compares them.
Ratios = Annotated[
    Domain,
    _ReadsDomain((0.0, 1.0), "ratios above 0 and below 1", open_ends=True),
]
Temperatures = Annotated[Domain, _ReadsDomain((1.0, math.inf), "numbers of at least 1")]
Shares = Annotated[Domain, _ReadsDomain((0.0, 1.0), "numbers from 0 to 1")]

T = TypeVar("T")
# A list in YAML and JSON, a tuple here; one value alone is a list of one.
_Listed = Annotated[
    tuple[T, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    Field(strict=False),
]


class MovieLensData(Section):
    """Ratings that exist: a known data set by name, or a folder in one of MovieLens' shapes."""

    source: str = Field(pattern=r"^(ml-100k|movielens:.+)$", description="ml-100k, movielens:DIR or synthetic")

    @property
    def folder(self) -> Path | None:
        """Where the ratings lie; None for the known data set."""
        _, _, folder = self.source.partition(":")
        return Path(folder) if folder else None


class SyntheticData(Section):
    """Clicks drawn from a known model. Turnover 0: users are active all the time; 1: each within one short span."""

    source: Literal["synthetic"] = "synthetic"
    rows: int = Field(default=100_000, ge=2, description="a whole number, at least 2")
    users: int = Field(default=2_000, ge=1, validate_default=True, description="a whole number, at least 1")
    items: int = Field(default=2_000, ge=1, description="a whole number, at least 1")
    fields: int = Field(default=8, ge=2, description="a whole number, at least 2 (the user and the item)")
    user_turnover: float = Field(default=0.0, ge=0, le=1, description="a number from 0 to 1")

    @field_validator("users")
    @classmethod
    def _at_most_rows(cls, value: int, info: ValidationInfo) -> int:
        rows = info.data.get("rows", value)
        if value > rows:
            raise _rule(f"must be a whole number, at most the rows ({rows}), but got {value}")
        return value


class QualityConfig(Section):
    metric: Literal["auc"] = "auc"
    max_loss: float = Field(default=0.01, gt=0, lt=1, description="a number above 0 and below 1, such as 0.01 for 1%")


class RowsConfig(Section):
    """Candidate items of one request: log-normal, or as a request log has them; cut at max. Sigma 0: always median."""

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
            raise _rule(f"must be a whole number, at least the median ({median}), but got {value}")
        return value


_PATTERNS = ("poisson", "deterministic", "bursts", "diurnal")


class TrafficConfig(Section):
    """Load is a share of what the baseline's replica answers one by one: its utilisation. By default it is moderate:
    the nearer to 1, the more a queue magnifies each stall of the machine.

    Seconds, quiet and depth are those of bursts and of a daily curve.
    """

    pattern: str = Field(
        default="poisson",
        pattern=rf"^({'|'.join(_PATTERNS)}|log:.+)$",
        description=f"{', '.join(_PATTERNS)} or log:FILE, a request log in CSV or Parquet",
    )
    load: float = Field(
        default=0.4,
        gt=0,
        lt=1,
        description="a number above 0 and below 1, a share of what the baseline answers one by one",
    )
    rows: RowsConfig = RowsConfig()
    on_seconds: float = Field(default=0.5, ge=0.001, description="seconds, at least 0.001")
    off_seconds: float = Field(default=0.5, ge=0.001, description="seconds, at least 0.001")
    quiet: float = Field(default=0.0, ge=0, le=1, description="a number from 0 to 1")
    period_seconds: float = Field(default=60.0, ge=0.001, description="seconds, at least 0.001")
    depth: float = Field(default=0.8, ge=0, le=1, description="a number from 0 to 1")

    @property
    def log(self) -> Path | None:
        """The user's own request log, whose arrivals are replayed."""
        kind, _, file = self.pattern.partition(":")
        return Path(file) if kind == "log" else None


class SloConfig(Section):
    """ms None: the baseline's own percentile at the study's load."""

    percentile: Literal[50, 95, 99] = 95
    ms: float | None = Field(default=None, gt=0, description="milliseconds above 0, or null")


class DistillationConfig(Section):
    temperature: Temperatures | None = None
    teacher_weight: Shares | None = None
    passes: int | None = Field(default=None, ge=1, description="a whole number, at least 1, or null")


_Wholes = _Listed[Annotated[int, Field(ge=0)]] | None
_Flags = _Listed[bool] | None


def _wholes(what: str) -> Any:
    return Field(default=None, description=f"a list of {what}, 0 (none) among them, or null")


def _flags() -> Any:
    return Field(default=None, description="a list of false and true, false among them, or null")


class PlacementConfig(Section):
    """What each knob of a placement may be; None: the default of the machine and of the requests' sizes."""

    engines: _Listed[str] | None = Field(
        default=None, description="a list of ENGINE or ENGINE:DEVICE, onnxruntime among them, or null"
    )
    layouts: _Listed[str] | None = Field(
        default=None, description="a list of REPLICASxTHREADS, 1xauto among them, or null"
    )
    pinned: _Flags = _flags()
    inline: _Flags = _flags()
    batch_rows: _Wholes = _wholes("rows")
    batch_wait_us: _Wholes = Field(default=None, description="a list of microseconds, at least 0, or null")
    split_rows: _Wholes = _wholes("rows")
    route_rows: _Wholes = _wholes("rows")
    lookup: _Listed[str] | None = Field(
        default=None, description="a list of same and ENGINE or ENGINE:DEVICE, same among them, or null"
    )
    user_once: _Flags = _flags()
    queue: int | None = Field(default=None, ge=1, description="a whole number, at least 1, or null")
    deadline_ms: float | None = Field(default=None, gt=0, description="milliseconds above 0, or null")

    @field_validator("engines", "layouts", "lookup")
    @classmethod
    def _holds_baseline(cls, values: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        if values is None:
            return None
        for index, value in enumerate(values):
            if info.field_name == "layouts" and not _is_layout(value):
                example = "REPLICASxTHREADS, such as 2x1 or 1xauto"
                raise _rule(f"must be {example}, but got {show(value)}", index)
            if info.field_name != "layouts" and not _is_place(value):
                example = "ENGINE or ENGINE:DEVICE, such as onnxruntime or onnxruntime:cuda"
                raise _rule(f"must be {example}, but got {show(value)}", index)
        return _offers({"layouts": "1xauto", "lookup": "same"}.get(info.field_name or "", "onnxruntime"), values)

    @field_validator("pinned", "inline", "user_once", "batch_rows", "split_rows", "route_rows", "batch_wait_us")
    @classmethod
    def _holds_off(cls, values: tuple[Any, ...] | None, info: ValidationInfo) -> tuple[Any, ...] | None:
        if values is None:
            return None
        off: Any = False if info.field_name in ("pinned", "inline", "user_once") else 0
        needed = info.field_name != "batch_wait_us"
        if not values or len(set(values)) != len(values) or (needed and off not in values):
            among = f", {str(off).lower()} among them" if needed else ""
            raise _rule(f"must be different values{among}, but got {show(list(values))}")
        return values


class SpaceConfig(Section):
    """Knobs to search; None: the default of family and machine. Architecture or pruning empty: switched off.

    Focus: a layer group with a smaller share than this of the baseline's time and bytes is not compressed.
    """

    focus: float = Field(default=0.05, ge=0, lt=1, description="a number from 0 (off) to below 1, such as 0.05 for 5%")

    architecture: Mapping[str, AnyDomain] | None = Field(
        default=None, description="a mapping of size to domain, {} for no smaller sibling, or null"
    )
    pruning: Mapping[str, Ratios] | None = Field(
        default=None, description="a mapping of layer group to ratios, {} for no pruning, or null"
    )
    distillation: DistillationConfig = DistillationConfig()
    precision: Mapping[str, _Listed[str]] | None = Field(
        default=None, description="a mapping of layer group (or compute) to widths, or null"
    )
    placement: PlacementConfig = PlacementConfig()

    @field_validator("precision")
    @classmethod
    def _known_widths(cls, value: Mapping[str, tuple[str, ...]] | None) -> Mapping[str, tuple[str, ...]] | None:
        for group, widths in (value or {}).items():
            known = get_args(Compute) if group == "compute" else _WIDTHS
            for index, width in enumerate(widths):
                if width not in known:
                    near = nearest(width, known)
                    raise _rule(f"must be one of {', '.join(known)}, but got {show(width)}{near}", group, index)
            _offers("fp32", widths, group)
        return value


class TimingConfig(Section):
    """How many blocks of each arm a timing has: to screen, for a point that would enter the front, and to confirm; and
    how long a timing that was disturbed is begun anew."""

    screen_blocks: int = Field(default=20, ge=20, description="a whole number, at least 20")
    near_blocks: int = Field(default=30, ge=20, description="a whole number, at least 20")
    confirm_blocks: int = Field(default=120, ge=20, description="a whole number, at least 20")
    patience_seconds: float = Field(default=60.0, gt=0, description="seconds above 0")


class BudgetConfig(Section):
    """Minutes of search; the baseline's training is not counted. Trials None: as many as fit."""

    minutes: float = Field(default=10.0, gt=0, description="a number above 0")
    trials: int | None = Field(default=None, ge=1, description="a whole number, at least 1, or null")


class WorkersConfig(Section):
    """Builder processes (None: as many as the machine bears), and the longest that a fit and any other job may take."""

    builders: int | None = Field(default=None, ge=1, description="a whole number, at least 1, or null")
    fit_seconds: float = Field(default=600.0, gt=0, description="seconds above 0")
    job_seconds: float = Field(default=120.0, gt=0, description="seconds above 0")


def _data_form(value: Any) -> str:
    source = value.get("source") if isinstance(value, Mapping) else getattr(value, "source", None)
    return "<synthetic>" if source == "synthetic" else "<movielens>"


class StudyConfig(Section):
    """One study, complete and valid; to plain JSON by `model_dump(mode="json")`, back by `parse`."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._-]*$",
        max_length=100,
        description="at most 100 lower-case letters, digits, '.', '_' and '-', a letter or digit first",
    )
    recommender: Literal["dcn-v2"] = "dcn-v2"
    data: Annotated[
        Annotated[MovieLensData, Tag("<movielens>")] | Annotated[SyntheticData, Tag("<synthetic>")],
        Discriminator(_data_form),
    ] = Field(description="a mapping with a source: ml-100k, movielens:DIR or synthetic")
    quality: QualityConfig = QualityConfig()
    traffic: TrafficConfig = TrafficConfig()
    slo: SloConfig = SloConfig()
    timing: TimingConfig = TimingConfig()
    objectives: _Listed[Objective] = Field(
        default=("latency_p95", "throughput", "quality"),
        description=f"a list of one or more different ones of {', '.join(get_args(Objective))}",
    )
    space: SpaceConfig = SpaceConfig()
    price_per_hour: float | None = Field(
        default=None, gt=0, description="the price of the machine for an hour, above 0, or null"
    )
    budget: BudgetConfig = BudgetConfig()
    workers: WorkersConfig = WorkersConfig()
    seed: int = Field(default=0, ge=0, le=_LARGEST_SEED, description=f"a whole number from 0 to {_LARGEST_SEED}")
    tracking_uri: str | None = Field(default=None, min_length=1, description="MLflow's address, or null")
    storage: str | None = Field(default=None, min_length=1, description="the address of Optuna's database, or null")

    @model_validator(mode="after")
    def _priced(self) -> StudyConfig:
        if "money_per_million" in self.objectives and self.price_per_hour is None:
            raise _rule(
                "must be the price of the machine for an hour for money_per_million, but got null", "price_per_hour"
            )
        return self

    @field_validator("objectives")
    @classmethod
    def _different(cls, values: tuple[Objective, ...]) -> tuple[Objective, ...]:
        if not values or len(set(values)) != len(values):
            raise _rule(f"must be {cls.model_fields['objectives'].description}, but got {show(values)}")
        return values


def _is_layout(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return Seat("onnxruntime", "cpu", *parse_layout(text)).layout == text
    return False


def _is_place(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return Seat(*parse_place(text)).place == text
    return False


def _offers(baseline: str, values: tuple[str, ...], *at: str) -> tuple[str, ...]:
    """The values, which hold the baseline's own, are different, and none of which is empty."""
    if baseline not in values or len(set(values)) != len(values) or "" in values:
        raise _rule(f"must be different values, the baseline's {baseline} among them, but got {show(values)}", *at)
    return values
