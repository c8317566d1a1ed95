"""A large graph keeps its weights beside it, and is read and run as any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from objectives import onnx_graph
from objectives.compression.export import to_onnx
from objectives.onnx_graph import load_graph, save_graph
from objectives.records import WEIGHTS
from tests.protos import run_onnx


@pytest.mark.parametrize("largest", [onnx_graph.LARGEST, 10_000])
def test_a_graph_comes_back(largest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "LARGEST", largest)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(500, 16), nn.Linear(16, 1), nn.Flatten(0))
    ids = torch.arange(40)

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, item: torch.Tensor) -> torch.Tensor:
            return self.net(item)  # type: ignore[no-any-return]

    graph = to_onnx(Named(), {"item": ids})
    before = ir.to_proto(graph).SerializeToString()
    size = save_graph(graph, tmp_path / "model.onnx")
    assert ir.to_proto(graph).SerializeToString() == before, "the graph is not taken apart"
    files = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(files) == ({"model.onnx"} if largest > 10_000 else {"model.onnx", WEIGHTS}) and size == sum(
        files.values()
    )
    assert size >= 4 * 500 * 16
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    expected = Named()(ids).detach().numpy()
    assert np.allclose(session.run(None, {"item": ids.numpy()})[0], expected, atol=1e-6)
    monkeypatch.setattr(onnx_graph, "LARGEST", 1_000_000)
    (tmp_path / "whole").mkdir()
    save_graph(load_graph(tmp_path / "model.onnx"), tmp_path / "whole" / "model.onnx")
    assert [path.name for path in (tmp_path / "whole").iterdir()] == ["model.onnx"]
    for again in (
        *(load_graph(path) for path in tmp_path.rglob("model.onnx")),
        onnx.load(str(tmp_path / "model.onnx")),
    ):
        assert np.allclose(run_onnx(again, {"item": ids.numpy()}), expected, atol=1e-6)
