"""Domains of each group's width, and the conditions under which each knob is suggested."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from spaces.domains import Choice, Scalar, Suggester, draw, middle, pick
from spaces.techniques.quantization import STATIC, Precision

_FP32, _MINMAX = Choice(("fp32",)), Choice(("minmax",))


@dataclass(frozen=True)
class PrecisionSpace:
    """Domains of the precision: widths by group, each with the baseline's fp32; the type of fp32 arithmetic; the
    calibration method of static int8.
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
        """Return the knob values with each group in the middle of its widths, and the first calibration method where
        one is static.
        """
        knobs: dict[str, Scalar] = {f"precision.{g}": middle(d) for g, d in self.widths.items() if len(d.values) > 1}
        if STATIC in knobs.values() and len(self.calibration.values) > 1:
            knobs["precision.calibration"] = self.calibration.values[0]
        return knobs

    def suggest(self, suggester: Suggester) -> Precision:
        """Suggest a precision. Packed widths and bf16 need different engines, so the compute type is suggested only
        without packed widths.
        """
        widths = draw(self.widths, suggester, "precision")
        precision = Precision(tuple((group, str(width)) for group, width in widths))
        return (
            precision
            if precision.packed
            else replace(precision, compute=pick(self.compute, suggester, "precision.compute"))
        )

    def calibrated(self, suggester: Suggester, precision: Precision, learned: Collection[str]) -> Precision:
        """Add the calibration method where some group in static int8 has not learned its ranges."""
        if set(precision.groups(STATIC)) <= set(learned):
            return precision
        return replace(precision, calibration=pick(self.calibration, suggester, "precision.calibration"))
