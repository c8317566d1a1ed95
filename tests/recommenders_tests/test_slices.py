"""Held-out rows of users with little history and of rare items, found again by counting one by one."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from objectives.recommenders.datasets.click_log import ClickLog
from objectives.recommenders.datasets.features import Dataset, encode
from objectives.recommenders.datasets.split import Part, split_in_time
from objectives.recommenders.slices import LITTLE_HISTORY, RARE_ITEMS, commonest, of_values, slices_of


def _log(seed: int, users: bool = True, items: bool = True, turnover: bool = False) -> ClickLog:
    """Users and items of very different frequencies; with turnover, some come late."""
    random, rows = np.random.default_rng(seed), 600
    user = np.minimum(random.geometric(0.08, rows), 40)
    item = np.minimum(random.geometric(0.05, rows), 60)
    if turnover:
        user[500:] += random.integers(0, 10, 100)
        item[500:] += random.integers(0, 30, 100)
    label = random.integers(2, size=rows)
    shade = random.choice(list("rgb"), rows)
    return ClickLog(
        "log", user if users else None, item if items else None, np.arange(rows), label, {"shade": shade},
        {"shade": "context"},
    )  # fmt: skip


def _dataset(log: ClickLog) -> Dataset:
    return encode(log, split_in_time(log))


def _little(log: ClickLog, dataset: Dataset, part: Part) -> list[bool]:
    """Users with little history, by counting the train rows of each: the first quarter of those that have any."""
    assert log.user is not None
    counts = Counter(log.user[dataset.split.train].tolist())
    ordered = sorted(counts.values())
    few = ordered[max(0, -(-len(ordered) // 4) - 1)]
    return [counts[user] <= few for user in log.user[getattr(dataset.split, part)].tolist()]


def _rare(log: ClickLog, dataset: Dataset, part: Part) -> list[bool]:
    """Return which rows have a rare item.

    Items are added from the rarest up while a fifth of the train rows is not exceeded. Equals go by value, the larger
    first, as their codes do.
    """
    assert log.item is not None
    counts = Counter(log.item[dataset.split.train].tolist())
    rare, together = set[int](), 0
    for item in sorted(counts, key=lambda item: (counts[item], -item)):
        together += counts[item]
        if together > 0.2 * len(dataset.split.train):
            break
        rare.add(item)
    return [item in rare or item not in counts for item in log.item[getattr(dataset.split, part)].tolist()]


@pytest.mark.parametrize("part", ["validation", "test"])
@pytest.mark.parametrize("turnover", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_slices_are_found_by_counting(seed: int, turnover: bool, part: Part) -> None:
    log = _log(seed, turnover=turnover)
    dataset = _dataset(log)
    found = slices_of(dataset, part)
    assert list(found) == [LITTLE_HISTORY, "users with more history", RARE_ITEMS, "popular items"]
    assert (found["users with more history"] == ~found[LITTLE_HISTORY]).all()
    assert (found["popular items"] == ~found[RARE_ITEMS]).all()
    assert found[LITTLE_HISTORY].tolist() == _little(log, dataset, part)
    assert found[RARE_ITEMS].tolist() == _rare(log, dataset, part)
    assert all(mask.dtype == np.bool_ and 0 < mask.sum() < len(mask) for mask in found.values())


def test_an_item_too_rare_for_a_code_is_rare() -> None:
    log = _log(0)
    dataset = encode(log, split_in_time(log), min_count=12)
    rare = slices_of(dataset, "test")[RARE_ITEMS]
    assert (dataset.inputs["item"][dataset.split.test] == 0).any()
    assert rare[dataset.inputs["item"][dataset.split.test] == 0].all()


@pytest.mark.parametrize(
    ("users", "items", "names"),
    [
        (True, False, [LITTLE_HISTORY, "users with more history"]),
        (False, True, [RARE_ITEMS, "popular items"]),
        (False, False, []),
    ],
)
def test_there_are_slices_as_far_as_the_data_name_users_and_items(users: bool, items: bool, names: list[str]) -> None:
    assert list(slices_of(_dataset(_log(0, users, items)), "test")) == names


def test_the_values_of_a_column_are_slices() -> None:
    """Columns hold words, several words a row, or codes; slices are the same ones whatever rows are looked at."""
    tags = np.array(["a\x1fb", "b", "b\x1fc", "b", None], dtype=object)
    assert commonest(tags.tolist()) == ("b", "a", "c")
    assert commonest(np.repeat(np.arange(9), np.arange(1, 10)).tolist()) == ("8", "7", "6", "5", "4")
    found = of_values({"tags": tags, "shop": np.array([3, 3, 1, 2, 3])}, {"tags": ("b", "z"), "shop": ("1", "3")})
    assert {name: mask.tolist() for name, mask in found.items()} == {
        "tags b": [True, True, True, True, False],
        "tags z": [False] * 5,
        "shop 1": [False, False, True, False, False],
        "shop 3": [True, True, False, False, True],
    }
