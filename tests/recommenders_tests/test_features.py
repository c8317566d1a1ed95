"""Codes come from train rows only: nothing that happens later, and no label, can change them."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from objectives.recommenders.clicklog import ClickLog, in_time_order
from objectives.recommenders.features import Dataset, Field, encode
from objectives.recommenders.split import Split, split_in_time
from objectives.recommenders.synthetic import synthetic_log

quick = settings(max_examples=30, deadline=None)


def _log(seed: int) -> ClickLog:
    log = synthetic_log(400, 12, 30, fields=5, seed=seed)
    words = np.array(["red", "green", "blue", "unknown"], dtype=object)[log.item % 4]
    return replace(log, columns={**log.columns, "colour": words}, sides={**log.sides, "colour": "item"})


def _with(log: ClickLog, rows: NDArray[np.int64], seed: int) -> ClickLog:
    """The log with other items, columns and labels in the given rows, values never seen before among them."""
    random = np.random.default_rng(seed)

    def other(values: NDArray[Any]) -> NDArray[Any]:
        changed = values.copy()
        new = random.integers(-50, 50, len(rows))
        changed[rows] = [f"new {value}" for value in new] if values.dtype == object else new
        return changed

    label = log.label.copy()
    label[rows] = 1 - label[rows]
    return replace(
        log, item=other(log.item), label=label, columns={name: other(column) for name, column in log.columns.items()}
    )


@quick
@given(st.integers(0, 10_000), st.sampled_from(["over_all", "by_user"]))
def test_no_event_outside_train_changes_a_train_row(seed: int, how: Any) -> None:
    log = _log(seed % 7)
    split = split_in_time(log, how=how)
    before = encode(log, split)
    held_out = np.sort(np.concatenate([split.validation, split.test]))
    after = encode(_with(log, held_out, seed), split)
    assert before.fields == after.fields
    for name, codes in before.inputs.items():
        np.testing.assert_array_equal(codes[split.train], after.inputs[name][split.train])


@quick
@given(st.integers(0, 10_000))
def test_no_later_event_changes_a_held_out_row(seed: int) -> None:
    log = _log(seed % 7)
    split = split_in_time(log, how="over_all")
    row = int(np.random.default_rng(seed).choice(np.concatenate([split.validation, split.test[:-1]])))
    before = encode(log, split)
    after = encode(_with(log, np.arange(row + 1, len(log.user)), seed), split)
    for name, codes in before.inputs.items():
        np.testing.assert_array_equal(codes[: row + 1], after.inputs[name][: row + 1])


def test_labels_change_no_code() -> None:
    log = _log(0)
    split = split_in_time(log)
    flipped = encode(replace(log, label=1 - log.label), split)
    for name, codes in encode(log, split).inputs.items():
        np.testing.assert_array_equal(codes, flipped.inputs[name])


@pytest.mark.parametrize("min_count", [1, 3, 20])
def test_codes_are_ranks_by_train_count(min_count: int) -> None:
    log = _log(3)
    split = split_in_time(log, how="by_user")
    data = encode(log, split, min_count)
    raw: dict[str, NDArray[Any]] = {"user": log.user, "item": log.item, **log.columns}
    assert [field.name for field in data.fields] == list(raw)
    for field in data.fields:
        counts = Counter(raw[field.name][split.train].tolist())
        ranked = sorted((value for value in counts if counts[value] >= min_count), key=lambda v: (-counts[v], v))
        code = {value: rank for rank, value in enumerate(ranked, start=1)}
        assert field.vocabulary == len(ranked) + 1
        assert data.inputs[field.name].tolist() == [code.get(value, 0) for value in raw[field.name].tolist()]


def test_rows_give_the_part_in_order_and_groups_number_the_users_densely() -> None:
    log = _log(1)
    data = encode(log, split_in_time(log))
    inputs, label, group = data.rows("test")
    np.testing.assert_array_equal(label, log.label[data.split.test])
    np.testing.assert_array_equal(inputs["colour"], data.inputs["colour"][data.split.test])
    np.testing.assert_array_equal(group, data.group[data.split.test])
    assert sorted(set(data.group.tolist())) == list(range(len(np.unique(log.user))))
    assert len(set(zip(log.user.tolist(), data.group.tolist(), strict=True))) == len(np.unique(log.user))
    inputs["colour"][:] = 0  # a copy: the data set keeps its own
    assert data.inputs["colour"][data.split.test].any()


def test_the_key_changes_with_any_content_and_only_then() -> None:
    log = _log(2)
    split = split_in_time(log)
    data = encode(log, split)
    assert data.key() == encode(_log(2), split_in_time(_log(2))).key()
    label = data.label.copy()
    label[0] = 1 - label[0]
    codes = data.inputs["hour"].copy()
    codes[5] = 0
    test = split.test[1:]
    others = [
        replace(data, name="other"),
        replace(data, label=label),
        replace(data, inputs={**data.inputs, "hour": codes}),
        replace(data, timestamp=data.timestamp + 1),
        replace(data, split=replace(split, test=test)),
        replace(data, fields=(*data.fields[:-1], replace(data.fields[-1], vocabulary=99))),
    ]
    assert len({data.key(), *(other.key() for other in others)}) == 1 + len(others)


def test_bad_input_is_refused() -> None:
    log = _log(0)
    split = split_in_time(log)
    with pytest.raises(ValueError, match="min_count must be at least 1, but got 0"):
        encode(log, split, 0)
    mixed = np.array(["a", 1] * 200, dtype=object)
    with pytest.raises(ValueError, match="'mixed' must hold strings or integers"):
        encode(replace(log, columns={"mixed": mixed}, sides={"mixed": "user"}), split)
    data = encode(log, split)
    with pytest.raises(ValueError, match="codes of 'hour' must be 0 to 1, but got"):
        replace(data, fields=tuple(replace(f, vocabulary=2) if f.name == "hour" else f for f in data.fields))
    with pytest.raises(ValueError, match="fields must be user, item"):
        replace(data, fields=data.fields[::-1])
    with pytest.raises(ValueError, match="both labels must occur in validation"):
        tiny = in_time_order("tiny", [1, 1, 1, 1], [1, 2, 3, 4], [1, 2, 3, 4], [0, 1, 0, 1])
        encode(tiny, Split(np.array([0, 1]), np.array([2]), np.array([3]), "over_all", ""))
    with pytest.raises(ValueError, match="vocabulary of field"):
        Field("x", 0, "user")
    assert isinstance(data, Dataset)
