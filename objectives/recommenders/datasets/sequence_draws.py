"""Random draws from sequences: requests as in production, and negatives for training."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from objectives.held_out_rows import HeldPart
from objectives.recommenders.datasets.sequences import Codes, Sequences, histories, item_counts
from objectives.recommenders.datasets.weighted_sampling import ByWeight


class Negatives:
    """Sampler of items that a user has no train event with, for training (Kang and McAuley 2018, section III-E)."""

    def __init__(self, sequences: Sequences) -> None:
        user, code = _taken(sequences, "validation")
        counts = np.bincount(user, minlength=sequences.users)
        self._items = sequences.items
        self._starts = np.cumsum(counts) - counts
        self._free = sequences.items - counts  # items that each user has not taken
        # Number of free items with a smaller code than the one taken; it rises within a user, so the array is sorted.
        smaller = code - 1 - (np.arange(len(code)) - self._starts[user])
        self._keys = user * (self._items + 1) + smaller

    def draw(self, user: NDArray[np.int64], shape: tuple[int, ...], random: np.random.Generator) -> Codes:
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


def draw_requests(
    sequences: Sequences, rows: NDArray[np.int64], length: int, seed: int
) -> list[dict[str, NDArray[np.int64]]]:
    """Draw one request for each of rows, (count,): `history`, (1, length), of a user before test, and `item`, (rows,).

    Items are drawn by their count in train among those the user had not taken before test, at any time: without
    replacement while there are enough of them, else with. Users are drawn uniformly.

    Raises:
        ValueError: rows are not sizes of at least 1, or every user has taken all items.
    """
    if rows.ndim != 1 or len(rows) == 0 or rows.min() < 1:
        raise ValueError(f"rows must be the sizes, at least 1, of at least 1 request, but got {rows}")
    random = np.random.default_rng(seed)
    items = ByWeight(item_counts(sequences).astype(np.float64))
    known = items.possible
    user, code = _taken(sequences, "test")
    open_to_more = np.flatnonzero(np.bincount(user[known[code]], minlength=sequences.users) < np.count_nonzero(known))
    if len(open_to_more) == 0:
        raise ValueError(f"users must have items that they have not taken, but got none in {sequences.name!r}")
    asking = random.choice(open_to_more, size=len(rows))
    history = histories(sequences, "test", length)[0][asking]
    starts, ends = sequences.offsets[asking], sequences.target_at("test")[asking]
    requests = []
    for number, count in enumerate(rows.tolist()):
        allowed = known.copy()
        allowed[sequences.codes[starts[number] : ends[number]]] = False
        requests.append({"history": history[number : number + 1], "item": items.draw(count, allowed, random)})
    return requests


def _taken(sequences: Sequences, before: HeldPart) -> tuple[NDArray[np.int64], Codes]:
    """Return the distinct pairs of a user, (n,), and an item taken before the part's event, (n,), sorted."""
    events = np.diff(sequences.offsets)
    earlier = np.arange(len(sequences.codes)) < np.repeat(sequences.target_at(before), events)
    user = np.repeat(np.arange(sequences.users), events)[earlier]
    return np.divmod(np.unique(user * (sequences.items + 1) + sequences.codes[earlier]), sequences.items + 1)
