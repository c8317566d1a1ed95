"""Sections of a study file about its data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from search.config.section import Listed, Section, rule
from search.config.yaml_reader import dotted, nearest, show

SOURCES = "ml-100k, movielens:DIR, table:FILE, criteo:FILE or synthetic"


class MovieLensData(Section):
    """Existing ratings: a known data set by name, or a folder in one of MovieLens' formats."""

    source: str = Field(pattern=r"^(ml-100k|movielens:.+)$", description=SOURCES)


_Column = Annotated[str, Field(min_length=1)]


class ColumnsConfig(Section):
    """Roles of a table's columns. Features that are neither the user's nor the item's are of the moment."""

    label: _Column = Field(description="the name of a column")
    timestamp: _Column = Field(description="the name of a column")
    user: _Column | None = Field(default=None, description="the name of a column, or null")
    item: _Column | None = Field(default=None, description="the name of a column, or null")
    categorical: Listed[_Column] = Field(default=(), description="a list of columns")
    numeric: Listed[_Column] = Field(default=(), description="a list of columns")
    multi: Listed[_Column] = Field(default=(), description="a list of columns that hold several values each")
    separator: str = Field(default="|", min_length=1, description="text that stands between several values in CSV")
    of_user: Listed[_Column] = Field(default=(), description="a list of the features above")
    of_item: Listed[_Column] = Field(default=(), description="a list of the features above")
    positive_from: float | None = Field(default=None, description="a number, or null")

    @property
    def features(self) -> tuple[str, ...]:
        return (*self.categorical, *self.numeric, *self.multi)

    def _places(self, *keys: str) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Yield each column that these keys name, with its position."""
        for key in keys:
            value: str | tuple[str, ...] | None = getattr(self, key)
            if isinstance(value, str):
                yield (key,), value
            else:
                yield from (((key, index), name) for index, name in enumerate(value or ()))

    @model_validator(mode="after")
    def _consistent(self) -> ColumnsConfig:
        for keys in (("label", "timestamp", "user", "item", "categorical", "numeric", "multi"), ("of_user", "of_item")):
            places: dict[str, tuple[str | int, ...]] = {}
            for place, name in self._places(*keys):
                if name in places:
                    raise rule(f"must be another column than {dotted(places[name])}, but got {show(name)}", *place)
                places[name] = place
        for place, name in self._places("categorical", "numeric", "multi"):
            if name in ("user", "item"):
                raise rule(f"must not be called user or item, which are keys here, but got {show(name)}", *place)
        known = ", ".join(self.features) or "(there are none)"
        for place, name in self._places("of_user", "of_item"):
            if name not in self.features:
                near = nearest(name, self.features)
                raise rule(f"must be one of the features {known}, but got {show(name)}{near}", *place)
        if not self.features and self.user is None and self.item is None:
            raise rule("must name a user, an item or a feature, but got none")
        return self


class TableData(Section):
    """A table of clicks, CSV or Parquet."""

    source: str = Field(pattern=r"^table:.+$", description="table:FILE")
    columns: ColumnsConfig = Field(description="a mapping that says what the columns hold")


class CriteoData(Section):
    """A file in Criteo's format: a label, 13 numbers, 26 categories, tab-separated."""

    source: str = Field(pattern=r"^criteo:.+$", description="criteo:FILE")


class SyntheticData(Section):
    """Clicks drawn from a known model."""

    source: Literal["synthetic"] = "synthetic"
    rows: int = Field(default=100_000, ge=2, description="a whole number, at least 2")
    users: int = Field(default=2_000, ge=1, validate_default=True, description="a whole number, at least 1")
    items: int = Field(default=2_000, ge=1, description="a whole number, at least 1")
    fields: int = Field(default=8, ge=2, description="a whole number, at least 2 (the user and the item)")
    user_turnover: float = Field(default=0.0, ge=0, le=1, description="a number from 0 to 1")
    order: float = Field(default=0.0, ge=0, le=1, description="a number from 0 to 1")

    @field_validator("users")
    @classmethod
    def _at_most_rows(cls, value: int, info: ValidationInfo) -> int:
        rows = info.data.get("rows", value)
        if value > rows:
            raise rule(f"must be a whole number, at most the rows ({rows}), but got {value}")
        return value


FORMS: Mapping[str, type[Section]] = {
    "<movielens>": MovieLensData,
    "<table>": TableData,
    "<criteo>": CriteoData,
    "<synthetic>": SyntheticData,
}


def form_of(value: object) -> str:
    """Return the form of the data by the kind of their source."""
    source = value.get("source") if isinstance(value, Mapping) else getattr(value, "source", None)
    tag = f"<{str(source).partition(':')[0]}>"
    return tag if tag in FORMS else "<movielens>"


DataConfig = Annotated[
    Annotated[MovieLensData, Tag("<movielens>")]
    | Annotated[TableData, Tag("<table>")]
    | Annotated[CriteoData, Tag("<criteo>")]
    | Annotated[SyntheticData, Tag("<synthetic>")],
    Discriminator(form_of),
]
