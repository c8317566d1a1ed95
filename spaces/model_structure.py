"""What a model is made of, as tracing finds it: the groups that a technique can be applied to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["linear", "table", "attention", "recurrent", "other"]
# Of the rows in all tables: what one has to hold, and the others together, to be stored in a way of its own.
_HEAVY = 0.2


@dataclass(frozen=True)
class AxisSlice:
    """Where the units of a width lie along one axis of a parameter or buffer.

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
            raise ValueError(f"A cut has an axis and positions from 0 and sizes from 1, but got {self}.")
        if (self.repeats > 1) != (self.period > 0):
            raise ValueError(f"A cut has a period exactly when it repeats, but got {self}.")

    def positions(self, units: Iterable[int]) -> tuple[int, ...]:
        """Of these units, in the order of the repeats."""
        chosen = tuple(units)
        repeats = (self.first + r * self.period for r in range(self.repeats))
        return tuple(start + u * self.size + i for start in repeats for u in chosen for i in range(self.size))


@dataclass(frozen=True)
class PrunableDim:
    """One dimension of a model, whose units leave together wherever they lie.

    normalised: a normalisation or a scale spans the units, so that removing some changes what the others give
    """

    name: str
    units: int
    axis_slices: tuple[AxisSlice, ...]
    normalised: bool = False

    def __post_init__(self) -> None:
        if self.units < 1 or not self.axis_slices:
            raise ValueError(
                f"A width has a unit and a cut or more, but {self.name!r} got {self.units}, {self.axis_slices}."
            )


@dataclass(frozen=True)
class Group:
    """Layers that are treated alike: the modules (dotted names) of one tower, one cross network, one recurrent encoder,
    all tables; and the widths that pruning the group narrows.

    unfactorable_reason: why its linear layers cannot be two thin ones each, None where they can, and of tables
    """

    name: str
    kind: Kind
    modules: tuple[str, ...]
    parameters: int
    widths: tuple[PrunableDim, ...] = ()
    unprunable_reason: str | None = None
    unfactorable_reason: str | None = None

    def __post_init__(self) -> None:
        if not self.modules:
            raise ValueError(f"A group holds at least one module, but {self.name!r} got none.")
        if self.prunable == (self.unprunable_reason is not None):
            raise ValueError(f"A group is prunable or has a reason why not, but {self.name!r} got both or neither.")

    @property
    def prunable(self) -> bool:
        return bool(self.widths)

    @property
    def factorable(self) -> bool:
        """Whether its layers can be low-rank factors."""
        return self.kind in ("linear", "attention") and self.unfactorable_reason is None


@dataclass(frozen=True)
class Table:
    """An embedding table by its module's dotted name: its rows, and the inputs whose codes it looks up as they are.

    form_refused: why its rows cannot be shared or have fewer dimensions, None where they can
    """

    name: str
    rows: int
    inputs: tuple[str, ...] = ()
    form_refused: str | None = None


@dataclass(frozen=True)
class ModelStructure:
    """The groups of one model, and its tables; modules in no group are left alone."""

    groups: tuple[Group, ...]
    tables: tuple[Table, ...] = ()

    def __post_init__(self) -> None:
        modules = [m for group in self.groups for m in group.modules]
        if len(set(modules)) != len(modules) or len({g.name for g in self.groups}) != len(self.groups):
            raise ValueError(f"Groups have their own names and modules, but got {[g.name for g in self.groups]}.")

    def group(self, name: str) -> Group:
        for group in self.groups:
            if group.name == name:
                return group
        raise ValueError(f"The model has the groups {[g.name for g in self.groups]}, but got {name!r}.")

    def heavy_tables(self) -> tuple[str, ...]:
        """Those that hold a good part of all rows, and leave a good part to others."""
        rows = sum(table.rows for table in self.tables)
        return tuple(table.name for table in self.tables if _HEAVY * rows <= table.rows <= (1 - _HEAVY) * rows)

    def stored(self, names: Iterable[str] = ()) -> dict[str, tuple[str, ...]]:
        """Modules by what they are stored as: each of these tables by itself, each group without them; none is empty.

        Args:
            names: of tables; those of groups say nothing new

        Raises:
            ValueError: a name that is neither.
        """
        groups = {group.name: group.modules for group in self.groups}
        apart = dict.fromkeys(name for name in names if name not in groups)
        known = {table.name for table in self.tables}
        if unknown := [name for name in apart if name not in known]:
            there = f"groups {list(groups)} and the tables {sorted(known)}"
            raise ValueError(f"The model has the {there}, but got {unknown[0]!r}.")
        whole = {name: tuple(m for m in modules if m not in apart) for name, modules in groups.items()}
        return {name: modules for name, modules in whole.items() if modules} | {name: (name,) for name in apart}
