"""Candidate dimensions: units in the same tensors and axes, as regular slices of these."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from objectives.compression.structure.program import Flow, axes_of
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
    places: tuple[Place, ...]
    reason: str | None = None
    copied: bool = False


def widths_of(flow: Flow) -> list[Found]:
    """Return candidates in the order of the tensors; a single unit is none. They are followed by joined pairs whose
    sizes may be tied for a reason that no unit shows; earlier candidates are verified first.
    """
    lies: dict[int, dict[Place, list[int]]] = defaultdict(lambda: defaultdict(list))
    for name, number, axis in axes_of(flow):
        if axis is not None:
            for position, unit in enumerate(axis.tolist()):
                if flow.units.pinned(unit) is None:
                    lies[flow.units.root(unit)][name, number].append(position)
    alike: dict[tuple[tuple[Place, int], ...], list[int]] = defaultdict(list)
    for root, places in lies.items():
        alike[tuple((place, len(positions)) for place, positions in places.items())].append(root)
    found = []
    for signature, roots in alike.items():
        if len(roots) > 1:
            spanned = any(flow.units.spanned(root) for root in roots)
            copied = any(flow.units.copied(root) for root in roots)
            width = _width([place for place, _ in signature], [lies[root] for root in roots], spanned)
            found.append(replace(width, copied=copied))
    return [*found, *_joined(found)]


def _joined(found: Sequence[Found]) -> list[Found]:
    """Return pairs with the same number of units, one of which meets an expanded value: its size may be the other's."""
    whole = [width for width in found if width.reason is None]
    return [
        Found(
            one.units,
            one.axis_slices + other.axis_slices,
            one.spanned or other.spanned,
            one.places + other.places,
            copied=True,
        )
        for one, other in combinations(whole, 2)
        if one.units == other.units and (one.copied or other.copied)
    ]


def _width(places: Sequence[Place], lies: Sequence[dict[Place, list[int]]], spanned: bool) -> Found:
    """Return a candidate with the units in the order of the first place."""
    ordered = sorted(lies, key=lambda of: of[places[0]])
    axis_slices: list[AxisSlice] = []
    for place in places:
        made = _cuts(place, np.array([of[place] for of in ordered]))
        if made is None:
            reason = f"its units lie in no regular order along axis {place[1]} of {place[0]}"
            return Found(len(ordered), (), spanned, tuple(places), reason)
        axis_slices += made
    return Found(len(ordered), tuple(axis_slices), spanned, tuple(places))


def _cuts(place: Place, positions: NDArray[np.int64]) -> list[AxisSlice] | None:
    """Return the slices of the units' positions, (units, count): one where runs repeat at equal distances, else one for
    each.
    """
    first = positions[0]
    breaks = np.flatnonzero(np.diff(first) != 1) + 1
    runs = np.split(first, breaks)
    size = min(len(run) for run in runs)
    if any(len(run) % size for run in runs):
        return None
    if positions[1][0] - first[0] != size:
        return None
    starts = first[::size]
    units = np.arange(len(positions))[:, None, None]
    expected = (starts[None, :, None] + units * size + np.arange(size)[None, None, :]).reshape(len(positions), -1)
    if not np.array_equal(expected, positions):
        return None
    periods = np.diff(starts)
    tensor, axis = place
    if len(starts) == 1:
        return [AxisSlice(tensor, axis, int(starts[0]), size)]
    if (periods == periods[0]).all():
        return [AxisSlice(tensor, axis, int(starts[0]), size, len(starts), int(periods[0]))]
    return [AxisSlice(tensor, axis, int(start), size) for start in starts]
