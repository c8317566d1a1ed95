"""The user's side once a request: the same scores as the whole graph gives for N equal rows of the user."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from objectives.compression.graph_passes.user_once import UserOnceError
from objectives.compression.pruning import prune
from objectives.recommenders.datasets.features import Field
from objectives.recommenders.families.dcn_v2 import DCNV2, Sizes
from spaces.techniques.pruning import Pruning
from tests.model_structure_tests.written_structures import dcn_v2_anatomy
from tests.protos import check_parity, compute_once, multiply_adds, once_inputs, run_onnx, to_onnx

# The user's fields stand between the item's.
INPUTS = [
    Field(name="user", side="user", vocabulary=60),
    Field(name="item", side="item", vocabulary=80),
    Field(name="hour", side="user", vocabulary=24),
    Field(name="genre", side="item", vocabulary=12),
]
FIELDS = {field.name: field.vocabulary for field in INPUTS}
USER = frozenset({"user", "hour"})
ROWS = (1, 2, 7, 64, 257)


def _request(
    names: dict[str, int], user: frozenset[str], rows: int, shape: tuple[int, ...] = ()
) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(rows)
    made = {name: draw.integers(0, size, (rows, *shape)) for name, size in names.items()}
    return {name: np.repeat(v[:1], rows, 0) if name in user else v for name, v in made.items()}


def _model(sizes: Sizes) -> DCNV2:
    torch.manual_seed(0)
    model = DCNV2(INPUTS, sizes)
    for table in model.tables.values():
        torch.nn.init.normal_(table.weight, std=0.3)  # type: ignore[arg-type]
    model.train()
    model(**{name: torch.randint(0, size, (300,)) for name, size in FIELDS.items()})
    return model.eval()


def _export(model: torch.nn.Module) -> onnx.ModelProto:
    return to_onnx(model, {name: torch.zeros(4, dtype=torch.long) for name in FIELDS})


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    return _export(_model(Sizes(8, 2, (64, 48))))


@pytest.fixture(scope="module")
def pruned() -> onnx.ModelProto:
    model = _model(Sizes(8, 2, (64, 48)))
    smaller, _ = prune(model, Pruning((("mlp", 0.5),)), dcn_v2_anatomy(model))
    return _export(smaller)


def _initialisers(graph: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}


# -- a whole model


@pytest.mark.parametrize("sizes", [Sizes(16, 0, (32,)), Sizes(1, 3, (5, 3))])
def test_a_dcn_gives_the_same_scores(sizes: Sizes) -> None:
    model = _model(sizes)
    once = compute_once(_export(model), USER)
    for rows in ROWS:
        request = _request(FIELDS, USER, rows)
        expected = model(**{name: torch.from_numpy(v) for name, v in request.items()}).detach().numpy()
        scores = run_onnx(once, request)
        assert scores.shape == (rows,)
        assert np.allclose(scores, expected, atol=1e-5)
    assert check_parity(model, once, {name: torch.randint(0, s, (257,)) for name, s in FIELDS.items()}) < 1e-5


def test_a_pruned_model_gives_the_same_scores(pruned: onnx.ModelProto) -> None:
    once = compute_once(pruned, USER)
    for rows in ROWS:
        request = _request(FIELDS, USER, rows)
        assert np.allclose(run_onnx(once, request), run_onnx(pruned, request), atol=1e-5)


def test_openvino_gives_the_same_scores(graph: onnx.ModelProto, pruned: onnx.ModelProto, tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    openvino = pytest.importorskip("openvino")
    for whole in (graph, pruned):
        path = tmp_path_factory.mktemp("once") / "model.onnx"
        onnx.save(compute_once(whole, USER), str(path))
        run = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        for rows in ROWS:
            request = _request(FIELDS, USER, rows)
            feeds = {name: values[:1] if name in USER else values for name, values in request.items()}
            assert np.allclose(run(feeds)[0], run_onnx(whole, request), atol=1e-5)


def test_the_users_inputs_have_one_row(graph: onnx.ModelProto) -> None:
    once = compute_once(graph, USER)
    assert once_inputs(once) == USER
    assert once_inputs(graph) == frozenset()
    assert [i.name for i in once.graph.input] == [i.name for i in graph.graph.input]
    assert {i.name for i in once.graph.input if i.type.tensor_type.shape.dim[0].dim_value == 1} == USER


def test_a_graph_of_one_row_takes_nothing_once(graph: onnx.ModelProto) -> None:
    fixed = onnx.ModelProto()
    fixed.CopyFrom(graph)
    for value in fixed.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    assert once_inputs(fixed) == frozenset()


def test_first_weights_are_cut_into_the_columns_of_each_side(graph: onnx.ModelProto) -> None:
    whole, once = _initialisers(graph), _initialisers(compute_once(graph, USER))
    for name in ("model.mlp.0.weight", "model.cross.0.weight"):
        by_field = whole[name].reshape(-1, 4, 8)
        assert np.array_equal(once[f"{name}.user"], by_field[:, [0, 2]].reshape(-1, 16))
        assert np.array_equal(once[f"{name}.item"], by_field[:, [1, 3]].reshape(-1, 16))
        assert name not in once
    assert np.array_equal(once["model.mlp.4.weight"], whole["model.mlp.4.weight"])


@pytest.mark.parametrize("rows", [1, 7, 200])
def test_multiply_adds_are_those_of_the_formula(graph: onnx.ModelProto, rows: int) -> None:
    """x0 has 32 columns, 16 of them the user's; they meet the first cross (32 units) and the first layer (64)."""
    rest = 32 * 32 + 64 * 48 + (32 + 48)
    assert multiply_adds(graph, rows) == rows * (32 * 32 + 32 * 64 + rest)
    assert multiply_adds(compute_once(graph, USER), rows) == (rows + 1) * 16 * (32 + 64) + rows * rest


