"""Knobs and objectives of the complete trials as uprights of one parallel-coordinates plot."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from search.format import MISSING, knob_value, percent, significant
from search.results import Front, Point
from spaces.domains import Scalar

# A knob with more values than this is an axis of numbers, not of named places.
MANY_VALUES = 8
# As they are chosen: first the weights, then the widths, then where it runs.
_FAMILIES = ("weights", "architecture", "pruning", "distillation", "precision", "placement")
_RANKS = {family: rank for rank, family in enumerate(_FAMILIES)}


@dataclass(frozen=True)
class Axis:
    """One upright: a height for each trial, and escaped texts at some heights."""

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
class Parallel:
    """`constant`: the knobs that never differ. `shades`: 0 infeasible, 1 dominated, 2 to 3 front by throughput."""

    trials: tuple[int, ...]
    axes: tuple[Axis, ...]
    constant: dict[str, str]
    shades: tuple[float, ...]


def parallel(front: Front) -> Parallel:
    points = front.points
    axes: list[Axis] = []
    constant: dict[str, str] = {}
    names = dict.fromkeys(name for point in points for name in point.knobs)
    for name in sorted(names, key=lambda name: _RANKS.get(name.partition(".")[0], len(_RANKS))):
        column = [point.knobs.get(name) for point in points]
        values = {value for value in column if value is not None}
        if len(values) > 1:
            axes.append(knob_axis(name, column))
        else:
            constant[name] = knob_value(values.pop())
    if points:
        axes.append(_log_axis("p95<br>ratio", [point.p95_ratio for point in points]))
        if all(point.throughput_ratio for point in points):
            axes.append(_log_axis("throughput<br>ratio", [point.throughput_ratio for point in points]))
        axes.append(_number_axis("quality<br>loss", [point.quality.loss for point in points], percent))
        standing = [2.0 if point.on_front else float(point.feasible) for point in points]
        axes.append(Axis("standing", tuple(standing), (0.0, 1.0, 2.0), ("infeasible", "dominated", "front")))
    return Parallel(tuple(point.trial for point in points), tuple(axes), constant, _shades(points))


def _shades(points: Sequence[Point]) -> tuple[float, ...]:
    carried = [math.log(max(point.throughput_ratio or 1.0, 1e-3)) for point in points]
    low, high = min(carried, default=0.0), max(carried, default=0.0)
    share = [(value - low) / (high - low) if high > low else 1.0 for value in carried]
    return tuple(2 + part if p.on_front else float(p.feasible) for p, part in zip(points, share, strict=True))


def knob_axis(name: str, column: Sequence[Scalar | None]) -> Axis:
    """`column`: one value for each trial, None where the trial does not have the knob (drawn below all others)."""
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


def _log_axis(label: str, column: Sequence[float]) -> Axis:
    places = log_steps(min(column), max(column))
    heights = tuple(math.log10(value) for value in column)
    return Axis(label, heights, tuple(map(math.log10, places)), tuple(f"{significant(place)}x" for place in places))


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
