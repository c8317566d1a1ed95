"""Requests: the items a user has not seen, as popular as they are in train, under one user at one moment."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from objectives.recommenders.datasets.click_log import SEPARATOR, ClickLog
from objectives.recommenders.datasets.features import Dataset, encode
from objectives.recommenders.datasets.split import Split, by_user, over_all, split_in_time
from objectives.recommenders.datasets.synthetic import synthetic_log
from objectives.recommenders.requests import draw_requests, lognormal_rows, recorded_rows


def _dataset(rows: int = 4000, users: int = 60, items: int = 400, zipf: float = 1.0) -> Dataset:
    log = synthetic_log(rows, users, items, fields=8, seed=4, zipf=zipf)
    return encode(log, split_in_time(log))


def _joined(drawn: list[dict[str, NDArray[Any]]], name: str) -> NDArray[Any]:
    """Return an input of all requests, (total rows, ...)."""
    return np.concatenate([request[name] for request in drawn])


DATA = _dataset()
SIZES = np.array([1, 30, 200, 7] * 20)
DRAWN = draw_requests(DATA, SIZES, seed=0)


def test_sizes_are_as_asked_and_the_seed_decides() -> None:
    assert len(DRAWN) == len(SIZES)
    assert [len(DRAWN[i]["item"]) for i in range(len(DRAWN))] == SIZES.tolist()
    again, other = draw_requests(DATA, SIZES, seed=0), draw_requests(DATA, SIZES, seed=1)
    assert np.array_equal(_joined(again, "item"), _joined(DRAWN, "item"))
    assert not np.array_equal(_joined(other, "item"), _joined(DRAWN, "item"))


def test_the_user_and_the_moment_are_those_of_one_test_row() -> None:
    names = [field.name for field in DATA.fields if field.side != "item"]
    assert {"user", "hour", "user_0", "context_0"} <= set(names)
    moments = {tuple(DATA.inputs[name][row].item() for name in names) for row in DATA.split.test}
    for i in range(len(DRAWN)):
        values = {tuple(row) for row in np.stack([DRAWN[i][name] for name in names], axis=1).tolist()}
        assert len(values) == 1 and values <= moments


def test_no_item_comes_twice_and_each_has_its_own_features() -> None:
    names = [field.name for field in DATA.fields if field.side == "item"]
    of_item = {tuple(row) for row in np.stack([DATA.inputs[name] for name in names], axis=1).tolist()}
    for i in range(len(DRAWN)):
        assert len(set(DRAWN[i]["item"].tolist())) == SIZES[i]
        assert {tuple(row) for row in np.stack([DRAWN[i][name] for name in names], axis=1).tolist()} <= of_item
    assert _joined(DRAWN, "item").min() >= 1


def test_no_item_was_seen_before_the_moment() -> None:
    # Each user visits items in turn, one at each minute, which the context names: so the moment can be recovered.
    users, visits = 20, 40
    user = np.repeat(np.arange(users), visits)
    minute = np.tile(np.arange(visits), users)
    item = (minute * 7 + user * 5) % 60
    columns = {"minute": minute}
    log = ClickLog("turns", user, item, minute * 60, (user + minute) % 2, columns, {"minute": "context"})
    data = encode(log, Split(*by_user(log.user, log.timestamp), "by_user", ""))
    # Minutes of the test part are not in train: codes are 0. So take the moment as the earliest test minute.
    first = {int(u): minute[-1] for u in range(users)}
    for row in data.split.test:
        first[int(log.user[row])] = min(first[int(log.user[row])], int(log.timestamp[row]) // 60)
    raw = {int(code): int(i) for code, i in zip(data.inputs["item"], log.item, strict=True)}
    raw_user = {int(code): int(u) for code, u in zip(data.inputs["user"], log.user, strict=True)}
    drawn = draw_requests(data, np.full(200, 15), seed=0)
    of_the_moment = 0
    for i in range(len(drawn)):
        of = raw_user[int(drawn[i]["user"][0])]
        seen = {(m * 7 + of * 5) % 60 for m in range(first[of])}
        shown = {raw[code] for code in drawn[i]["item"].tolist()}
        assert not seen & shown
        of_the_moment += (first[of] * 7 + of * 5) % 60 in shown
    assert of_the_moment > 0  # what the user saw at that very moment is a candidate like any other


def _mixed_log(rows: int = 600) -> ClickLog:
    """Return a log with a category, a number and several categories of each side.

    Each column tells its row; those of the item's side tell the item.
    """
    number = np.arange(rows)
    item = number * 7 % 40
    own = {"user": number, "item": item, "context": number}
    columns = {f"{side}_c": of for side, of in own.items()}
    columns |= {f"{side}_n": of * 1.0 for side, of in own.items()}
    columns |= {f"{side}_m": np.array([f"x{SEPARATOR}{value % 9}" for value in of]) for side, of in own.items()}
    sides = {name: name.partition("_")[0] for name in columns}
    kinds = {name: {"c": "categorical", "n": "numeric", "m": "multi"}[name[-1]] for name in columns}
    user = number % 30
    return ClickLog("mixed", user, item, number, number // 3 % 2, columns, sides, kinds=kinds)  # type: ignore[arg-type]


def _rows_of(data: Dataset, values: dict[str, NDArray[Any]], sides: set[str]) -> list[tuple[Any, ...]]:
    names = [field.name for field in data.fields if field.side in sides and field.name not in ("user", "item")]
    rows = len(next(iter(values.values())))
    return [tuple(np.ravel(values[name][row]).tolist() for name in names) for row in range(rows)]


@pytest.mark.parametrize("absent", [(), ("user",), ("item",), ("user", "item")])
def test_numbers_and_several_values_follow_their_row(absent: tuple[str, ...]) -> None:
    log = replace(_mixed_log(), **dict.fromkeys(absent))
    data = encode(log, Split(*over_all(log), "over_all", ""))
    drawn = draw_requests(data, np.array([3, 1, 20] * 15), seed=2)
    for request, rows in zip(drawn, [3, 1, 20] * 15, strict=True):
        for field in data.fields:
            assert request[field.name].dtype == field.dtype
            assert request[field.name].shape == (rows, *field.shape)
    test = {name: values[data.split.test] for name, values in data.inputs.items()}
    moments = _rows_of(data, test, {"user", "context"})
    items = _rows_of(data, test if "item" in absent else dict(data.inputs), {"item"})
    for i in range(len(drawn)):
        of_moment = _rows_of(data, drawn[i], {"user", "context"})
        assert of_moment[0] in moments and of_moment == of_moment[:1] * len(of_moment)
        assert all(row in items for row in _rows_of(data, drawn[i], {"item"}))
        if "item" not in absent:
            assert len(set(drawn[i]["item_c"].tolist())) == len(of_moment)


def test_without_items_each_test_row_is_as_likely_a_candidate_and_as_likely_a_moment() -> None:
    place = np.arange(600) % 60  # the 60 test rows have one of each place, and so have the train rows
    columns, sides = {"shown": place, "when": place}, {"shown": "item", "when": "context"}
    log = ClickLog("places", None, None, np.arange(600), np.arange(600) // 3 % 2, columns, sides)  # type: ignore[arg-type]
    data = encode(log, split_in_time(log))
    drawn = draw_requests(data, np.full(3000, 2), seed=0)
    for codes, expected in ((_joined(drawn, "shown"), 100), (_joined(drawn, "when")[::2], 50)):
        counts = np.bincount(codes, minlength=61)[1:]
        assert abs(np.sum((counts - expected) ** 2 / expected) - 59) < 5 * np.sqrt(2 * 59)


def test_a_catalogue_too_small_repeats_items_and_one_used_up_is_refused() -> None:
    small = _dataset(rows=300, users=30, items=20)
    drawn = draw_requests(small, np.full(30, 100), seed=0)
    assert all(len(drawn[i]["item"]) == 100 and len(set(drawn[i]["item"].tolist())) < 21 for i in range(30))
    with pytest.raises(ValueError, match="items"):
        draw_requests(_dataset(rows=3000, users=5, items=3, zipf=0), np.array([2]), seed=0)


def test_a_request_for_the_whole_catalogue_has_each_unseen_item_once() -> None:
    # User u visits item u again and again, so the nine others are what they have not seen. Item 9's 100 users make
    # the rest of the catalogue so unpopular that only the race finds it.
    user = np.repeat(np.arange(109), 10)
    item = np.minimum(user, 9)
    log = ClickLog("loyal", user, item, np.tile(np.arange(10), 109), np.arange(1090) // 2 % 2)
    data = encode(log, Split(*over_all(log), "over_all", ""))
    drawn = draw_requests(data, np.full(50, 9), seed=0)
    own = {int(u): int(i) for u, i in zip(data.inputs["user"], data.inputs["item"], strict=True)}
    for i in range(50):
        assert sorted(drawn[i]["item"].tolist()) == sorted(set(range(1, 11)) - {own[int(drawn[i]["user"][0])]})


def test_rare_items_come_by_their_popularity_where_the_most_popular_was_seen() -> None:
    # All but ten users know item 0 only, which is 99% of train; of the rest, items 1, 2 and 3 are 10%, 20% and 70%.
    of_user = np.array([0] * 990 + [1] + [2] * 2 + [3] * 7)
    user = np.repeat(np.arange(1000), 10)
    log = ClickLog("rare", user, of_user[user], np.tile(np.arange(10), 1000), np.arange(10_000) // 2 % 2)
    data = encode(log, Split(*over_all(log), "over_all", ""))
    item = _joined(draw_requests(data, np.full(2000, 1), seed=0), "item")
    shown = np.bincount(item, minlength=5)[[4, 3, 2]]  # codes go by frequency: item 3 is code 2
    np.testing.assert_allclose(shown / shown.sum(), [0.1, 0.2, 0.7], atol=0.04)


def test_items_are_as_popular_as_in_train_and_users_as_frequent_as_in_test() -> None:
    data = _dataset(rows=6000, users=300, items=100)
    drawn = draw_requests(data, np.full(3000, 2), seed=0)
    popularity = np.bincount(data.inputs["item"][data.split.train], minlength=data.fields[1].vocabulary)
    shown = np.bincount(_joined(drawn, "item"), minlength=len(popularity))
    ranks = [np.argsort(np.argsort(counts[1:], kind="stable")) for counts in (popularity, shown)]
    assert np.corrcoef(ranks[0], ranks[1])[0, 1] > 0.8
    asked = np.bincount(_joined(drawn, "user")[::2], minlength=data.fields[0].vocabulary)
    active = np.bincount(data.inputs["user"][data.split.test], minlength=len(asked))
    expected = active / active.sum() * 3000
    kept = expected > 0
    chi_square = float(np.sum((asked[kept] - expected[kept]) ** 2 / expected[kept]))
    degrees = np.count_nonzero(kept) - 1
    assert not asked[~kept].any() and abs(chi_square - degrees) < 5 * np.sqrt(2 * degrees)


def test_bad_input_is_refused() -> None:
    unknown = ClickLog("new", [1] * 9, [*range(8), 8], range(9), [0, 1] * 4 + [0])
    with pytest.raises(ValueError, match="'new'"):
        split = Split(np.arange(4), np.arange(4, 6), np.arange(6, 9), "over_all", "")
        draw_requests(encode(unknown, split, min_count=2), np.array([1]), seed=0)


def test_rows_are_all_the_same_or_those_of_a_log_round_and_round() -> None:
    assert lognormal_rows(7, 0.0, 1000, 4, seed=0).tolist() == [7, 7, 7, 7]
    recorded = np.array([3, 900, 1, 40])
    assert recorded_rows(recorded, 100, 10).tolist() == [3, 100, 1, 40, 3, 100, 1, 40, 3, 100]
    assert recorded_rows(recorded, 1000, 2).tolist() == [3, 900]
    assert recorded.tolist() == [3, 900, 1, 40]
    for rows, most in ((np.array([], dtype=np.int64), 5), (np.array([2, 0]), 5), (recorded, 0)):
        with pytest.raises(ValueError, match=r"1, .*got"):
            recorded_rows(rows, most, 3)
