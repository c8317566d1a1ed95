"""Slices of held-out rows that a smaller model may serve worse: little history, rare items, values of a column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from objectives.arrays import Arrays
from objectives.recommenders.datasets.click_log import SEPARATOR, Integers
from objectives.recommenders.datasets.features import Dataset
from objectives.recommenders.datasets.sequences import Codes, Sequences
from objectives.recommenders.datasets.split import Part

LITTLE_HISTORY, RARE_ITEMS = "users with little history", "rare items"
_HEADS = {LITTLE_HISTORY: "users with more history", RARE_ITEMS: "popular items"}
_VALUES = 5  # number of the commonest values of a column
Masks = dict[str, NDArray[np.bool_]]
_SHORT = 0.25  # share of train's users: those with the fewest rows
_RARE = 0.2  # share of train rows: those of the least popular items


def with_heads(tails: Masks) -> Masks:
    """Add the complement of each mask after it."""
    return {name: of for tail, mask in tails.items() for name, of in ((tail, mask), (_HEADS[tail], ~mask))}


def commonest(values: Iterable[object]) -> tuple[str, ...]:
    """Return the commonest values of a column's rows, each of which may have several."""
    counts = Counter(value for row in values for value in sorted(_of_row(row)))
    return tuple(value for value, _ in counts.most_common(_VALUES))


def of_values(columns: Arrays, wanted: Mapping[str, Sequence[str]]) -> Masks:
    """Return masks, (n,), of the rows of each column, (n,), that have one of its wanted values."""
    found: Masks = {}
    for name, values in columns.items():
        rows = [_of_row(value) for value in values.tolist()]
        found |= {f"{name} {value}": np.array([value in row for row in rows]) for value in wanted[name]}
    return found


def _of_row(value: object) -> set[str]:
    return set() if value is None else set(str(value).split(SEPARATOR)) - {""}


def slices_of(dataset: Dataset, part: Part) -> Masks:
    """Return masks, (n_part,), of users with little history and rare items, if the data name these, and complements.

    Little history: no more train rows than the train user at the first quartile, so at least a quarter of the users
    have it, and more where several have the same number. Rare: the least popular items, which together have no more
    than a fifth of the train rows. Users and items unseen in train count.
    """
    rows, train = getattr(dataset.split, part), dataset.split.train
    tails: Masks = {}
    if dataset.field("user") is not None:
        counts = np.bincount(dataset.group[train], minlength=int(dataset.group.max()) + 1)
        tails[LITTLE_HISTORY] = _few(counts[dataset.group[rows]], counts[counts > 0])
    item = dataset.field("item")
    if item is not None:
        codes = dataset.codes("item")
        counts = np.bincount(codes[train], minlength=item.vocabulary)
        counts[0] = 0  # codes descend by count from 1; 0 is unseen
        tails[RARE_ITEMS] = _rarest(counts)[codes[rows]] | (codes[rows] == 0)
    return with_heads(tails)


def sequence_slices(sequences: Sequences, user: Integers, target: Codes) -> Masks:
    """Return masks like those of `slices_of`, for users, (n,), and their next items, (n,) codes."""
    events = sequences.target_at("validation") - sequences.offsets[:-1]
    rare = _rarest(sequences.item_counts())
    return with_heads({LITTLE_HISTORY: _few(events[user], events), RARE_ITEMS: rare[target]})


def _few(counts: Integers, of_users: Integers) -> NDArray[np.bool_]:
    """Return whether each count, (n,), is no more than that of the user at the first quartile."""
    return np.asarray(counts <= np.quantile(of_users, _SHORT, method="inverted_cdf"))


def _rarest(counts: Integers) -> NDArray[np.bool_]:
    """Return whether each code is rare, given the train rows of each, which descend from code 1 on."""
    of_it_and_rarer = np.cumsum(counts[::-1])[::-1]
    return np.asarray(of_it_and_rarer <= _RARE * counts.sum())
