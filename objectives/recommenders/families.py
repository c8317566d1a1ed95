"""The model families that score the rows of a request by their fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from torch import nn

from objectives.recommenders import dcn_v2, dlrm
from objectives.recommenders.features import Field
from spaces.architecture import Architecture
from spaces.domains import Choice, Scalar

S = TypeVar("S")


def told(sizes: Any) -> dict[str, Scalar]:
    """A family's sizes in the study file's notation: a number, or several widths as `64-32`."""
    values = {f.name: getattr(sizes, f.name) for f in fields(sizes)}
    return {name: "-".join(map(str, of)) if isinstance(of, tuple) else of for name, of in values.items()}


@dataclass(frozen=True)
class Family:
    """How a family's models are made, and what they are made of.

    baseline: the published sizes
    student: sizes that a sibling over these fields may take, where it stays below its baseline
    hidden: dotted name of the module whose outputs are a model's features
    """

    baseline: Any
    build: Callable[[Sequence[Field], Any], nn.Module]
    sizes: Callable[[Architecture], Any]
    student: Callable[[Sequence[Field]], Mapping[str, Choice]]
    hidden: Callable[[Any], str]


FAMILIES: Mapping[str, Family] = {
    "dcn-v2": Family(dcn_v2.BASELINE, dcn_v2.DCNV2, dcn_v2.Sizes.of, lambda _: dcn_v2.STUDENT, dcn_v2.hidden),
    "dlrm": Family(dlrm.BASELINE, dlrm.DLRM, dlrm.Sizes.of, dlrm.student, dlrm.hidden),
}


def resized(published: S, given: Mapping[str, Scalar]) -> S:
    """A family's sizes with some replaced: a number, or several widths as `64-32`.

    Raises:
        ValueError: a size that there is not, or a value that is none.
    """
    known: dict[str, Any] = {f.name: getattr(published, f.name) for f in fields(published)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"sizes.{name}: unknown; the model has {', '.join(known)}")
        try:
            several = isinstance(known[name], tuple)
            values[name] = tuple(int(width) for width in str(value).split("-")) if several else int(str(value))
        except ValueError as error:
            may_be = "widths such as 64-32" if isinstance(known[name], tuple) else "a whole number"
            raise ValueError(f"sizes.{name}: must be {may_be}, but got {value!r}") from error
    return replace(published, **values)  # type: ignore[type-var]
