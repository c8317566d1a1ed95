"""The width in which each layer group is stored and computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

LinearWidth = Literal["fp32", "int8-dynamic", "int8-static", "int4", "int4-dynamic"]
RecurrentWidth = Literal["fp32", "int8-lstm"]
TableWidth = Literal["fp32", "fp16", "int8", "int4", "int2"]
Compute = Literal["fp32", "bf16"]
Calibration = Literal["minmax", "entropy", "percentile"]

LINEAR_WIDTHS: tuple[LinearWidth, ...] = get_args(LinearWidth)
TABLE_WIDTHS: tuple[TableWidth, ...] = get_args(TableWidth)
RECURRENT_WIDTHS: tuple[RecurrentWidth, ...] = get_args(RecurrentWidth)
CALIBRATIONS: tuple[Calibration, ...] = get_args(Calibration)
# By the kind of a group; of any other kind, fp32 alone.
WIDTHS: Mapping[str, tuple[str, ...]] = {
    "table": TABLE_WIDTHS,
    "linear": LINEAR_WIDTHS,
    "attention": LINEAR_WIDTHS,
    "recurrent": RECURRENT_WIDTHS,
}
STATIC: LinearWidth = "int8-static"
DYNAMIC: LinearWidth = "int8-dynamic"
LSTM: RecurrentWidth = "int8-lstm"
# Activations are rounded to the range of all rows that are scored together.
BATCH_DEPENDENT = frozenset((DYNAMIC, LSTM))
# Activations are rounded as well, and products computed in whole numbers.
ROUNDED_PRODUCTS = frozenset((DYNAMIC, STATIC, LSTM))
# Held in operators of ONNX Runtime's own. OpenVINO reads them for some sizes only, and not exactly for all of these.
PACKED_WIDTHS = frozenset(("int4", "int4-dynamic", "int2", "int8-lstm"))


@dataclass(frozen=True)
class Precision:
    """Width by group, or of a table by its dotted name, which then has its own; what is not named stays fp32.
    `compute` is what fp32 arithmetic is done in, calibration how static int8 finds the ranges of what it has not
    learned them for."""

    widths: tuple[tuple[str, str], ...] = ()
    compute: Compute = "fp32"
    calibration: Calibration = "minmax"

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(sorted(self.widths)))
        if len(dict(self.widths)) != len(self.widths):
            raise ValueError(f"Precision names each group once, but got {self.widths}.")
        known = {*LINEAR_WIDTHS, *RECURRENT_WIDTHS, *TABLE_WIDTHS}
        for group, width in self.widths:
            if width not in known:
                raise ValueError(f"A width is one of {sorted(known)}, but {group!r} got {width!r}.")
        if self.compute not in ("fp32", "bf16"):
            raise ValueError(f"An engine computes in fp32 or bf16, but got {self.compute!r}.")
        if self.compute == "bf16" and self.packed:
            raise ValueError(f"No engine computes in bf16 and reads {sorted(PACKED_WIDTHS)}, but got {self.widths}.")
        if self.calibration not in CALIBRATIONS:
            raise ValueError(f"Calibration is one of {', '.join(CALIBRATIONS)}, but got {self.calibration!r}.")

    def width(self, group: str) -> str:
        return dict(self.widths).get(group, "fp32")

    def groups(self, width: str) -> tuple[str, ...]:
        """Those of a width, in the order of their names."""
        return tuple(group for group, held in self.widths if held == width)

    @property
    def rounds_products(self) -> bool:
        """Whether any product is computed in whole numbers."""
        return any(width in ROUNDED_PRODUCTS for _, width in self.widths)

    @property
    def depends_on_batch(self) -> bool:
        """Whether a row's score depends on the rows that are scored with it."""
        return any(width in BATCH_DEPENDENT for _, width in self.widths)

    @property
    def packed(self) -> bool:
        """Whether one engine alone can read it."""
        return any(width in PACKED_WIDTHS for _, width in self.widths)
