"""The hidden order: its probabilities against counts of what is drawn, and against the laws that they must keep."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chisquare

from objectives.recommenders.datasets.synthetic import SECTIONS, HiddenOrder, hidden_order
from tests.datasets_tests.transitions import popularity, probabilities


def _transitions(order: HiddenOrder) -> NDArray[np.float64]:
    """Probabilities that each item comes after i in row i, (items, items), by cutting the circle at every bound."""
    items = len(popularity(order))
    axis_slices = np.union1d(order.bounds, np.arange(SECTIONS + 1) / SECTIONS)
    middle, length = (axis_slices[1:] + axis_slices[:-1]) / 2, np.diff(axis_slices)
    item, section = np.searchsorted(order.bounds, middle) - 1, (middle * SECTIONS).astype(int)
    share = np.zeros((items, SECTIONS))  # of each section, that is an item's
    np.add.at(share, (item, section), length * SECTIONS)
    leads = np.zeros((SECTIONS, SECTIONS))
    leads[np.arange(SECTIONS), order.follower] = 1
    of_item = share / share.sum(axis=1, keepdims=True)
    return of_item @ leads @ share.T


@pytest.mark.parametrize(("items", "zipf"), [(1, 1.0), (7, 1.0), (300, 0.0), (300, 1.2)])
def test_probabilities_are_a_mixture_over_earlier_items(items: int, zipf: float) -> None:
    order = hidden_order(items, zipf, seed=2)
    after, random = _transitions(order), np.random.default_rng(0)
    for length in (1, 2, 5):
        history = random.integers(items, size=length)
        # The latest leads with 0.4, the one before it with 0.4 of the rest; what is left goes to the first.
        weight = [0.4 * 0.6**lag for lag in range(length - 1)] + [0.6 ** (length - 1)]
        mixture = sum(w * after[item] for w, item in zip(weight, history[::-1], strict=True))
        expected = 0.3 * popularity(order) + 0.7 * mixture
        np.testing.assert_allclose(probabilities(order, history, 0.7), expected, atol=1e-12)
        np.testing.assert_allclose(probabilities(order, history, 0.0), popularity(order), atol=1e-12)
    assert np.array_equal(probabilities(order, np.array([], dtype=np.int64), 0.7), popularity(order))


@pytest.mark.parametrize("zipf", [0.0, 1.0, 2.0])
def test_an_even_spread_stays_even(zipf: float) -> None:
    order = hidden_order(150, zipf, seed=5)
    after = np.stack([probabilities(order, np.array([item]), 1.0) for item in range(150)])
    np.testing.assert_allclose(after.sum(axis=1), 1)
    np.testing.assert_allclose(popularity(order) @ after, popularity(order), atol=1e-12)
    assert np.count_nonzero(probabilities(order, np.array([int(np.argmin(popularity(order)))]), 1.0) > 1e-12) < 75


def test_popularity_is_zipf() -> None:
    expected = 1 / np.arange(1, 51) ** 0.8
    found = popularity(hidden_order(50, 0.8, seed=0))
    np.testing.assert_allclose(np.sort(found)[::-1], expected / expected.sum())
    assert not np.array_equal(np.argsort(-found), np.arange(50))


def test_what_is_drawn_comes_as_often_as_said() -> None:
    users, items = 300_000, 4
    order = hidden_order(items, 1.0, seed=1)
    # In time order: each user's first visit, then each one's second, in another sequence, then the third.
    random = np.random.default_rng(0)
    user = np.concatenate([random.permutation(users) for _ in range(3)])
    item = order.draw(user, 0.8, random)
    visits = np.stack(
        [
            item[turn * users : (turn + 1) * users][np.argsort(user[turn * users : (turn + 1) * users])]
            for turn in range(3)
        ]
    )
    assert chisquare(np.bincount(visits[0], minlength=items), popularity(order) * users).pvalue > 0.001
    for first in range(items):
        second = visits[1, visits[0] == first]
        expected = probabilities(order, np.array([first]), 0.8) * len(second)
        assert chisquare(np.bincount(second, minlength=items), expected).pvalue > 0.001
        third = visits[2, (visits[0] == first) & (visits[1] == 0)]
        expected = probabilities(order, np.array([first, 0]), 0.8) * len(third)
        assert chisquare(np.bincount(third, minlength=items), expected).pvalue > 0.001


def test_users_do_not_lead_one_another() -> None:
    # At strength 0 a draw is by popularity; at 1, user 9, with one visit, still starts by popularity.
    order, user = hidden_order(200, 1.0, seed=3), np.array([4, 9, 4, 0, 4])
    drawn = np.stack([order.draw(user, 1.0, np.random.default_rng(seed)) for seed in range(4000)])
    for column in (0, 1, 3):
        counts = np.bincount(drawn[:, column], minlength=200)
        some = popularity(order) > 0.01
        expected = np.append(popularity(order)[some], popularity(order)[~some].sum()) * 4000
        assert chisquare(np.append(counts[some], counts[~some].sum()), expected).pvalue > 0.001
    second = np.stack([probabilities(order, drawn[row, :1], 1.0) for row in range(400)])
    assert np.all(second[np.arange(400), drawn[:400, 2]] > 0)  # user 4's next visit came by user 4's first


def test_first_visits_wait_for_nobody() -> None:
    assert hidden_order(1, 1.0, seed=0).draw(np.arange(5), 1.0, np.random.default_rng(0)).tolist() == [0] * 5


def test_the_same_arguments_make_the_same_order() -> None:
    one, again, other = (hidden_order(30, 1.0, seed) for seed in (5, 5, 6))
    assert np.array_equal(one.bounds, again.bounds) and np.array_equal(one.follower, again.follower)
    assert not np.array_equal(one.follower, other.follower)
    assert sorted(one.follower.tolist()) == list(range(SECTIONS))
    with pytest.raises(ValueError, match="read-only"):
        one.bounds[0] = 1
