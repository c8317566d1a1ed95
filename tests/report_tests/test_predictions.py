"""Expected beside found losses, and what further cycles gained, of rows whose losses are known by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from search.report.predictions import longer_sentence, loss_figure, loss_predictions
from search.results import Front, Row
from tests.search_tests.documents import read_front


@pytest.fixture
def rows(front_document: dict[str, Any]) -> tuple[Front, Row, Row]:
    """A front, and a row on it and one that is not, of which no loss was expected."""
    front = read_front(front_document)
    on, off = (next(row for row in front.rows if row.on_front == member) for member in (True, False))
    return replace(front, rows=()), on, replace(off, loss=None, expected_loss=None)


def test_losses_are_told_where_both_are_known(rows: tuple[Front, Row, Row]) -> None:
    front, _, off = rows
    known = [(0.01, 0.012), (0.02, 0.01), (0.0, 0.001), (0.049, 0.3), (None, 0.5), (0.3, None)]
    front = replace(front, rows=tuple(replace(off, trial=n, expected_loss=e, loss=f) for n, (e, f) in enumerate(known)))
    found = loss_predictions(front)
    assert found is not None and found.trials == (0, 1, 2, 3)
    assert found.found[3] == pytest.approx(0.05), "five times the tolerated loss of 1%"
    assert found.error == pytest.approx(0.0015) and found.spread == pytest.approx(0.0055)
    assert found.excess == pytest.approx((0.073 - 0.079) / 4)
    assert "expected one is -0.15%." in found.sentence
    assert "Half of the 4 expected losses are within 0.15%" in found.sentence and "above 5%" in found.sentence
    figure = loss_figure(found, 0.005)
    marks = figure["data"][-1]
    assert marks["x"] == pytest.approx([1.0, 2.0, 0.0, 4.9]) and marks["y"] == pytest.approx([1.2, 1.0, 0.1, 5.0])
    assert figure["data"][1]["y"] == [0.5, 0.5]


def test_two_losses_are_too_few(rows: tuple[Front, Row, Row]) -> None:
    front, _, off = rows
    two = tuple(replace(off, trial=n, expected_loss=0.1, loss=0.1) for n in range(2))
    assert loss_predictions(replace(front, rows=two)) is None


def test_further_cycles_are_compared_with_those_before(rows: tuple[Front, Row, Row]) -> None:
    """Two shapes: one falls from 4% to 2% and 1.6%, in another placement; the other one was never evaluated before."""
    front, on, off = rows

    def row(of: Row, weights: str, cycles: int, loss: float, **knobs: Any) -> Row:
        return replace(of, weights=weights, loss=loss, knobs={"distillation.cycles": cycles, **knobs})

    once = row(off, "a1", 1, 0.04, shape=1)
    assert longer_sentence(replace(front, rows=(once,))) == ""
    ended = (
        once,
        row(off, "a2", 2, 0.02, shape=1, **{"placement.layout": "2x1"}),
        row(on, "a3", 3, 0.016, shape=1),
        row(off, "a3", 3, 0.016, shape=1),
        row(off, "b2", 2, 0.5, shape=2),
    )
    said = longer_sentence(replace(front, rows=ended))
    assert said == (
        "3 trainings of more than one cycle were evaluated: each further cycle changed the loss by -1.20% in the "
        "median of 2; 1 of them is on the front."
    )
