"""Structure of a model as tracing finds it: the layer groups that a technique can be applied to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from spaces.serialization import formerly

Kind = Literal["linear", "table", "attention", "recurrent", "other"]
# Share of all tables' rows that a table must hold, and must leave to the others, to get a storage width of its own.
_HEAVY = 0.2


@dataclass(frozen=True)
class AxisSlice:
    """Positions of a dimension's units along one axis of a parameter or buffer.

    Unit u takes the positions first + r * period + u * size + i, for each repeat r and each i below size: a head of an
    attention is `size` rows of its projections, a dimension of all embeddings repeats in their concatenation.
    """

    tensor: str
    axis: int
    first: int = 0
    size: int = 1
    repeats: int = 1
    period: int = 0

    def __post_init__(self) -> None:
        if self.axis < 0 or self.first < 0 or self.size < 1 or self.repeats < 1 or self.period < 0:
            raise ValueError(f"A slice has an axis and positions from 0 and sizes from 1, but got {self}.")
        if (self.repeats > 1) != (self.period > 0):
            raise ValueError(f"A slice has a period exactly when it repeats, but got {self}.")

    def positions(self, units: Iterable[int]) -> tuple[int, ...]:
        """Return the positions of these units along the axis, in the order of the repeats."""
        chosen = tuple(units)
        repeats = (self.first + r * self.period for r in range(self.repeats))
        return tuple(start + u * self.size + i for start in repeats for u in chosen for i in range(self.size))


@dataclass(frozen=True)
class PrunableDim:
    """One prunable dimension of a model, whose units are removed together wherever they lie.

    normalised: a normalisation or a scale spans the units, so that removing some changes the outputs of the others
    """

    name: str
    units: int
    axis_slices: tuple[AxisSlice, ...]
    normalised: bool = False

    def __post_init__(self) -> None:
        if self.units < 1 or not self.axis_slices:
            raise ValueError(
                "A prunable dimension has a unit and a slice or more, "
                f"but {self.name!r} got {self.units}, {self.axis_slices}."
            )


@dataclass(frozen=True)
class Group:
    """Layers that are treated alike, and the dimensions that pruning the group narrows.

    The layers are the modules (dotted names) of one tower, one cross network, one recurrent encoder or all tables.

    unprunable_reason: the reason why the group has no prunable dimension, None where it has one
    unfactorable_reason: the reason why its linear layers cannot be replaced by two low-rank factors; None where they
        can, and for tables
    """

    name: str
    kind: Kind
    modules: tuple[str, ...]
    parameters: int
    dims: tuple[PrunableDim, ...] = field(default=(), metadata=formerly("widths"))
    unprunable_reason: str | None = None
    unfactorable_reason: str | None = None

    def __post_init__(self) -> None:
        if not self.modules:
            raise ValueError(f"A group holds at least one module, but {self.name!r} got none.")
        if self.prunable == (self.unprunable_reason is not None):
            raise ValueError(f"A group is prunable or has a reason why not, but {self.name!r} got both or neither.")

    @property
    def prunable(self) -> bool:
        return bool(self.dims)

    @property
    def factorable(self) -> bool:
        """Return True if the group's linear layers can be replaced by low-rank factors."""
        return self.kind in ("linear", "attention") and self.unfactorable_reason is None


@dataclass(frozen=True)
class Table:
    """An embedding table: its module's dotted name, its rows, and the inputs whose codes index it directly.

    form_refused: the reason why its rows cannot be shared or have fewer dimensions, None where they can
    """

    name: str
    rows: int
    inputs: tuple[str, ...] = ()
    form_refused: str | None = None


@dataclass(frozen=True)
class ModelStructure:
    """Layer groups and embedding tables of one model; modules in no group are left unchanged."""

    groups: tuple[Group, ...]
    tables: tuple[Table, ...] = ()

    def __post_init__(self) -> None:
        modules = [m for group in self.groups for m in group.modules]
        if len(set(modules)) != len(modules) or len({g.name for g in self.groups}) != len(self.groups):
            raise ValueError(f"Groups have their own names and modules, but got {[g.name for g in self.groups]}.")

    def group(self, name: str) -> Group:
        """Return the group of this name.

        Raises:
            ValueError: the model has no such group.
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise ValueError(f"The model has the groups {[g.name for g in self.groups]}, but got {name!r}.")

    def heavy_tables(self) -> tuple[str, ...]:
        """Return the tables that hold at least 20% of all rows and leave at least 20% to the others."""
        rows = sum(table.rows for table in self.tables)
        return tuple(table.name for table in self.tables if _HEAVY * rows <= table.rows <= (1 - _HEAVY) * rows)

    def stored(self, names: Iterable[str] = ()) -> dict[str, tuple[str, ...]]:
        """Group modules by storage unit: each of the named tables by itself, each group without them; none is empty.

        Args:
            names: tables to be stored separately; names of groups have no effect

        Raises:
            ValueError: a name is neither a group nor a table.
        """
        groups = {group.name: group.modules for group in self.groups}
        apart = dict.fromkeys(name for name in names if name not in groups)
        known = {table.name for table in self.tables}
        if unknown := [name for name in apart if name not in known]:
            there = f"groups {list(groups)} and the tables {sorted(known)}"
            raise ValueError(f"The model has the {there}, but got {unknown[0]!r}.")
        whole = {name: tuple(m for m in modules if m not in apart) for name, modules in groups.items()}
        return {name: modules for name, modules in whole.items() if modules} | {name: (name,) for name in apart}
