"""Costs by closed form, groups by graphs drawn by hand, and real runs that must add up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from objectives.int8_weights import EXACT_SUMS, WEIGHT_BITS, Int8WeightBits
from objectives.measurement.profile.engine_trace import ProfileError, match_events, typical
from objectives.measurement.profile.layer_groups import assign, weight_owners
from objectives.measurement.profile.operator_cost import bytes_moved, flops, stored_bytes
from objectives.measurement.profile.profile import NodeCost, Profile, median_request, profile_model, summarize
from spaces.model_structure import Group, ModelStructure
from spaces.serialization import from_plain, to_plain
from spaces.techniques.quantization import Precision
from tests.protos import quantize

TABLES = Group("tables", "table", ("tables.user", "tables.item"), 1, (), "tied")
CROSS = Group("cross", "linear", ("cross.0", "cross.1"), 1, (), "tied")
MLP = Group("mlp", "linear", ("mlp.0", "mlp.4"), 1, (), "left whole")
GROUPS = (TABLES, CROSS, MLP)


INT8, INT64 = ir.DataType.INT8, ir.DataType.INT64


def matrix(*shape: int, kind: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    return ir.val(None, kind, shape)


def node(kind: str, reads: str, puts: str, values: Mapping[str, ir.Value], **attributes: int) -> ir.Node:
    """One node over these values, its output of the same shape as the value of that name."""
    out = ir.val(puts, values[puts].dtype, values[puts].shape)
    return ir.node(kind, [values[name] for name in reads.split()], attributes, outputs=[out])


def graph(steps: Iterable[tuple[str, str, str]], *weights: str, vectors: tuple[str, ...] = ()) -> ir.Graph:
    """Nodes as (operator, inputs, outputs) over matrices and vectors of these names."""
    stored = {name: np.zeros((2, 2), np.float32) for name in weights} | {name: np.zeros(2) for name in vectors}
    known = {name: ir.val(name, const_value=ir.tensor(array, name=name)) for name, array in stored.items()}
    initializers, nodes = list(known.values()), []
    for kind, reads, puts in steps:
        inputs, outputs = ([known.setdefault(n, ir.val(n)) for n in names.split()] for names in (reads, puts))
        nodes.append(ir.node(kind, inputs, outputs=outputs, name=f"{kind}:{puts}"))
    given = [value for value in known.values() if value.producer() is None and value not in initializers]
    return ir.Graph(given, nodes[-1].outputs if nodes else [], nodes=nodes, initializers=initializers)


# -- cost by shape


@given(m=st.integers(1, 300), k=st.integers(1, 300), n=st.integers(1, 300), turned=st.booleans())
def test_a_product_costs_two_operations_for_each_multiply_add(m: int, k: int, n: int, turned: bool) -> None:
    values = {"x": matrix(k, m) if turned else matrix(m, k), "w": matrix(k, n), "b": matrix(n), "y": matrix(m, n)}
    gemm = node("Gemm", "x w b", "y", values, transA=int(turned))
    assert flops(gemm) == 2 * m * k * n
    assert bytes_moved(gemm) == 4 * (m * k + k * n + n + m * n)


@pytest.mark.parametrize("operator", ["FusedGemm", "MatMulInteger", "DynamicQuantizeMatMul", "QGemm"])
def test_narrow_and_fused_products_count_as_products(operator: str) -> None:
    values = {"x": matrix(200, 40, kind=INT8), "w": matrix(40, 400, kind=INT8), "y": matrix(200, 400)}
    assert flops(node(operator, "x w", "y", values)) == 2 * 200 * 40 * 400


def test_a_lookup_moves_the_rows_that_it_reads_and_not_the_table() -> None:
    values = {"t": matrix(1_000_000, 16), "ids": matrix(200, kind=INT64), "y": matrix(200, 16)}
    lookup = node("Gather", "t ids", "y", values)
    assert flops(lookup) == 0
    assert bytes_moved(lookup) == 200 * 16 * 4 + 200 * 8 + 200 * 16 * 4


def test_a_packed_table_moves_its_packed_rows_and_their_scales() -> None:
    values = {"t": matrix(1000, 8, kind=INT8), "ids": matrix(200, kind=INT64), "s": matrix(1000, 1)}
    lookup = node("GatherBlockQuantized", "t ids s", "y", values | {"y": matrix(200, 16)}, gather_axis=0)
    assert bytes_moved(lookup) == 200 * 8 + 200 * 4 + 200 * 8 + 200 * 16 * 4


def test_other_operators_cost_one_operation_a_number_and_views_nothing() -> None:
    values = {"x": matrix(200, 40), "b": matrix(40), "y": matrix(200, 40), "sum": matrix(200, 1)}
    assert flops(node("Add", "x b", "y", values)) == 8000
    assert flops(node("ReduceSum", "x", "sum", values)) == 8000
    assert bytes_moved(node("Mul", "x x", "y", values)) == 2 * 8000 * 4, "the same value is read once"
    view = node("Reshape", "x", "y", values)
    assert (flops(view), bytes_moved(view)) == (0, 0)
    assert flops(node("Concat", "x x", "y", values)) == 0


@pytest.mark.parametrize(
    ("kind", "size"), [("FLOAT", 12), ("FLOAT16", 6), ("DOUBLE", 24), ("INT64", 24), ("UINT4", 2), ("BOOL", 3)]
)
def test_bytes_of_three_numbers(kind: str, size: int) -> None:
    assert stored_bytes(matrix(3, kind=ir.DataType[kind])) == size


def test_values_of_no_known_size_count_for_nothing() -> None:
    unknown = ir.val("x"), ir.val("y", ir.DataType.FLOAT), matrix(3, kind=ir.DataType.STRING), None
    assert [stored_bytes(value) for value in unknown] == [0, 0, 0, 0]


# -- groups


def test_a_step_without_weights_goes_with_the_last_weights_before_it() -> None:
    """x0 * (W x0 + b) + x0 is the cross network's, though x0 itself comes from the tables."""
    weights = [f"model.{name}.weight" for name in ("tables.user", "tables.item", "cross.0", "mlp.0", "head")]
    steps = (
        ("Cast", "user", "ids"),
        ("Gather", "model.tables.user.weight ids", "u"),
        ("Gather", "model.tables.item.weight item", "i"),
        ("Concat", "u i", "x0"),
        ("Gemm", "x0 model.cross.0.weight", "linear"),
        ("Mul", "x0 linear", "product"),
        ("Add", "product x0", "crossed"),
        ("Gemm", "x0 model.mlp.0.weight", "h"),
        ("Relu", "h", "relu"),
        ("Concat", "crossed relu", "both"),
        ("Gemm", "both model.head.weight", "logit"),
        ("Squeeze", "logit axes", "scores"),
    )
    made = graph(steps, *weights, vectors=("axes",))
    expected = ["tables"] * 4 + ["cross"] * 3 + ["mlp"] * 2 + ["other"] * 3
    assert list(assign(made, made, GROUPS)) == expected


