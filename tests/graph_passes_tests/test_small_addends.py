"""Graphs of models that guard a division or a logarithm beside the models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.protos import run_onnx, to_onnx


class Guarded(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.register_buffer("least", torch.tensor(1e-10))

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        total, count = x.sum(1), given.float().sum(1)
        if self.form == "right":
            return total / (count + 1e-12)
        if self.form == "left":
            return total / (1e-12 + count)
        if self.form == "buffer":
            return torch.log(count + self.least)
        if self.form == "scaled":
            return total / torch.add(count, torch.tensor(2.0), alpha=5e-13)
        if self.form == "minus":
            return total / (count - 1e-12)
        if self.form == "both":
            return total / (count + 1e-12) - 2 * total / (count - 1e-12)
        return total + 1 / (x.min() + 1e-9)


@pytest.mark.parametrize("form", ["right", "left", "buffer", "scaled", "minus", "both", "of all rows"])
def test_a_guard_of_less_than_a_hundred_millionth_stays(form: str) -> None:
    """The exporter's optimizer holds it for nought."""
    x, given = torch.zeros(6, 3), torch.zeros(6, 3, dtype=torch.int64)
    x[1:3], given[1:3] = 1, 1
    model = Guarded(form)
    graph = to_onnx(model, {"x": x, "given": given})
    got = run_onnx(graph, {"x": x.numpy(), "given": given.numpy()})
    expected = model(x, given).numpy()
    assert np.isfinite(expected).all()
    assert np.allclose(got, expected, rtol=1e-5)
    assert not {"Sum", "Mean"} & {node.op_type for node in graph.graph.node}


def test_nought_is_still_left_out() -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + 0.0).sum(1) * 1.0

    graph = to_onnx(Plain(), {"x": torch.ones(4, 3)})
    assert [node.op_type for node in graph.graph.node] == ["ReduceSum"]
