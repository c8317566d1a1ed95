"""A model whose scores are those of a table: scores = WEIGHTS[item]."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ITEMS = 300
WEIGHTS = np.random.default_rng(0).normal(size=ITEMS).astype(np.float32)


def write_lookup(folder: Path) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Gather", ["weights", "item"], ["scores"])],
        "graph",
        [helper.make_tensor_value_info("item", TensorProto.INT64, ["rows"])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows"])],
        [numpy_helper.from_array(WEIGHTS, "weights")],
    )
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path
