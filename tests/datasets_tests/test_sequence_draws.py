"""Negatives and requests: sets are the oracle of what may be drawn, chi-square of how often, with fixed seeds."""

import numpy as np
import pytest
from scipy.stats import chisquare

from objectives.recommenders.datasets.sequences import Negatives, Sequences, draw_requests, sequences_of
from objectives.recommenders.datasets.synthetic import synthetic_log

LENGTH = 6
DATA = sequences_of(synthetic_log(6000, 200, 120, fields=2, seed=1, order=0.5))


def _of(*users: list[int], items: int) -> Sequences:
    offsets = np.cumsum([0, *map(len, users)])
    return Sequences("by hand", np.arange(items), np.concatenate(users).astype(np.int64), offsets)


def _events(sequences: Sequences, user: int, but: int) -> set[int]:
    """The codes that a user took, without the last ones."""
    return set(sequences.codes[sequences.offsets[user] : sequences.offsets[user + 1] - but].tolist())


def test_no_negative_is_a_train_event_and_each_other_item_may_be_one() -> None:
    users = np.repeat(np.arange(DATA.users), 2)
    drawn = Negatives(DATA).draw(users, (200, 5), np.random.default_rng(0))
    assert drawn.shape == (len(users), 200, 5) and drawn.dtype == np.int64
    for user in range(DATA.users):
        free = set(range(1, DATA.items + 1)) - _events(DATA, user, but=2)
        assert set(drawn[users == user].flat) == free  # 2000 draws of some hundred leave none out


def test_negatives_are_drawn_evenly() -> None:
    # User 0 took 1, 4 and 5 (4 twice) of 9 in train; 2 and 3 are held out and may be drawn. User 1 took the ends.
    sequences = _of([4, 1, 4, 5, 2, 3], [9, 1, 1, 1], items=9)
    drawn = Negatives(sequences).draw(np.array([0, 1]), (60_000,), np.random.default_rng(3))
    for number, free in enumerate(([2, 3, 6, 7, 8, 9], [2, 3, 4, 5, 6, 7, 8])):
        values, counts = np.unique(drawn[number], return_counts=True)
        assert values.tolist() == free
        assert chisquare(counts).pvalue > 0.001


def test_the_last_free_item_is_found_and_a_user_without_is_refused() -> None:
    sequences = _of([1, 2, 4, 5, 3, 3], [5, 4, 3, 2, 1, 1, 1], items=5)
    negatives, random = Negatives(sequences), np.random.default_rng(0)
    assert negatives.draw(np.array([0, 0]), (2,), random).tolist() == [[3, 3], [3, 3]]
    assert negatives.draw(np.array([0]), (), random).tolist() == [3]
    with pytest.raises(ValueError, match="user 1"):
        negatives.draw(np.array([0, 1]), (2,), random)


def test_a_request_is_a_history_and_items_that_are_not_in_it() -> None:
    rows = np.array([1, 20, 7, 60] * 10)
    history = {tuple(row): user for user, row in enumerate(DATA.histories("test", LENGTH)[0].tolist())}
    assert len(history) == DATA.users
    requests = draw_requests(DATA, rows, LENGTH, seed=0)
    asking = set()
    for request, count in zip(requests, rows.tolist(), strict=True):
        assert request["history"].shape == (1, LENGTH) and request["item"].shape == (count,)
        assert request["history"].dtype == request["item"].dtype == np.int64
        user = history[tuple(request["history"][0].tolist())]
        asking.add(user)
        items = set(request["item"].tolist())
        assert len(items) == count and not items & _events(DATA, user, but=1) and min(items) >= 1
    assert len(asking) > 20


def test_the_seed_decides() -> None:
    one, again, other = (draw_requests(DATA, np.array([30, 9]), LENGTH, seed) for seed in (5, 5, 6))
    assert all(np.array_equal(a[name], b[name]) for a, b in zip(one, again, strict=True) for name in a)
    assert not np.array_equal(one[0]["item"], other[0]["item"])


def test_items_come_by_their_count_in_train() -> None:
    # Train counts 6, 3, 2 and 1 of items 1 to 4; item 5 is in test only. The last user took all four and never asks.
    sequences = _of([1, 1, 1, 2, 1, 5], [1, 2, 1, 1, 2, 5], [3, 4, 3, 2, 1, 1], items=5)
    assert sequences.item_counts().tolist() == [0, 6, 3, 2, 1, 0]
    requests = draw_requests(sequences, np.ones(6000, dtype=np.int64), LENGTH, seed=0)
    assert all(request["history"].max() == 2 for request in requests)
    values, counts = np.unique([request["item"] for request in requests], return_counts=True)
    assert values.tolist() == [3, 4] and chisquare(counts, [4000, 2000]).pvalue > 0.001


def test_users_ask_evenly() -> None:
    sequences = _of(*([code] * (3 + 4 * code) for code in range(1, 9)), items=8)
    requests = draw_requests(sequences, np.ones(8000, dtype=np.int64), 1, seed=0)
    asked = np.bincount([request["history"][0, 0] for request in requests], minlength=9)
    assert asked[0] == 0 and chisquare(asked[1:]).pvalue > 0.001


def test_a_catalogue_too_small_repeats_items_and_one_used_up_is_refused() -> None:
    sequences = _of([1, 2, 3, 1], [4, 4, 4, 4, 4], items=4)
    requests = draw_requests(sequences, np.full(40, 7), LENGTH, seed=0)
    for request in requests:
        allowed = {4} if 1 in request["history"] else {1, 2}
        assert set(request["item"].tolist()) <= allowed and len(request["item"]) == 7
    # User 0 took 1 and 2 in train, 3 for validation; user 1 took them in train: of train's items nothing is left.
    with pytest.raises(ValueError, match="'by hand'"):
        draw_requests(_of([1, 2, 2, 3, 3], [1, 2, 1, 1], items=3), np.array([2]), LENGTH, seed=0)


def test_a_history_of_no_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"length .*0"):
        draw_requests(DATA, np.array([3]), 0, seed=0)
