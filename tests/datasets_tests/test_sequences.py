"""Sequences: the filter and the cuts against plain loops over lists, the slices by hand."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objectives.recommenders.datasets.click_log import ClickLog
from objectives.recommenders.datasets.sequences import Sequences, sequences_of
from objectives.recommenders.slices import LITTLE_HISTORY, RARE_ITEMS, sequence_slices

Event = tuple[int, int]


def _log(events: list[Event], label: list[int] | None = None) -> ClickLog:
    """One event (user, item) at each second."""
    user, item = (np.array(values) for values in zip(*events, strict=True))
    return ClickLog("log", user, item, np.arange(len(events)), label or np.arange(len(events)) % 2)


def _of(*users: list[int], items: int = 9) -> Sequences:
    """The sequences of these codes."""
    offsets = np.cumsum([0, *map(len, users)])
    return Sequences("by hand", np.arange(1, items + 1) * 10, np.concatenate(users).astype(np.int64), offsets)


def _raw(sequences: Sequences) -> list[list[int]]:
    """Each user's events as raw ids."""
    return [part.tolist() for part in np.split(sequences.ids[sequences.codes - 1], sequences.offsets[1:-1])]


def _core(events: list[Event], least: int) -> list[Event]:
    """The events left when one user or item with too few is dropped at a time."""
    while True:
        users, items = Counter(user for user, _ in events), Counter(item for _, item in events)
        few = next(((u, i) for u, i in events if users[u] < least or items[i] < least), None)
        if few is None:
            return events
        if users[few[0]] < least:
            events = [event for event in events if event[0] != few[0]]
        else:
            events = [event for event in events if event[1] != few[1]]


@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(-3, 5)), min_size=2, max_size=90),
    st.integers(3, 6),
)
def test_those_with_few_events_are_dropped_until_none_is_left(events: list[Event], least: int) -> None:
    left = _core(events, least)
    if not left:
        with pytest.raises(ValueError, match=f"{least} events"):
            sequences_of(_log(events), least)
        return
    expected = [[item for user, item in left if user == of] for of in sorted({user for user, _ in left})]
    assert _raw(sequences_of(_log(events), least)) == expected


def test_dropping_one_may_drop_another() -> None:
    solid = [(user, item) for user in range(3) for item in range(3)]
    # User 3 has 3 events, but one with an item that has no other; item 3 has 3 events, of which that user has one.
    chain = [(3, 99), (3, 3), (3, 0), (0, 3), (1, 3)]
    assert sorted({item for user in _raw(sequences_of(_log(solid + chain), 3)) for item in user}) == [0, 1, 2]


def test_a_code_is_the_rank_by_count_in_train() -> None:
    events = [(u, i) for u, items in enumerate(([7, 7, 5, 9, 5], [7, 5, 4, 5, 9], [4, 9, 4, 9, 9])) for i in items]
    sequences = sequences_of(_log(events), 3)
    # In train, 7 and 4 come three times, 5 twice, 9 once; in all, 9 comes most often. Items 4 and 7 tie.
    assert sequences.ids.tolist() == [4, 7, 5, 9]
    assert sequences.codes[:5].tolist() == [2, 2, 3, 4, 3]
    assert sequences.item_counts().tolist() == [0, 3, 3, 2, 1]
    assert (sequences.items, sequences.users) == (4, 3)


def test_an_item_that_train_lacks_comes_last() -> None:
    events = [(u, i) for u in range(3) for i in (8, 6, 8, 6, 1)]
    sequences = sequences_of(_log(events), 3)
    assert sequences.ids.tolist() == [8, 6, 1] and sequences.item_counts().tolist() == [0, 6, 3, 0]


