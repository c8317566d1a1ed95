"""Knobs and objectives of the trials as uprights of one parallel-coordinates plot."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from search.format import MISSING, knob_value, significant
from search.results import Front
from spaces.domains import Scalar

# A knob with more values than this is an axis of numbers, not of named places.
MANY_VALUES = 8
# As they are chosen: first the weights, then the widths, then where it runs.
_FAMILIES = (
    "weights", "architecture", "pruning", "low_rank", "tables", "distillation", "precision", "placement",
)  # fmt: skip
_RANKS = {family: rank for rank, family in enumerate(_FAMILIES)}


@dataclass(frozen=True)
class Axis:
    """One upright: heights of values, and escaped texts at some heights."""

    label: str
    values: tuple[float, ...]
    places: tuple[float, ...]
    texts: tuple[str, ...]

    @property
    def ends(self) -> tuple[float, float]:
        everything = (*self.values, *self.places)
        low, high = min(everything), max(everything)
        return (low, high) if low < high else (low - 1, high + 1)


@dataclass(frozen=True)
class Knob:
    """A choice of the search, with its value in each trial.

    values: distinct values; None stands for a trial that does not have the knob
    codes: place of each trial's value in `values`
    axis: upright with a height for each distinct value; None where all measured trials that have the knob have the same
    """

    name: str
    values: tuple[Scalar | None, ...]
    codes: tuple[int, ...]
    axis: Axis | None


def knobs_of(front: Front) -> tuple[Knob, ...]:
    """The knobs of all trials, in the order in which they are chosen; fractions with as many digits as are shown."""
    names, points = dict.fromkeys(name for row in front.rows for name in row.knobs), front.points
    return tuple(
        _knob(name, [_shown(row.knobs.get(name)) for row in front.rows], [_shown(p.knobs.get(name)) for p in points])
        for name in sorted(names, key=lambda name: _RANKS.get(name.partition(".")[0], len(_RANKS)))
    )


def _shown(value: Scalar | None) -> Scalar | None:
    return float(f"{value:.3g}") if isinstance(value, float) else value


def _knob(name: str, column: Sequence[Scalar | None], measured: Sequence[Scalar | None]) -> Knob:
    places: dict[Scalar | None, int] = {}
    codes = tuple(places.setdefault(value, len(places)) for value in column)
    values = tuple(places)
    differ = len({value for value in measured if value is not None}) > 1
    return Knob(name, values, codes, knob_axis(name, values) if differ else None)


def constant_knobs(front: Front) -> dict[str, str]:
    """The knobs that never differ among the trials that were measured, and their values in words."""
    found = {}
    for name in dict.fromkeys(name for point in front.points for name in point.knobs):
        values = {value for point in front.points if (value := point.knobs.get(name)) is not None}
        if len(values) == 1:
            found[name] = knob_value(values.pop())
    return found


def measure_axis(label: str, column: Sequence[float], logarithmic: bool, word: Callable[[float], str]) -> Axis:
    """The upright of a number that was measured, all above 0 where it is logarithmic."""
    if not logarithmic:
        return _number_axis(label, column, word)
    places = log_steps(min(column), max(column))
    heights = tuple(math.log10(value) for value in column)
    return Axis(label, heights, tuple(map(math.log10, places)), tuple(map(word, places)))


def knob_axis(name: str, column: Sequence[Scalar | None]) -> Axis:
    """Return the upright of a knob.

    `column` has one value for each trial, None where the trial does not have the knob (drawn below all others).
    """
    family, _, rest = name.partition(".")
    # Two lines: plotly lays a third one over the upright itself.
    label = "<br>".join(html.escape(part) for part in (family, rest.replace("_", " ")) if part)
    present = {value for value in column if value is not None}
    numbers = [value if isinstance(value, int | float) and not isinstance(value, bool) else None for value in column]
    numeric = numbers == list(column)
    if numeric and len(present) > MANY_VALUES:
        return _number_axis(label, numbers, lambda value: significant(value, 3))
    order = sorted(present, key=lambda value: (isinstance(value, str), float(value) if numeric else 0.0, str(value)))
    heights = {value: float(height) for height, value in enumerate([None, *order] if None in column else order)}
    texts = tuple(html.escape(MISSING if value is None else knob_value(value)) for value in heights)
    return Axis(label, tuple(heights[value] for value in column), tuple(heights.values()), texts)


def _number_axis(label: str, column: Sequence[float | None], word: Callable[[float], str]) -> Axis:
    present = [value for value in column if value is not None]
    low, high = min(present), max(present)
    places = _round_steps(low, high)
    if len(present) == len(column):
        return Axis(label, tuple(present), places, tuple(map(word, places)))
    floor = low - 0.15 * (high - low)
    values = tuple(floor if value is None else value for value in column)
    return Axis(label, values, (floor, *places), (MISSING, *map(word, places)))


def _round_steps(low: float, high: float) -> tuple[float, ...]:
    """About five round numbers from `low` to `high`; where they are one, that one."""
    if not low < high:
        return (low,)
    unit = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(unit * size for size in (1, 2, 5, 10) if unit * size * 5 >= high - low)
    first = math.ceil(low / step - 1e-9)
    return tuple(step * place for place in range(first, math.floor(high / step + 1e-9) + 1))


def log_steps(low: float, high: float) -> tuple[float, ...]:
    """1, 2 and 5 times the powers of ten from `low` to `high` (both above 0), or those two where none lies between."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = tuple(size * 10.0**power for power in powers for size in (1, 2, 5) if low <= size * 10.0**power <= high)
    return steps if len(steps) > 1 else tuple(dict.fromkeys((low, high)))
