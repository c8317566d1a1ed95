"""Parity is relative to the spread of the scores, and never reported for scores that are not finite."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import Tensor, nn

from objectives.parity import LIMIT, ParityError, compare_scores
from tests.protos import check_parity, largest_difference, run_onnx, to_onnx

ROWS = {"item": torch.arange(300) % 40}
ARRAYS = {name: values.numpy() for name, values in ROWS.items()}


class Scored(nn.Module):
    """An item's embedding through a layer, and what becomes of its output."""

    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.item, self.head, self.end = nn.Embedding(40, 16), nn.Linear(16, 1), end

    def forward(self, item: Tensor) -> Tensor:
        return self.end(self.head(self.item(item)).squeeze(1))


def rare() -> Scored:
    """Probabilities near 1e-3."""
    return Scored(lambda logits: torch.sigmoid(logits - 7))


def thousands() -> Scored:
    """Values of 3000 and some hundreds more or less, where one step of fp32 is 2e-4."""
    return Scored(lambda values: 3000 + 500 * values)


def close_together() -> Scored:
    """Values of 5000 and some tenths more or less, where one step of fp32 is 5e-4."""
    return Scored(lambda values: 5000 + values)


def changed(graph: onnx.ModelProto, part: str, change: Callable[[np.ndarray], np.ndarray]) -> onnx.ModelProto:
    other = copy.deepcopy(graph)
    tensor = next(t for t in other.graph.initializer if t.name == f"model.{part}")
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))
    return other


def other_weights(graph: onnx.ModelProto, share: float) -> onnx.ModelProto:
    return changed(graph, "head.weight", lambda weight: weight * np.float32(1 + share))


def nan(graph: onnx.ModelProto) -> onnx.ModelProto:
    """One row of the table, which some rows look up."""
    return changed(graph, "item.weight", lambda table: np.where(np.arange(40)[:, None] == 3, np.nan, table))


# -- of arrays


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e6])
def test_a_difference_is_told_in_standard_deviations(unit: float) -> None:
    expected = unit * np.array([-1.0, 1.0, -1.0, 1.0])  # of which the standard deviation is `unit`
    got = expected + unit * np.array([0, 0.25, 0, -0.125])
    assert compare_scores([got[:3], got[3:]], [expected[:3], expected[3:]], None) == pytest.approx(0.25)
    with pytest.raises(ParityError, match=r"0\.2 .*0\.25 "):
        compare_scores([got], [expected], 0.2)


def test_each_output_has_a_spread_of_its_own() -> None:
    expected = np.array([[-1.0, -1000.0], [1.0, 1000.0]])
    assert compare_scores([expected + np.array([0.5, 0])], [expected], None) == pytest.approx(0.5)
    assert compare_scores([expected + np.array([0, 0.5])], [expected]) == pytest.approx(0.0005)


def test_scores_that_hardly_differ_are_measured_by_their_mean() -> None:
    constant = np.full(5, 200.0)
    assert compare_scores([constant + 1], [constant], None) == pytest.approx(1 / 0.4)
    assert compare_scores([constant], [constant]) == 0


def test_a_sigmoids_rounding_is_no_fault() -> None:
    """The sigmoid of ONNX Runtime is off by 1.3e-7, of probabilities near 1e-6 as of others."""
    expected = np.linspace(1e-7, 1e-6, 50)
    assert 0 < compare_scores([expected + 1.4e-7], [expected]) < LIMIT
    with pytest.raises(ParityError, match="must agree"):
        compare_scores([expected + 3e-7], [expected])


@given(st.lists(st.floats(1, 100, width=32), min_size=2, max_size=20), st.floats(1, 1e6))
def test_a_difference_does_not_hang_on_the_scores_unit(values: list[float], unit: float) -> None:
    expected = np.array(values)
    got = expected + np.linspace(0, 0.1, len(values)) * expected.std()
    told = compare_scores([got * unit], [expected * unit], None)
    assert told == pytest.approx(compare_scores([got], [expected], None), rel=1e-6)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["graph", "model"])
def test_what_is_not_finite_is_an_error(wrong: float, side: str) -> None:
    """Values that are alike on both sides are an error too: such a model has no scores."""
    good = np.arange(4.0)
    bad = np.array([0, wrong, 2, 3])
    with pytest.raises(ParityError, match=f"{side} .*1 of 4"):
        compare_scores([bad if side == "graph" else good], [bad if side == "model" else good])
    with pytest.raises(ParityError, match="1 of 4"):
        compare_scores([bad], [bad])


# -- of graphs


@pytest.mark.parametrize(
    ("make", "size", "share"), [(rare, 1e-3, 0.01), (thousands, 3e3, 0.01), (close_together, 5e3, 0.1)]
)
def test_other_weights_fail_and_the_models_own_pass(make: Callable[[], Scored], size: float, share: float) -> None:
    model = make()
    graph = to_onnx(model, ROWS)
    scores = run_onnx(graph, ARRAYS)
    assert size / 2 < scores.mean() < size * 2
    requests = [{"item": ARRAYS["item"][:count]} for count in (3, 50)]
    assert check_parity(model, graph, ROWS) < 5e-4 and check_parity(model, graph, ROWS, requests=requests) < 5e-4
    assert largest_difference(graph, graph, ARRAYS, LIMIT) == 0
    other = other_weights(graph, share)
    moved = np.abs(run_onnx(other, ARRAYS) - scores)
    assert (moved.max() < 1e-4) == (size < 1), "so that an absolute limit lets it pass"
    for check in (
        lambda: check_parity(model, other, ROWS),
        lambda: check_parity(model, other, ROWS, requests=requests),
        lambda: largest_difference(other, graph, ARRAYS, LIMIT),
    ):
        with pytest.raises(ParityError, match=r"0\.001"):
            check()


def test_scores_of_a_graph_that_are_not_finite_fail() -> None:
    model = rare()
    graph = to_onnx(model, ROWS)
    broken = nan(graph)
    line = r"graph .*\d+ of \d+ are NaN"
    with pytest.raises(ParityError, match=line):
        check_parity(model, broken, ROWS)
    with pytest.raises(ParityError, match=line):
        check_parity(model, broken, ROWS, requests=[ARRAYS])
    for ours, theirs in ((broken, graph), (graph, broken), (broken, broken)):
        with pytest.raises(ParityError, match=line):
            largest_difference(ours, theirs, ARRAYS)


def test_scores_of_a_model_that_are_not_finite_fail() -> None:
    model = Scored(torch.log)  # of negative numbers
    with pytest.raises(ParityError, match=r"NaN"):
        check_parity(model, to_onnx(model, ROWS), ROWS)
