"""Sizes of a family's models by name, in the study file's notation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar, TypeVar

from torch import nn

from objectives.recommenders.datasets.features import Field
from objectives.tensor_layout import Layout
from spaces.domains import Choice, Scalar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = TypeVar("S", bound="DataclassInstance")


@dataclass(frozen=True)
class FieldSizes(ABC):
    """Sizes of a model that scores rows by their fields.

    hidden: dotted name of the module whose outputs, (rows, units), are the features to distil
    """

    hidden: ClassVar[str]

    @abstractmethod
    def build(self, fields: Sequence[Field]) -> nn.Module:
        """Build an untrained model of these sizes over the fields."""

    @abstractmethod
    def student(self, fields: Sequence[Field]) -> Mapping[str, Choice]:
        """Return the published sizes of students over these fields; for a baseline, those no larger than its own."""

    @abstractmethod
    def layout(self, fields: Sequence[Field]) -> Layout:
        """Return the layout of the tensors of a model of these sizes over the fields."""


def resized(published: S, given: Mapping[str, Scalar]) -> S:
    """Replace some sizes of a family or a baseline: a number, or several widths such as `64-32`.

    Raises:
        ValueError: an unknown size, or an invalid value.
    """
    known = {f.name: getattr(published, f.name) for f in fields(published)}
    values: dict[str, int | tuple[int, ...]] = {}
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"sizes.{name}: unknown; the model has {', '.join(known)}")
        try:
            values[name] = widths(value) if isinstance(known[name], tuple) else int(str(value))
        except ValueError as error:
            may_be = "widths such as 64-32" if isinstance(known[name], tuple) else "a whole number"
            raise ValueError(f"sizes.{name}: must be {may_be}, but got {value!r}") from error
    return replace(published, **values)


def told(sizes: DataclassInstance, names: Iterable[str]) -> dict[str, Scalar]:
    """Write some of a family's sizes in the study file's notation: a number, or several widths such as `64-32`."""
    values = {name: getattr(sizes, name) for name in names}
    return {name: "-".join(map(str, of)) if isinstance(of, tuple) else of for name, of in values.items()}


def widths(size: Scalar) -> tuple[int, ...]:
    """Read a number, or several widths such as `64-32`."""
    return tuple(map(int, str(size).split("-")))


def no_larger(published: Choice, own: Scalar) -> Choice:
    """Select the published sizes of students that are below the baseline's own size, and append that size.

    Several widths are below others if they are no more in number, and each is no larger.
    """

    def below(size: Scalar) -> bool:
        ours, theirs = widths(size), widths(own)
        return size != own and len(ours) <= len(theirs) and all(a <= b for a, b in zip(ours, theirs, strict=False))

    return Choice((*filter(below, published.values), own))
