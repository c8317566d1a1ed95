"""Scores of a whole table that are looked up by item: the same as those of the items' rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from objectives import onnx_graph
from objectives.compression.export import Signature
from objectives.compression.graph_passes.score_catalogue import CatalogueError, catalogue_rows
from objectives.recommenders.families.sasrec import SASRec, Sizes
from objectives.serving.engines import open_replica
from spaces.techniques.placement import InstanceGroup
from tests.protos import compute_once, run_onnx, score_catalogue, to_onnx

USERS, ITEMS, DIMENSION = 30, 70, 6
ROWS = (1, 2, 7, 70, 257)


class TwoTowers(nn.Module):
    """A user's vector by a small network, multiplied with an item's in one of several ways, and the item's bias."""

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.user, self.item = nn.Embedding(USERS, 8), nn.Embedding(ITEMS, DIMENSION)
        self.tower, self.bias, self.product = nn.Linear(8, DIMENSION), nn.Embedding(ITEMS, 1), product

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        vector = torch.relu(self.tower(self.user(user)))
        return self.product(vector, self.item(item)) + self.bias(item).squeeze(1)  # type: ignore[no-any-return]


def _operators(graph: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in graph.graph.node]


def _towers(product: Callable[[Tensor, Tensor], Tensor]) -> tuple[TwoTowers, onnx.ModelProto]:
    model = TwoTowers(product).eval()
    example = {"user": torch.arange(7), "item": torch.arange(7)}
    return model, compute_once(to_onnx(model, example), frozenset(["user"]))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(
    "product",
    [
        lambda user, item: (user * item).sum(1),
        lambda user, item: (item * user).sum(-1, keepdim=True).squeeze(1),
    ],
    ids=["sum", "kept"],
)
def test_the_products_of_two_towers_are_looked_up(product: Callable[[Tensor, Tensor], Tensor], rows: int) -> None:
    model, once = _towers(product)
    scored = score_catalogue(once)
    user, item = np.full(rows, 3), np.random.default_rng(rows).integers(0, ITEMS, rows)
    expected = model(torch.from_numpy(user), torch.from_numpy(item)).detach().numpy()
    np.testing.assert_allclose(run_onnx(scored, {"user": user[:1], "item": item}), expected, atol=1e-5)
    assert _operators(scored).count("GatherElements") == 1 and "Mul" not in _operators(scored)
    assert catalogue_rows(ir.from_proto(once)) == ITEMS


@pytest.mark.parametrize("rows", ROWS)
def test_sasrec_looks_up_the_history_alone(rows: int) -> None:
    torch.manual_seed(0)
    model = SASRec(ITEMS, Sizes(8, 2, 2, 16, 10)).eval()
    example = {"history": torch.zeros(2, 10, dtype=torch.int64), "item": torch.ones(7, dtype=torch.int64)}
    graph = to_onnx(model, example, Signature(frozenset(["history"])))
    scored = score_catalogue(graph)
    random = np.random.default_rng(rows)
    inputs = {"history": random.integers(0, ITEMS + 1, (1, 10)), "item": random.integers(1, ITEMS + 1, rows)}
    expected = model(**{name: torch.from_numpy(values) for name, values in inputs.items()}).detach().numpy()
    np.testing.assert_allclose(run_onnx(scored, inputs), expected, atol=1e-5)
    read = [node.input[1] for node in scored.graph.node if node.op_type == "Gather"]
    assert "item" not in read and "item" in [n.input[1] for n in graph.graph.node if n.op_type == "Gather"]
    assert [list(value.type.tensor_type.shape.dim) for value in scored.graph.output] == [
        list(value.type.tensor_type.shape.dim) for value in graph.graph.output
    ]


TABLE = np.random.default_rng(0).normal(size=(ITEMS, DIMENSION)).astype(np.float32)


def _graph(nodes: Sequence[onnx.NodeProto], vector: Sequence[int | str], outputs: Sequence[str]) -> onnx.ModelProto:
    """A graph that looks rows up in a table, as `rows`, beside nodes of its own and a vector."""
    constants = {"table": TABLE, "last": np.array([-1]), "one": np.array([1])}
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["rows"]), *nodes],
        "g",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"]),
            helper.make_tensor_value_info("vector", TensorProto.FLOAT, vector),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def _node(kind: str, *inputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, ["scores"], **attributes)


_TURNED = helper.make_node("Transpose", ["rows"], ["turned"], perm=[1, 0])
_TERMS = helper.make_node("Mul", ["vector", "rows"], ["terms"])
D = DIMENSION
# The nodes of a product, and the shape of the vector.
PRODUCTS: dict[str, tuple[list[onnx.NodeProto], list[int]]] = {
    "rows by a vector": ([_node("MatMul", "rows", "vector")], [D]),
    "rows by a column": ([_node("MatMul", "rows", "vector")], [D, 1]),
    "a vector by columns": ([_TURNED, _node("MatMul", "vector", "turned")], [D]),
    "a row by columns": ([_TURNED, _node("MatMul", "vector", "turned")], [1, D]),
    "transposed on the right": ([_node("Gemm", "vector", "rows", transB=1, alpha=0.5)], [1, D]),
    "both transposed": ([_node("Gemm", "vector", "rows", transA=1, transB=1)], [D, 1]),
    "transposed twice": ([_TURNED, _node("Gemm", "turned", "vector", transA=1, alpha=-2.0)], [D, 1]),
    "rows on the left": ([_node("Gemm", "rows", "vector", transB=1)], [1, D]),
    "terms of a vector": ([_TERMS, _node("ReduceSum", "terms", "one", keepdims=0)], [D]),
    "terms of a row": ([_TERMS, _node("ReduceSum", "terms", "last")], [1, D]),
}


