"""Dominance, hypervolume and likeness against closed forms, brute force and a second implementation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from search.front import (
    hypervolume,
    hypervolume_over_time,
    indistinguishable,
    non_dominated,
    resolved_front,
    unit_objectives,
)

# A coarse grid makes ties and duplicates, where such code goes wrong.
grid = st.integers(0, 5).map(float)
tables = st.tuples(st.integers(0, 14), st.integers(1, 4)).flatmap(lambda shape: arrays(float, shape, elements=grid))
cubes = st.integers(0, 7).flatmap(lambda n: arrays(float, (n, 3), elements=st.integers(0, 5).map(lambda v: v / 5)))


def brute_force_front(losses: np.ndarray) -> list[bool]:
    return [not any((other <= row).all() and (other < row).any() for other in losses) for row in losses]


def inclusion_exclusion(points: np.ndarray) -> float:
    """Volume of the union of the boxes from 0 to each point."""
    return sum(
        (-1) ** (size + 1) * float(np.min(subset, axis=0).prod())
        for size in range(1, len(points) + 1)
        for subset in itertools.combinations(points, size)
    )


@given(tables)
def test_the_front_is_that_of_the_definition(losses: np.ndarray) -> None:
    assert non_dominated(losses).tolist() == brute_force_front(losses)


@given(tables, st.randoms(use_true_random=False))
def test_the_front_does_not_depend_on_the_order(losses: np.ndarray, random: np.random.Generator) -> None:
    order = list(range(len(losses)))
    random.shuffle(order)
    assert non_dominated(losses[order]).tolist() == non_dominated(losses)[order].tolist()


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_the_front_of_many_points_dominates_all_others(columns: int) -> None:
    losses = np.random.default_rng(columns).normal(size=(5000, columns))
    mask = non_dominated(losses)
    front, rest = losses[mask], losses[~mask]
    assert not any((front < row).all(axis=1).any() for row in front)
    assert all((front <= row).all(axis=1).any() for row in rest[:300])


# Losses in steps of half a resolution, gains among them.
studies = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        arrays(float, (n, 2), elements=grid), arrays(float, (n, 1), elements=st.integers(-3, 9).map(lambda v: v / 2))
    ).map(np.hstack)
)


def dominates(one: np.ndarray, other: np.ndarray, resolution: float) -> bool:
    """Return whether a row (speed, load, loss) dominates another one, by the definition."""
    (*ours, lost), (*theirs, their_lost) = one, other
    lost, their_lost = max(lost, 0.0), max(their_lost, 0.0)
    if ours == theirs:
        return lost < their_lost
    return all(a <= b for a, b in zip(ours, theirs, strict=True)) and lost <= their_lost + resolution


@given(studies, st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_the_resolved_front_is_the_one_kernel_of_the_relation(losses: np.ndarray, resolution: float) -> None:
    """Brute force over all subsets of the rows finds one that is without dominance inside and dominates all outside."""
    rows = range(len(losses))
    over = [[dominates(losses[i], losses[j], resolution) for j in rows] for i in rows]
    kernels = []
    for picks in itertools.product([False, True], repeat=len(losses)):
        covered = [any(picks[i] and over[i][j] for i in rows) for j in rows]
        if all(covered[j] != picks[j] for j in rows):
            kernels.append(list(picks))
    found = resolved_front(losses, 2, resolution).tolist()
    assert kernels == [found] and any(found)


@given(studies, st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.randoms(use_true_random=False))
def test_the_resolved_front_does_not_depend_on_the_order(
    losses: np.ndarray, resolution: float, random: np.random.Generator
) -> None:
    order = list(range(len(losses)))
    random.shuffle(order)
    assert (
        resolved_front(losses[order], 2, resolution).tolist() == resolved_front(losses, 2, resolution)[order].tolist()
    )


@given(studies)
def test_without_a_resolution_the_front_is_the_plain_one_of_clipped_losses(losses: np.ndarray) -> None:
    clipped = np.column_stack([losses[:, :2], np.maximum(losses[:, 2], 0)])
    assert resolved_front(losses, 2, 0.0).tolist() == brute_force_front(clipped)
    assert resolved_front(losses, None, 9.0).tolist() == brute_force_front(losses)


def test_a_point_that_is_slower_for_less_than_the_data_can_show_is_off_the_front() -> None:
    """One point is twice as slow for 0.007% of AUC, where a study could show 0.28%.

    Another is slower for a gain, and a third one slower for more than 0.007%.
    """
    rows = [[0.1, 0.1, 0.00107], [0.2, 0.2, 0.0010], [0.3, 0.3, -0.02], [0.4, 0.4, 0.0]]
    assert resolved_front(rows, 2, 0.0028).tolist() == [True, False, False, False]
    assert resolved_front(rows, 2, 0.0010).tolist() == [True, False, True, False]


def test_small_steps_of_the_loss_do_not_add_up_to_a_large_one() -> None:
    """Each point is faster than the one before and loses 0.9 of the resolution more: two steps are told apart."""
    steps = np.arange(10.0)
    rows = np.column_stack([10 - steps, 10 - steps, 0.9 * steps])
    kept = np.flatnonzero(resolved_front(rows, 2, 1.0))
    assert kept.tolist() == [1, 3, 5, 7, 9], "from the fastest on, every other"


def test_duplicates_of_a_front_point_are_all_kept() -> None:
    assert non_dominated([[0, 1, 1], [0, 1, 1], [1, 0, 0], [1, 1, 1]]).tolist() == [True, True, True, False]


def test_the_front_refuses_nan_and_a_flat_list() -> None:
    with pytest.raises(ValueError, match="row 1"):
        non_dominated([[0.0, 1.0], [np.nan, 0.0]])
    with pytest.raises(ValueError, match=r"\(n, m\)"):
        non_dominated([0.0, 1.0])


def test_unit_objectives_at_known_ratios() -> None:
    p95, throughput, loss = [1.0, 0.1, 0.01, 0.0, 2.0], [1.0, 10.0, 100.0, 0.0, 1e9], [0.0, 0.005, 0.02, -1, 0.01]
    points = unit_objectives(p95, throughput, loss, max_loss=0.01)
    assert np.allclose(points, [[0, 0, 1], [0.5, 0.5, 0.5], [1, 1, 0], [1, 0, 1], [0, 1, 0]])


@pytest.mark.parametrize(
    ("p95", "throughput", "loss", "max_loss"),
    [(np.nan, 1, 0, 0.01), (-0.1, 1, 0, 0.01), (1, np.nan, 0, 0.01), (1, 1, np.nan, 0.01), (1, 1, 0, 0.0)],
)
def test_unit_objectives_refuse_what_was_not_measured(
    p95: float, throughput: float, loss: float, max_loss: float
) -> None:
    with pytest.raises(ValueError, match="but got"):
        unit_objectives([p95], [throughput], [loss], max_loss)


@given(arrays(float, (1, 3), elements=st.floats(0, 1)))
def test_one_point_dominates_its_own_box(point: np.ndarray) -> None:
    assert hypervolume(point) == pytest.approx(float(point.prod()))


def test_hypervolume_of_none_of_all_and_of_a_staircase() -> None:
    assert hypervolume(np.empty((0, 3))) == 0.0
    assert hypervolume([[1, 1, 1], [0.5, 0.5, 0.5]]) == 1.0
    steps = 10
    stairs = [[(i + 1) / steps, (steps - i) / steps, 1.0] for i in range(steps)]
    assert hypervolume(stairs) == pytest.approx((steps + 1) / (2 * steps))


@given(cubes)
def test_hypervolume_is_that_of_the_union_of_boxes(points: np.ndarray) -> None:
    assert hypervolume(points) == pytest.approx(inclusion_exclusion(points), abs=1e-12)


@given(cubes, arrays(float, (1, 3), elements=st.floats(0, 1)))
def test_hypervolume_grows_with_a_point_and_not_with_the_order(points: np.ndarray, more: np.ndarray) -> None:
    grown = np.vstack([points, more])
    assert hypervolume(grown) >= hypervolume(points) - 1e-12
    assert hypervolume(grown[::-1]) == pytest.approx(hypervolume(grown), abs=1e-12)


@given(cubes)
def test_hypervolume_is_the_same_along_every_axis(points: np.ndarray) -> None:
    assert hypervolume(points[:, [2, 0, 1]]) == pytest.approx(hypervolume(points), abs=1e-12)


@pytest.mark.parametrize("count", [30, 300])
def test_hypervolume_agrees_with_optuna(count: int) -> None:
    wfg = pytest.importorskip("optuna._hypervolume.wfg")
    points = np.random.default_rng(count).uniform(size=(count, 3)) ** 0.3
    assert hypervolume(points) == pytest.approx(wfg.compute_hypervolume(-points, np.zeros(3)), rel=1e-9)


def test_hypervolume_agrees_with_a_count_of_darts() -> None:
    rng = np.random.default_rng(5)
    points, darts = rng.uniform(size=(12, 3)), rng.uniform(size=(40_000, 3))
    share = np.mean([(points >= dart).all(axis=1).any() for dart in darts])
    assert hypervolume(points) == pytest.approx(share, abs=0.01)


def test_hypervolume_refuses_what_lies_outside_the_cube() -> None:
    for point in ([0.5, 0.5, 1.1], [-0.1, 0.5, 0.5], [np.nan, 0.5, 0.5]):
        with pytest.raises(ValueError, match="unit cube"):
            hypervolume([point])


@settings(max_examples=50)
@given(cubes, st.randoms(use_true_random=False))
def test_over_time_each_value_is_that_of_the_points_so_far(points: np.ndarray, random: np.random.Generator) -> None:
    order = list(range(len(points)))
    random.shuffle(order)
    values = hypervolume_over_time(points, order)
    assert values == pytest.approx([hypervolume(points[order[: turn + 1]]) for turn in range(len(order))])
    assert (np.diff(values) >= -1e-12).all()


def test_over_time_the_order_names_each_row_once() -> None:
    with pytest.raises(ValueError, match="2 rows"):
        hypervolume_over_time([[0.5, 0.5, 0.5], [1, 1, 1]], [0, 0])


def test_alike_are_those_that_overlap_the_best_on_every_objective() -> None:
    lower = np.array([[0.10, 2.0], [0.12, 2.5], [0.30, 2.0], [0.11, 4.0]])
    upper = np.array([[0.14, 3.0], [0.20, 3.5], [0.40, 3.0], [0.12, 5.0]])
    assert indistinguishable(lower, upper, 0).tolist() == [True, True, False, False]


def test_touching_ends_overlap_and_a_point_is_like_itself() -> None:
    assert indistinguishable([[0.0], [1.0]], [[1.0], [1.0]], 0).tolist() == [True, True]


@given(arrays(float, (6, 3), elements=grid), arrays(float, (6, 3), elements=grid))
def test_being_alike_is_mutual(one: np.ndarray, other: np.ndarray) -> None:
    lower, upper = np.minimum(one, other), np.maximum(one, other)
    masks = np.array([indistinguishable(lower, upper, best) for best in range(6)])
    assert (masks == masks.T).all() and masks.diagonal().all()


def test_intervals_that_are_turned_round_are_refused() -> None:
    with pytest.raises(ValueError, match="turned round"):
        indistinguishable([[1.0]], [[0.0]], 0)
    with pytest.raises(ValueError, match="one shape"):
        indistinguishable([[1.0]], [[1.0, 2.0]], 0)
