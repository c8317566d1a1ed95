"""Sections of a study file about the space: the domain of each knob."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import Field, ValidationInfo, field_validator

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
from spaces.domains import Choice, Domain
from spaces.techniques.placement import InstanceGroup, parse_layout, parse_place
from spaces.techniques.pruning import IMPORTANCES, Importance
from spaces.techniques.quantization import CALIBRATIONS, LINEAR_WIDTHS, RECURRENT_WIDTHS, TABLE_WIDTHS, Compute

_WIDTHS = tuple(dict.fromkeys((*LINEAR_WIDTHS, *RECURRENT_WIDTHS, *TABLE_WIDTHS)))
# Keys in addition to the groups.
_OTHERS: Mapping[str, tuple[str, ...]] = {"compute": get_args(Compute), "calibration": CALIBRATIONS}


class DistillationConfig(Section):
    temperature: Temperatures | None = None
    teacher_weight: Shares | None = None
    feature_weight: Weights | None = None
    epochs: int | None = Field(default=None, ge=1, description="a whole number, at least 1, or null")


_Wholes = Listed[Annotated[int, Field(ge=0)]] | None
_Positions = Annotated[_Wholes, Field(description="a list of positions, 0 (all) among them, or null")]
_Rows = Annotated[_Wholes, Field(description="a list of rows, 0 (none) among them, or null")]
_Flags = Annotated[Listed[bool] | None, Field(description="a list of false and true, false among them, or null")]


class TablesConfig(Section):
    """Forms of the embedding tables: `full_rows_share` of quotient-remainder, `temperature` of mixed dimensions."""

    form: Listed[Literal["full", "quotient-remainder", "mixed-dimensions"]] | None = Field(
        default=None, description="a list of full, quotient-remainder and mixed-dimensions, full among them, or null"
    )
    full_rows_share: Ratios | None = None
    temperature: Fractions | None = None

    @field_validator("form")
    @classmethod
    def _holds_full(cls, values: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if values is None else _offers("full", values)


class AttentionConfig(Section):
    """Positions that a sparse attention reads; 0: all."""

    window: _Positions = None
    history: _Positions = None

    @field_validator("window", "history")
    @classmethod
    def _holds_all(cls, values: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return None if values is None else _holds(values, 0)


class PlacementConfig(Section):
    """Domains of each knob of a placement; None: the default of the machine and of the requests' sizes."""

    engines: Listed[str] | None = Field(
        default=None, description="a list of ENGINE or ENGINE:DEVICE, onnxruntime among them, or null"
    )
    layouts: Listed[str] | None = Field(
        default=None, description="a list of REPLICASxTHREADS, 1xauto among them, or null"
    )
    pinned: _Flags = None
    inline: _Flags = None
    batch_rows: _Rows = None
    batch_wait_us: _Wholes = Field(default=None, description="a list of microseconds, at least 0, or null")
    split_rows: _Rows = None
    route_rows: _Rows = None
    embedding_device: Listed[str] | None = Field(
        default=None, description="a list of same and ENGINE or ENGINE:DEVICE, same among them, or null"
    )
    user_once: _Flags = None
    queue: int | None = Field(default=None, ge=1, description="a whole number, at least 1, or null")
    deadline_ms: float | None = Field(default=None, gt=0, description="milliseconds above 0, or null")

    @field_validator("engines", "layouts", "embedding_device")
    @classmethod
    def _holds_baseline(cls, values: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        if values is None:
            return None
        for index, value in enumerate(values):
            if info.field_name == "layouts" and not _is_layout(value):
                example = "REPLICASxTHREADS, such as 2x1 or 1xauto"
                raise rule(f"must be {example}, but got {show(value)}", index)
            if info.field_name != "layouts" and not _is_place(value):
                example = "ENGINE or ENGINE:DEVICE, such as onnxruntime or onnxruntime:cuda"
                raise rule(f"must be {example}, but got {show(value)}", index)
        return _offers(
            {"layouts": "1xauto", "embedding_device": "same"}.get(info.field_name or "", "onnxruntime"), values
        )

    @field_validator("pinned", "inline", "user_once", "batch_rows", "split_rows", "route_rows", "batch_wait_us")
    @classmethod
    def _holds_off(cls, values: tuple[int, ...] | None, info: ValidationInfo) -> tuple[int, ...] | None:
        if values is None:
            return None
        if info.field_name == "batch_wait_us":
            return _holds(values)
        return _holds(values, False if info.field_name in ("pinned", "inline", "user_once") else 0)


class SpaceConfig(Section):
    """Knobs to search; None: the default of family and machine. An empty architecture, pruning or low_rank is switched
    off.

    focus: a layer group with a smaller share than this of the baseline's time and bytes is not compressed
    """

    focus: float = Field(default=0.05, ge=0, lt=1, description="a number from 0 (off) to below 1, such as 0.05 for 5%")

    architecture: Mapping[str, AnyDomain] | None = Field(
        default=None, description="a mapping of size to domain, {} for no smaller sibling, or null"
    )
    pruning: Mapping[str, Ratios] | None = Field(
        default=None, description="a mapping of layer group to ratios, {} for no pruning, or null"
    )
    pruning_importance: Listed[Importance] | None = Field(
        default=None, description=f"a list of {', '.join(IMPORTANCES)}, or null"
    )
    pruning_steps: Listed[Annotated[int, Field(ge=1)]] | None = Field(
        default=None, description="a list of whole numbers, at least 1, or null"
    )
    low_rank: Mapping[str, Fractions] | None = Field(
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
            if group == "calibration":
                _holds(widths, at=group)
            else:
                _offers("fp32", widths, group)
        return value

    @field_validator("pruning_importance", "pruning_steps")
    @classmethod
    def _different(cls, values: tuple[int | str, ...] | None) -> tuple[int | str, ...] | None:
        return None if values is None else _holds(values)

    @field_validator("quantization_aware")
    @classmethod
    def _holds_no(cls, values: tuple[bool, ...] | None) -> tuple[bool, ...] | None:
        return None if values is None else _holds(values, False)

    @field_validator("low_rank")
    @classmethod
    def _holds_whole(cls, value: Mapping[str, Domain] | None) -> Mapping[str, Domain] | None:
        for group, domain in (value or {}).items():
            if not isinstance(domain, Choice) or 1.0 not in domain:
                got = show(written(domain))
                raise rule(f"must be a list of shares, 1.0 (the whole rank) among them, but got {got}", group)
        return value


def _is_layout(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return InstanceGroup("onnxruntime", "cpu", *parse_layout(text)).layout == text
    return False


def _is_place(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return InstanceGroup(*parse_place(text)).place == text
    return False


def _offers(baseline: str, values: tuple[str, ...], *at: str) -> tuple[str, ...]:
    """Check that the values contain the baseline's own, are different, and that none is empty."""
    if baseline not in values or len(set(values)) != len(values) or "" in values:
        raise rule(f"must be different values, the baseline's {baseline} among them, but got {show(values)}", *at)
    return values


T = TypeVar("T")


def _holds(values: tuple[T, ...], *off: T, at: str | None = None) -> tuple[T, ...]:
    """Check that the values are different and contain the one that leaves the baseline unchanged, if there is one."""
    if not values or len(set(values)) != len(values) or any(value not in values for value in off):
        among = "".join(f", {str(value).lower()} among them" for value in off)
        raise rule(f"must be different values{among}, but got {show(values)}", *(() if at is None else (at,)))
    return values
