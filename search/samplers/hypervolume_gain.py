"""Gain in hypervolume by points that would join a front, exactly and for many points at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.interpolate import RegularGridInterpolator

from search.front import Floats, non_dominated

# Most cells of the grid; a front of more points is represented by those that dominate most.
_MOST_CELLS = 200_000


class HypervolumeGain:
    """Hypervolume, from the origin, that a point would add to a front in the unit cube, maximised.

    The coordinates of the front divide the cube into cells, each of which is dominated or not as a whole. The gain of a
    point is the volume of the free cells below it, which is multilinear within a cell: it is interpolated between the
    corners without error.
    """

    def __init__(self, front: npt.ArrayLike, dimensions: int) -> None:
        """Build the grid of a front, (n, dimensions)."""
        points = np.asarray(front, dtype=np.float64).reshape(-1, dimensions)
        points = points[(points > 0).all(axis=1)]
        points = points[non_dominated(-points)]
        most = int(_MOST_CELLS ** (1 / dimensions)) - 1
        points = points[np.argsort(-points.prod(axis=1), kind="stable")[:most]]
        axes = [np.unique([0.0, 1.0, *points[:, axis]]) for axis in range(dimensions)]
        upper = np.meshgrid(*(axis[1:] for axis in axes), indexing="ij")
        free = np.ones(upper[0].shape, dtype=bool)
        for point in points:
            free &= ~np.logical_and.reduce([corner <= value for corner, value in zip(upper, point, strict=True)])
        volume = free.astype(np.float64)
        for axis, (edges, shape) in enumerate(zip(axes, np.eye(dimensions, dtype=int), strict=True)):
            width = np.diff(edges).reshape(np.where(shape, -1, 1))
            volume = np.cumsum(volume * width, axis=axis)
        corners = np.zeros([len(axis) for axis in axes])
        corners[(slice(1, None),) * dimensions] = volume
        self._below = RegularGridInterpolator(axes, corners)

    def __call__(self, points: npt.ArrayLike) -> Floats:
        """Return the gain of each point alone, (n,), of (n, dimensions) coordinates in [0, 1]."""
        gain: Floats = np.maximum(self._below(np.asarray(points, dtype=np.float64)), 0.0)
        return gain
