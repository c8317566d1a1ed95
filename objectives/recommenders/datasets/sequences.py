"""Event sequences of users, split into train, validation and test, and draws of requests and of negatives.

The preparation is that of Kang and McAuley, "Self-Attentive Sequential Recommendation" (2018), section IV-A.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from objectives.held_out_rows import HeldPart
from objectives.recommenders.datasets.click_log import ClickLog, Integers, content_key, frozen
from objectives.recommenders.datasets.weighted_sampling import ByWeight

Codes = Integers  # of items

_FROM_THE_END: dict[HeldPart, int] = {"validation": 2, "test": 1}
_FEWEST = 3  # events of a user: one each for train, validation and test


@dataclass(frozen=True, eq=False)
class Sequences:
    """Events of each user, in time order: user u has codes[offsets[u]] to codes[offsets[u + 1] - 1].

    The last event of a user is for test, the one before it for validation, the rest for train. An item's code is its
    rank by count in train, from 1, ties by raw id, so items without a train event come last; 0 is padding.
    """

    name: str
    ids: Integers  # (items,) the raw ids of codes 1 to items
    codes: Codes  # (events,)
    offsets: Integers  # (users + 1,)

    def __post_init__(self) -> None:
        for name in ("ids", "codes", "offsets"):
            array = getattr(self, name)
            if array.ndim != 1 or array.dtype != np.int64:
                raise ValueError(f"{name} must be int64 of 1 axis, but got {array.dtype} of {array.ndim}")
            object.__setattr__(self, name, frozen(array))
        events, ends = len(self.codes), self.offsets
        if len(ends) < 2 or ends[0] != 0 or ends[-1] != events or np.diff(ends).min() < _FEWEST:
            rule = f"offsets must go from 0 to {events} and leave each user {_FEWEST} events or more"
            raise ValueError(f"{rule}, but got {ends}")
        if self.codes.min() < 1 or self.codes.max() > self.items:
            raise ValueError(f"codes must be 1 to {self.items}, but got {self.codes.min()} to {self.codes.max()}")

    @property
    def items(self) -> int:
        return len(self.ids)

    @property
    def users(self) -> int:
        return len(self.offsets) - 1

    @property
    def encoding(self) -> str:
        """Hash of what the codes stand for."""
        return content_key("", (self.ids,))[:20]

    def target_at(self, part: HeldPart) -> Integers:
        """Return the position of each user's held-out event, (users,); train ends before that of validation."""
        return self.offsets[1:] - _FROM_THE_END[part]

    def key(self) -> str:
        """Return the SHA-256 of the whole content, in hex."""
        return content_key(self.name, (self.ids, self.codes, self.offsets))

    def histories(self, part: HeldPart, length: int) -> tuple[Codes, Codes]:
        """Return each user's history before the part's event, (users, length), and that event, (users,).

        It has the latest `length` events, padded with 0 on the left; that of test includes validation's event.
        """
        at = self.target_at(part)
        return self._latest(self.offsets[:-1], at, length), self.codes[at]

    def seen_before(self, part: HeldPart, user: Integers) -> Codes:
        """Return the items that each user, (n,), had taken before the part's event, (n, longest), 0 on the left."""
        start, end = self.offsets[user], self.target_at(part)[user]
        return self._latest(start, end, int((end - start).max()))

    def training(self, length: int) -> tuple[Codes, Codes]:
        """Return each user's latest train events without the last one, and the event after each, both (users, length).

        Both are padded with 0 on the left: a user's first event is an input only, not a target.
        """
        start, end = self.offsets[:-1], self.target_at("validation")
        inputs, targets = self._latest(start, end - 1, length), self._latest(start, end, length)
        targets[inputs == 0] = 0
        return inputs, targets

    def item_counts(self) -> Integers:
        """Return the train events of each code, (items + 1,); 0 for padding."""
        counts = np.bincount(self.codes, minlength=self.items + 1)
        for part in _FROM_THE_END:
            counts -= np.bincount(self.codes[self.target_at(part)], minlength=len(counts))
        return counts

    def taken(self, before: HeldPart) -> tuple[Integers, Codes]:
        """Return the distinct pairs of a user, (n,), and an item taken before the part's event, (n,), sorted."""
        events = np.diff(self.offsets)
        earlier = np.arange(len(self.codes)) < np.repeat(self.target_at(before), events)
        user = np.repeat(np.arange(self.users), events)[earlier]
        return np.divmod(np.unique(user * (self.items + 1) + self.codes[earlier]), self.items + 1)

    def _latest(self, start: Integers, end: Integers, length: int) -> Codes:
        """Return the latest events from `start` to before `end`, (n,) each, padded with 0 on the left, (n, length)."""
        if length < 1:
            raise ValueError(f"the length of a history must be at least 1, but got {length}")
        at = end[:, None] + np.arange(-length, 0)
        return np.where(at >= start[:, None], self.codes[np.maximum(at, 0)], 0)


