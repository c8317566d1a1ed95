"""A model of two nodes in plain ONNX: scores = TABLE[item] @ WEIGHT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TABLE = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
WEIGHT = np.random.default_rng(1).normal(size=(4,)).astype(np.float32)


def write_dot(path: Path) -> Path:
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "item"], ["rows"]),
            helper.make_node("MatMul", ["rows", "w"], ["scores"]),
        ],
        "dot",
        [helper.make_tensor_value_info("item", TensorProto.INT64, ["rows"])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows"])],
        [numpy_helper.from_array(TABLE, "table"), numpy_helper.from_array(WEIGHT, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path
