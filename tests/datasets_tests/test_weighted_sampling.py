"""Draws by weight against the exact probabilities of drawing one after the other."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from objectives.recommenders.datasets.weighted_sampling import ByWeight


@pytest.mark.parametrize("rest", [0.0, 1000.0])
def test_each_order_is_as_likely_as_one_after_the_other(rest: float) -> None:
    # Three of four things, of weight 1, 2, 4 and 5; where a thing of weight 1000 is not allowed, only the race is left.
    weight = np.array([1.0, 2, 4, 5, rest])
    allowed = np.array([True, True, True, True, False])
    expected = {}
    for order in permutations(range(4), 3):
        left, likely = 12.0, 1.0
        for thing in order:
            likely *= weight[thing] / left
            left -= weight[thing]
        expected[order] = likely
    things, random = ByWeight(weight), np.random.default_rng(0)
    drawn = [tuple(things.draw(3, allowed, random).tolist()) for _ in range(20_000)]
    counts = [drawn.count(order) for order in expected]
    assert sum(counts) == len(drawn)
    assert chisquare(counts, np.array(list(expected.values())) * len(drawn)).pvalue > 0.001


def test_with_too_few_things_each_comes_by_its_weight() -> None:
    things = ByWeight(np.array([3.0, 0, 1, 6]))
    drawn = things.draw(9000, np.array([True, False, True, False]), np.random.default_rng(1))
    assert set(drawn.tolist()) == {0, 2}
    assert chisquare(np.bincount(drawn)[[0, 2]], [6750, 2250]).pvalue > 0.001


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_only_the_allowed_are_drawn_and_none_twice_while_they_suffice(
    weight: list[float], count: int, seed: int
) -> None:
    weights, random = np.array(weight), np.random.default_rng(seed)
    if not weights.any():
        with pytest.raises(ValueError, match="weights"):
            ByWeight(weights)
        return
    things = ByWeight(weights)
    assert things.possible.tolist() == [each > 0 for each in weight]
    allowed = things.possible & (random.random(len(weights)) < 0.7)
    if not allowed.any():
        with pytest.raises(ValueError, match="allowed"):
            things.draw(count, allowed, random)
        return
    drawn = things.draw(count, allowed, random)
    assert len(drawn) == count and allowed[drawn].all()
    if allowed.sum() >= count:
        assert len(set(drawn.tolist())) == count


def test_weights_that_are_none_are_refused() -> None:
    for weight in ([1.0, -1.0], [1.0, np.nan], [1.0, np.inf], [], [0.0]):
        with pytest.raises(ValueError, match="weights"):
            ByWeight(np.array(weight))