def sequences_of(log: ClickLog, least: int = 5, *, implicit: bool = True) -> Sequences:
    """Collect the log's events by user, ordered by raw id; events at one moment keep the log's order.

    Users and items with fewer than `least` events are removed repeatedly, until none with fewer is left.

    Args:
        implicit: each row is an event, with any label; else only rows with label 1 are

    Raises:
        ValueError: the log has no users or no items, or none with that many events.
    """
    if log.user is None or log.item is None:
        lacking = " and ".join(f"no {what}s" for what in ("user", "item") if getattr(log, what) is None)
        raise ValueError(f"log {log.name!r} must have users and items, but got {lacking}")
    if least < _FEWEST:
        raise ValueError(f"least must be at least {_FEWEST} (train, validation and test), but got {least}")
    rows = np.arange(len(log.user)) if implicit else np.flatnonzero(log.label == 1)
    rows = rows[np.argsort(log.user[rows], kind="stable")]  # within a user, time order is kept
    rows = rows[_often(log.user[rows], log.item[rows], least)]
    if len(rows) == 0:
        raise ValueError(f"log {log.name!r} must have users and items with {least} events each, but got none")
    user, item = log.user[rows], log.item[rows]
    offsets = np.append(np.unique(user, return_index=True)[1], len(rows)).astype(np.int64)
    in_train = np.ones(len(rows), dtype=bool)
    for from_the_end in _FROM_THE_END.values():
        in_train[offsets[1:] - from_the_end] = False
    return Sequences(log.name, *_coded(item, in_train), offsets)


class Negatives:
    """Sampler of items that a user has no train event with, for training (Kang and McAuley 2018, section III-E)."""

    def __init__(self, sequences: Sequences) -> None:
        user, code = sequences.taken("validation")
        counts = np.bincount(user, minlength=sequences.users)
        self._items = sequences.items
        self._starts = np.cumsum(counts) - counts
        self._free = sequences.items - counts  # items that each user has not taken
        # Number of free items with a smaller code than the one taken; it rises within a user, so the array is sorted.
        smaller = code - 1 - (np.arange(len(code)) - self._starts[user])
        self._keys = user * (self._items + 1) + smaller

    def draw(self, user: Integers, shape: tuple[int, ...], random: np.random.Generator) -> Codes:
        """Draw codes, (n, *shape), for each user, (n,), uniformly among all items that the user has not taken.

        Raises:
            ValueError: a user has taken every item.
        """
        if np.any(self._free[user] == 0):
            number = user[self._free[user] == 0][0]
            raise ValueError(f"a user must have items not taken in train, but got user {number}, who took all")
        user = np.broadcast_to(user.reshape(-1, *(1 for _ in shape)), (len(user), *shape))
        # The free item with exactly `rank` free ones before it: its code is 1 plus rank plus the taken items before it.
        rank = random.integers(self._free[user])
        taken = np.searchsorted(self._keys, user * (self._items + 1) + rank, side="right") - self._starts[user]
        return 1 + rank + taken


def draw_requests(sequences: Sequences, rows: Integers, length: int, seed: int) -> list[dict[str, Integers]]:
    """Draw one request for each number of rows in `rows`, (count,), at least 1 each.

    A request has `history`, (1, length), of a user before test, and `item`, (rows,).

    Items are drawn by their count in train among those the user had not taken before test, at any time: without
    replacement while there are enough of them, else with. Users are drawn uniformly.

    Raises:
        ValueError: every user has taken all items.
    """
    random = np.random.default_rng(seed)
    items = ByWeight(sequences.item_counts().astype(np.float64))
    known = items.possible
    user, code = sequences.taken("test")
    open_to_more = np.flatnonzero(np.bincount(user[known[code]], minlength=sequences.users) < np.count_nonzero(known))
    if len(open_to_more) == 0:
        raise ValueError(f"users must have items that they have not taken, but got none in {sequences.name!r}")
    asking = random.choice(open_to_more, size=len(rows))
    history = sequences.histories("test", length)[0][asking]
    starts, ends = sequences.offsets[asking], sequences.target_at("test")[asking]
    requests = []
    for number, count in enumerate(rows.tolist()):
        allowed = known.copy()
        allowed[sequences.codes[starts[number] : ends[number]]] = False
        requests.append({"history": history[number : number + 1], "item": items.draw(count, allowed, random)})
    return requests


def _often(user: Integers, item: Integers, least: int) -> NDArray[np.bool_]:
    """Return the events, (n,), that remain when every user and item has at least `least` of those that remain."""
    of = [np.unique(values, return_inverse=True)[1] for values in (user, item)]
    left = np.ones(len(user), dtype=bool)
    while True:
        counts = [np.bincount(numbers[left], minlength=len(user))[numbers] for numbers in of]
        enough = left & (counts[0] >= least) & (counts[1] >= least)
        if np.array_equal(enough, left):
            return left
        left = enough


def _coded(item: Integers, in_train: NDArray[np.bool_]) -> tuple[Integers, Codes]:
    """Return the raw ids in the order of their codes, (items,), and the code of each event, (events,)."""
    ids, number = np.unique(item, return_inverse=True)
    order = np.argsort(-np.bincount(number[in_train], minlength=len(ids)), kind="stable")
    code = np.empty(len(ids), dtype=np.int64)
    code[order] = np.arange(1, len(ids) + 1)
    return ids[order], code[number]
