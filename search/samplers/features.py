"""Features of knobs: what a model of cost or loss reads of a candidate."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache

from spaces.domains import Scalar

Features = Mapping[str, float]


def features_of(knobs: Mapping[str, Scalar]) -> Features:
    """Return the features of knobs by name.

    Numbers are features as they are, larger ones as their logarithms; each category is one, and a list of widths such
    as 64-32 is also the logarithm of their sum. A knob that a candidate does not have counts as 0.
    """
    found: dict[str, float] = {}
    for name, value in knobs.items():
        found.update(_of(name, value))
    return found


@lru_cache(maxsize=1 << 14, typed=True)
def _of(name: str, value: Scalar) -> tuple[tuple[str, float], ...]:
    """Return the features of one knob."""
    if not isinstance(value, str):
        return ((name, float(value) if abs(value) <= 1 else math.copysign(1 + math.log2(abs(value)), value)),)
    category = (f"{name}={value}", 1.0)
    if not re.fullmatch(r"\d+(-\d+)*", value):
        return (category,)
    return category, (f"{name}.sum", math.log2(1 + sum(map(int, value.split("-")))))
