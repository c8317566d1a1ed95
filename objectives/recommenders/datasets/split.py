"""Split of a log in time into rows for training, validation and test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from objectives.recommenders.datasets.click_log import ClickLog, Integers, frozen

How = Literal["over_all", "by_user"]
Part = Literal["train", "validation", "test"]
Parts = tuple[Integers, Integers, Integers]

_FEWEST_ROWS = 5  # a user with fewer is trained on only
_TRAIN, _VALIDATION, _TEST = 0.8, 0.1, 0.1  # shares of the rows


@dataclass(frozen=True, eq=False)
class Split:
    """Row numbers of each part, ascending; no row is in two parts, and none is empty.

    how: over_all: one moment for all users separates the parts; by_user: each user has separate moments
    """

    train: Integers  # (n_train,)
    validation: Integers  # (n_validation,)
    test: Integers  # (n_test,)
    how: How
    reason: str  # explanation of the choice, for the user

    def __post_init__(self) -> None:
        for part in get_args(Part):
            rows = getattr(self, part)
            if rows.ndim != 1 or rows.dtype != np.int64 or len(rows) == 0:
                raise ValueError(f"{part} must be row numbers (int64), at least 1, but got {rows.dtype} {rows.shape}")
            object.__setattr__(self, part, frozen(rows))
        together = np.concatenate([self.train, self.validation, self.test])
        if len(np.unique(together)) != len(together):
            raise ValueError("no row must be in two parts of a split, but got rows that are")
        if self.how not in get_args(How):
            raise ValueError(f"how must be one of {get_args(How)}, but got {self.how!r}")


def split_in_time(log: ClickLog) -> Split:
    """Split the log's rows in shares of about 0.8, 0.1, 0.1; rows of one moment (by user: of theirs) stay together.

    One moment for all users separates the parts, except where more than half of the resulting test rows belong to users
    without a train row, and a split by user yields at least half of the requested test rows.

    Raises:
        ValueError: there are fewer than 3 moments.
    """
    user, parts = log.user, over_all(log)
    if user is None:
        return _split(parts, "over_all", "over all rows: the log names no users, and one moment separates the parts")
    unseen = 1 - float(np.isin(user[parts[2]], user[parts[0]]).mean())
    share = f"{unseen:.0%} of the test rows belong to users without a train row"
    if unseen <= 0.5:
        return _split(parts, "over_all", f"over all users: one moment separates the parts, and {share}")
    theirs = by_user(user, log.timestamp)
    if len(theirs[2]) < _TEST * len(user) / 2 or len(theirs[1]) == 0:
        few = f"{len(theirs[1])} validation and {len(theirs[2])} test rows"
        return _split(parts, "over_all", f"over all users, though {share}: by user there were only {few}")
    return _split(theirs, "by_user", f"by user, each in their own time: at one moment for all, {share}")


def _split(parts: Parts, how: How, why: str) -> Split:
    sizes = ", ".join(f"{len(rows):,} {part}" for rows, part in zip(parts, get_args(Part), strict=True))
    return Split(*parts, how=how, reason=f"Split {why} ({sizes} rows).")


def over_all(log: ClickLog) -> Parts:
    """Split at the same moments for all users."""
    rows = len(log.timestamp)
    starts = np.flatnonzero(np.diff(log.timestamp)) + 1  # first row of each moment but the first
    if len(starts) < 2:
        raise ValueError(f"a split in time must have at least 3 different timestamps, but got {len(starts) + 1}")
    # The moments nearest to the requested shares that leave rows in each part.
    first = int(np.argmin(np.abs(starts[:-1] - _TRAIN * rows)))
    later = starts[first + 1 :]
    second = later[np.argmin(np.abs(later - (_TRAIN + _VALIDATION) * rows))]
    every = np.arange(rows, dtype=np.int64)
    return every[: starts[first]], every[starts[first] : second], every[second:]


def by_user(user: Integers, timestamp: Integers) -> Parts:
    """Split the rows of each user, (n,), at moments of their own; validation and test may stay empty."""
    order = np.argsort(user, kind="stable")  # within a user, time order is kept
    user, timestamp = user[order], timestamp[order]
    every = np.arange(len(order))
    new_user = np.concatenate(([True], user[1:] != user[:-1]))
    starts = np.flatnonzero(new_user)
    counts = np.diff(np.append(starts, len(order)))
    # Each user with enough rows has at least one in each part, except for ties.
    first = np.clip(np.rint(_TRAIN * counts), 1, counts - 2)
    second = np.clip(np.rint((_TRAIN + _VALIDATION) * counts), first + 1, counts - 1)
    first[counts < _FEWEST_ROWS] = second[counts < _FEWEST_ROWS] = np.iinfo(np.int64).max
    # Tied rows belong to the part of the first of them, the earlier one.
    new_moment = new_user | np.concatenate(([True], timestamp[1:] != timestamp[:-1]))
    moment = np.maximum.accumulate(np.where(new_moment, every, 0))
    number = np.cumsum(new_user) - 1
    position = moment - starts[number]
    part = (position >= first[number]).astype(np.int64) + (position >= second[number])
    of_row = np.empty(len(order), dtype=np.int64)
    of_row[order] = part
    return np.flatnonzero(of_row == 0), np.flatnonzero(of_row == 1), np.flatnonzero(of_row == 2)
