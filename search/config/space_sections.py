"""Sections of a study file about the space: the domain of each knob."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, field_validator

from search.config.section import (
    AnyDomain,
    Fractions,
    Listed,
    Ratios,
    Section,
    Shares,
    Temperatures,
    Weights,
    rule,
    written,
)
from search.config.yaml_reader import nearest, show
from spaces.domains import Choice, Domain, Scalar
from spaces.techniques.placement import LEAST_WARM_MS, WARM_MS, InstanceGroup, parse_layout, parse_place
from spaces.techniques.pruning import IMPORTANCES, Importance
from spaces.techniques.quantization import CALIBRATIONS, LINEAR_WIDTHS, RECURRENT_WIDTHS, TABLE_WIDTHS, Compute

_WIDTHS = tuple(dict.fromkeys((*LINEAR_WIDTHS, *RECURRENT_WIDTHS, *TABLE_WIDTHS)))
# Keys in addition to the groups.
_OTHERS: Mapping[str, tuple[str, ...]] = {"compute": get_args(Compute), "calibration": CALIBRATIONS}


def _check(values: tuple[Scalar, ...], baseline: tuple[Scalar, ...], *at: str) -> tuple[Scalar, ...]:
    """Check that the values are different, that none is empty, and that the baseline's own are among them."""
    if not values or len(set(values)) != len(values) or "" in values or not set(baseline) <= set(values):
        among = "".join(f", the baseline's {str(one).lower()} among them" for one in baseline)
        raise rule(f"must be different values{among}, but got {show(values)}", *at)
    return values


def _holds(*baseline: Scalar) -> AfterValidator:
    return AfterValidator(lambda values: _check(values, baseline))


def _reads(form: str, read: Callable[[str], str]) -> AfterValidator:
    """Check that a text is of the form: `read` parses it, and writes it as it was."""

    def check(text: str) -> str:
        with contextlib.suppress(ValueError):
            if read(text) == text:
                return text
        raise rule(f"must be {form}, but got {show(text)}")

    return AfterValidator(check)


def _warm_ms(value: float) -> float:
    if value != 0 and not LEAST_WARM_MS <= value < WARM_MS:
        raise rule(f"must be 0, or at least {LEAST_WARM_MS:g} and below {WARM_MS:g}, but got {show(value)}")
    return value


def _ranks(domain: Domain) -> Domain:
    if not isinstance(domain, Choice) or 1.0 not in domain:
        raise rule(f"must be a list of shares, 1.0 (the whole rank) among them, but got {show(written(domain))}")
    return domain


# Lists of values, with those that leave the baseline unchanged.
_Wholes = Listed[Annotated[int, Field(ge=0)]]
_PLACE = "ENGINE or ENGINE:DEVICE, such as onnxruntime or onnxruntime:cuda"
_Places = Listed[Annotated[str, _reads(_PLACE, lambda text: InstanceGroup(*parse_place(text)).place)]]
_LAYOUT = "REPLICASxTHREADS, such as 2x1 or 1xauto"
_Layouts = Listed[Annotated[str, _reads(_LAYOUT, lambda text: InstanceGroup("", "", *parse_layout(text)).layout)]]
_Forms = Listed[Literal["full", "quotient-remainder", "mixed-dimensions"]]
_Off = Annotated[_Wholes, _holds(0)] | None
_Positions = Annotated[_Off, Field(description="a list of positions, 0 (all) among them, or null")]
_Rows = Annotated[_Off, Field(description="a list of rows, 0 (none) among them, or null")]
_Flags = Annotated[
    Annotated[Listed[bool], _holds(False)] | None,
    Field(description="a list of false and true, false among them, or null"),
]


# How the weights of a shape are trained: as a slice of an elastic network, or from the baseline's by themselves.
Train = Literal["auto", "elastic", "separate"]


class DistillationConfig(Section):
    """Training of smaller models; `elastic_epochs` and `fine_tuning` are of slices of an elastic network."""

    temperature: Temperatures | None = None
    teacher_weight: Shares | None = None
    feature_weight: Weights | None = None
    epochs: int | None = Field(default=None, ge=1, description="a whole number, at least 1, or null")
    cycles: int | None = Field(default=None, ge=1, le=20, description="a whole number from 1 to 20, or null")
    train: Train = Field(default="separate", description=f"one of {', '.join(get_args(Train))}")
    elastic_epochs: int | None = Field(default=None, ge=1, description="a whole number, at least 1, or null")
    early_stopping: bool = Field(default=True, description="true or false")
    fine_tuning: Annotated[_Wholes, _holds()] | None = Field(
        default=None, description="a list of whole numbers, at least 0, or null"
    )


