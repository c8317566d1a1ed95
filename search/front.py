"""Dominance, hypervolume, and points whose intervals overlap. Arrays in, masks and numbers out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# A hundredfold gain is worth a full 1 on either axis.
BEST_P95_RATIO = 0.01
BEST_THROUGHPUT_RATIO = 100.0


def non_dominated(losses: npt.ArrayLike) -> Mask:
    """Rows of `losses` (n, m), lower is better, that no other row dominates: (n,). Equal rows are all kept."""
    table = np.asarray(losses, dtype=np.float64)
    if table.ndim != 2:
        raise ValueError(f"Losses are a table (n, m), but got shape {table.shape}.")
    if np.isnan(table).any():
        raise ValueError(f"Losses are never NaN, but got it in row {int(np.isnan(table).any(axis=1).argmax())}.")
    if 0 in table.shape:
        return np.ones(len(table), dtype=bool)
    unique, inverse = np.unique(table, axis=0, return_inverse=True)
    mask, left = np.zeros(len(unique), dtype=bool), np.arange(len(unique))
    # The first objective is sorted already, so a later row can only be saved by one of the others.
    others = unique[:, 1:]
    while left.size:
        # The first row left is never dominated by a later one; it strikes out all that are no better than it anywhere.
        mask[left[0]] = True
        left = left[1:][(others[left[1:]] < others[left[0]]).any(axis=1)]
    return mask[inverse.reshape(-1)]


def resolved_front(losses: npt.ArrayLike, quality: int | None, resolution: float) -> Mask:
    """Rows of `losses` (n, m), lower is better, that are left where quality is known to `resolution` only: (n,).

    One row dominates another if it is at least as good in everything but quality and better in one of these, while it
    loses at most `resolution` more quality; of rows that are equal in all the rest, the one that loses less dominates.
    A gain in quality counts as no loss.

    This relation is not transitive, since two differences below the resolution may add up to one above it, so the rows
    that nothing dominates need not cover the others. Along it, though, rows get lexicographically smaller in the rest
    and then in quality: it has no cycles, and a finite graph without cycles has exactly one kernel (von Neumann and
    Morgenstern, 1944). That is what is returned: no row of it dominates another, and each row outside is dominated by
    one inside. It is not empty, does not depend on the order of the rows, and is part of the plain front, which it
    equals at a resolution of 0.

    Args:
        quality: column of the relative loss; None where it is no objective, which leaves the plain front
        resolution: not negative
    """
    if not resolution >= 0:
        raise ValueError(f"A resolution is at least 0, but got {resolution}.")
    table = np.array(losses, dtype=np.float64)
    if quality is not None and table.ndim == 2:
        table[:, quality] = np.maximum(table[:, quality], 0.0)
    plain = non_dominated(table)
    if quality is None:
        return plain
    rest, lost = np.delete(table, quality, axis=1), table[:, quality]
    # The last key of a lexicographic sort is the first to count: whatever dominates a row comes before it.
    order = np.lexsort((lost, *rest.T[::-1]))
    mask = np.zeros(len(table), dtype=bool)
    for row in order[plain[order]]:
        kept = np.flatnonzero(mask)
        no_worse = (rest[kept] <= rest[row]).all(axis=1) & loses_no_more(lost[kept], lost[row], resolution)
        mask[row] = not (no_worse & (rest[kept] < rest[row]).any(axis=1)).any()
    return mask


def loses_no_more(losses: npt.ArrayLike, loss: float, resolution: float) -> Mask:
    """Return a mask of the `losses`, (n,), that are no larger than `loss` at this resolution; a gain counts as 0."""
    return np.asarray(np.maximum(losses, 0.0) <= max(loss, 0.0) + resolution)


def unit_objectives(
    p95_ratio: npt.ArrayLike, throughput_ratio: npt.ArrayLike, loss: npt.ArrayLike, max_loss: float
) -> Floats:
    """Return the coordinates of the hypervolume, (n, 3), each in [0, 1] and maximised; the baseline's are (0, 0, 1)."""
    columns = np.broadcast_arrays(*(np.atleast_1d(np.asarray(c, float)) for c in (p95_ratio, throughput_ratio, loss)))
    latency, throughput, lost = columns
    if not max_loss > 0:
        raise ValueError(f"The tolerated loss is above 0, but got {max_loss}.")
    # "Not (x >= 0)" catches NaN too. A ratio of 0 is real: at no rate did the p95 stay within the SLO.
    if not ((latency >= 0).all() and (throughput >= 0).all() and not np.isnan(lost).any()):
        raise ValueError("Ratios are at least 0 and losses are numbers, but got a negative ratio or NaN.")
    with np.errstate(divide="ignore"):
        l = np.log(latency) / np.log(BEST_P95_RATIO)  # noqa: E741  # the name in DESIGN
        t = np.log(throughput) / np.log(BEST_THROUGHPUT_RATIO)
    q = 1.0 - lost / max_loss
    unit: Floats = np.clip(np.column_stack([l, t, q]), 0.0, 1.0)
    return unit


