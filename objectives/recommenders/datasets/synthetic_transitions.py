"""Sequential structure of a synthetic log: transitions between items, with known probabilities.

The items lie on a circle, each on an arc as long as its popularity, and the circle is divided into equal sections, each
of which another follows. A transition from an item takes two draws: a point of its own arc, and a point of the section
that follows the first point's; the next item is the one that lies there. The sections' order is a permutation, so
uniform points stay uniform: with any strength of the order, an item is as popular as without it.

The earlier item that leads is drawn too, the latest most often: the mixture transition distribution of Raftery, "A
Model for High-Order Markov Chains" (1985). So a model gains by reading more than the last item.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from objectives.recommenders.datasets.click_log import Integers, frozen

SECTIONS = 32  # rank of the transition matrix: fewer than the usual embedding dimensions
_LATEST = 0.4  # probability that the latest item leads; the one before it by the same share of the rest, and so on
_STREAM = 0x6F72646572  # separates the order's random numbers from the log's, which have the same seed


@dataclass(frozen=True, eq=False)
class HiddenOrder:
    """Transitions drawn once for a log; made by `hidden_order`."""

    bounds: NDArray[np.float64]  # (items + 1,) from 0 to 1: item i lies from bounds[i] to bounds[i + 1]
    follower: Integers  # (SECTIONS,) the section that follows each

    def __post_init__(self) -> None:
        object.__setattr__(self, "bounds", frozen(self.bounds))
        object.__setattr__(self, "follower", frozen(self.follower))

    def draw(self, user: Integers, strength: float, random: np.random.Generator) -> Integers:
        """Draw the item of each row, (rows,), for the user of each row, (rows,), in time order.

        Args:
            strength: probability that an earlier item of the user leads to the next; else it is drawn by popularity
        """
        rows = len(user)
        by_user = np.argsort(user, kind="stable")
        counts = np.bincount(user)
        turn = np.arange(rows) - np.repeat(np.cumsum(counts) - counts, counts)
        lag = np.where(random.random(rows) < strength, np.minimum(random.geometric(_LATEST, rows), turn), 0)
        item = self._at(random.random(rows))
        led = np.flatnonzero(lag)
        led = led[np.argsort(turn[led], kind="stable")]
        # Items of one user depend on each other, users do not: each turn is drawn for all users at once.
        for now in np.split(led, np.cumsum(np.bincount(turn[led]))[:-1]):
            item[now] = self._after(item[now - lag[now]], random)
        drawn = np.empty(rows, dtype=np.int64)
        drawn[by_user] = item
        return drawn

    def _after(self, item: Integers, random: np.random.Generator) -> Integers:
        """Draw an item, (n,), that each item, (n,), leads to."""
        start, end = self.bounds[item], self.bounds[item + 1]
        point = start + random.random(len(item)) * (end - start)
        section = np.minimum((point * SECTIONS).astype(np.int64), SECTIONS - 1)  # rounding may reach the very end
        return self._at((self.follower[section] + random.random(len(item))) / SECTIONS)

    def _at(self, point: NDArray[np.float64]) -> Integers:
        """Return the item, (n,), of each point of the circle, (n,)."""
        item = np.searchsorted(self.bounds[1:], point, side="right")
        return np.minimum(item, len(self.bounds) - 2).astype(np.int64)


def hidden_order(items: int, zipf: float, seed: int) -> HiddenOrder:
    """Return the order that `synthetic_log` uses for these items, zipf and seed, so that the true order is known."""
    random = np.random.default_rng((seed, _STREAM))
    weight = random.permutation(np.arange(1, items + 1, dtype=np.float64) ** -zipf)
    bounds = np.concatenate(([0.0], np.cumsum(weight / weight.sum())))
    bounds[-1] = 1.0  # cumulated, it is off by rounding
    return HiddenOrder(bounds, random.permutation(SECTIONS))
