"""The parts of a split: a partition in time, in which ties stay together."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from objectives.recommenders.datasets.click_log import ClickLog
from objectives.recommenders.datasets.split import How, Split, by_user, over_all, split_in_time
from objectives.recommenders.datasets.synthetic import synthetic_log

quick = settings(max_examples=80, suppress_health_check=[HealthCheck.filter_too_much])


@st.composite
def logs(draw: st.DrawFn) -> ClickLog:
    rows = draw(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 40)), min_size=3, max_size=120))
    user, item, timestamp = (np.array(values) for values in zip(*rows, strict=True))
    return ClickLog("drawn", user, item, timestamp, np.arange(len(rows)) % 2)


def _split(log: ClickLog, how: How | None) -> Split:
    if how is None:
        return split_in_time(log)
    return Split(*(over_all(log) if how == "over_all" else by_user(log.user, log.timestamp)), how, "")


def _split_or_skip(log: ClickLog, how: How | None) -> Split:
    try:
        return _split(log, how)
    except ValueError:
        assume(False)
        raise


@quick
@given(logs(), st.sampled_from([None, "over_all", "by_user"]))
def test_parts_are_a_partition_in_time_and_ties_never_straddle(log: ClickLog, how: How | None) -> None:
    split = _split_or_skip(log, how)
    parts = (split.train, split.validation, split.test)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(log.user)))
    users = [slice(None)] if split.how == "over_all" else [log.user == user for user in np.unique(log.user)]
    for mask in users:
        inside = set(np.arange(len(log.user))[mask].tolist())
        times = [[log.timestamp[row] for row in part if row in inside] for part in parts]
        for earlier, later in pairwise([moments for moments in times if moments]):
            assert max(earlier) < min(later)


@quick
@given(logs())
def test_by_user_those_with_few_rows_are_trained_on_only(log: ClickLog) -> None:
    split = _split_or_skip(log, "by_user")
    held_out = np.concatenate([split.validation, split.test])
    counts = np.bincount(log.user)
    assert np.all(counts[log.user[held_out]] >= 5)


def test_shares_are_as_asked_without_ties() -> None:
    log = synthetic_log(2000, 20, 30, seed=1)
    assert [len(part) for part in over_all(log)] == [1600, 200, 200]
    each = _split(log, "by_user")
    for user in range(20):
        rows = np.count_nonzero(log.user == user)
        test = np.count_nonzero(log.user[each.test] == user)
        validation = np.count_nonzero(log.user[each.validation] == user)
        assert abs(test - rows / 10) <= 1 and abs(validation - rows / 10) <= 1 and test >= 1 and validation >= 1


def test_users_who_stay_are_split_over_all_and_users_who_come_and_go_by_user() -> None:
    stay = split_in_time(synthetic_log(4000, 100, 50, user_turnover=0))
    assert stay.how == "over_all" and stay.reason.split("%")[0].endswith(" 0")
    come_and_go = split_in_time(synthetic_log(4000, 100, 50, user_turnover=1))
    assert come_and_go.how == "by_user" and "100%" in come_and_go.reason
    assert f"{len(come_and_go.test):,} test" in come_and_go.reason


def test_users_with_a_row_each_are_split_over_all_though_none_was_seen() -> None:
    log = ClickLog("visitors", np.arange(100), np.arange(100) % 7, np.arange(100), np.arange(100) % 2)
    split = split_in_time(log)
    assert split.how == "over_all" and "100%" in split.reason and "0 test rows" in split.reason
    assert [len(part) for part in by_user(log.user, log.timestamp)] == [100, 0, 0]


def test_a_log_without_users_is_split_over_all() -> None:
    rows = np.arange(100)
    log = ClickLog("nobody", None, None, rows, rows % 2)
    split = split_in_time(log)
    assert [part.tolist() for part in (split.train, split.validation, split.test)] == [
        list(range(80)),
        list(range(80, 90)),
        list(range(90, 100)),
    ]
    assert split.how == "over_all"


def test_bad_arguments_are_refused() -> None:
    tied = ClickLog("tied", [1, 2, 3, 4], [1, 1, 1, 1], [1, 1, 2, 2], [0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"3 .*timestamps.*2"):
        split_in_time(tied)
    rows = np.arange(3)
    with pytest.raises(ValueError, match="two parts"):
        Split(rows, rows, rows, "over_all", "")
    with pytest.raises(ValueError, match=r"how .*'random'"):
        Split(rows[:1], rows[1:2], rows[2:], "random", "")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"test .*\(0,\)"):
        Split(rows[:1], rows[1:], rows[:0], "over_all", "")