def test_a_product_of_unknown_shape_is_not_counted() -> None:
    model = _text("y = elsewhere.Mystery(x)\n z = MatMul(y, w)\n scores = ReduceSum<keepdims = 0>(z, one)", w=(4, 4))
    with pytest.raises(ValueError, match="shapes"):
        multiply_adds(model, 3)


# -- small graphs


def _text(body: str, **weights: tuple[int, ...]) -> onnx.ModelProto:
    """Embeddings u of user and v of item from one shared table of 9 x 4, x = [u; v], and then the body."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18, "elsewhere": 1]>'
        "g (int64[N] user, int64[N] item) => (float[N] scores) {"
        f"u = Gather(table, user)\n v = Gather(table, item)\n x = Concat<axis = -1>(u, v)\n {body} }}"
    )
    for i, node in enumerate(model.graph.node):
        node.name = f"n{i}"
    draw = np.random.default_rng(7)
    arrays = {name: draw.normal(size=shape).astype(np.float32) for name, shape in ({"table": (9, 4)} | weights).items()}
    whole = {"one": [1], "two": [2], "zero": [0], "both": [1, 2], "pairs": [-1, 2, 2], "kept": [0, 2, 2],
             "flat": [-1, 4], "mixed": [-1, 2], "start": [1], "end": [3], "ids": [2, 0], "last": [-1]}  # fmt: skip
    arrays |= {name: np.array(values, np.int64) for name, values in whole.items()} | {"axis": np.array(0, np.int64)}
    model.graph.initializer.extend(
        numpy_helper.from_array(a, n) for n, a in arrays.items() if n in body or n == "table"
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _same(model: onnx.ModelProto, rows: tuple[int, ...] = (1, 2, 7)) -> onnx.ModelProto:
    once = compute_once(model, frozenset({"user"}))
    for count in rows:
        request = _request({"user": 9, "item": 9}, frozenset({"user"}), count)
        assert np.allclose(run_onnx(once, request), run_onnx(model, request), atol=1e-5), count
    return once


def _first_dimension(model: onnx.ModelProto, value: str) -> int:
    """First dimensions as onnx infers them for a request of 7 rows."""
    bound = onnx.ModelProto()
    bound.CopyFrom(model)
    for i in bound.graph.input:
        if not i.type.tensor_type.shape.dim[0].dim_value:
            i.type.tensor_type.shape.dim[0].dim_value = 7
    values = onnx.shape_inference.infer_shapes(bound, data_prop=True).graph.value_info
    return int(next(v for v in values if v.name == value).type.tensor_type.shape.dim[0].dim_value)


# Of the user's embedding u (N, 4), each gives y; `end` brings y back to (N, 4) where it has another shape.
ALIKE = {
    "y = Sigmoid(u)": "",
    "y = Softmax<axis = -1>(u)": "",
    "y = LogSoftmax<axis = 1>(u)": "",
    "y = LayerNormalization<axis = -1>(u, b, b)": "",
    "y = BatchNormalization(u, b, b, b, square)": "",
    "y = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(u, w, b)": "",
    "y = Gemm(u, w, u)": "",
    "y = MatMul(u, w)": "",
    "y = Add(u, b)": "",
    "y = PRelu(u, b)": "",
    "y = Where(c, u, b)": "",
    "y = Cast<to = 11>(u)": "e = Cast<to = 1>(y)",
    "y = ReduceMean<keepdims = 1>(u, one)": "e = Add(y, b)",
    "y = ReduceSum<keepdims = 0>(u, one)": "e0 = Unsqueeze(y, one)\n e = Mul(e0, b)",
    "y = ReduceMax(u, last)": "e = Mul(y, b)",
    "y = Unsqueeze(u, one)": "e = Squeeze(y, one)",
    "y = Reshape(u, pairs)": "e = Reshape(y, flat)",
    "y = Reshape(u, kept)": "e = Flatten(y)",
    "y = Slice(u, start, end, one)": "e0 = MatMul(y, half)\n e = Add(e0, b)",
    "y = Gather<axis = 1>(u, ids)": "e = MatMul(y, half)",
    "y = ArgMax<axis = 1, keepdims = 1>(u)": "e0 = Cast<to = 1>(y)\n e = Mul(e0, b)",
    "q = QuantizeLinear(u, scale, nought)\n y = DequantizeLinear(q, scale, nought)": "",
    "c8 = Cast<to = 3>(u)\n s = ReduceMax<keepdims = 0>(u, one)\n y = DequantizeLinear<axis = 0>(c8, s)": "",
    "t = Reshape(u, kept)\n y = Transpose<perm = [0, 2, 1]>(t)": "e = Reshape(y, flat)",
    "t = Reshape(u, kept)\n y = MatMul(t, t)": "e = Reshape(y, flat)",
    "m = Transpose(u)\n y = Transpose(m)": "",
    "t = Reshape(u, kept)\n m = Transpose<perm = [1, 0, 2]>(t)\n n = MatMul(m, small)\n"
    " y = Transpose<perm = [1, 0, 2]>(n)": "e = Reshape(y, flat)",
    "t = Reshape(u, kept)\n y = MatMul(small, t)": "e = Reshape(y, flat)",
    "y, z = Split<axis = 1, num_outputs = 2>(u)": "e = Concat<axis = 1>(z, y)",
}
MIXING = {
    "y = CumSum(u, axis)": "",
    "y = Softmax<axis = 0>(u)": "",
    "m = ReduceMean<keepdims = 1>(u, zero)\n y = Sub(u, m)": "",
    "m = ReduceSum<keepdims = 0>(u)\n y = Mul(u, m)": "",
    "m = Reshape(u, mixed)\n y = Reshape(m, flat)": "",
    "m = Transpose(u)\n s = Softmax<axis = 1>(m)\n y = Transpose(s)": "",
    "t = Reshape(u, kept)\n m = Transpose<perm = [1, 0, 2]>(t)\n s = CumSum(m, axis)\n y = Reshape(s, flat)": "",
    "t = Reshape(u, kept)\n m = Transpose<perm = [1, 0, 2]>(t)\n y = Reshape(m, flat)": "",
    "n = Shape(u)\n f = Cast<to = 1>(n)\n m = ReduceSum<keepdims = 0>(f)\n y = Mul(u, m)": "",
    "m = Concat<axis = 0>(u, u)\n s = Softmax<axis = 0>(m)\n y = Slice(s, zero, end_of_u, zero)": "",
}  # fmt: skip
WEIGHTS = {"w": (4, 4), "b": (4,), "half": (2, 4), "small": (2, 2), "first": (8, 4)}
LAST = "z0 = Concat<axis = 1>(e, v)\n z1 = MatMul(z0, first)\n scores = ReduceSum<keepdims = 0>(z1, one)"


def _with_operator(operator: str, end: str) -> onnx.ModelProto:
    constants = (
        "square = Mul(b, b)\n zeros = Sub(b, b)\n c = Greater(b, zeros)\n\n scale = Constant<value = float {0.05}>()\n"
        "nought = Constant<value = uint8 {128}>()\n rows = Shape<start = 0, end = 1>(item)\n"
        "end_of_u = Identity(rows)\n"
    )
    return _text(f"{constants} {operator}\n {end or 'e = Identity(y)'}\n {LAST}", **WEIGHTS)


@pytest.mark.parametrize(("operator", "end"), ALIKE.items())
def test_operators_that_treat_rows_alike_have_one_row(operator: str, end: str) -> None:
    model = _with_operator(operator, end)
    once = _same(model)
    assert (_first_dimension(model, "y"), _first_dimension(once, "y")) == (7, 1)


@pytest.mark.parametrize(("operator", "end"), MIXING.items())
def test_operators_that_mix_rows_have_all_of_them(operator: str, end: str) -> None:
    model = _with_operator(operator, end)
    once = compute_once(_with_gate(model), frozenset({"user"}))
    for count in (1, 2, 7):
        request = _request({"user": 9, "item": 9}, frozenset({"user"}), count)
        assert np.allclose(run_onnx(once, request), run_onnx(_with_gate(model), request), rtol=1e-4, atol=1e-5)
    assert _first_dimension(once, "y") != 1  # 0 where it cannot be inferred


def _with_gate(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with the item's embedding gated by the user's, so that something else is saved."""
    gated = onnx.ModelProto()
    gated.CopyFrom(model)
    for node in gated.graph.node:
        node.input[:] = ["gated" if name == "v" else name for name in node.input]
    gate = [
        helper.make_node("Sigmoid", ["u"], ["gate"], "gate"),
        helper.make_node("Mul", ["v", "gate"], ["gated"], "by"),
    ]
    nodes = list(gated.graph.node)
    nodes[2].input[:] = ["u", "v"]
    del gated.graph.node[:]
    gated.graph.node.extend([*nodes[:3], *gate, *nodes[3:]])
    return gated


