"""The study file: what it may say, how it is read, and what makes two studies the same."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
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
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from search.study_yaml import ConfigError, dotted, nearest, plain, show
from spaces.canonical import digest
from spaces.domains import Choice, Domain, Float, Integer, Scalar
from spaces.placement import Placement, parse_layout
from spaces.precision import LINEAR_WIDTHS, TABLE_WIDTHS, Compute

Objective = Literal["latency_p50", "latency_p95", "latency_p99", "throughput", "quality", "model_bytes"]

# What a resumed study may have changed: how long and where it runs, not what it looks for.
FREE_SECTIONS = ("budget", "workers", "tracking_uri", "storage")

_TEMPLATE = "template"
_WIDTHS = tuple(dict.fromkeys((*LINEAR_WIDTHS, *TABLE_WIDTHS)))
_DOMAIN_FORMS = "a value, a list of values, or {low, high} with step or log if need be"
# Optuna and scikit-learn take no larger seed.
_LARGEST_SEED = 2**32 - 1


def _rule(message: str, *at: str | int) -> PydanticCustomError:
    """A broken rule of our own; `at` leads from the place of the error further in."""
    return PydanticCustomError("rule", "{message}", {"message": message.removesuffix("."), "at": at})


class _Section(BaseModel):
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


class _Range(_Section):
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
            Annotated[_Range, Tag("<range>")] | Annotated[Any, Tag("<values>")],
            Discriminator(lambda v: "<range>" if isinstance(v, (Mapping, _Range)) else "<values>"),
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
    if isinstance(form, _Range):
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


class MovieLensData(_Section):
    """Ratings that exist: a known data set by name, or a folder in one of MovieLens' shapes."""

    source: str = Field(pattern=r"^(ml-100k|movielens:.+)$", description="ml-100k, movielens:DIR or synthetic")

    @property
    def folder(self) -> Path | None:
        """Where the ratings lie; None for the known data set."""
        _, _, folder = self.source.partition(":")
        return Path(folder) if folder else None


class SyntheticData(_Section):
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


class QualityConfig(_Section):
    metric: Literal["auc"] = "auc"
    max_loss: float = Field(default=0.01, gt=0, lt=1, description="a number above 0 and below 1, such as 0.01 for 1%")


class RowsConfig(_Section):
    """Candidate items of one request: log-normal, cut at max."""

    median: int = Field(default=200, ge=1, description="a whole number, at least 1")
    sigma: float = Field(default=0.6, ge=0, description="a number, at least 0")
    max: int = Field(default=1000, validate_default=True, description="a whole number, at least the median")

    @field_validator("max")
    @classmethod
    def _at_least_median(cls, value: int, info: ValidationInfo) -> int:
        median = info.data.get("median", value)
        if value < median:
            raise _rule(f"must be a whole number, at least the median ({median}), but got {value}")
        return value


class TrafficConfig(_Section):
    """Load is a share of the baseline's capacity."""

    pattern: Literal["poisson"] = "poisson"
    load: float = Field(
        default=0.6, gt=0, lt=1, description="a number above 0 and below 1, a share of the baseline's capacity"
    )
    rows: RowsConfig = RowsConfig()


class SloConfig(_Section):
    """ms None: the baseline's own percentile at the study's load."""

    percentile: Literal[50, 95, 99] = 95
    ms: float | None = Field(default=None, gt=0, description="milliseconds above 0, or null")


class DistillationConfig(_Section):
    temperature: Temperatures | None = None
    teacher_weight: Shares | None = None
    passes: int | None = Field(default=None, ge=1, description="a whole number, at least 1, or null")


