"""True probabilities of a synthetic log's next items, by its hidden order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from objectives.recommenders.datasets.synthetic import SECTIONS, HiddenOrder

LATEST = 0.4  # probability that the latest item leads; the one before it by the same share of the rest, and so on


def popularity(order: HiddenOrder) -> NDArray[np.float64]:
    """Popularity of each item, (items,): its share of all rows, with any strength of the order."""
    return np.diff(order.bounds)


def probabilities(order: HiddenOrder, history: NDArray[np.int64], strength: float) -> NDArray[np.float64]:
    """Probability of each item, (items,), to be a user's next.

    No ranking of the items has a higher expected hit rate or NDCG than that by these.

    Args:
        history: (n,) all items of the user so far, the latest last
    """
    if len(history) == 0:
        return popularity(order)
    leads = LATEST * (1 - LATEST) ** np.arange(len(history))
    leads[-1] = (1 - LATEST) ** (len(history) - 1)  # a lag that reaches beyond the first item ends there
    items, place = np.unique(history[::-1], return_inverse=True)
    start, end = order.bounds[items, None], order.bounds[items + 1, None]
    sections = np.linspace(0.0, 1.0, SECTIONS + 1)
    share = np.diff(np.clip(sections, start, end), axis=1) / (end - start)  # of each item's arc in each section
    section = np.empty(SECTIONS)
    section[order.follower] = np.bincount(place, weights=leads) @ share
    up_to = np.concatenate(([0.0], np.cumsum((1 - strength) / SECTIONS + strength * section)))
    return np.diff(np.interp(order.bounds, sections, up_to))
