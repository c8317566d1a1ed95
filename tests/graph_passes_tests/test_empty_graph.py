"""Empty graphs in both engines: they take what the model takes, and give zeros where it gives scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from objectives.compression.export import Signature, to_onnx
from objectives.compression.graph_passes.empty_graph import empty_graph
from objectives.compression.quantization import quantize
from objectives.onnx_graph import save_graph
from objectives.serving.engines import open_engine
from spaces.model_structure import Group, ModelStructure
from spaces.techniques.quantization import Precision


class Scorer(nn.Module):
    """Scores of items for one user, whose vector is given once a request."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.items, self.head, self.outputs = nn.Embedding(9, 4), nn.Linear(8, outputs), outputs

    def forward(self, item: Tensor, price: Tensor, user: Tensor) -> Tensor:
        vectors = torch.cat([self.items(item).sum(1) * price.unsqueeze(1), user.expand(len(item), 4)], dim=1)
        scores: Tensor = self.head(vectors)
        return scores if self.outputs > 1 else scores.squeeze(1)


def rows_of_a_request(rows: int) -> dict[str, NDArray[np.generic]]:
    random = np.random.default_rng(rows)
    return {
        "item": random.integers(0, 9, (rows, 3)),
        "price": random.random(rows, np.float32),
        "user": random.random((1, 4), np.float32),
    }


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("width", ["fp32", "int8-dynamic"])
def test_an_empty_graph_takes_and_gives_what_the_model_does(
    engine: str, outputs: int, width: str, tmp_path: Path
) -> None:
    pytest.importorskip(engine)
    example = {name: torch.from_numpy(values) for name, values in rows_of_a_request(5).items()}
    model = to_onnx(Scorer(outputs), example, Signature(once=frozenset({"user"})))
    if width != "fp32":
        structure = ModelStructure((Group("head", "linear", ("head",), 1, (), "left whole"),))
        model = quantize(model, Precision((("head", width),)), structure, rows_of_a_request(64))
    save_graph(model, tmp_path / "model.onnx")
    save_graph(empty_graph(model), tmp_path / "empty.onnx")
    full, empty = (open_engine(engine, tmp_path / name) for name in ("model.onnx", "empty.onnx"))
    assert empty.takes == full.takes and empty.gives == full.gives and empty.once == {"user"}
    for rows in (1, 7, 1000):
        scores, zeros = full.run(rows_of_a_request(rows)), empty.run(rows_of_a_request(rows))
        assert zeros.shape == scores.shape and zeros.dtype == scores.dtype
        assert scores.any() and not zeros.any()