def test_one_weight_of_two_products_is_cut_once_or_left_whole() -> None:
    body = (
        "a = MatMul(x, w)\n x2 = Concat<axis = 1>(v, u)\n b = MatMul(x2, w)\n c = MatMul(x, w)\n"
        "s0 = Add(a, b)\n s = Mul(s0, c)\n scores = ReduceSum<keepdims = 0>(s, one)"
    )
    once = _same(_text(body, w=(8, 3)))
    assert {"w", "w.user", "w.item"} <= set(_initialisers(once))


def test_a_weight_read_both_ways_is_cut_one_way() -> None:
    body = "a = Gemm(x, w)\n b = Gemm<transB = 1>(x, w)\n s = Mul(a, b)\n scores = ReduceSum<keepdims = 0>(s, one)"
    assert {"w", "w.user", "w.item"} <= set(_initialisers(_same(_text(body, w=(8, 8)))))


def test_a_stack_of_products_takes_the_user_by_broadcasting() -> None:
    """Scores v . r with r computed of the user alone, as a model of sequences makes them."""
    body = (
        "r0 = Gemm(u, w, b)\n r1 = Relu(r0)\n r = Unsqueeze(r1, two)\n q = Unsqueeze(v, one)\n m = MatMul(q, r)\n"
        "scores = Squeeze(m, both)"
    )
    once = _same(_text(body, w=(4, 4), b=(4,)))
    assert [_first_dimension(once, name) for name in ("r", "m")] == [1, 7]
    assert "Expand" not in {node.op_type for node in once.graph.node}


