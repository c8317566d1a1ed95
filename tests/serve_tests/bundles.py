"""Small real bundles: scores = USER[user] . ITEM[item] + price . weights + fresh, and a bag of ids that is summed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from objectives.bags import Bags
from objectives.records import InputSpec
from objectives.serving.bundle import COSTS, ROW_QUANTILES, write_bundle
from objectives.serving.pool import Pool
from objectives.serving.pool.balancing import Cost
from spaces.candidate import Candidate
from spaces.serialization import to_plain
from spaces.techniques.placement import Admission, Batching, Placement
from spaces.techniques.quantization import Precision

USERS, ITEMS, PRICES = 20, 30, 2
# Rows of a bundle's example, and of a full batch in `waiting`, so that the example itself does not wait.
EXAMPLE_ROWS = 100
# Most rows of a request to the shared server.
MAX_ROWS = 50
INPUTS = (
    InputSpec("user", "int64", (), USERS, "user"),
    InputSpec("item", "int64", (), ITEMS),
    InputSpec("price", "float32", (PRICES,), None),
    InputSpec("fresh", "bool", (), None),
)
BAG_INPUTS = (
    InputSpec("genres", "int64", (None,), ITEMS),
    InputSpec("bounds", "bool", (None,), None, bags=Bags("bounds", ("genres",))),
)


def draw_request(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "user": np.full(rows, rng.integers(USERS), np.int64),
        "item": rng.integers(0, ITEMS, rows),
        "price": rng.normal(size=(rows, PRICES)).astype(np.float32),
        "fresh": rng.random(rows) < 0.5,
    }


def waiting(seconds: float, queue: int | None = None) -> Placement:
    """Return a placement whose requests wait so long for a batch to fill, which keeps them in flight without work."""
    batching = Batching(EXAMPLE_ROWS, round(seconds * 1e6))
    return Placement(batching=batching, admission=Admission(queue=queue))


def end_waiting(pool: Pool, rows: int) -> None:
    """Fill the batch of a placement of `waiting` in which so many rows wait, so that it runs at once."""
    pool.submit(draw_request(EXAMPLE_ROWS - rows))


def write_toy(
    folder: Path,
    placement: Placement | None = None,
    seed: int = 0,
    name: str = "toy",
    precision: Precision | None = None,
    row_quantiles: Sequence[int] = (),
    costs: Sequence[Cost] = (),
) -> Path:
    """Write a bundle of the model with weights of a seed; its candidate tells a precision, which the model ignores."""
    rng = np.random.default_rng(seed)
    arrays = {
        "users": rng.normal(size=(USERS, 4)).astype(np.float32),
        "items": rng.normal(size=(ITEMS, 4)).astype(np.float32),
        "weights": rng.normal(size=PRICES).astype(np.float32),
        "axis": np.array([1]),
    }
    nodes = [
        helper.make_node("Gather", ["users", "user"], ["u"]),
        helper.make_node("Gather", ["items", "item"], ["i"]),
        helper.make_node("Mul", ["u", "i"], ["product"]),
        helper.make_node("ReduceSum", ["product", "axis"], ["dot"], keepdims=0),
        helper.make_node("MatMul", ["price", "weights"], ["priced"]),
        helper.make_node("Cast", ["fresh"], ["bonus"], to=TensorProto.FLOAT),
        helper.make_node("Sum", ["dot", "priced", "bonus"], ["scores"]),
    ]
    types = {
        "user": (TensorProto.INT64, ["rows"]),
        "item": (TensorProto.INT64, ["rows"]),
        "price": (TensorProto.FLOAT, ["rows", PRICES]),
        "fresh": (TensorProto.BOOL, ["rows"]),
    }
    model = _save(folder, nodes, types, arrays)
    candidate = Candidate(precision=precision or Precision(), placement=placement or Placement())
    measurement = {ROW_QUANTILES: list(row_quantiles), COSTS: to_plain(costs)}
    write_bundle(folder, name, model, candidate, measurement, INPUTS, f"# {name}\n", draw_request(EXAMPLE_ROWS))
    return folder


def write_bag(folder: Path) -> Path:
    """Write a bundle whose model sums the weights of each row's bag of ids."""
    nodes = [
        helper.make_node("Gather", ["table", "genres"], ["found"]),
        helper.make_node("Cast", ["bounds"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["found", "mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "axis"], ["scores"], keepdims=0),
    ]
    types = {"genres": (TensorProto.INT64, ["rows", "n"]), "bounds": (TensorProto.BOOL, ["rows", "n"])}
    arrays = {"table": np.arange(ITEMS, dtype=np.float32), "axis": np.array([1])}
    model = _save(folder, nodes, types, arrays)
    example = {"genres": np.array([[1, 2], [3, 3]]), "bounds": np.array([[True, True], [True, False]])}
    write_bundle(folder, "bag", model, Candidate(), {}, BAG_INPUTS, "# bag\n", example)
    return folder


def write_distance(folder: Path, unseen: int | None = None) -> Path:
    """Write a bundle with scores = -|user - item|, of ids below 20 and 30; `unseen` takes the place of other ids."""
    nodes = [
        helper.make_node("Sub", ["user", "item"], ["difference"]),
        helper.make_node("Abs", ["difference"], ["distance"]),
        helper.make_node("Neg", ["distance"], ["negative"]),
        helper.make_node("Cast", ["negative"], ["scores"], to=TensorProto.FLOAT),
    ]
    types = {"user": (TensorProto.INT64, ["rows"]), "item": (TensorProto.INT64, ["rows"])}
    model, example = _save(folder, nodes, types, {}), {"user": np.full(4, 2), "item": np.arange(4)}
    inputs = [replace(spec, unseen=unseen) for spec in INPUTS[:2]]
    write_bundle(folder, "distance", model, Candidate(), {}, inputs, "# distance\n", example)
    return folder


def _save(
    folder: Path, nodes: list[onnx.NodeProto], types: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> Path:
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info(name, *of) for name, of in types.items()],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows"])],
        [numpy_helper.from_array(values, name) for name, values in arrays.items()],
    )
    path = folder.with_name(f"{folder.name}-model") / "model.onnx"
    path.parent.mkdir(exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path