def test_narrowing_an_input_belongs_to_the_product_that_reads_it() -> None:
    steps = (
        ("Gather", "model.tables.user.weight user", "x"),
        ("DynamicQuantizeLinear", "x", "codes scale zero"),
        ("MatMulInteger", "codes model.mlp.0.weight_quantized zero", "y"),
        ("Mul", "y scale", "z"),
    )
    made = graph(steps, "model.tables.user.weight", "model.mlp.0.weight_quantized")
    assert assign(made, made, GROUPS) == ("tables", "mlp", "mlp", "mlp")


def test_weights_that_were_cut_widened_or_turned_keep_their_group() -> None:
    turned = [("Transpose", "model.mlp.4.weight", "val_1"), ("MatMul", "x val_1", "y")]
    original = graph(turned, "model.mlp.4.weight", vectors=("val_18",))
    steps = (
        ("MatMul", "x val_1", "y"),
        ("MatMul", "y val_1_packed", "z"),
        ("Squeeze", "w val_18", "s"),
        ("Gemm", "x model.mlp.0.weight.user", "u"),
        ("DequantizeLinear", "model.cross.1.weight_quantized", "wide"),
        ("Gemm", "u wide", "v"),
    )
    cut = ("model.mlp.0.weight.user", "model.cross.1.weight_quantized")
    found = assign(graph(steps, "val_1", "val_1_packed", *cut, vectors=("val_18",)), original, GROUPS)
    assert found == ("mlp", "mlp", "other", "mlp", "cross", "cross")