@pytest.mark.parametrize("name", PRODUCTS)
@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(-ITEMS, ITEMS - 1), min_size=1, max_size=90), st.integers(0, 1000))
def test_every_form_of_a_product_gives_what_it_gave(name: str, ids: list[int], seed: int) -> None:
    nodes, shape = PRODUCTS[name]
    graph = _graph(nodes, shape, ["scores"])
    vector = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    inputs = {"ids": np.array(ids), "vector": vector}
    (expected,) = ReferenceEvaluator(graph).run(None, inputs)
    scored = score_catalogue(graph)
    got = run_onnx(scored, inputs)
    assert got.shape == expected.shape and "Gather" not in _operators(scored)
    np.testing.assert_allclose(got, expected, atol=1e-5)


_SUMMED = [_TERMS, _node("ReduceSum", "terms", "one")]
_ONE = [helper.make_node("Mul", ["rows", "factor"], ["terms"]), _node("ReduceSum", "terms", "one")]
REFUSED: dict[str, tuple[list[onnx.NodeProto], list[int | str], list[str]]] = {
    "a vector for each row": (_SUMMED, ["n", D], ["scores"]),
    "several vectors": ([_node("Gemm", "vector", "rows", transB=1)], [3, D], ["scores"]),
    "no sum": ([_node("Mul", "vector", "rows")], [1, D], ["scores"]),
    "a sum over the rows": ([_TERMS, _node("ReduceSum", "terms", "first")], [1, D], ["scores"]),
    "rows that are scores too": (_SUMMED, [1, D], ["scores", "rows"]),
    "terms that are scores too": (_SUMMED, [1, D], ["scores", "terms"]),
    "a constant": ([_node("MatMul", "rows", "weight")], [1, D], ["scores"]),
    "a factor": (_ONE, [1, D], ["scores"]),
    "a transposition that is none": (
        [helper.make_node("Transpose", ["rows"], ["turned"], perm=[0, 1]), _node("MatMul", "vector", "turned")],
        [1, D],
        ["scores"],
    ),
    "rows by themselves": ([_node("Mul", "rows", "rows")], [1, D], ["scores"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_product_with_one_vector_is_refused(name: str) -> None:
    nodes, vector, outputs = REFUSED[name]
    graph = _graph(nodes, vector, outputs)
    constants = {"first": np.array([0]), "weight": np.ones((D, 1), np.float32), "factor": np.array(2, np.float32)}
    graph.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in constants.items())
    with pytest.raises(CatalogueError, match="one vector"):
        score_catalogue(graph)
    with pytest.raises(CatalogueError, match="one vector"):
        catalogue_rows(ir.from_proto(graph))


def test_two_products_with_one_table_are_both_looked_up() -> None:
    class Twice(TwoTowers):
        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            vector = self.tower(self.user(user))
            first, second = (vector * self.item(item)).sum(1), (torch.relu(vector) * self.item(ITEMS - 1 - item)).sum(1)
            return first * second

    model = Twice(torch.mul).eval()
    once = compute_once(to_onnx(model, {"user": torch.arange(7), "item": torch.arange(7)}), frozenset(["user"]))
    scored = score_catalogue(once)
    user, item = np.full(9, 3), np.random.default_rng(0).integers(0, ITEMS, 9)
    expected = model(torch.from_numpy(user), torch.from_numpy(item)).detach().numpy()
    np.testing.assert_allclose(run_onnx(scored, {"user": user[:1], "item": item}), expected, atol=1e-4)
    assert _operators(scored).count("GatherElements") == 2 and catalogue_rows(ir.from_proto(once)) == ITEMS


@pytest.mark.parametrize("threads", [1, 2])
def test_openvino_looks_up_the_same(threads: int, tmp_path: Path) -> None:
    model, once = _towers(lambda user, item: (user * item).sum(1))
    onnx.save(score_catalogue(once), tmp_path / "model.onnx")
    engine = open_replica(tmp_path / "model.onnx", InstanceGroup("openvino", threads=threads), None)
    for rows in (7, 2, 257, 7):
        user, item = np.full(rows, 3), np.random.default_rng(rows).integers(0, ITEMS, rows)
        expected = model(torch.from_numpy(user), torch.from_numpy(item)).detach().numpy()
        np.testing.assert_allclose(engine.run({"user": user[:1], "item": item}), expected, atol=1e-5)


def test_a_vector_for_each_user_is_no_silent_first_one() -> None:
    """Where a graph for one user is given several, it fails."""
    _, once = _towers(lambda user, item: (user * item).sum(1))
    several = onnx_graph.with_row_for_each(ir.from_proto(score_catalogue(once)), ["user"])
    with pytest.raises(Exception, match=r"(?i)reshape"):
        run_onnx(ir.to_proto(several), {"user": np.arange(4), "item": np.arange(4)})


def test_a_users_row_for_each_item_is_refused_until_it_is_computed_once() -> None:
    model = TwoTowers(lambda user, item: (user * item).sum(1)).eval()
    graph = to_onnx(model, {"user": torch.arange(7), "item": torch.arange(7)})
    with pytest.raises(CatalogueError, match="one vector"):
        score_catalogue(graph)