@st.composite
def graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """Concatenations in any order of embeddings of either side from shared tables, then layers of many kinds."""
    d, tables = 3, draw(st.integers(1, 2))
    sides = draw(st.permutations(["user", "item", *draw(st.lists(st.sampled_from(["user", "item"]), max_size=3))]))
    nodes, arrays = [], {f"t{i}": (6, d) for i in range(tables)}

    def add(kind: str, inputs: list[str], **attributes: object) -> str:
        out = f"v{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [out], f"n{len(nodes)}", **attributes))  # type: ignore[arg-type]
        return out

    def weight(*shape: int) -> str:
        arrays[f"w{len(arrays)}"] = shape
        return f"w{len(arrays) - 1}"

    def linear(x: str, fan_in: int, fan_out: int) -> str:
        if draw(st.booleans()):
            return add("MatMul", [x, weight(fan_in, fan_out)])
        transposed = draw(st.booleans())
        scale = draw(st.sampled_from([1.0, 0.5]))
        shape = (fan_out, fan_in) if transposed else (fan_in, fan_out)
        bias = [weight(fan_out)] if draw(st.booleans()) else []
        return add("Gemm", [x, weight(*shape), *bias], transB=int(transposed), alpha=scale, beta=1 / scale)

    codes = {"user": "user", "item": "item"}
    parts = [add("Gather", [f"t{draw(st.integers(0, tables - 1))}", codes[side]]) for side in sides]
    user, item = parts[sides.index("user")], parts[sides.index("item")]
    width = d * len(parts)
    x0 = add("Concat", parts, axis=draw(st.sampled_from([1, -1])))
    x = linear(x0, width, width)
    for kind in draw(st.lists(st.sampled_from(["cross", "residual", "relu", "gate", "concat", "tower"]), max_size=4)):
        if kind == "cross":
            x = add("Add", [add("Mul", [x0, linear(x, width, width)]), x])
        elif kind == "residual":
            x = add("Add", [linear(x0, width, width), x])
        elif kind == "relu":
            x = add("Relu", [x])
        elif kind == "gate":
            gated = add("Mul", [add("Sigmoid", [linear(user, d, d)]), item])
            x = add("Add", [linear(gated, d, width), x])
        elif kind == "concat":
            again = add("Concat", draw(st.permutations([user, x, item])), axis=1)
            x = linear(again, 2 * d + width, width)
        else:
            user = add("Tanh", [linear(user, d, d)])
    names = iter(arrays)
    random = np.random.default_rng(3)
    tensors = [numpy_helper.from_array(random.normal(size=arrays[n], scale=0.3).astype(np.float32), n) for n in names]
    nodes.append(helper.make_node("ReduceSum", [x, "axis"], ["scores"], "head", keepdims=0))
    tensors.append(numpy_helper.from_array(np.array([1]), "axis"))
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["N"]) for name in codes]
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N"])
    return helper.make_model(
        helper.make_graph(nodes, "drawn", inputs, [scores], tensors),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )


