"""Rank of a held-out item in the whole catalogue, and the gain of a rank."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from objectives.measurement.statistics import Floats

Codes = NDArray[np.int64]
_NAME = re.compile(r"(hr|ndcg)@([1-9][0-9]{0,8})")


def is_ranking(metric: str) -> bool:
    """Return whether this is the name of a ranking metric: hr@K or ndcg@K, K from 1."""
    return _NAME.fullmatch(metric) is not None


def gains(metric: str, ranks: Floats) -> Floats:
    """Return the gain of each held-out item, the one relevant item of its row, (n,); their mean is the metric.

    Kang and McAuley 2018, section 4.3. hr@K: 1 where rank <= K, else 0. ndcg@K: 1 / log2(1 + rank) where rank <= K,
    else 0; the ideal is 1.

    Args:
        ranks: (n,) from 1

    Raises:
        ValueError: not the name of a ranking metric.
    """
    named = _NAME.fullmatch(metric)
    if named is None:
        raise ValueError(f"A ranking metric is hr@K or ndcg@K with K from 1, but got {metric!r}.")
    worth = np.ones(len(ranks)) if named[1] == "hr" else 1 / np.log2(1 + ranks)
    return np.where(ranks <= int(named[2]), worth, 0.0)


def ranks(
    score: Callable[[int], NDArray[np.floating]], targets: Codes, histories: Sequence[Codes] | NDArray[np.int64]
) -> Floats:
    """Return the rank of each row's held-out item in the whole catalogue, without the items of the row's own history.

    Ties count half: 1 + the number of better items + half the number of others with the same score, the mean rank over
    all orders of the tied. So a model that scores all items alike does not get the first rank for it. A held-out item
    that its own history holds too stays in.

    Args:
        score: row number -> (items,) scores of the items with the codes 1 to items
        targets: (n,) codes of the held-out items
        histories: for each of the n rows the codes in its history, in any order; 0 is padding

    Returns:
        (n,) from 1, halves between

    Raises:
        ValueError: not one history for each target, codes outside the catalogue, scores that are not finite.
    """
    if len(targets) != len(histories):
        raise ValueError(f"There is one history for each target, but got {len(histories)} for {len(targets)}.")
    return np.array([_rank(score(row), int(targets[row]), histories[row]) for row in range(len(targets))], np.float64)


def _rank(scores: NDArray[np.floating], target: int, history: Codes) -> float:
    items = len(scores)
    if not 1 <= target <= items:
        raise ValueError(f"A held-out item has a code from 1 to {items}, but got {target}.")
    if history.size and not 0 <= history.min() <= history.max() <= items:
        raise ValueError(f"A history has codes from 0 to {items}, but got {history.min()} to {history.max()}.")
    if not np.isfinite(scores).all():
        raise ValueError(f"Scores must be finite, but {int((~np.isfinite(scores)).sum())} of {items} are not.")
    others = np.concatenate(([-np.inf], scores))  # by code; padding and seen items never rank first
    own = others[target]
    others[history] = -np.inf
    others[target] = -np.inf
    return 1 + int((others > own).sum()) + int((others == own).sum()) / 2
