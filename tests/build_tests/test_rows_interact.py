"""Models whose rows change each other's scores are told from others by their graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from objectives.build.baseline_checks import rows_interact


def written(folder: Path, interact: bool) -> Path:
    """Write a graph that multiplies a user's value and an item's, and takes off the mean where rows interact."""
    last = helper.make_node("ReduceMean", ["product"], ["mean"], axes=[0], keepdims=1)
    nodes = [helper.make_node("Mul", ["user", "item"], ["product"])]
    nodes += (
        [last, helper.make_node("Sub", ["product", "mean"], ["scores"])]
        if interact
        else [helper.make_node("Identity", ["product"], ["scores"])]
    )
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in ("user", "item")]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [None])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize("interact", [True, False])
def test_the_halves_of_a_request_have_its_scores_where_rows_are_independent(interact: bool, tmp_path: Path) -> None:
    """The user's value is given once. A request of one row tells nothing, and the largest is looked at."""
    random, model = np.random.default_rng(0), written(tmp_path, interact)
    requests = [
        {"user": np.ones(1, np.float32), "item": random.normal(size=rows).astype(np.float32)} for rows in (1, 7, 40, 3)
    ]
    found = rows_interact(model, requests)
    assert (found is not None) == interact
    assert found is None or "in halves they differ by" in found
    assert rows_interact(model, requests[:1]) is None