@settings(max_examples=30, derandomize=True)
@given(graphs())
def test_drawn_graphs_give_the_same_scores_with_less_arithmetic(model: onnx.ModelProto) -> None:
    once = compute_once(model, frozenset({"user"}))
    onnx.checker.check_model(once, full_check=True)
    for rows in (1, 2, 7):
        request = _request({"user": 6, "item": 6}, frozenset({"user"}), rows)
        expected = run_onnx(model, request)
        assert np.allclose(run_onnx(once, request), expected, atol=1e-5 * max(1, np.abs(expected).max()))
    assert multiply_adds(once, 50) < multiply_adds(model, 50)


# -- refusals


@pytest.mark.parametrize(
    ("names", "got"), [((), r"\[\]"), (("nobody",), "nobody"), (tuple(FIELDS), "genre"), (("user", "nobody"), "nobody")]
)
def test_user_inputs_are_some_of_the_inputs(graph: onnx.ModelProto, names: tuple[str, ...], got: str) -> None:
    with pytest.raises(UserOnceError, match=f"user's inputs .*got .*{got}"):
        compute_once(graph, frozenset(names))


def test_a_graph_is_rewritten_once(graph: onnx.ModelProto) -> None:
    with pytest.raises(UserOnceError, match=r"\['hour', 'user'\]"):
        compute_once(compute_once(graph, USER), USER)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = Mul(u, v)\n z = MatMul(y, w)\n scores = ReduceSum<keepdims = 0>(z, one)", "Mul "),
        ("y = CumSum(u, axis)\n z = Add(y, v)\n scores = ReduceSum<keepdims = 0>(z, one)", "CumSum "),
        ("scores = ReduceSum<keepdims = 0>(v, one)", "not used"),
    ],
)
def test_lookups_alone_save_no_arithmetic(body: str, reason: str) -> None:
    model = _text(body, w=(4, 4))
    if "not used" in reason:
        del model.graph.node[0], model.graph.node[1]
    with pytest.raises(UserOnceError, match=f"user .*{reason}"):
        compute_once(model, frozenset({"user"}))


def test_scores_of_the_user_alone_are_refused() -> None:
    model = _text("y = MatMul(u, w)\n scores = ReduceSum<keepdims = 0>(y, one)", w=(4, 4))
    with pytest.raises(UserOnceError, match=r"item.*\['scores'\]"):
        compute_once(model, frozenset({"user"}))


def test_branches_are_refused(graph: onnx.ModelProto) -> None:
    other = onnx.ModelProto()
    other.CopyFrom(graph)
    branch = helper.make_graph([], "branch", [], [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)])
    other.graph.node.append(helper.make_node("If", ["user"], ["z"], "if", then_branch=branch, else_branch=branch))
    with pytest.raises(UserOnceError, match="branches"):
        compute_once(other, USER)
