"""What the fields of a row become: a vector from a table for each that has codes, a column for each number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from objectives.recommenders.features import Field

_STD = 1e-2


def embedded(fields: Sequence[Field]) -> tuple[Field, ...]:
    """Those that have a table."""
    return tuple(field for field in fields if field.kind != "numeric")


def numeric(fields: Sequence[Field]) -> tuple[Field, ...]:
    return tuple(field for field in fields if field.kind == "numeric")


def make_tables(fields: Sequence[Field], dimension: int) -> nn.ModuleDict:
    """A table of (vocabulary, dimension), drawn from N(0, 0.01^2), for each field that has codes, by its name.

    Raises:
        ValueError: no field has codes, two share a name, or a name is one that a module cannot have.
    """
    names = [field.name for field in fields]
    if not embedded(fields) or len(set(names)) != len(names):
        raise ValueError(f"Fields have names of their own and one or more has codes, but got {list(fields)}.")
    tables = nn.ModuleDict()
    for field in embedded(fields):
        if "." in field.name or not field.name or hasattr(tables, field.name):
            raise ValueError(f"A field's name has no dot and is not torch's own, but got {field.name!r}; rename it.")
        tables[field.name] = nn.Embedding(field.vocabulary, dimension)
    for table in tables.values():
        nn.init.normal_(table.get_parameter("weight"), std=_STD)
    return tables


def lookup(tables: nn.ModuleDict, fields: Sequence[Field], inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """A vector (rows, d) for each field that has codes, in the order of the fields.

    Args:
        tables: each maps ids (...) to (..., d)
        inputs: codes (rows,), or (rows, length) of a multi-valued field; of these, the mean of the vectors of the codes
            that are not 0, and zeros where all are
    """
    vectors = []
    for field in embedded(fields):
        codes = inputs[field.name]
        found = tables[field.name](codes)
        vectors.append(_mean(found, codes) if field.kind == "multi" else found)
    return vectors


def _mean(found: Tensor, codes: Tensor) -> Tensor:
    """(rows, length, d) and (rows, length) to (rows, d)."""
    given = (codes != 0).to(found.dtype).unsqueeze(2)
    return (found * given).sum(1) / given.sum(1).clamp(min=1)


def columns(fields: Sequence[Field], inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """(rows, 1) for each numeric field, in their order.

    They are joined where they are read, so that each keeps its own side in the exported graph.
    """
    return [inputs[field.name].unsqueeze(1) for field in numeric(fields)]