class PlacementConfig(_Section):
    engines: _Listed[str] | None = Field(default=None, description="a list of engines, onnxruntime among them, or null")
    layouts: _Listed[str] | None = Field(
        default=None, description="a list of REPLICASxTHREADS, 1xauto among them, or null"
    )

    @field_validator("engines", "layouts")
    @classmethod
    def _holds_baseline(cls, values: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        if values is None:
            return None
        for index, value in enumerate(values if info.field_name == "layouts" else ()):
            if not _is_layout(value):
                example = "REPLICASxTHREADS, such as 2x1 or 1xauto"
                raise _rule(f"must be {example}, but got {show(value)}", index)
        return _offers("1xauto" if info.field_name == "layouts" else "onnxruntime", values)


class SpaceConfig(_Section):
    """Knobs to search; None: the default of family and machine. Architecture or pruning empty: switched off."""

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


class BudgetConfig(_Section):
    """Minutes of search; the baseline's training is not counted. Trials None: as many as fit."""

    minutes: float = Field(default=10.0, gt=0, description="a number above 0")
    trials: int | None = Field(default=None, ge=1, description="a whole number, at least 1, or null")


class WorkersConfig(_Section):
    """Builder processes (None: as many as the machine bears), and the longest that a fit and any other job may take."""

    builders: int | None = Field(default=None, ge=1, description="a whole number, at least 1, or null")
    fit_seconds: float = Field(default=600.0, gt=0, description="seconds above 0")
    job_seconds: float = Field(default=120.0, gt=0, description="seconds above 0")


def _data_form(value: Any) -> str:
    source = value.get("source") if isinstance(value, Mapping) else getattr(value, "source", None)
    return "<synthetic>" if source == "synthetic" else "<movielens>"


class StudyConfig(_Section):
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
    objectives: _Listed[Objective] = Field(
        default=("latency_p95", "throughput", "quality"),
        description=f"a list of one or more different ones of {', '.join(get_args(Objective))}",
    )
    space: SpaceConfig = SpaceConfig()
    budget: BudgetConfig = BudgetConfig()
    workers: WorkersConfig = WorkersConfig()
    seed: int = Field(default=0, ge=0, le=_LARGEST_SEED, description=f"a whole number from 0 to {_LARGEST_SEED}")
    tracking_uri: str | None = Field(default=None, min_length=1, description="MLflow's address, or null")
    storage: str | None = Field(default=None, min_length=1, description="the address of Optuna's database, or null")

    @field_validator("objectives")
    @classmethod
    def _different(cls, values: tuple[Objective, ...]) -> tuple[Objective, ...]:
        if not values or len(set(values)) != len(values):
            raise _rule(f"must be {cls.model_fields['objectives'].description}, but got {show(values)}")
        return values


def _is_layout(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return Placement("onnxruntime", "cpu", *parse_layout(text)).layout == text
    return False


def _offers(baseline: str, values: tuple[str, ...], *at: str) -> tuple[str, ...]:
    """The values, which hold the baseline's own, are different, and none of which is empty."""
    if baseline not in values or len(set(values)) != len(values) or "" in values:
        raise _rule(f"must be different values, the baseline's {baseline} among them, but got {show(values)}", *at)
    return values


def preset_names() -> tuple[str, ...]:
    """The studies that come with leanrec."""
    names = (Path(entry.name) for entry in _presets().iterdir() if entry.name.endswith(".yaml"))
    return tuple(sorted(name.stem for name in names if name.stem != _TEMPLATE))


def load(
    source: str,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    minutes: float | None = None,
    trials: int | None = None,
) -> StudyConfig:
    """The study of a preset's name or a YAML file, with `key.path=value` overrides, and those given by name last.

    A relative movielens:DIR is relative to the file that says it; in an override or a preset, to the working directory.

    Raises:
        ConfigError: the file is missing or malformed, or a field is wrong; one line.
    """
    text, label, folder = _read_source(source)
    data = plain(text, label)
    if data is None:
        raise ConfigError(f"{label}: is empty; a study file is a mapping (`leanrec init FILE` writes one)")
    if not isinstance(data, dict):
        raise ConfigError(f"{label}: must hold a mapping with the keys {_keys(StudyConfig)}, but got {show(data)}")
    data = _absolute(data, folder)
    for override in overrides:
        path, value = _read_override(override)
        data = _replaced(data, path, value)
    for path, given in ((("seed",), seed), (("budget", "minutes"), minutes), (("budget", "trials"), trials)):
        if given is not None:
            data = _replaced(data, path, given)
    config = parse(_absolute(data, Path.cwd()))
    if isinstance(config.data, MovieLensData) and config.data.folder and not config.data.folder.is_dir():
        raise ConfigError(f"data.source: must name a folder that exists, but got {show(config.data.source)}")
    return config


def parse(data: object) -> StudyConfig:
    """The study that plain data describe, as YAML or JSON give them.

    Raises:
        ConfigError: a field is wrong; the first in the order of the data, in one line.
    """
    try:
        return StudyConfig.model_validate(data)
    except ValidationError as error:
        details = sorted(error.errors(include_url=False), key=lambda detail: _order(data, _place(detail)))
        more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
        raise ConfigError(_line(details[0]) + more) from error


def write_template(path: Path) -> None:
    """A commented study file with every key at its default; it appears complete or not at all.

    Raises:
        ConfigError: something is there already, or the file cannot be written.
    """
    text = _presets().joinpath(f"{_TEMPLATE}.yaml").read_text(encoding="utf-8")
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(text, encoding="utf-8")
        try:
            path.hardlink_to(draft)  # unlike a rename, it never replaces what is there
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
    except FileExistsError as error:
        raise ConfigError(f"{path}: exists already; name a new file") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def _presets() -> Any:
    return resources.files("search").joinpath("presets")


def _read_source(source: str) -> tuple[str, str, Path]:
    """The text, its label in messages, and the folder that its relative paths start from."""
    if source in preset_names():
        return _presets().joinpath(f"{source}.yaml").read_text(encoding="utf-8"), source, Path.cwd()
    path = Path(source)
    label = source or "''"
    try:
        return path.read_bytes().decode("utf-8-sig"), label, path.parent
    except FileNotFoundError as error:
        names = preset_names()
        near = nearest(source, names)
        raise ConfigError(f"{label}: no such file, nor a preset; the presets are {', '.join(names)}{near}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{label}: must be UTF-8 text, but byte {error.start} is not") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{label}: must be a preset or a YAML file, but cannot be read: {reason}") from error


def _read_override(override: str) -> tuple[tuple[str, ...], Any]:
    key, equals, text = override.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise ConfigError(f"--set: must read key.path=value, such as budget.minutes=5, but got {show(override)}")
    return path, plain(text, f"--set {key.strip()}", path)


def _replaced(
    data: Mapping[str, Any], path: tuple[str, ...], value: Any, *, done: tuple[str, ...] = ()
) -> dict[str, Any]:
    """A copy of data with the value at path: data under an anchor may be shared."""
    key, *rest = path
    if not rest:
        return {**data, key: value}
    inner = data.get(key)
    if inner is not None and not isinstance(inner, dict):
        where = dotted((*done, key))
        raise ConfigError(f"{dotted((*done, *path))}: {where} holds no further keys; it is {show(inner)}")
    return {**data, key: _replaced(inner or {}, tuple(rest), value, done=(*done, key))}


def _absolute(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    section = data.get("data")
    source = section.get("source") if isinstance(section, dict) else None
    if not isinstance(source, str) or not source.startswith("movielens:") or source == "movielens:":
        return data
    try:
        path = (folder / Path(source.removeprefix("movielens:")).expanduser()).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # no home of that name, a loop of links, a null character
        raise ConfigError(f"data.source: must be movielens:DIR, but got {show(source)}: {error}") from error
    return _replaced(data, ("data", "source"), f"movielens:{path}")


def _line(detail: ErrorDetails) -> str:
    """One line for one of pydantic's errors."""
    place = _place(detail)
    section, field = _described(detail["loc"])
    context = detail.get("ctx", {})
    got = f"but got {show(detail['input'])}"
    match detail["type"]:
        case "rule":
            return f"{dotted(place)}: {context['message']}"
        case "extra_forbidden" | "invalid_key":
            return f"{dotted(place)}: unknown key; {_known(section, place[-1], detail['input'])}"
        case "missing":
            return f"{dotted(place)}: missing; must be {field}"
        case "literal_error":
            options = [option.strip("'") for option in re.split(", | or ", context["expected"])]
            may_be = options[0] if len(options) == 1 else f"one of {', '.join(options)}"
            return f"{dotted(place)}: must be {may_be}, {got}{nearest(detail['input'], options)}"
    if "[key]" in detail["loc"]:
        return f"{dotted(place)}: must have text as its key (put it in quotes), {got}"
    if place and place[-1] not in section.model_fields:  # inside a field: a group's widths, or one of them
        field = {"string_type": "text", "tuple_type": "a list"}.get(detail["type"], field)
    if detail["type"] == "string_type" and isinstance(detail["input"], (bool, int, float)):
        got += " (put it in quotes)"
    return f"{dotted(place)}: must be {field}, {got}"


def _place(detail: ErrorDetails) -> tuple[str | int, ...]:
    """The keys from the top to the error, without what pydantic adds for the branches of a union."""
    inner = detail["ctx"]["at"] if detail["type"] == "rule" else ()
    return (*(key for key in detail["loc"] if key != "[key]" and key not in _TAGGED), *inner)


_TAGGED: dict[Any, type[_Section]] = {"<range>": _Range, "<movielens>": MovieLensData, "<synthetic>": SyntheticData}


def _described(location: tuple[str | int, ...]) -> tuple[type[_Section], str]:
    """The innermost section on the way to an error, and what may stand there."""
    section: type[_Section] = StudyConfig
    text = f"a mapping with the keys {_keys(section)}"
    for key in location:
        field = section.model_fields.get(str(key))
        if key in _TAGGED:
            section = _TAGGED[key]
        elif field is not None:
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, _Section):
                section = kind
                text = f"a mapping with the keys {_keys(section)}"
            text = field.description or text
    return section, text


def _known(section: type[_Section], key: object, value: object) -> str:
    if section is MovieLensData and key in SyntheticData.model_fields:
        return f"only data of source synthetic have it (got {show(value)})"
    near = nearest(key, tuple(section.model_fields))
    return near.removeprefix("; ") or f"the keys here are {_keys(section)}"


def _keys(section: type[_Section]) -> str:
    return ", ".join(section.model_fields)


def _order(data: object, place: tuple[str | int, ...]) -> tuple[float, ...]:
    """Where a place stands in the data; what is missing comes last in its section."""
    order: list[float] = []
    for key in place:
        keys = list(data) if isinstance(data, Mapping) else []
        order.append(keys.index(key) if key in keys else key if isinstance(key, int) else math.inf)
        data = data[key] if isinstance(data, Mapping) and key in data else None
    return tuple(order)


def settings_digest(config: StudyConfig) -> str:
    """SHA-256, in hex, of all that makes two studies the same one."""
    return digest(_settings(config))


def difference(a: StudyConfig | Mapping[str, Any], b: StudyConfig | Mapping[str, Any]) -> str | None:
    """The first setting that differs from a to b, in one line; None when their digests are equal.

    Plain data that this version cannot read are compared as they are.
    """
    return _difference(_settings(a), _settings(b), ())


def _settings(config: StudyConfig | Mapping[str, Any]) -> dict[str, Any]:
    try:
        study = parse(config)
    except ConfigError:
        return {key: value for key, value in dict(config).items() if key not in FREE_SECTIONS}
    return study.model_dump(mode="json", exclude=set(FREE_SECTIONS))


def _difference(a: Mapping[str, Any], b: Mapping[str, Any], path: tuple[str, ...]) -> str | None:
    for key in (*b, *(key for key in a if key not in b)):
        old, new = a.get(key, _ABSENT), b.get(key, _ABSENT)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found = _difference(old, new, (*path, key))
            if found:
                return found
        elif _canonical(old) != _canonical(new):
            was, now = ("absent" if value is _ABSENT else show(value) for value in (old, new))
            return f"{dotted((*path, key))} was {was}, now {now}"
    return None


_ABSENT = object()


def _canonical(value: object) -> str:
    # As text: Python holds 1, 1.0 and true for equal, the digest and the sampler do not.
    return json.dumps(value, sort_keys=True, default=str)