class TablesConfig(Section):
    """Forms of the embedding tables: `full_rows_share` of quotient-remainder, `temperature` of mixed dimensions."""

    form: Annotated[_Forms, _holds("full")] | None = Field(
        default=None, description="a list of full, quotient-remainder and mixed-dimensions, full among them, or null"
    )
    full_rows_share: Ratios | None = None
    temperature: Fractions | None = None


class AttentionConfig(Section):
    """Positions that a sparse attention reads; 0: all."""

    window: _Positions = None
    history: _Positions = None


class PlacementConfig(Section):
    """Domains of each knob of a placement; None: the default of the machine and of the requests' sizes."""

    engines: Annotated[_Places, _holds("onnxruntime")] | None = Field(
        default=None, description="a list of ENGINE or ENGINE:DEVICE, onnxruntime among them, or null"
    )
    layouts: Annotated[_Layouts, _holds("1xauto")] | None = Field(
        default=None, description="a list of REPLICASxTHREADS, 1xauto among them, or null"
    )
    pinned: _Flags = None
    inline: _Flags = None
    batch_rows: _Rows = None
    batch_wait_us: Annotated[_Wholes, _holds()] | None = Field(
        default=None, description="a list of microseconds, at least 0, or null"
    )
    split_rows: _Rows = None
    route_rows: _Rows = None
    embedding_device: Annotated[_Places, _holds("same")] | None = Field(
        default=None, description="a list of same and ENGINE or ENGINE:DEVICE, same among them, or null"
    )
    user_once: _Flags = None
    score_catalogue: _Flags = None
    keep_warm_ms: Annotated[Listed[Annotated[float, AfterValidator(_warm_ms)]], _holds(0)] | None = Field(
        default=None, description=f"a list of 0 (none) and milliseconds from {LEAST_WARM_MS:g} to {WARM_MS:g}, or null"
    )
    queue: int | None = Field(default=None, ge=1, description="a whole number, at least 1, or null")
    deadline_ms: float | None = Field(default=None, gt=0, description="milliseconds above 0, or null")


class SpaceConfig(Section):
    """Knobs to search; None: the default of family and machine. An empty architecture, pruning or low_rank is off."""

    focus: float = Field(default=0.05, ge=0, lt=1, description="a number from 0 (off) to below 1, such as 0.05 for 5%")

    architecture: Mapping[str, AnyDomain] | None = Field(
        default=None, description="a mapping of size to domain, {} for no smaller sibling, or null"
    )
    pruning: Mapping[str, Ratios] | None = Field(
        default=None, description="a mapping of layer group to ratios, {} for no pruning, or null"
    )
    pruning_importance: Annotated[Listed[Importance], _holds()] | None = Field(
        default=None, description=f"a list of {', '.join(IMPORTANCES)}, or null"
    )
    pruning_steps: Annotated[Listed[Annotated[int, Field(ge=1)]], _holds()] | None = Field(
        default=None, description="a list of whole numbers, at least 1, or null"
    )
    low_rank: Mapping[str, Annotated[Fractions, AfterValidator(_ranks)]] | None = Field(
        default=None, description="a mapping of layer group to shares of the rank, {} for none, or null"
    )
    tables: TablesConfig = TablesConfig()
    attention: AttentionConfig = AttentionConfig()
    quantization_aware: _Flags = None
    distillation: DistillationConfig = DistillationConfig()
    precision: Mapping[str, Listed[str]] | None = Field(
        default=None, description="a mapping of layer group (or table, compute, calibration) to widths, or null"
    )
    placement: PlacementConfig = PlacementConfig()

    @field_validator("precision")
    @classmethod
    def _known_widths(cls, value: Mapping[str, tuple[str, ...]] | None) -> Mapping[str, tuple[str, ...]] | None:
        for group, widths in (value or {}).items():
            known = _OTHERS.get(group, _WIDTHS)
            for index, width in enumerate(widths):
                if width not in known:
                    near = nearest(width, known)
                    raise rule(f"must be one of {', '.join(known)}, but got {show(width)}{near}", group, index)
            _check(widths, () if group == "calibration" else ("fp32",), group)
        return value
