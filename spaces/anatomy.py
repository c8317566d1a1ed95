"""What a model is made of, as tracing finds it: the groups that a technique can be applied to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["linear", "table", "attention", "other"]


@dataclass(frozen=True)
class Group:
    """Layers that are treated alike: the modules (dotted names) of one tower, one cross network, all tables."""

    name: str
    kind: Kind
    modules: tuple[str, ...]
    parameters: int
    prunable: bool
    unprunable_reason: str | None = None

    def __post_init__(self) -> None:
        if not self.modules:
            raise ValueError(f"A group holds at least one module, but {self.name!r} got none.")
        if self.prunable == (self.unprunable_reason is not None):
            raise ValueError(f"A group is prunable or has a reason why not, but {self.name!r} got both or neither.")


@dataclass(frozen=True)
class Anatomy:
    """The groups of one model; modules in none of them are left alone."""

    groups: tuple[Group, ...]

    def __post_init__(self) -> None:
        modules = [m for group in self.groups for m in group.modules]
        if len(set(modules)) != len(modules) or len({g.name for g in self.groups}) != len(self.groups):
            raise ValueError(f"Groups have their own names and modules, but got {[g.name for g in self.groups]}.")

    def group(self, name: str) -> Group:
        for group in self.groups:
            if group.name == name:
                return group
        raise ValueError(f"The model has the groups {[g.name for g in self.groups]}, but got {name!r}.")
