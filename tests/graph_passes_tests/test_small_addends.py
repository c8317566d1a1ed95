"""Graphs of models that guard a division or a logarithm beside the models."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from tests.protos import run_onnx, to_onnx


class Guarded(nn.Module):
    """A model with a score for each form of a guard."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("least", torch.tensor(1e-10))

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        total, count = x.sum(1), given.float().sum(1)
        scores = [
            total / (count + 1e-12),
            total / (1e-12 + count),
            torch.log(count + self.least),
            total / torch.add(count, torch.tensor(2.0), alpha=5e-13),
            total / (count - 1e-12),
            total / (count + 1e-12) - 2 * total / (count - 1e-12),
            total + 1 / (x.min() + 1e-9),  # of all rows
        ]
        return torch.stack(scores, 1)


def test_a_guard_of_less_than_a_hundred_millionth_stays() -> None:
    """The exporter's optimizer takes so small a guard for nought."""
    x, given = torch.zeros(6, 3), torch.zeros(6, 3, dtype=torch.int64)
    x[1:3], given[1:3] = 1, 1
    model = Guarded()
    graph = to_onnx(model, {"x": x, "given": given})
    got = run_onnx(graph, {"x": x.numpy(), "given": given.numpy()})
    expected = model(x, given).numpy()
    assert got.shape == (6, 7) and np.isfinite(expected).all()
    assert np.allclose(got, expected, rtol=1e-5)
    assert not {"Sum", "Mean"} & {node.op_type for node in graph.graph.node}


def test_nought_is_still_left_out() -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + 0.0).sum(1) * 1.0

    graph = to_onnx(Plain(), {"x": torch.ones(4, 3)})
    assert [node.op_type for node in graph.graph.node] == ["ReduceSum"]