def largest_box(p95_ratio: npt.ArrayLike, throughput_ratio: npt.ArrayLike, loss: npt.ArrayLike, max_loss: float) -> int:
    """Return the row, of (n,) each, that alone dominates most of the cube; where none dominates any, the lowest p95."""
    boxes = unit_objectives(p95_ratio, throughput_ratio, loss, max_loss).prod(axis=1)
    return int(np.lexsort((np.asarray(p95_ratio, dtype=np.float64), -boxes))[0])


def hypervolume(points: npt.ArrayLike) -> float:
    """Volume of the unit cube that `points` (n, 3), maximised, dominate from (0, 0, 0). Exact.

    A sweep down the third axis: between two heights the dominated slab has the area below the staircase of all points
    above it (Fonseca, Paquete and López-Ibáñez, 2006, "An improved dimension-sweep algorithm", with a plain staircase).
    """
    cube = _in_unit_cube(points)
    cube = cube[(cube > 0).all(axis=1)]
    cube = cube[non_dominated(-cube)]
    cube = cube[np.argsort(-cube[:, 2], kind="stable")]
    areas = [_area(cube[: place + 1, :2]) for place in range(len(cube))]
    return float(np.dot(areas, -np.diff(cube[:, 2], append=0.0)))


def _area(corners: Floats) -> float:
    """The area below the staircase of `corners` (k, 2), read from its lowest step, the farthest to the right."""
    steps = corners[np.argsort(-corners[:, 0])]
    return float(np.maximum.accumulate(steps[:, 1]) @ -np.diff(steps[:, 0], append=0.0))


def _in_unit_cube(points: npt.ArrayLike) -> Floats:
    cube = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    if not ((cube >= 0) & (cube <= 1)).all():
        raise ValueError("Points lie in the unit cube; clip them with unit_objectives.")
    return cube


def hypervolume_over_time(points: npt.ArrayLike, order: npt.ArrayLike) -> Floats:
    """The running hypervolume (n,) of `points` (n, 3) taken one after another; `order` (n,) says which row comes when.

    Value i holds after row `order[i]`. A trial that has nothing to add (failed, infeasible) is a row of zeros.
    """
    cube, turns = _in_unit_cube(points), np.asarray(order, dtype=np.intp).reshape(-1)
    if not np.array_equal(np.sort(turns), np.arange(len(cube))):
        raise ValueError(f"An order names each of the {len(cube)} rows once, but got {turns.tolist()}.")
    values, front, volume = np.zeros(len(cube)), np.empty((0, 3)), 0.0
    for turn, point in enumerate(cube[turns]):
        if point.all() and not (front >= point).all(axis=1).any():
            # What the point adds is its own box without what the others dominate of it (While et al., 2012, "WFG").
            volume += max(0.0, float(point.prod()) - hypervolume(np.minimum(front, point)))
            front = np.vstack([front[(front > point).any(axis=1)], point])
        values[turn] = volume
    return values


def indistinguishable(lower: npt.ArrayLike, upper: npt.ArrayLike, best: int) -> Mask:
    """Return a mask of rows, (n,), whose intervals overlap those of row `best` on every objective, as its own do.

    `lower`, `upper`: (n, m) ends of each point's interval against the baseline. Conservative: two candidates are never
    paired with each other, so the interval of their own difference is not known; where paired, it would be narrower
    than the two intervals together, and could distinguish some points that count as equal here.
    """
    low, high = np.asarray(lower, dtype=np.float64), np.asarray(upper, dtype=np.float64)
    if low.ndim != 2 or low.shape != high.shape:
        raise ValueError(f"Both ends are tables (n, m) of one shape, but got {low.shape} and {high.shape}.")
    if not (low <= high).all():
        raise ValueError("An interval's lower end is at most its upper end, but got one turned round or NaN.")
    overlap: Mask = ((low <= high[best]) & (low[best] <= high)).all(axis=1)
    return overlap