def test_events_at_one_moment_keep_the_order_of_the_log() -> None:
    log = ClickLog("ties", [1, 1, 1, 0, 0, 0] * 3, [3, 1, 2] * 6, np.arange(18) // 9, np.arange(18) % 2)
    expected = [log.item[log.user == user].tolist() for user in (0, 1)]
    assert _raw(sequences_of(log, 3)) == expected


def test_explicit_events_are_those_with_label_1() -> None:
    events = [(u, i) for i in range(4) for u in range(4)]
    label = [int(item < 3) for _, item in events]
    assert _raw(sequences_of(_log(events, label), 3, implicit=False)) == [[0, 1, 2]] * 4
    assert _raw(sequences_of(_log(events, label), 3)) == [[0, 1, 2, 3]] * 4


def test_the_last_event_is_for_test_and_the_one_before_it_for_validation() -> None:
    sequences = _of([1, 2, 3, 4, 5], [6, 7, 8])
    history, target = sequences.histories("validation", 4)
    assert history.tolist() == [[0, 1, 2, 3], [0, 0, 0, 6]]
    assert target.tolist() == [4, 7]
    history, target = sequences.histories("test", 4)
    assert history.tolist() == [[1, 2, 3, 4], [0, 0, 6, 7]]
    assert target.tolist() == [5, 8]
    assert sequences.histories("test", 2)[0].tolist() == [[3, 4], [6, 7]]


def test_training_predicts_each_train_event_but_the_first() -> None:
    inputs, targets = _of([1, 2, 3, 4, 8, 8], [5, 6, 8, 8], [7, 8, 8]).training(3)
    assert inputs.tolist() == [[1, 2, 3], [0, 0, 5], [0, 0, 0]]
    assert targets.tolist() == [[2, 3, 4], [0, 0, 6], [0, 0, 0]]
    inputs, targets = _of([1, 2, 3, 4, 8, 8], [5, 6, 8, 8]).training(2)
    assert inputs.tolist() == [[2, 3], [0, 5]] and targets.tolist() == [[3, 4], [0, 6]]


@given(st.lists(st.lists(st.integers(1, 9), min_size=3, max_size=12), min_size=1, max_size=5), st.integers(1, 12))
def test_cuts_are_those_of_lists(users: list[list[int]], length: int) -> None:
    def padded(events: list[int]) -> list[int]:
        return ([0] * length + events)[-length:]

    sequences = _of(*users)
    assert sequences.histories("validation", length)[0].tolist() == [padded(user[:-2]) for user in users]
    assert sequences.histories("test", length)[0].tolist() == [padded(user[:-1]) for user in users]
    inputs, targets = sequences.training(length)
    assert inputs.tolist() == [padded(user[:-3]) for user in users]
    assert targets.tolist() == [padded(user[1:-2]) for user in users]
    counts = Counter(code for user in users for code in user[:-2])
    assert sequences.item_counts().tolist() == [counts[code] for code in range(10)]


def _short(sequences: Sequences, user: np.ndarray) -> np.ndarray:
    return sequence_slices(sequences, user, np.ones_like(user))[LITTLE_HISTORY]


def _rare(sequences: Sequences, target: np.ndarray) -> np.ndarray:
    return sequence_slices(sequences, np.zeros_like(target), target)[RARE_ITEMS]


def test_the_quarter_with_the_least_history() -> None:
    # Train events: 1, 5, 2, 4, 3, 9, 7, 8: a quarter of eight users is the two with 1 and 2.
    sequences = _of(*([1] * (events + 2) for events in (1, 5, 2, 4, 3, 9, 7, 8)))
    assert _short(sequences, np.arange(8)).tolist() == [True, False, True] + [False] * 5
    assert _short(sequences, np.array([2, 2, 1])).tolist() == [True, True, False]
    tied = _of([1] * 4, [1] * 4, [1] * 4, [1] * 9)
    assert _short(tied, np.arange(4)).tolist() == [True, True, True, False]


def test_the_items_of_the_last_fifth_of_the_events() -> None:
    # Train counts 5, 2, 1, 1, 1 and none: 4 and 5 together have 2 of 10 events, with item 3 it would be 3.
    train = [1] * 5 + [2] * 2 + [3, 4, 5]
    sequences = _of([*train, 6, 6], items=6)
    assert _rare(sequences, np.arange(1, 7)).tolist() == [False, False, False, True, True, True]
    assert _rare(sequences, np.array([5, 1, 5])).tolist() == [True, False, True]
    assert not _rare(_of([1, 2, 1, 2, 1], items=2), np.array([1, 2])).any()


def test_the_key_tells_sequences_apart() -> None:
    one = _of([1, 2, 3], [4, 5, 6, 7])
    assert one.key() == _of([1, 2, 3], [4, 5, 6, 7]).key()
    others = [_of([1, 2, 3, 4], [5, 6, 7]), _of([1, 2, 3], [4, 5, 7, 6]), _of([1, 2, 3], [4, 5, 6, 7], items=10)]
    renamed = Sequences("another", one.ids, one.codes, one.offsets)
    assert len({each.key() for each in [one, renamed, *others]}) == 5


def test_nothing_can_be_changed() -> None:
    sequences = _of([1, 2, 3])
    for array in (sequences.ids, sequences.codes, sequences.offsets):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 2


def test_bad_input_is_refused() -> None:
    log = _log([(0, 0), (1, 1)])
    with pytest.raises(ValueError, match=r"least .*3 .*2"):
        sequences_of(log, 2)
    ads = ClickLog("ads", None, None, np.arange(2), np.array([0, 1], dtype=np.float32))
    with pytest.raises(ValueError, match=r"'ads' .*users .*items"):
        sequences_of(ads)
    with pytest.raises(ValueError, match=r"length .*0"):
        _of([1, 2, 3]).training(0)
    with pytest.raises(ValueError, match=r"codes .*1 to 2.*1 to 3"):
        _of([1, 2, 3], items=2)
    with pytest.raises(ValueError, match=r"codes .*1 to 9.*0 to 3"):
        _of([0, 2, 3])
    for users in ([[1, 2]], [[1, 2, 3], []]):
        with pytest.raises(ValueError, match="3 events"):
            _of(*users)
    with pytest.raises(ValueError, match=r"offsets .*4"):
        Sequences("short", np.array([1]), np.ones(4, dtype=np.int64), np.array([0, 3]))
    with pytest.raises(ValueError, match=r"codes .*int64.*int32"):
        Sequences("narrow", np.array([1]), np.ones(3, dtype=np.int32), np.array([0, 3]))  # type: ignore[arg-type]