def test_of_nested_modules_the_innermost_owns_a_weight() -> None:
    outer = Group("tower", "other", ("tower",), 1, (), "left whole")
    inner = Group("first", "linear", ("tower.0",), 1, (), "left whole")
    made = graph((), "model.tower.0.weight", "model.tower.1.weight", vectors=("model.norm.weight",))
    owners = weight_owners(made, (outer, inner))
    assert owners == {"model.tower.0.weight": "first", "model.tower.1.weight": "tower"}


@given(st.lists(st.lists(st.integers(0, 30), max_size=3), min_size=1, max_size=15), st.data())
def test_the_last_weights_are_those_of_brute_force(wires: list[list[int]], data: st.DataObject) -> None:
    """Brute force finds the same weights on any graph.

    It walks back from a step along every path, stops at weights, and drops those that another reached one comes after.
    """
    owners = ["tables", "cross", "mlp"]
    modules = {"tables": "tables.user", "cross": "cross.0", "mlp": "mlp.0"}
    sources = [sorted({w for w in wire if w < place}) for place, wire in enumerate(wires)]
    own = [data.draw(st.sampled_from([None, *owners])) for _ in wires]
    steps = []
    for place, group in enumerate(own):
        read = ["input", *(f"v{s}" for s in sources[place]), *([f"model.{modules[group]}.weight"] if group else [])]
        steps.append(("Op", " ".join(read), f"v{place}"))

    def ancestors(place: int) -> set[int]:
        return {a for s in sources[place] for a in {s, *ancestors(s)}}

    def reached(place: int) -> set[int]:
        return {a for s in sources[place] for a in ({s} if own[s] else reached(s))}

    made = graph(steps, *(f"model.{module}.weight" for module in modules.values()))
    for place, group in enumerate(assign(made, made, GROUPS)):
        if own[place] or reached(place):
            last = reached(place)
            last -= {a for a in last for b in last if a in ancestors(b)}
            groups = {own[place]} if own[place] else {own[a] for a in last}
            assert group == (groups.pop() if len(groups) == 1 else "other")


# -- events


def event(name: str, operator: str) -> dict[str, object]:
    return {"name": f"{name}_kernel_time", "args": {"op_name": operator}}


def test_events_meet_steps_in_order_and_those_inside_a_branch_are_skipped() -> None:
    nodes = (ir.node("Gemm", [], name="a"), ir.node("If", []))
    events = [event("a", "Gemm"), event("inner", "Mul"), event("If_7", "If")]
    assert match_events(nodes, events) == [events[0], events[2]]


def test_a_node_that_did_not_run_is_refused() -> None:
    with pytest.raises(ProfileError, match="'b'"):
        match_events((ir.node("Gemm", [], name="a"), ir.node("Add", [], name="b")), [event("a", "Gemm")])


def test_the_typical_time_is_the_mean_of_the_middle_half() -> None:
    runs = np.array([[5, 1], [900, 2], [4, 3], [0, 4], [6, 5], [5, 6], [700, 7], [1, 8]], float)
    assert typical(runs.tolist()) == [np.sort(runs[:, 0])[2:6].mean(), 4.5]


# -- sums


@given(
    st.lists(st.tuples(st.sampled_from(["tables", "cross", "mlp", "other"]), st.floats(0, 10)), min_size=1),
    st.floats(0.001, 20),
)
def test_shares_sum_to_one_and_every_node_is_in_one_group(nodes: list[tuple[str, float]], p50: float) -> None:
    costs = [NodeCost(f"n{i}", f"Op{i % 3}", group, ms, i, 2 * i) for i, (group, ms) in enumerate(nodes)]
    made = summarize(costs, GROUPS, {"mlp": 7}, 200, p50, None)
    assert math.isclose(sum(g.time_share for g in made.groups), 1.0, rel_tol=1e-9)
    assert [g.name for g in made.groups] == ["tables", "cross", "mlp", "other", "engine"]
    assert sum(g.flops for g in made.groups) == sum(range(len(nodes)))
    assert sum(g.bytes for g in made.groups) == 2 * sum(range(len(nodes)))
    assert sum(o.calls for o in made.operators) == len(nodes)
    assert math.isclose(sum(g.ms for g in made.groups), max(p50, sum(ms for _, ms in nodes)), rel_tol=1e-9)


