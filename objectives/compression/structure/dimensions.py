"""Candidate dimensions: units in the same tensors and axes, as regular slices of these."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from objectives.compression.module_edit import slices_at
from objectives.compression.structure.program import Flow
from spaces.model_structure import AxisSlice

# Tensor and axis.
Place = tuple[str, int]


@dataclass(frozen=True)
class Found:
    """Units that may be removed, and their positions; without slices, the reason why they cannot be.

    copied: the units meet a value that was expanded to as many positions, as a mask by expand_as
    """

    units: int
    axis_slices: tuple[AxisSlice, ...]
    spanned: bool
    copied: bool
    places: tuple[Place, ...]
    reason: str | None = None


def widths_of(flow: Flow) -> list[Found]:
    """Return the candidates in the order of the tensors, then joined pairs.

    A single unit is no candidate. The sizes of a joined pair may be tied for a reason that no unit shows. Earlier
    candidates are verified first.
    """
    lies: dict[int, dict[Place, list[int]]] = defaultdict(lambda: defaultdict(list))
    for name, operand in flow.held.items():
        for number, axis in enumerate(operand.axes):
            for position, unit in enumerate([] if axis is None else axis.tolist()):
                if flow.units.pinned(unit) is None:
                    lies[flow.units.root(unit)][name, number].append(position)
    alike: dict[tuple[tuple[Place, int], ...], list[int]] = defaultdict(list)
    for root, places in lies.items():
        alike[tuple((place, len(positions)) for place, positions in places.items())].append(root)
    found = []
    for signature, roots in alike.items():
        if len(roots) > 1:
            spanned, copied = any(map(flow.units.spanned, roots)), any(map(flow.units.copied, roots))
            found.append(_width([place for place, _ in signature], [lies[root] for root in roots], spanned, copied))
    # Of two with the same number of units, one of which meets an expanded value, the sizes may be the same.
    pairs = combinations([width for width in found if width.reason is None], 2)
    joined = [
        replace(
            one,
            axis_slices=one.axis_slices + other.axis_slices,
            spanned=one.spanned or other.spanned,
            copied=True,
            places=one.places + other.places,
        )
        for one, other in pairs
        if one.units == other.units and (one.copied or other.copied)
    ]
    return [*found, *joined]


def _width(places: Sequence[Place], lies: Sequence[dict[Place, list[int]]], spanned: bool, copied: bool) -> Found:
    """Return a candidate with the units in the order of the first place."""
    ordered = sorted(lies, key=lambda of: of[places[0]])
    found = Found(len(ordered), (), spanned, copied, tuple(places))
    axis_slices: list[AxisSlice] = []
    for place in places:
        made = _slices(place, np.array([of[place] for of in ordered]))
        if made is None:
            return replace(found, reason=f"its units lie in no regular order along axis {place[1]} of {place[0]}")
        axis_slices += made
    return replace(found, axis_slices=tuple(axis_slices))


def _slices(place: Place, positions: NDArray[np.int64]) -> tuple[AxisSlice, ...] | None:
    """Return the slices of the units' positions, (units, count); None where they lie in no regular order."""
    first = positions[0]
    size = min(map(len, np.split(first, np.flatnonzero(np.diff(first) != 1) + 1)))
    if len(first) % size:
        return None
    by_repeat = positions.reshape(len(positions), -1, size).swapaxes(0, 1)
    return slices_at(AxisSlice(*place, size=size), by_repeat.ravel().tolist(), len(positions))
