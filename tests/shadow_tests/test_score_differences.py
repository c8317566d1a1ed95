"""Sums of differences, compared with the same numbers from all scores at once."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from objectives.shadow.score_differences import (
    FEWEST_RANKED,
    TOP,
    NotFiniteScoresError,
    ScoreDifferences,
    top_overlap,
)

Requests = list[tuple[np.ndarray, np.ndarray]]


def added(requests: Requests) -> ScoreDifferences:
    found = ScoreDifferences()
    for champion, challenger in requests:
        found = found.with_request(champion, challenger)
    return found


def draw(seed: int, sizes: list[int], outputs: int | None, offset: float = 0.0) -> Requests:
    rng = np.random.default_rng(seed)
    shapes = [(size,) if outputs is None else (size, outputs) for size in sizes]
    return [
        tuple((offset + rng.normal(size=shape)).astype(np.float32) for _ in range(2))  # type: ignore[misc]
        for shape in shapes
    ]


@example(7, [1], None)
@given(st.integers(0, 1000), st.lists(st.integers(1, 60), min_size=1, max_size=8), st.sampled_from([None, 1, 3]))
def test_sums_agree_with_all_scores_at_once(seed: int, sizes: list[int], outputs: int | None) -> None:
    requests = draw(seed, sizes, outputs)
    champion, challenger = (
        np.concatenate([pair[side].reshape(len(pair[side]), -1).astype(float) for pair in requests]) for side in (0, 1)
    )
    spread = np.maximum(champion.std(axis=0), 0.002 * np.abs(champion.mean(axis=0)))
    spread = np.maximum(spread, 2 * float(np.finfo(np.float32).eps) / 1e-3)
    difference = np.abs(challenger - champion)
    found = added(requests)
    assert found.mean_difference == pytest.approx((difference.mean(axis=0) / spread).max(), rel=1e-9)
    assert found.max_difference == pytest.approx((difference.max(axis=0) / spread).max(), rel=1e-9)
    ranked = [pair for pair in requests if len(pair[0]) >= FEWEST_RANKED]
    assert found.ranked == len(ranked)
    if not ranked:
        assert found.rank_agreement is None
        return
    shares = []
    for pair in ranked:
        main = [scores.reshape(len(scores), -1)[:, 0].tolist() for scores in pair]
        first, second = (set(sorted(range(len(of)), key=lambda row, of=of: (-of[row], row))[:TOP]) for of in main)
        shares.append(len(first & second) / TOP)
    assert found.rank_agreement == pytest.approx(np.mean(shares))


def test_a_large_mean_does_not_hide_the_spread() -> None:
    """Sums of squares would have lost the spread: 1e6 squared has 12 digits, of which a double keeps 16."""
    requests = [(np.float64(1e7) + np.arange(50.0), np.float64(1e7) + np.arange(50.0) + 1) for _ in range(20)]
    found = added(requests)
    assert math.sqrt(found.squares[0] / found.rows) == pytest.approx(np.arange(50.0).std(), rel=1e-6)


def test_unrelated_scores_differ_by_the_closed_form() -> None:
    """The difference of two standard normals has mean absolute value 2 / sqrt(pi).

    Where their correlation is r, it has sqrt(1 - r) of that.
    """
    rng = np.random.default_rng(0)
    champion, other = rng.normal(size=(2, 400, 500))
    for r in (0.0, 0.5, 0.9):
        challenger = r * champion + math.sqrt(1 - r**2) * other
        found = added(list(zip(champion, challenger, strict=True)))
        assert found.mean_difference == pytest.approx(2 / math.sqrt(math.pi) * math.sqrt(1 - r), rel=0.01)
        if r == 0:
            assert found.rank_agreement == pytest.approx(TOP / 500, abs=0.01)


def test_equal_scores_do_not_differ() -> None:
    found = added([(np.arange(30.0), np.arange(30.0))])
    assert (found.mean_difference, found.max_difference, found.rank_agreement) == (0, 0, 1)
    assert ScoreDifferences().mean_difference is None and ScoreDifferences().max_difference is None


def test_the_top_of_equal_scores_is_the_earlier_rows() -> None:
    assert top_overlap(np.zeros(40), np.zeros(40), 10) == 1
    assert top_overlap(np.arange(40.0), -np.arange(40.0), 10) == 0


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_told(wrong: float) -> None:
    with pytest.raises(NotFiniteScoresError, match="1 of the challenger's 3"):
        ScoreDifferences().with_request(np.zeros(3), np.array([0, wrong, 1]))


def test_other_shapes_are_told() -> None:
    with pytest.raises(ValueError, match="shape"):
        ScoreDifferences().with_request(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="shape"):
        added(draw(0, [4], 2)).with_request(np.zeros((4, 3)), np.zeros((4, 3)))