# -- real runs


def two_towers(path: Path, widths: tuple[int, int] = (512, 8)) -> None:
    """Rows of a table through a huge and a tiny layer, side by side; the huge one's weights lie turned in the file."""
    huge, tiny = widths
    arrays = {
        "model.tables.user.weight": (50, 64),
        "model.mlp.0.weight": (huge, 64),
        "model.cross.0.weight": (64, tiny),
        "model.head.weight": (huge + tiny, 1),
    }
    generator = np.random.default_rng(0)
    weights = [numpy_helper.from_array(generator.normal(size=s).astype(np.float32), n) for n, s in arrays.items()]
    nodes = [
        helper.make_node("Gather", ["model.tables.user.weight", "user"], ["x"], "rows"),
        helper.make_node("Transpose", ["model.mlp.0.weight"], ["turned"], "turn", perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["h"], "huge"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("MatMul", ["x", "model.cross.0.weight"], ["c"], "tiny"),
        helper.make_node("Concat", ["r", "c"], ["both"], "join", axis=1),
        helper.make_node("MatMul", ["both", "model.head.weight"], ["scores"], "head"),
    ]
    user = helper.make_tensor_value_info("user", TensorProto.INT64, ["rows"])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows", 1])
    drawn = helper.make_graph(nodes, "towers", [user], [scores], weights)
    onnx.save(helper.make_model(drawn, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    path = tmp_path_factory.mktemp("towers") / "model.onnx"
    two_towers(path)
    return profile_model(path, GROUPS, {"user": np.arange(30)}, repeats=8, threads=1, cpu_bits=8)


@pytest.mark.parametrize(("cpu_bits", "entries"), [(7, ["0", "1"]), (8, ["0"])])
def test_a_profile_runs_the_kernels_that_serve(
    cpu_bits: Int8WeightBits, entries: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of 8 bits would saturate on a CPU that is exact up to 7, which takes other kernels then."""
    two_towers(tmp_path / "model.onnx")
    model = onnx.load(str(tmp_path / "model.onnx"))
    helper.set_model_props(model, {WEIGHT_BITS: "8"})
    onnx.save(model, str(tmp_path / "model.onnx"))
    made, load = list[str](), onnxruntime.InferenceSession

    def noted(path: str, options: onnxruntime.SessionOptions, **given: object) -> object:
        if Path(path).name == "model.onnx":
            try:
                made.append(options.get_session_config_entry(EXACT_SUMS[0]))
            except RuntimeError:  # it was not set
                made.append("0")
        return load(path, options, **given)

    monkeypatch.setattr(onnxruntime, "InferenceSession", noted)
    profile_model(tmp_path / "model.onnx", GROUPS, {"user": np.arange(30)}, 4, 1, cpu_bits=cpu_bits)
    assert made == entries


def test_a_real_run_counts_what_the_model_holds(towers: Profile) -> None:
    costs = {group.name: group for group in towers.groups}
    assert costs["mlp"].flops == 2 * 30 * 64 * 512 + 30 * 512, "the product and its activation"
    assert costs["cross"].flops == 2 * 30 * 64 * 8
    assert costs["other"].flops == 2 * 30 * 520
    assert costs["mlp"].weight_bytes == 4 * 64 * 512
    assert costs["tables"].weight_bytes == 4 * 50 * 64
    assert costs["tables"].bytes == 30 * 8 + 2 * 30 * 64 * 4
    assert costs["mlp"].flops > 50 * costs["cross"].flops


def test_a_real_run_adds_up(towers: Profile) -> None:
    assert towers.rows == 30
    assert math.isclose(sum(group.time_share for group in towers.groups), 1.0, rel_tol=1e-9)
    assert all(group.ms >= 0 for group in towers.groups)
    assert {node.group for node in towers.nodes} == {"tables", "mlp", "cross", "other"}
    assert len({node.name for node in towers.nodes}) == len(towers.nodes)
    assert from_plain(Profile, to_plain(towers)) == towers


@pytest.mark.parametrize("width", ["int8-dynamic", "int8-static"])
def test_narrowed_products_are_found_in_their_groups(tmp_path: Path, width: str) -> None:
    """Each layer's arithmetic is in its own group and nothing else is, however the engine fuses it."""
    shapes = {"tables.user": (50, 64), "mlp.0": (96, 64), "mlp.4": (32, 96), "cross.0": (16, 32), "head": (1, 16)}
    generator = np.random.default_rng(0)
    arrays = {f"model.{name}.weight": generator.normal(size=shape) for name, shape in shapes.items()}
    arrays |= {f"model.{name}.bias": np.zeros(shape[0]) for name, shape in shapes.items() if name != "tables.user"}
    nodes = [helper.make_node("Gather", ["model.tables.user.weight", "user"], ["x0"], "rows")]
    for place, name in enumerate(list(shapes)[1:]):
        weights = [f"model.{name}.weight", f"model.{name}.bias"]
        nodes += [helper.make_node("Gemm", [f"x{place}", *weights], [f"h{place}"], f"gemm{place}", transB=1)]
        nodes += [helper.make_node("Relu", [f"h{place}"], [f"x{place + 1}"], f"relu{place}")]
    user = helper.make_tensor_value_info("user", TensorProto.INT64, ["rows"])
    scores = helper.make_tensor_value_info("x4", TensorProto.FLOAT, ["rows", 1])
    stored = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    drawn = helper.make_graph(nodes, "layers", [user], [scores], stored)
    model = helper.make_model(drawn, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    groups = tuple(g for g in GROUPS if g.name != "tables")
    precision = Precision(tuple((group.name, width) for group in groups))
    narrow = quantize(model, precision, ModelStructure(groups), {"user": np.arange(50)})
    onnx.save(narrow, str(tmp_path / "model.onnx"))
    made = profile_model(tmp_path / "model.onnx", GROUPS, {"user": np.arange(40)}, repeats=4, threads=1, cpu_bits=8)
    costs = {group.name: group for group in made.groups}
    products = {"mlp": 2 * 40 * (64 * 96 + 96 * 32), "cross": 2 * 40 * 32 * 16, "other": 2 * 40 * 16, "tables": 0}
    for name, count in products.items():
        # Narrowing and activations cost a few operations for each number that the group reads or puts out.
        assert 0 <= costs[name].flops - count <= 6 * 40 * (64 + 96 + 32) + 2 * 96 * 32 * (name == "mlp"), name
    assert 64 * 96 + 96 * 32 < costs["mlp"].weight_bytes < 2 * (64 * 96 + 96 * 32)


def test_an_input_that_is_one_row_in_the_graph_is_given_one(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["item", "user"], ["scores"], "add")]
    user = helper.make_tensor_value_info("user", TensorProto.FLOAT, [1])
    item, scores = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows"]) for name in ("item", "scores"))
    drawn = helper.make_graph(nodes, "once", [item, user], [scores])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(drawn, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    made = profile_model(path, (), {"item": np.ones(5, np.float32), "user": np.ones(5, np.float32)}, 4, 1, cpu_bits=8)
    assert made.nodes[0].bytes == 4 * (5 + 1 + 5)


def test_what_a_profile_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"4 .*3"):
        profile_model(tmp_path / "none.onnx", GROUPS, {}, repeats=3, cpu_bits=8)
    with pytest.raises(ValueError, match="'engine'"):
        profile_model(tmp_path / "none.onnx", (Group("engine", "other", ("a",), 1, (), "left whole"),), {}, cpu_bits=8)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30))
def test_the_median_request_splits_the_sizes(sizes: list[int]) -> None:
    rows = len(median_request([{"user": np.zeros(size)} for size in sizes])["user"])
    assert rows == sorted(sizes)[(len(sizes) - 1) // 2]
