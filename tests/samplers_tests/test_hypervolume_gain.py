"""Gain in hypervolume, beside the difference of two hypervolumes, and in four dimensions beside a count of points."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from search.front import hypervolume
from search.samplers.hypervolume_gain import HypervolumeGain

UNIT = st.floats(0, 1, width=32)


@settings(max_examples=60, deadline=None)
@given(
    front=st.integers(0, 8).flatmap(lambda count: arrays(np.float64, (count, 3), elements=UNIT)),
    points=arrays(np.float64, (5, 3), elements=UNIT),
)
def test_the_gain_is_the_difference_of_two_hypervolumes(front: np.ndarray, points: np.ndarray) -> None:
    before = hypervolume(front)
    expected = [hypervolume(np.vstack([front, point])) - before for point in points]
    np.testing.assert_allclose(HypervolumeGain(front, 3)(points), expected, atol=1e-9)


def test_in_four_dimensions_it_is_the_share_of_points_that_nothing_else_dominates() -> None:
    random = np.random.default_rng(0)
    front, points = random.random((12, 4)), random.random((6, 4))
    cube = random.random((400_000, 4))
    free = ~np.any([(cube <= member).all(axis=1) for member in front], axis=0)
    counted = [(free & (cube <= point).all(axis=1)).mean() for point in points]
    np.testing.assert_allclose(HypervolumeGain(front, 4)(points), counted, atol=4e-3)


def test_a_front_too_large_for_the_grid_keeps_the_points_that_dominate_most() -> None:
    """A gain is never underestimated with fewer points in the front."""
    random = np.random.default_rng(1)
    angles = random.uniform(0.1, 1.4, 300)
    front = np.column_stack([np.cos(angles), np.sin(angles), random.uniform(0.5, 1.0, 300)])
    points = random.random((50, 3))
    exact = [hypervolume(np.vstack([front, point])) - hypervolume(front) for point in points]
    assert (HypervolumeGain(front, 3)(points) >= np.array(exact) - 1e-9).all()
