"""The width in which each layer group is stored and computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LinearWidth = Literal["fp32", "int8-dynamic", "int8-static"]
TableWidth = Literal["fp32", "fp16", "int8"]
Compute = Literal["fp32", "bf16"]

LINEAR_WIDTHS: tuple[LinearWidth, ...] = ("fp32", "int8-dynamic", "int8-static")
TABLE_WIDTHS: tuple[TableWidth, ...] = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Precision:
    """Width by group; a group that is not named stays fp32. `compute` is what fp32 arithmetic is done in."""

    widths: tuple[tuple[str, str], ...] = ()
    compute: Compute = "fp32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(sorted(self.widths)))
        if len(dict(self.widths)) != len(self.widths):
            raise ValueError(f"Precision names each group once, but got {self.widths}.")
        known = {*LINEAR_WIDTHS, *TABLE_WIDTHS}
        for group, width in self.widths:
            if width not in known:
                raise ValueError(f"A width is one of {sorted(known)}, but {group!r} got {width!r}.")
        if self.compute not in ("fp32", "bf16"):
            raise ValueError(f"An engine computes in fp32 or bf16, but got {self.compute!r}.")

    def width(self, group: str) -> str:
        return dict(self.widths).get(group, "fp32")
