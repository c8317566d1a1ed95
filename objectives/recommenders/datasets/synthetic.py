"""Synthetic log of clicks of any size, with known true probabilities of labels and of transitions between items."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from objectives.recommenders.datasets.click_log import ClickLog, Integers, Side, frozen

_LATENT = 4  # dimensions of taste
_CHUNK = 1 << 18  # rows whose logits are computed at a time
_EPOCH = 1_600_000_000
_DAYS = 90
_SHORTEST_SPAN = 0.02  # shortest activity of a user at a turnover of 1, as a share of the period
_LEAST_ROWS = 10  # fewest rows of a user, where there are enough rows
_TURN: tuple[Side, ...] = ("user", "item", "context")  # sides of the further columns, in rotation
_BUCKETS = (12, 6, 24, 8)  # categories of the further columns, in rotation
SECTIONS = 32  # rank of the transition matrix: fewer than the usual embedding dimensions
_LATEST = 0.4  # probability that the latest item leads; the one before it by the same share of the rest, and so on
_STREAM = 0x6F72646572  # separates the order's random numbers from the log's, which have the same seed


@dataclass(frozen=True)
class _World:
    """Random quantities that labels depend on. Columns hold one category a user, item or row."""

    user_taste: NDArray[np.float64]  # (users, _LATENT)
    item_taste: NDArray[np.float64]  # (items, _LATENT)
    user_bias: NDArray[np.float64]  # (users,)
    item_bias: NDArray[np.float64]  # (items,)
    item_by_hour: NDArray[np.float64]  # (items, 24)


def synthetic_log(
    rows: int,
    users: int,
    items: int,
    fields: int = 8,
    seed: int = 0,
    *,
    user_turnover: float = 0.0,
    zipf: float = 1.0,
    positive_rate: float = 0.4,
    signal: float = 1.0,
    order: float = 0.0,
) -> ClickLog:
    """Make a log with `fields` categorical fields: user, item, the hour, then columns of each side in rotation.

    Args:
        user_turnover: 0: each user's rows, at least min(10, rows // users), spread over the whole period; 1: within one
            short span
        zipf: exponent of the items' popularity
        positive_rate: share of positive labels
        signal: scale of the logits; at 0 labels are noise
        order: probability that an item follows from the user's earlier ones (`hidden_order`), not from its popularity

    Raises:
        ValueError: an argument lies outside its range.
    """
    _check(rows, users, items, fields, user_turnover, zipf, positive_rate, signal, order)
    random = np.random.default_rng(seed)
    user, timestamp = _visits(rows, users, user_turnover, random)
    if order > 0:
        item = hidden_order(items, zipf, seed).draw(user, order, random)
    else:
        item = _popular(rows, items, zipf, random)
    hour = timestamp // 3600 % 24
    world = _world(users, items, random)
    logit = _logits(world, user, item, hour)
    columns: dict[str, Integers] = {}
    sides: dict[str, Side] = {}
    if fields > 2:
        columns["hour"], sides["hour"] = hour, "context"
    for name, side, column, effect in _further_columns(world, user, item, fields - 3, random):
        columns[name], sides[name] = column, side
        logit += effect
    probability = _sigmoid(signal * logit + _offset(signal * logit, positive_rate))
    label = (random.random(rows) < probability).astype(np.float32)
    auc = expected_auc(probability)
    return ClickLog("synthetic", user, item, timestamp, label, columns, sides, bayes_auc=auc)


def _check(
    rows: int,
    users: int,
    items: int,
    fields: int,
    user_turnover: float,
    zipf: float,
    positive_rate: float,
    signal: float,
    order: float,
) -> None:
    """Raise ValueError for an argument of `synthetic_log` that lies outside its range."""
    for what, value, least, most in (
        ("users", users, 1, math.inf), ("rows", rows, max(2, users), math.inf), ("items", items, 1, math.inf),
        ("fields", fields, 2, math.inf), ("zipf", zipf, 0, math.inf), ("signal", signal, 0, math.inf),
        ("user_turnover", user_turnover, 0, 1), ("order", order, 0, 1),
    ):  # fmt: skip
        if not least <= value <= most:
            rule = f"at least {least}" if most == math.inf else f"between {least} and {most}"
            rule += ", the number of users" if what == "rows" and least == users else ""
            raise ValueError(f"{what} must be {rule}, but got {value}")
    if not 0 < positive_rate < 1:
        raise ValueError(f"positive_rate must be between 0 and 1, but got {positive_rate}")


@dataclass(frozen=True, eq=False)
class HiddenOrder:
    """Sequential structure of a log: transitions between items, drawn once by `hidden_order`.

    The items lie on a circle, each on an arc as long as its popularity, and the circle is divided into equal sections,
    each of which another follows. A transition from an item takes two draws: a point of its own arc, and a point of the
    section that follows the first point's; the next item is the one that lies there. The sections' order is a
    permutation, so uniform points stay uniform: with any strength of the order, an item is as popular as without it.

    The earlier item that leads is drawn too, the latest most often: the mixture transition distribution of Raftery, "A
    Model for High-Order Markov Chains" (1985). So a model gains by reading more than the last item.
    """

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


def expected_auc(probability: NDArray[np.float64]) -> float:
    """Return the expected AUC of scoring each row, (n,), by the true probability that its label is 1; in O(n log n).

    It is the expected number of correctly ordered pairs of a positive and a negative row over the expected number of
    such pairs: row i is the positive and row j the negative one with probability p_i (1 - p_j). A tie counts half.

    Raises:
        ValueError: no pair of a positive and a negative row is possible.
    """
    p = np.sort(probability)
    q = 1 - p
    starts = np.flatnonzero(np.concatenate(([True], p[1:] != p[:-1])))
    tied_p, tied_q = np.add.reduceat(p, starts), np.add.reduceat(q, starts)
    below_q = np.cumsum(tied_q) - tied_q
    # Sums of products, not BLAS, whose rounding depends on the number of threads: the same log has the same key
    # everywhere.
    itself = float((p * q).sum())  # no row makes a pair with itself
    pairs = float(p.sum() * q.sum()) - itself
    if pairs <= 0:
        raise ValueError(f"probabilities must allow a positive and a negative row, but got {probability[:3]}...")
    return (float((tied_p * (below_q + tied_q / 2)).sum()) - itself / 2) / pairs


def _visits(rows: int, users: int, turnover: float, random: np.random.Generator) -> tuple[Integers, Integers]:
    """Draw the user and the timestamp in seconds of each row, (rows,): in time order, no two at one moment."""
    least = min(_LEAST_ROWS, rows // users)
    activity = random.lognormal(0, 1, users)
    counts = least + random.multinomial(rows - least * users, activity / activity.sum())
    user = np.repeat(np.arange(users), counts)
    within = np.arange(rows) - np.repeat(np.cumsum(counts) - counts, counts)
    # One moment in each of a user's equal slices of the span: the rows of each user cover all of it.
    moment = (within + random.random(rows)) / counts[user]
    span = 1 - turnover * (1 - _SHORTEST_SPAN)
    moment = random.random(users)[user] * (1 - span) + span * moment
    order = np.argsort(moment, kind="stable")
    seconds = max(_DAYS * 86400, 10 * rows)
    timestamp = _EPOCH + (moment[order] * seconds).astype(np.int64) + np.arange(rows)
    return user[order], timestamp


def _popular(rows: int, items: int, zipf: float, random: np.random.Generator) -> Integers:
    """Draw the item of each row, (rows,); the number of an item is independent of its popularity."""
    weight = np.arange(1, items + 1, dtype=np.float64) ** -zipf
    cumulative = np.cumsum(weight)
    rank = np.searchsorted(cumulative, random.random(rows) * cumulative[-1], side="right")
    return np.asarray(random.permutation(items)[np.minimum(rank, items - 1)], dtype=np.int64)


def _world(users: int, items: int, random: np.random.Generator) -> _World:
    phase = random.random((items, 1)) * 2 * np.pi
    swing = random.normal(0, 0.5, (items, 1))
    return _World(
        user_taste=random.normal(size=(users, _LATENT)),
        item_taste=random.normal(size=(items, _LATENT)),
        user_bias=random.normal(0, 0.5, users),
        item_bias=random.normal(0, 0.7, items),
        item_by_hour=swing * np.cos(np.arange(24) * (2 * np.pi / 24) - phase),
    )


def _logits(world: _World, user: Integers, item: Integers, hour: Integers) -> NDArray[np.float64]:
    logit = np.empty(len(user))
    for start in range(0, len(user), _CHUNK):
        part = slice(start, start + _CHUNK)
        u, i = user[part], item[part]
        match = np.einsum("nd,nd->n", world.user_taste[u], world.item_taste[i]) / np.sqrt(_LATENT)
        logit[part] = match + world.user_bias[u] + world.item_bias[i] + world.item_by_hour[i, hour[part]]
    return logit


def _further_columns(
    world: _World, user: Integers, item: Integers, count: int, random: np.random.Generator
) -> Iterator[tuple[str, Side, Integers, NDArray[np.float64] | float]]:
    """Yield columns of each side in rotation: the name, the side, the values, (rows,), and what they add to the logit.

    Columns of users and items tell of their taste, which the logit has already.
    """
    for number in range(count):
        side, buckets = _TURN[number % 3], _BUCKETS[number % len(_BUCKETS)]
        name = f"{side}_{number // 3}"
        if side == "user":
            yield name, side, _told(world.user_taste, world.user_bias, buckets, random)[user], 0.0
        elif side == "item":
            yield name, side, _told(world.item_taste, world.item_bias, buckets, random)[item], 0.0
        else:
            column = random.integers(buckets, size=len(user))
            yield name, side, column, random.normal(0, 0.3, buckets)[column]


def _told(taste: NDArray[np.float64], bias: NDArray[np.float64], buckets: int, random: np.random.Generator) -> Integers:
    """Return the quantile bucket, (n,), of the bias plus the taste along a random direction: it tells of both."""
    direction = random.normal(size=_LATENT)
    values = taste @ direction / np.linalg.norm(direction) / 2 + bias
    rank = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return rank * buckets // len(values)


def _sigmoid(logit: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-logit))


def _offset(logit: NDArray[np.float64], positive_rate: float) -> float:
    """Find the offset of the logits, (n,), for the requested rate of positive labels, by bisection."""
    some = logit[:: max(1, len(logit) // 100_000)]
    low, high = -50.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _sigmoid(some + middle).mean() < positive_rate else (low, middle)
    return (low + high) / 2
