"""Layouts of tensors: where a smaller axis begins each run of a larger one, against labels written out one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from objectives.tensor_layout import Axis, TensorLayout, common, leading

Named = list[tuple[str, int]]


def _written(axis: Axis) -> list[tuple[int, str, int]]:
    """Every position of an axis: the number of its run, the name, the unit."""
    return [(number, name, unit) for number, (name, size) in enumerate(axis) for unit in range(size)]


@st.composite
def _axes(draw: st.DrawFn) -> tuple[Axis, Axis]:
    whole = draw(st.lists(st.tuples(st.sampled_from(["", "d", "mlp 0"]), st.integers(0, 5)), min_size=1, max_size=5))
    return tuple((name, draw(st.integers(0, size))) for name, size in whole), tuple(whole)


@given(_axes())
def test_a_part_begins_each_run(axes: tuple[Axis, Axis]) -> None:
    part, whole = axes
    assert [_written(whole)[position] for position in leading(part, whole)] == _written(part)


@pytest.mark.parametrize("part", [(("d", 5),), (("e", 2),), (("d", 2), ("d", 2)), ()])
def test_what_is_no_part_is_refused(part: Axis) -> None:
    with pytest.raises(ValueError, match="beginnings"):
        leading(part, (("d", 4),))


def test_what_two_tensors_share_ends_at_the_first_other_run() -> None:
    one = TensorLayout(((("", 1),), (("d", 8), ("d", 8), ("mlp 1", 16))), "two layers")
    other = TensorLayout(((("", 1),), (("d", 4), ("d", 4), ("mlp 2", 64), ("d", 3))))
    assert common(one, other) == TensorLayout(((("", 1),), (("d", 4), ("d", 4))), "two layers")
    assert one.shape == (1, 32)
