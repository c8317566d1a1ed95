"""Storage and compute width of each layer group."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from spaces.domains import Choice, Scalar, Suggester, draw, middle, pick

LinearWidth = Literal["fp32", "int8-dynamic", "int8-static", "int4", "int4-dynamic"]
RecurrentWidth = Literal["fp32", "int8-lstm"]
TableWidth = Literal["fp32", "fp16", "int8", "int4", "int2"]
Compute = Literal["fp32", "bf16"]
Calibration = Literal["minmax", "entropy", "percentile"]

LINEAR_WIDTHS: tuple[LinearWidth, ...] = get_args(LinearWidth)
TABLE_WIDTHS: tuple[TableWidth, ...] = get_args(TableWidth)
RECURRENT_WIDTHS: tuple[RecurrentWidth, ...] = get_args(RecurrentWidth)
CALIBRATIONS: tuple[Calibration, ...] = get_args(Calibration)
# Widths by the kind of a group; a group of any other kind has fp32 only.
WIDTHS: Mapping[str, tuple[str, ...]] = {
    "table": TABLE_WIDTHS,
    "linear": LINEAR_WIDTHS,
    "attention": LINEAR_WIDTHS,
    "recurrent": RECURRENT_WIDTHS,
}
STATIC: LinearWidth = "int8-static"
DYNAMIC: LinearWidth = "int8-dynamic"
LSTM: RecurrentWidth = "int8-lstm"
# Widths whose activations are quantized to the range of all rows that are scored together.
BATCH_DEPENDENT = frozenset((DYNAMIC, LSTM))
# Widths that quantize activations as well, and compute products in integers.
ROUNDED_PRODUCTS = frozenset((DYNAMIC, STATIC, LSTM))
# Widths held in operators specific to ONNX Runtime. OpenVINO reads them for some sizes only, and not exactly for all of
# these.
PACKED_WIDTHS = frozenset(("int4", "int4-dynamic", "int2", "int8-lstm"))


@dataclass(frozen=True)
class Precision:
    """Width by group, or by the dotted name of a table that has its own; anything not named stays fp32.

    compute: the type in which fp32 arithmetic is computed
    calibration: the method that finds the activation ranges of static int8 for groups that did not learn them in
        training
    """

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
        """Return the groups of a width, in the order of their names."""
        return tuple(group for group, held in self.widths if held == width)

    @property
    def rounds_products(self) -> bool:
        """Return True if any product is computed in integers."""
        return any(width in ROUNDED_PRODUCTS for _, width in self.widths)

    @property
    def depends_on_batch(self) -> bool:
        """Return True if the score of a row depends on the other rows that are scored with it."""
        return any(width in BATCH_DEPENDENT for _, width in self.widths)

    @property
    def packed(self) -> bool:
        """Return True if any width can be read by ONNX Runtime only."""
        return any(width in PACKED_WIDTHS for _, width in self.widths)


_FP32, _MINMAX = Choice(("fp32",)), Choice(("minmax",))


@dataclass(frozen=True)
class PrecisionSpace:
    """Domains of the precision.

    widths: widths by group, each with the baseline's fp32
    compute: type of fp32 arithmetic
    calibration: calibration method of static int8
    """

    widths: Mapping[str, Choice]
    compute: Choice = _FP32
    calibration: Choice = _MINMAX

    def __post_init__(self) -> None:
        widths = {f"precision.{group}": domain for group, domain in self.widths.items()}
        for knob, domain in {**widths, "precision.compute": self.compute}.items():
            if "fp32" not in domain:
                raise ValueError(f"{knob} must offer the baseline's fp32, but got {list(domain.values)}.")

    def baseline(self) -> dict[str, Scalar]:
        return dict.fromkeys((*(f"precision.{group}" for group in self.widths), "precision.compute"), "fp32")

    def narrow(self) -> dict[str, Scalar]:
        """Return the knob values with each group in the middle of its widths, and a calibration where one is static."""
        knobs: dict[str, Scalar] = {f"precision.{g}": middle(d) for g, d in self.widths.items() if len(d.values) > 1}
        if STATIC in knobs.values() and len(self.calibration.values) > 1:
            knobs["precision.calibration"] = self.calibration.values[0]
        return knobs

    def suggest(self, suggester: Suggester) -> Precision:
        """Suggest a precision; the compute type only without packed widths, since bf16 needs another engine."""
        widths = draw(self.widths, suggester, "precision")
        precision = Precision(tuple((group, str(width)) for group, width in widths))
        if precision.packed:
            return precision
        compute = pick(self.compute, suggester, "precision.compute")
        return precision if compute == precision.compute else replace(precision, compute=compute)

    def calibrated(self, suggester: Suggester, precision: Precision, learned: Collection[str]) -> Precision:
        """Add the calibration method where some group in static int8 has not learned its ranges."""
        if set(precision.groups(STATIC)) <= set(learned):
            return precision
        calibration = pick(self.calibration, suggester, "precision.calibration")
        return precision if calibration == precision.calibration else replace(precision, calibration=calibration)
