"""Held-out rows that a smaller model may serve worse than the rest: of users with little history, of rare items."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from objectives.recommenders.features import Dataset
from objectives.recommenders.split import Part

LITTLE_HISTORY, RARE_ITEMS = "users with little history", "rare items"
_SHORT = 0.25  # of the users of train: those with the fewest rows
_RARE = 0.2  # of train rows: those of the least popular items


def slices_of(dataset: Dataset, part: Part) -> dict[str, NDArray[np.bool_]]:
    """(n_part,) by name, as far as the data name users and items.

    Little history: no more train rows than the user at the first quarter of train's users has. Rare: of the least
    popular items, which together have no more than a fifth of the train rows. Users and items unseen in train count.
    """
    rows, train = getattr(dataset.split, part), dataset.split.train
    found = {}
    if dataset.field("user") is not None:
        counts = np.bincount(dataset.group[train], minlength=int(dataset.group.max()) + 1)
        few = np.quantile(counts[counts > 0], _SHORT, method="inverted_cdf")
        found[LITTLE_HISTORY] = np.asarray(counts[dataset.group[rows]] <= few)
    item = dataset.field("item")
    if item is not None:
        codes = dataset.inputs["item"]
        counts = np.bincount(codes[train], minlength=item.vocabulary)
        counts[0] = 0  # codes descend by count from 1; 0 is unseen
        of_it_and_rarer = np.cumsum(counts[::-1])[::-1]
        rare = (of_it_and_rarer <= _RARE * counts.sum()) | (np.arange(item.vocabulary) == 0)
        found[RARE_ITEMS] = rare[codes[rows]]
    return found
