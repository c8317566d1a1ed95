"""A large graph keeps its weights beside it, and is read and run as any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from objectives.compression.export import run_onnx, to_onnx
from objectives.compression.graph_passes import external_data
from objectives.compression.graph_passes.saving import save_graph
from objectives.records import WEIGHTS


@pytest.mark.parametrize("largest", [external_data.LARGEST, 10_000])
def test_a_graph_comes_back(largest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_data, "LARGEST", largest)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(500, 16), nn.Linear(16, 1), nn.Flatten(0))
    ids = torch.arange(40)

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, item: torch.Tensor) -> torch.Tensor:
            return self.net(item)  # type: ignore[no-any-return]

    graph = to_onnx(Named(), {"item": ids}, weights_file=tmp_path / WEIGHTS)
    before = graph.SerializeToString()
    size = save_graph(graph, tmp_path / "model.onnx")
    assert graph.SerializeToString() == before, "the graph is not taken apart"
    files = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(files) == ({"model.onnx"} if largest > 10_000 else {"model.onnx", WEIGHTS}) and size == sum(
        files.values()
    )
    assert size >= 4 * 500 * 16
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    expected = Named()(ids).detach().numpy()
    assert np.allclose(session.run(None, {"item": ids.numpy()})[0], expected, atol=1e-6)
    assert np.allclose(run_onnx(onnx.load(str(tmp_path / "model.onnx")), {"item": ids.numpy()}), expected, atol=1e-6)
