"""Inputs come from train rows only: nothing that happens later, and no label, can change them."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

from objectives.recommenders.datasets.click_log import SEPARATOR, ClickLog
from objectives.recommenders.datasets.features import LONGEST, Dataset, Field, encode
from objectives.recommenders.datasets.split import Split, by_user, over_all, split_in_time
from objectives.recommenders.datasets.synthetic import synthetic_log

quick = settings(max_examples=30)


def _log(seed: int) -> ClickLog:
    log = synthetic_log(400, 12, 30, fields=5, seed=seed)
    random = np.random.default_rng(seed)
    words = np.array(["red", "green", "blue", "unknown"], dtype=object)[log.item % 4]
    price = np.where(random.random(400) < 0.1, np.nan, random.normal(0, 50, 400))
    columns = {**log.columns, "colour": words, "price": price, "tags": _tags(random, 400, most=5)}
    sides = {**log.sides, "colour": "item", "price": "item", "tags": "context"}
    return replace(log, columns=columns, sides=sides, kinds={"price": "numeric", "tags": "multi"})


def _over_all(log: ClickLog) -> Split:
    return Split(*over_all(log), "over_all", "")


def _by_user(log: ClickLog) -> Split:
    return Split(*by_user(log.user, log.timestamp), "by_user", "")


def _tags(random: np.random.Generator, rows: int, most: int) -> NDArray[Any]:
    """Strings of 0 to `most` letters each, the later ones of the alphabet rarer, some of them twice."""
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    weight = 0.8 ** np.arange(26)
    picks = [random.choice(letters, random.integers(most + 1), p=weight / weight.sum()) for _ in range(rows)]
    return np.array([SEPARATOR.join(pick) for pick in picks], dtype=object)


def _with(log: ClickLog, rows: NDArray[np.int64], seed: int) -> ClickLog:
    """The log with other items, columns and labels in the given rows, values never seen before among them."""
    random = np.random.default_rng(seed)

    def other(values: NDArray[Any]) -> NDArray[Any]:
        changed = values.copy()
        new = random.integers(-50, 50, len(rows))
        changed[rows] = [f"new {value}{SEPARATOR}b" for value in new] if values.dtype == object else new
        return changed

    label = log.label.copy()
    label[rows] = 1 - label[rows]
    return replace(
        log, item=other(log.item), label=label, columns={name: other(column) for name, column in log.columns.items()}
    )


@quick
@given(st.integers(0, 10_000), st.sampled_from([_over_all, _by_user]))
def test_no_event_outside_train_changes_a_train_row(seed: int, how: Any) -> None:
    log = _log(seed % 7)
    split = how(log)
    before = encode(log, split)
    held_out = np.sort(np.concatenate([split.validation, split.test]))
    after = encode(_with(log, held_out, seed), split)
    assert before.fields == after.fields and before.encoding == after.encoding
    for name, codes in before.inputs.items():
        np.testing.assert_array_equal(codes[split.train], after.inputs[name][split.train])


@quick
@given(st.integers(0, 10_000))
def test_no_later_event_changes_a_held_out_row(seed: int) -> None:
    log = _log(seed % 7)
    split = _over_all(log)
    row = int(np.random.default_rng(seed).choice(np.concatenate([split.validation, split.test[:-1]])))
    before = encode(log, split)
    after = encode(_with(log, np.arange(row + 1, len(log.user)), seed), split)
    for name, codes in before.inputs.items():
        np.testing.assert_array_equal(codes[: row + 1], after.inputs[name][: row + 1])


def test_the_encoding_is_another_one_where_codes_stand_for_something_else() -> None:
    """Two items change their ranks, or one has another name."""
    log = _log(0)
    split = split_in_time(log)
    first = encode(log, split)
    items, counts = np.unique(log.item[split.train], return_counts=True)
    rare, often = items[counts.argmin()], items[counts.argmax()]
    swapped = np.where(log.item == rare, often, np.where(log.item == often, rare, log.item))
    renamed = np.where(log.item == often, log.item.max() + 1, log.item)
    encoded = [encode(replace(log, item=items), split) for items in (swapped, renamed)]
    assert len({one.encoding for one in (first, *encoded)}) == 3
    assert all(one.fields == first.fields for one in encoded), "the sizes are the same"


def test_labels_change_no_code() -> None:
    log = _log(0)
    split = split_in_time(log)
    flipped = encode(replace(log, label=1 - log.label), split)
    for name, codes in encode(log, split).inputs.items():
        np.testing.assert_array_equal(codes, flipped.inputs[name])


@pytest.mark.parametrize("min_count", [1, 3, 20])
def test_codes_are_ranks_by_train_count(min_count: int) -> None:
    log = _log(3)
    split = _by_user(log)
    data = encode(log, split, min_count)
    raw: dict[str, NDArray[Any]] = {"user": log.user, "item": log.item, **log.columns}
    assert [field.name for field in data.fields] == list(raw)
    for field in (field for field in data.fields if field.kind == "categorical"):
        counts = Counter(raw[field.name][split.train].tolist())
        ranked = sorted((value for value in counts if counts[value] >= min_count), key=lambda v: (-counts[v], v))
        code = {value: rank for rank, value in enumerate(ranked, start=1)}
        assert field.vocabulary == len(ranked) + 1
        assert data.inputs[field.name].tolist() == [code.get(value, 0) for value in raw[field.name].tolist()]


@quick
@given(st.integers(0, 10_000))
def test_numbers_are_standardised_logarithms_as_scikit_learn_has_them(seed: int) -> None:
    log = _log(0)
    random = np.random.default_rng(seed)
    price = random.choice([-1, 1], 400) * random.lognormal(0, 5, 400)
    price[random.random(400) < 0.2] = np.nan
    split = split_in_time(log)
    data = encode(replace(log, columns={**log.columns, "price": price}), split)
    scaled = np.array([np.log(1 + x) if x >= 0 else -np.log(1 - x) for x in price])[:, None]
    expected = StandardScaler().fit(scaled[split.train]).transform(scaled)[:, 0]
    np.testing.assert_allclose(data.inputs["price"], np.where(np.isnan(price), 0, expected), rtol=1e-5, atol=1e-6)
    assert data.field("price") == Field("price", "item", "numeric")
    assert data.inputs["price"].dtype == np.float32


@pytest.mark.parametrize("in_train", [np.nan, 0.1])
def test_a_number_that_train_rows_say_nothing_of_is_0(in_train: float) -> None:
    log = _log(0)
    split = split_in_time(log)
    price = np.linspace(-5, 5, 400)
    price[split.train] = in_train
    assert not encode(replace(log, columns={**log.columns, "price": price}), split).inputs["price"].any()


@pytest.mark.parametrize("min_count", [1, 3, 20])
@pytest.mark.parametrize("most", [0, 1, 5, 90])
def test_several_values_are_codes_by_train_count_the_most_frequent_first(most: int, min_count: int) -> None:
    log = _log(5)
    tags = _tags(np.random.default_rng(6), 400, most)
    split = _by_user(log)
    data = encode(replace(log, columns={**log.columns, "tags": tags}), split, min_count)
    values = [set(text.split(SEPARATOR)) - {""} for text in tags]
    counts = Counter(value for row in split.train for value in values[row])
    ranked = sorted((value for value in counts if counts[value] >= min_count), key=lambda v: (-counts[v], v))
    code = {value: rank for rank, value in enumerate(ranked, start=1)}
    expected = [sorted(code[value] for value in row if value in code) for row in values]
    length = min(max(1, *(len(expected[row]) for row in split.train)), LONGEST)
    assert data.field("tags") == Field("tags", "context", "multi", len(ranked) + 1, length)
    assert data.inputs["tags"].tolist() == [(row + [0] * length)[:length] for row in expected]
    assert (most == 90) == (max(map(len, expected)) > LONGEST)


def test_without_users_each_row_is_a_group_and_without_items_there_is_no_field_of_them() -> None:
    log = _log(0)
    nobody = ClickLog("nobody", None, None, log.timestamp, log.label, log.columns, log.sides, kinds=log.kinds)
    data = encode(nobody, split_in_time(nobody))
    assert [field.name for field in data.fields] == list(log.columns)
    assert data.field("user") is None and data.field("item") is None
    assert data.group.tolist() == list(range(400))


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
        replace(data, inputs={**data.inputs, "price": -data.inputs["price"]}),
        replace(data, inputs={**data.inputs, "tags": data.inputs["tags"][:, ::-1]}),
        replace(data, timestamp=data.timestamp + 1),
        replace(data, split=replace(split, test=test)),
        replace(data, fields=(*data.fields[:-1], replace(data.fields[-1], vocabulary=99))),
    ]
    assert len({data.key(), *(other.key() for other in others)}) == 1 + len(others)


def test_bad_input_is_refused() -> None:
    log = _log(0)
    split = split_in_time(log)
    with pytest.raises(ValueError, match=r"min_count .*0"):
        encode(log, split, 0)
    mixed = np.array(["a", 1] * 200, dtype=object)
    with pytest.raises(ValueError, match="'mixed'"):
        encode(replace(log, columns={"mixed": mixed}, sides={"mixed": "user"}, kinds={}), split)
    data = encode(log, split)
    with pytest.raises(ValueError, match=r"'hour' .*0 to 1"):
        replace(data, fields=tuple(replace(f, vocabulary=2) if f.name == "hour" else f for f in data.fields))
    for fields in (data.fields[1:], (*data.fields, data.fields[0]), ()):
        with pytest.raises(ValueError, match="fields"):
            replace(data, fields=fields)
    for name, wrong, message in (
        (
            "price",
            data.inputs["price"].astype(np.float64),
            r"'price' .*\(400,\) float32.* float64",
        ),
        ("price", np.full(400, np.inf, dtype=np.float32), "'price' .*inf"),
        ("tags", data.inputs["tags"][:, :2], r"'tags' .*\(400, 5\) int64.*\(400, 2\)"),
        ("tags", data.inputs["tags"] + 50, "codes of 'tags'"),
        ("hour", data.inputs["hour"] - 25, "codes of 'hour'"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(data, inputs={**data.inputs, name: wrong})
    with pytest.raises(ValueError, match=r"labels .*validation"):
        tiny = ClickLog("tiny", [1, 1, 1, 1], [1, 2, 3, 4], [1, 2, 3, 4], [0, 1, 0, 1])
        encode(tiny, Split(np.array([0, 1]), np.array([2]), np.array([3]), "over_all", ""))
    assert isinstance(data, Dataset)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"vocabulary": 0}, "vocabulary of field 'x' .*0"),
        ({"kind": "numeric"}, "vocabulary of field 'x' .*numeric.*9"),
        ({"kind": "numeric", "vocabulary": 0, "length": 2}, "length of field 'x' .*numeric.*2"),
        ({"length": 3}, "length of field 'x' .*categorical.*3"),
        ({"kind": "multi", "length": 0}, "length of field 'x' .*0"),
        ({"kind": "text"}, "kind of field 'x' .*'text'"),
        ({"side": "film"}, "side of field 'x' .*'film'"),
        ({"name": "user", "side": "item"}, "field 'user' .*'item', 'categorical'"),
        ({"name": "item", "side": "item", "kind": "multi"}, "field 'item' .*'item', 'multi'"),
    ],
)
def test_a_field_that_cannot_be_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Field(**{"name": "x", "side": "user", "vocabulary": 9, **wrong})


def test_a_field_says_what_its_arrays_are() -> None:
    fields = Field("a", "user", vocabulary=3), Field("b", "user", "numeric"), Field("c", "user", "multi", 3, 4)
    assert [(field.dtype, field.shape) for field in fields] == [("int64", ()), ("float32", ()), ("int64", (4,))]
