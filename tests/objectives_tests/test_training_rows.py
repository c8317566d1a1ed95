"""Epochs of rows of any shapes, in batches of any size."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from objectives.training_rows import Block, TrainingRows


def _rows(sizes: list[int], batch_size: int, **more: Any) -> TrainingRows:
    """Blocks of these sizes, each of another width; an input, and a nested label, tell the number of the row."""
    blocks, first = [], 0
    for width, size in enumerate(sizes, 1):
        numbers = torch.arange(first, first + size)
        labels = {"one": numbers, "two": [numbers.unsqueeze(1) * 2]}
        blocks.append(Block({"number": numbers, "wide": numbers.unsqueeze(1).repeat(1, width)}, labels))
        first += size
    return TrainingRows(tuple(blocks), batch_size, **more)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(2, 30), st.integers(0, 9))
def test_an_epoch_has_each_row_at_most_once_in_batches_of_one_shape(sizes: list[int], most: int, seed: int) -> None:
    if max(sizes) < 2:
        sizes = [*sizes, 2]
    rows = _rows(sizes, most)
    batches = list(rows.epoch(torch.Generator().manual_seed(seed)))
    assert len(batches) == rows.batches_per_epoch and rows.rows == sum(sizes)
    seen = Counter(number for batch in batches for number in batch.rows.tolist())
    assert max(seen.values()) == 1
    # Left out is what would be alone: the row of a block of one, or, of batches of two, the odd one.
    assert rows.rows - len(seen) == sum(1 for size in sizes if size == 1 or (most == 2 and size % 2))
    for batch in batches:
        assert 2 <= len(batch.rows) <= most
        assert torch.equal(batch.inputs["number"], batch.rows) and torch.equal(batch.labels["one"], batch.rows)
        assert torch.equal(batch.labels["two"][0][:, 0], 2 * batch.rows)
        assert torch.equal(batch.inputs["wide"][:, 0], batch.rows)
    for size in sizes:
        of_one = [len(b.rows) for b in batches if b.inputs["wide"].shape[1] == 1 + sizes.index(size)]
        assert not of_one or max(of_one) - min(of_one) <= 1, "shared out evenly"


def test_each_epoch_has_another_order_and_a_seed_the_same() -> None:
    rows, generator = _rows([60, 50], 16), torch.Generator().manual_seed(0)
    first, second = (torch.cat([batch.rows for batch in rows.epoch(generator)]).tolist() for _ in range(2))
    again = torch.cat([batch.rows for batch in rows.epoch(torch.Generator().manual_seed(0))]).tolist()
    assert first == again != second and sorted(first) == sorted(second) == list(range(110))
    shapes = [batch.inputs["wide"].shape[1] for batch in rows.epoch(torch.Generator().manual_seed(0))]
    assert shapes not in (sorted(shapes), sorted(shapes, reverse=True)), "blocks are not read one after the other"


def test_what_is_drawn_stands_beside_its_rows() -> None:
    def draw(numbers: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {"drawn": numbers.unsqueeze(1) + torch.rand(len(numbers), 2, generator=generator) / 2}

    rows, generator = _rows([20], 8, draw=draw), torch.Generator().manual_seed(0)
    epochs = [torch.cat([b.inputs["drawn"][b.rows.argsort()] for b in rows.epoch(generator)]) for _ in range(2)]
    assert torch.equal(*(epoch.floor()[:, 0].sort().values for epoch in epochs))
    assert not torch.equal(*(epoch.sort(0).values for epoch in epochs))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(2, 30))
def test_rows_in_order_are_numbered_as_those_of_an_epoch(sizes: list[int], most: int) -> None:
    rows = _rows([*sizes, 2], most)
    in_order = [(first, inputs["number"]) for first, inputs in rows.in_order()]
    assert all(torch.equal(numbers, torch.arange(first, first + len(numbers))) for first, numbers in in_order)
    shown = {number for batch in rows.epoch(torch.Generator()) for number in batch.rows.tolist()}
    assert shown <= set(torch.cat([numbers for _, numbers in in_order]).tolist())


@pytest.mark.parametrize(("sizes", "most", "line"), [([5], 1, "batch_size: .*1"), ([1, 1], 4, r"got \[1, 1\]")])
def test_what_gives_no_batch_is_refused(sizes: list[int], most: int, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        _rows(sizes, most)
