"""Base of every section of a study file: strict fields with their rules, and domains in their written form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    PlainValidator,
    Tag,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from search.config.yaml_reader import show
from spaces.domains import Choice, Domain, Float, Integer, Scalar

_DOMAIN_FORMS = "a value, a list of values, or {low, high} with step or log if need be"


def rule(message: str, *at: str | int) -> PydanticCustomError:
    """Return the error of a violated rule; `at` is the path from the error's place further in."""
    return PydanticCustomError("rule", "{message}", {"message": message.removesuffix("."), "at": at})


class Section(BaseModel):
    """A part of the study file. Each field's description completes "must be ..."."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, value: object) -> object:
        # `slo:` with nothing under it (all of it commented out) reads as null.
        return {} if value is None else value


def _number(value: object) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise rule(f"must be a number, but got {show(value)}")
    return value


_Number = Annotated[int | float, PlainValidator(_number)]  # unchanged: two integer ends make a range of integers


class Range(Section):
    low: _Number = Field(description="a number")
    high: _Number = Field(description="a number")
    step: _Number | None = None
    log: bool = Field(default=False, description="true or false")


@dataclass(frozen=True)
class _ReadsDomain:
    """Reader of a knob's domain from its written form; with a rule, numbers that keep it, which become floats."""

    rule: str = ""
    keeps: Callable[[float], bool] | None = None

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        form = Annotated[
            Annotated[Range, Tag("<range>")] | Annotated[object, Tag("<values>")],
            Discriminator(lambda v: "<range>" if isinstance(v, (Mapping, Range)) else "<values>"),
        ]
        schema = core_schema.no_info_before_validator_function(written, handler.generate_schema(form))
        return core_schema.no_info_after_validator_function(
            self._read, schema, serialization=core_schema.plain_serializer_function_ser_schema(written)
        )

    def _read(self, form: object) -> Domain:
        try:
            domain = _domain(form, real=self.keeps is not None)
        except ValueError as error:  # PydanticCustomError is one too, and is complete already
            text = str(error)
            raise error if isinstance(error, PydanticCustomError) else rule(text[0].lower() + text[1:]) from error
        values = domain.values if isinstance(domain, Choice) else (domain.low, domain.high)
        for value in values:
            if self.keeps is not None and (isinstance(value, (str, bool)) or not self.keeps(value)):
                raise rule(f"must be {self.rule}, but got {show(value)}")
        return domain


def _domain(form: object, real: bool) -> Domain:
    """Return the domain of a list, a single value or a range; in a real knob integers become floats."""
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
            raise rule(f"must be {may_be}, but got {show(value)}", *at)
        values.append(float(value) if real and type(value) is int else value)
    return Choice(tuple(values))


def written(value: object) -> object:
    """Return a domain in the study file's notation; any other value unchanged, a tuple as a list."""
    if isinstance(value, Choice):
        return list(value.values)
    if isinstance(value, (Integer, Float)):
        return {"low": value.low, "high": value.high, "step": value.step, "log": value.log}
    return list(value) if isinstance(value, tuple) else value


AnyDomain = Annotated[Domain, _ReadsDomain()]
# These bounds equal those of the records in spaces; a test compares them.
Ratios = Annotated[Domain, _ReadsDomain("numbers from 0 to below 1", lambda value: 0 <= value < 1)]
Fractions = Annotated[Domain, _ReadsDomain("numbers above 0 and at most 1", lambda value: 0 < value <= 1)]
Weights = Annotated[Domain, _ReadsDomain("numbers of at least 0", lambda value: value >= 0)]
Temperatures = Annotated[Domain, _ReadsDomain("numbers of at least 1", lambda value: value >= 1)]
Shares = Annotated[Domain, _ReadsDomain("numbers from 0 to 1", lambda value: 0 <= value <= 1)]

T = TypeVar("T")
# A list in YAML and JSON, a tuple here; one word alone is a list of one.
Listed = Annotated[
    tuple[T, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    Field(strict=False),
]
