"""Compressed forms of the embedding tables of a group, or of one table."""

from __future__ import annotations

from dataclasses import dataclass, field

from spaces.domains import Scalar
from spaces.serialization import formerly
from spaces.techniques.reshaping import Reshaping

# At 64 dimensions in fp32, 256 rows take 64 KB and fit into a core's own cache, so that fewer rows gain nothing.
SMALLEST = 256


@dataclass(frozen=True)
class TableForm(Reshaping):
    """A form of the tables of a group, or of one table."""

    group: str

    @property
    def groups(self) -> tuple[str | None, ...]:
        return (self.group,)


@dataclass(frozen=True)
class QuotientRemainder(TableForm):
    """Quotient-remainder embeddings (Shi et al., KDD 2020, section 3).

    Frequent ids keep full rows. The row of a rare id is the product of a row for its quotient and one for its
    remainder.

    full_rows_share: share of a table's rows that are kept, those of the most frequent ids
    """

    ablated = "quotient-remainder tables"
    full_rows_share: float = field(metadata=formerly("own"))

    def __post_init__(self) -> None:
        if not 0.0 <= self.full_rows_share < 1.0:
            raise ValueError(
                f"The share of ids with own rows lies in [0, 1), but {self.group!r} got {self.full_rows_share}."
            )

    def knobs(self) -> dict[str, Scalar]:
        return {f"tables.{self.group}.full_rows_share": self.full_rows_share}


@dataclass(frozen=True)
class MixedDimensions(TableForm):
    """Mixed-dimension embeddings (Ginart et al., ISIT 2021, eq. 3).

    Block k of a table has (its frequency over the first's) ^ temperature of the full dimensions, and a projection to
    the full dimension. Rare ids have fewer dimensions.
    """

    ablated = "mixed dimensions"
    temperature: float

    def __post_init__(self) -> None:
        if not 0.0 < self.temperature <= 1.0:
            raise ValueError(f"A temperature of dimensions lies in (0, 1], but {self.group!r} got {self.temperature}.")

    def knobs(self) -> dict[str, Scalar]:
        return {f"tables.{self.group}.temperature": self.temperature}
