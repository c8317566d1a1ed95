"""What the width of each group may be, and which of these knobs are asked for beside which others."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from spaces.domains import Choice, Scalar, Suggester, draw, middle, pick
from spaces.techniques.quantization import STATIC, Precision

_FP32, _MINMAX = Choice(("fp32",)), Choice(("minmax",))


@dataclass(frozen=True)
class PrecisionSpace:
    """Widths by group, each with the baseline's fp32; what fp32 arithmetic is done in; how static int8 finds ranges."""

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
        """Knob values with each group in the middle of its widths, and of how static ranges are found, the first."""
        knobs: dict[str, Scalar] = {f"precision.{g}": middle(d) for g, d in self.widths.items() if len(d.values) > 1}
        if STATIC in knobs.values() and len(self.calibration.values) > 1:
            knobs["precision.calibration"] = self.calibration.values[0]
        return knobs

    def suggest(self, suggester: Suggester) -> Precision:
        """One engine computes in bf16 and another reads packed widths: beside those, fp32 is not a question."""
        widths = draw(self.widths, suggester, "precision")
        precision = Precision(tuple((group, str(width)) for group, width in widths))
        return (
            precision
            if precision.packed
            else replace(precision, compute=pick(self.compute, suggester, "precision.compute"))
        )

    def calibrated(self, suggester: Suggester, precision: Precision, learned: Collection[str]) -> Precision:
        """With the method that finds the ranges of static int8, where there is a group that has not learned them."""
        if set(precision.groups(STATIC)) <= set(learned):
            return precision
        return replace(precision, calibration=pick(self.calibration, suggester, "precision.calibration"))
