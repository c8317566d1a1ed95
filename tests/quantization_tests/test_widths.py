"""Every width in every form of weight: the graph's scores equal numpy's, of the codes that the graph holds."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from objectives.compression.quantization import WidthError
from objectives.int8_weights import WEIGHT_BITS, Int8WeightBits
from objectives.onnx_graph import load_graph
from objectives.serving import engines
from objectives.serving.devices import int8_weight_bits
from objectives.serving.engines import EngineError, OnnxRuntime, open_engine, open_replica
from spaces.model_structure import Group, Kind, ModelStructure
from spaces.techniques.placement import InstanceGroup
from spaces.techniques.quantization import CALIBRATIONS, Calibration, Precision
from tests.protos import compute_once, once_inputs, quantize, read_weight_bits, read_widths, run_onnx, split_embeddings

Array = np.ndarray
Arrays = dict[str, Array]
Ranges = dict[str, tuple[float, float]]
PRODUCT_WIDTHS = ("int8-dynamic", "int8-static", "int4")
TABLE_WIDTHS = ("fp16", "int8", "int4", "int2")
ROWS = 256


# -- small graphs


def _anatomy(kind: Kind = "linear", **groups: tuple[str, ...]) -> ModelStructure:
    return ModelStructure(tuple(Group(name, kind, modules, 0, (), "not asked") for name, modules in groups.items()))


def _node(kind: str, inputs: str, output: str, **attributes: int) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def _graph(nodes: list[NodeProto], arrays: Arrays, **inputs: tuple[int, list[str | int]]) -> onnx.ModelProto:
    read = {name for node in nodes for name in node.input}
    made = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows"])],
            [numpy_helper.from_array(value, name) for name, value in (arrays | AXES).items() if name in read],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.checker.check_model(made, full_check=True)
    return made


AXES: Arrays = {"first": np.array([0]), "one": np.array([1]), "two": np.array([1, 2]), "root": np.array(7)}
AXES |= {"nought": np.array(0, np.float32), "six": np.array(6, np.float32)}
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def _draw(**shapes: tuple[int, ...]) -> Arrays:
    """Parameters by their names, with `__` for a dot."""
    draw = np.random.default_rng(len(shapes))
    return {f"model.{n.replace('__', '.')}": draw.normal(size=s).astype(np.float32) for n, s in shapes.items()}


def _ids(*sizes: int, below: int = 50) -> Array:
    return np.random.default_rng(3).integers(0, below, sizes)


def _floats(*sizes: int) -> Array:
    return np.random.default_rng(4).normal(0.3, 1.0, sizes).astype(np.float32)


# -- arithmetic in numpy


def _held(graph: onnx.ModelProto) -> Arrays:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}


def _fields(codes: Array, bits: int) -> Array:
    """The numbers in each byte, lowest bits first, about their middle."""
    fields = [(codes >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.stack(fields, axis=-1).reshape(*codes.shape[:-1], -1).astype(np.float32) - (1 << (bits - 1))


def _rounded(x: Array, low: float, high: float) -> Array:
    """Quantize to uint8 with a zero point as the ONNX standard's QuantizeLinear does, and back."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / 255) or np.float32(1)
    zero = np.rint(-low / scale)
    return ((np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale).astype(np.float32)


@dataclass
class Arithmetic:
    """Products and lookups as a graph holds them; `seen` notes what range each product's input has."""

    held: Arrays
    ranges: Ranges
    seen: Ranges

    def multiply(self, x: Array, name: str) -> Array:
        """Return x W, with W (inputs, outputs); no weight of these tests is square."""
        low, high = self.seen.get(name, (np.inf, -np.inf))
        self.seen[name] = min(low, float(x.min())), max(high, float(x.max()))
        inputs = x.shape[-1]
        codes = self.held.get(f"{name}_quantized", self.held.get(name))
        assert codes is not None
        assert (name in self.held) == (codes is self.held.get(name))
        if codes.dtype == np.uint8:
            bits = 8 * codes.shape[2] // (16 if inputs <= 16 else 32)
            blocks = _fields(codes, bits) * self.held[f"{name}_scale"][..., None]
            return x @ blocks.reshape(len(codes), -1)[:, :inputs].T
        matrix = codes if codes.shape[0] == inputs else codes.T
        if codes.dtype != np.int8:
            return x @ matrix.astype(np.float32)
        x = _rounded(x, *self.ranges.get(name, (x.min(), x.max())))
        return x @ (matrix * self.held[f"{name}_scale"])

    def look_up(self, ids: Array, name: str, columns: int) -> Array:
        codes = self.held.get(f"{name}_rows", self.held.get(name))
        assert codes is not None
        assert (name in self.held) == (codes is self.held.get(name))
        if codes.dtype == np.int8:
            return (codes * self.held[f"{name}_rows_scale"].reshape(-1, 1))[ids]
        if codes.dtype != np.uint8:
            return codes.astype(np.float32)[ids]
        values = _fields(codes, 8 // (-(-columns // codes.shape[1])))
        scale = np.repeat(self.held[f"{name}_rows_scale"], 16 if columns <= 16 else 32, axis=1)
        return (values * scale[:, : values.shape[1]])[ids][..., :columns]


@dataclass
class Saturating(Arithmetic):
    """Arithmetic of x86 kernels without VNNI: VPMADDUBSW adds neighbouring products and saturates at 16 bits."""

    def multiply(self, x: Array, name: str) -> Array:
        codes = self.held.get(f"{name}_quantized")
        if codes is None or codes.dtype != np.int8:
            return super().multiply(x, name)
        matrix = (codes if codes.shape[0] == x.shape[-1] else codes.T).astype(np.int32)
        low, high = self.ranges.get(name, (float(x.min()), float(x.max())))
        low, high = min(low, 0.0), max(high, 0.0)
        scale = np.float32((high - low) / 255)
        zero = int(np.rint(-low / scale))
        rounded = np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.int32)
        sums = saturated_product(rounded, matrix) - zero * matrix.sum(axis=0)
        return (sums * (scale * self.held[f"{name}_scale"])).astype(np.float32)


def saturated_product(x: Array, weight: Array) -> Array:
    """Sums of pairs that saturate, in int64, of uint8's (..., inputs) and int8's (inputs, outputs)."""
    total = np.zeros((*x.shape[:-1], weight.shape[1]), np.int64)
    for i in range(0, len(weight), 2):
        pair = sum(x[..., j, None] * weight[j] for j in range(i, min(i + 2, len(weight))))
        total += np.clip(pair, -(2**15), 2**15 - 1)
    return total


@dataclass(frozen=True)
class Case:
    """A graph with one group, rows for it, and its scores in numpy."""

    graph: onnx.ModelProto
    structure: ModelStructure
    rows: Arrays
    scores: Callable[[Arithmetic, Arrays], Array]

    def source(self) -> Arithmetic:
        return Arithmetic(_held(self.graph), {}, {})

    @property
    def name(self) -> str:
        return self.structure.groups[0].name

    def narrow(
        self, width: str, rule: Calibration = "minmax", ranges: Ranges | None = None, bits: Int8WeightBits = 8
    ) -> onnx.ModelProto:
        asked = Precision(((self.name, width),), calibration=rule)
        return quantize(self.graph, asked, self.structure, self.rows, ranges, bits)

    def expected(self, narrow: onnx.ModelProto, width: str, kernel: type[Arithmetic] = Arithmetic) -> Array:
        """The scores of a narrowed graph in numpy, static ranges being those of the rows."""
        wide = self.source()
        self.scores(wide, self.rows)
        return self.scores(kernel(_held(narrow), wide.seen if width == "int8-static" else {}, {}), self.rows)


def _gemm(last: str = "Relu", bias: bool = True) -> Case:
    """Two layers of torch's form; what follows the second goes to no product."""
    arrays = _draw(mlp__0__weight=(24, 20), mlp__0__bias=(24,), mlp__2__weight=(8, 24), mlp__2__bias=(8,))
    first, second = ("model.mlp.0.bias", "model.mlp.2.bias") if bias else ("", "")
    nodes = [
        _node("Gemm", f"x model.mlp.0.weight {first}", "a", transB=1),
        _node("Relu", "a", "b"),
        _node("Gemm", f"b model.mlp.2.weight {second}", "c", transB=1),
        _node(last, "c nought six" if last == "Clip" else "c", "d"),
        _node("ReduceSum", "d one", "scores", keepdims=0),
    ]

    def scores(by: Arithmetic, rows: Arrays) -> Array:
        held = by.held | {"": np.float32(0)}
        b = np.maximum(by.multiply(rows["x"], "model.mlp.0.weight") + arrays.get(first, held[""]), 0)
        c = by.multiply(b, "model.mlp.2.weight") + arrays.get(second, held[""])
        return {"Relu": np.maximum(c, 0), "Clip": np.clip(c, 0, 6), "Tanh": np.tanh(c)}[last].sum(axis=1)

    graph = _graph(nodes, arrays, x=(FLOAT, ["rows", 20]))
    return Case(graph, _anatomy(mlp=("mlp.0", "mlp.2")), {"x": _floats(ROWS, 20)}, scores)


def _stack(rows: int | str = "rows") -> Case:
    """Products of three axes, as a linear layer over positions is exported."""
    arrays = _draw(mlp__0__weight=(20, 24), mlp__0__bias=(24,), mlp__2__weight=(24, 8), mlp__2__bias=(8,))
    nodes = [
        _node("MatMul", "x model.mlp.0.weight", "a"),
        _node("Add", "a model.mlp.0.bias", "a1"),
        _node("Relu", "a1", "b"),
        _node("MatMul", "b model.mlp.2.weight", "c"),
        _node("Add", "c model.mlp.2.bias", "c1"),
        _node("ReduceSum", "c1 two", "scores", keepdims=0),
    ]

    def scores(by: Arithmetic, rows: Arrays) -> Array:
        b = np.maximum(by.multiply(rows["x"], "model.mlp.0.weight") + arrays["model.mlp.0.bias"], 0)
        return (by.multiply(b, "model.mlp.2.weight") + arrays["model.mlp.2.bias"]).sum(axis=(1, 2))

    graph = _graph(nodes, arrays, x=(FLOAT, [rows, 5, 20]))
    return Case(graph, _anatomy(mlp=("mlp.0", "mlp.2")), {"x": _floats(ROWS, 5, 20)}, scores)


def _bare_stack() -> Case:
    """A stack without bias, and a Relu behind each product."""
    arrays = _draw(mlp__0__weight=(20, 24), mlp__2__weight=(24, 8))
    nodes = [
        _node("MatMul", "x model.mlp.0.weight", "a"),
        _node("Relu", "a", "b"),
        _node("MatMul", "b model.mlp.2.weight", "c"),
        _node("Relu", "c", "d"),
        _node("ReduceSum", "d two", "scores", keepdims=0),
    ]

    def scores(by: Arithmetic, rows: Arrays) -> Array:
        b = np.maximum(by.multiply(rows["x"], "model.mlp.0.weight"), 0)
        return np.maximum(by.multiply(b, "model.mlp.2.weight"), 0).sum(axis=(1, 2))

    graph = _graph(nodes, arrays, x=(FLOAT, ["rows", 5, 20]))
    return Case(graph, _anatomy(mlp=("mlp.0", "mlp.2")), {"x": _floats(ROWS, 5, 20)}, scores)


def _flat_matmul() -> Case:
    """A MatMul of two axes, and an Add that the engine would make a Gemm of."""
    arrays = _draw(mlp__0__weight=(20, 24), mlp__0__bias=(24,))
    nodes = [
        _node("MatMul", "x model.mlp.0.weight", "a"),
        _node("Add", "a model.mlp.0.bias", "b"),
        _node("Relu", "b", "c"),
        _node("ReduceSum", "c one", "scores", keepdims=0),
    ]

    def scores(by: Arithmetic, rows: Arrays) -> Array:
        a = by.multiply(rows["x"], "model.mlp.0.weight") + arrays["model.mlp.0.bias"]
        return np.maximum(a, 0).sum(axis=1)

    graph = _graph(nodes, arrays, x=(FLOAT, ["rows", 20]))
    return Case(graph, _anatomy(mlp=("mlp.0",)), {"x": _floats(ROWS, 20)}, scores)


def _factors(rows: int | str = "rows") -> Case:
    arrays = _draw(mlp__0__first__weight=(6, 20), mlp__0__second__weight=(24, 6), mlp__0__second__bias=(24,))
    nodes = [
        _node("Gemm", "x model.mlp.0.first.weight", "a", transB=1),
        _node("Gemm", "a model.mlp.0.second.weight model.mlp.0.second.bias", "b", transB=1),
        _node("Relu", "b", "c"),
        _node("ReduceSum", "c one", "scores", keepdims=0),
    ]

    def scores(by: Arithmetic, rows: Arrays) -> Array:
        a = by.multiply(rows["x"], "model.mlp.0.first.weight")
        b = by.multiply(a, "model.mlp.0.second.weight") + arrays["model.mlp.0.second.bias"]
        return np.maximum(b, 0).sum(axis=1)

    graph = _graph(nodes, arrays, x=(FLOAT, [rows, 20]))
    return Case(graph, _anatomy(mlp=("mlp.0",)), {"x": _floats(rows if isinstance(rows, int) else ROWS, 20)}, scores)


def _halves() -> Case:
    """A weight that meets both sides, cut in two where the user's is computed once; rows are of one user."""
    arrays = _draw(
        tables__user__weight=(50, 12),
        tables__item__weight=(50, 8),
        mlp__0__weight=(24, 20),
        mlp__0__bias=(24,),
        mlp__2__weight=(8, 24),
        mlp__2__bias=(8,),
    )
    nodes = [
        _node("Gather", "model.tables.user.weight user", "u"),
        _node("Gather", "model.tables.item.weight item", "i"),
        _node("Concat", "u i", "x", axis=1),
        _node("Gemm", "x model.mlp.0.weight model.mlp.0.bias", "a", transB=1),
        _node("Relu", "a", "b"),
        _node("Gemm", "b model.mlp.2.weight model.mlp.2.bias", "c", transB=1),
        _node("ReduceSum", "c one", "scores", keepdims=0),
    ]

    def scores(by: Arithmetic, rows: Arrays) -> Array:
        u = by.look_up(rows["user"][:1], "model.tables.user.weight", 12)
        i = by.look_up(rows["item"], "model.tables.item.weight", 8)
        a = by.multiply(u, "model.mlp.0.weight.user") + by.multiply(i, "model.mlp.0.weight.item")
        b = np.maximum(a + arrays["model.mlp.0.bias"], 0)
        return (by.multiply(b, "model.mlp.2.weight") + arrays["model.mlp.2.bias"]).sum(axis=1)

    graph = _graph(nodes, arrays, user=(INT64, ["rows"]), item=(INT64, ["rows"]))
    once = compute_once(graph, frozenset({"user"}))
    rows = {"user": np.full(ROWS, 7), "item": _ids(ROWS)}
    return Case(once, _anatomy(mlp=("mlp.0", "mlp.2")), rows, scores)


def _shared(columns: int = 16) -> Case:
    """One table for the items of a history, (1, length), and for the candidates."""
    arrays = _draw(tables__item__weight=(50, columns))
    nodes = [
        _node("Gather", "model.tables.item.weight history", "h"),
        _node("ReduceSum", "h one", "u", keepdims=0),
        _node("Gather", "model.tables.item.weight item", "i"),
        _node("Mul", "u i", "x"),
        _node("ReduceSum", "x one", "scores", keepdims=0),
    ]

    def scores(by: Arithmetic, rows: Arrays) -> Array:
        u = by.look_up(rows["history"][:1], "model.tables.item.weight", columns).sum(axis=1)
        return (u * by.look_up(rows["item"], "model.tables.item.weight", columns)).sum(axis=1)

    graph = _graph(nodes, arrays, history=(INT64, [1, 6]), item=(INT64, ["rows"]))
    rows = {"history": np.tile(_ids(1, 6), (ROWS, 1)), "item": _ids(ROWS)}
    return Case(graph, _anatomy("table", tables=("tables.item",)), rows, scores)


def _multi(columns: int = 16) -> Case:
    """Several ids a row."""
    arrays = _draw(tables__genre__weight=(50, columns))
    nodes = [
        _node("Gather", "model.tables.genre.weight genre", "e"),
        _node("ReduceSum", "e two", "scores", keepdims=0),
    ]

    def scores(by: Arithmetic, rows: Arrays) -> Array:
        return by.look_up(rows["genre"], "model.tables.genre.weight", columns).sum(axis=(1, 2))

    graph = _graph(nodes, arrays, genre=(INT64, ["rows", 3]))
    return Case(graph, _anatomy("table", tables=("tables.genre",)), {"genre": _ids(ROWS, 3)}, scores)


def _compressed(columns: int = 16) -> Case:
    """A table whose parts are looked up by quotient and remainder, and one that is projected to the full dimension."""
    arrays = _draw(
        tables__item__quotient__weight=(8, columns),
        tables__item__remainder__weight=(7, columns),
        tables__item__blocks__1__weight=(50, 5),
        tables__item__projections__1__weight=(columns, 5),
    )
    nodes = [
        _node("Div", "item root", "q"),
        _node("Mod", "item root", "r"),
        _node("Gather", "model.tables.item.quotient.weight q", "a"),
        _node("Gather", "model.tables.item.remainder.weight r", "b"),
        _node("Mul", "a b", "c"),
        _node("Gather", "model.tables.item.blocks.1.weight item", "d"),
        _node("Gemm", "d model.tables.item.projections.1.weight", "e", transB=1),
        _node("Add", "c e", "f"),
        _node("ReduceSum", "f one", "scores", keepdims=0),
    ]

    def scores(by: Arithmetic, rows: Arrays) -> Array:
        name, ids = "model.tables.item", rows["item"]
        a = by.look_up(ids // 7, f"{name}.quotient.weight", columns)
        b = by.look_up(ids % 7, f"{name}.remainder.weight", columns)
        d = by.look_up(ids, f"{name}.blocks.1.weight", 5)
        return (a * b + by.multiply(d, f"{name}.projections.1.weight")).sum(axis=1)

    graph = _graph(nodes, arrays, item=(INT64, ["rows"]))
    return Case(graph, _anatomy("table", tables=("tables.item",)), {"item": _ids(ROWS)}, scores)


def _tied(columns: int = 16) -> Case:
    """A table that is looked up, and multiplied as a whole to score all of it."""
    arrays = _draw(tables__item__weight=(60, columns))
    nodes = [
        _node("Gather", "model.tables.item.weight item", "i"),
        _node("Gemm", "i model.tables.item.weight", "all", transB=1),
        _node("ReduceMax", "all one", "scores", keepdims=0),
    ]

    def scores(by: Arithmetic, rows: Arrays) -> Array:
        i = by.look_up(rows["item"], "model.tables.item.weight", columns)
        return by.multiply(i, "model.tables.item.weight").max(axis=1)

    graph = _graph(nodes, arrays, item=(INT64, ["rows"]))
    return Case(graph, _anatomy("table", tables=("tables.item",)), {"item": _ids(ROWS)}, scores)


PRODUCTS = {
    "gemm": _gemm,
    "gemm and Tanh": lambda: _gemm("Tanh"),
    "gemm and Clip": lambda: _gemm("Clip"),
    "gemm without bias": lambda: _gemm(bias=False),
    "matmul": _stack,
    "matmul of fixed shape": lambda: _stack(ROWS),
    "matmul without bias": _bare_stack,
    "matmul of two axes": _flat_matmul,
    "factors": _factors,
    "factors of few rows": lambda: _factors(8),
    "halves": _halves,
}
TABLES = {"shared": _shared, "multi": _multi, "compressed": _compressed, "tied": _tied}


def _engine_kinds(graph: onnx.ModelProto, folder: Path) -> list[str]:
    """The operators that ONNX Runtime makes of a graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


@pytest.mark.parametrize("form", PRODUCTS)
@pytest.mark.parametrize(
    ("width", "bits"), [("int8-dynamic", 8), ("int8-dynamic", 7), ("int8-static", 8), ("int8-static", 7), ("int4", 8)]
)
def test_products_are_those_of_the_codes(form: str, width: str, bits: Int8WeightBits, tmp_path: Path) -> None:
    """Activations are rounded where the width says so, to the range of the request or of the calibration rows.

    The engine computes in the width: no product is left in fp32. A static activation may fall on the other side of a
    rounding edge, so single scores may differ by a step.
    """
    case = PRODUCTS[form]()
    wide = case.source()
    exact = case.scores(wide, case.rows)
    assert np.allclose(run_onnx(case.graph, case.rows), exact, atol=1e-4)
    narrow = case.narrow(width, bits=bits)
    expected = case.expected(narrow, width)
    _agree(run_onnx(narrow, case.rows), expected, width)
    assert 0 < np.abs(expected - exact).mean() < (0.3 if width == "int4" else 0.05) * exact.std()
    assert read_widths(narrow, case.structure) == {"mlp": width}
    assert not {"Gemm", "MatMul", "FusedGemm", "FusedMatMul"} & set(_engine_kinds(narrow, tmp_path))


def _agree(got: Array, expected: Array, width: str) -> None:
    off = np.abs(got - expected) / expected.std()
    assert off.mean() < 1e-3
    assert off.max() < (0.1 if width == "int8-static" else 1e-5)


# fmt: off
FOLLOWERS = (
    "Relu", "Clip", "Transpose", "Identity", "Sigmoid", "Tanh", "Gelu", "LeakyRelu", "Elu", "HardSigmoid", "HardSwish",
    "Softplus", "Erf", "Abs", "Softmax", "LogSoftmax", "Sum bias", "Add bias", "Mul six", "Div six", "Max six",
    "Min six", "Sub bias", "PRelu bias", "LayerNormalization bias", "Unsqueeze one", "ReduceMean one", "MatMul matrix",
)
# fmt: on


@pytest.mark.parametrize("follower", FOLLOWERS)
@pytest.mark.parametrize(("kind", "shape"), [("Gemm", ["rows", 20]), ("Gemm", [7, 20]), ("MatMul", [1, 5, 20])])
@pytest.mark.parametrize("bias", [False, True])
def test_static_int8_stays_so_whatever_follows(
    follower: str, kind: str, shape: list[str | int], bias: bool, tmp_path: Path
) -> None:
    """An engine that joins the product with its reader does so in int8."""
    transposed = kind == "Gemm"
    arrays = _draw(a__weight=(24, 20) if transposed else (20, 24), a__bias=(24,), bias=(24,), matrix=(24, 3))
    reader, *reads = follower.replace("bias", "model.bias").replace("matrix", "model.matrix").split()
    weight = "model.a.weight model.a.bias" if bias and transposed else "model.a.weight"
    product = _node(kind, f"x {weight}", "a", **({"transB": 1} if transposed else {}))
    added = [_node("Add", "a model.a.bias", "b")] if bias and not transposed else []
    nodes = [product, *added, _node(reader, " ".join(["b" if added else "a", *reads]), "c")]
    nodes += [_node("ReduceSum", "c", "sum", keepdims=0), _node("Unsqueeze", "sum first", "scores")]
    graph = _graph(nodes, arrays, x=(FLOAT, shape))
    narrow = quantize(graph, Precision((("a", "int8-static"),)), _anatomy(a=("a",)), {}, {"a": (-2.0, 3.0)})
    kinds = _engine_kinds(narrow, tmp_path)
    assert not {"Gemm", "FusedGemm", "FusedMatMul"} & set(kinds)
    assert kinds.count("MatMul") == (reader == "MatMul")


def test_rows_of_one_id_each_are_widened_at_once() -> None:
    """The scale of a first axis fits no lookup of several ids a row."""
    graph = _shared().narrow("int8").graph
    codes = {n.output[0]: n.input[1] for n in graph.node if n.op_type == "Gather" and n.input[0].endswith("_rows")}
    found = {codes[n.input[0]]: n.op_type for n in graph.node if n.input[0] in codes}
    assert found == {"item": "DequantizeLinear", "history": "Cast"}


@pytest.mark.parametrize("columns", [4, 10, 16, 50, 64])
@pytest.mark.parametrize("form", TABLES)
@pytest.mark.parametrize("width", TABLE_WIDTHS)
def test_lookups_are_those_of_the_codes(form: str, width: str, columns: int) -> None:
    case = TABLES[form](columns)
    assert np.allclose(run_onnx(case.graph, case.rows), case.scores(case.source(), case.rows), atol=1e-4)
    narrow = case.narrow(width)
    expected = case.scores(Arithmetic(_held(narrow), {}, {}), case.rows)
    assert np.allclose(run_onnx(narrow, case.rows), expected, atol=1e-5 * np.abs(expected).max())
    assert read_widths(narrow, case.structure) == {"tables": width}
    wide = {name for name, value in _held(narrow).items() if value.dtype == np.float32}
    assert not [name for name in wide if name.startswith("model.") and not name.endswith("_scale")]


def _mixed() -> tuple[onnx.ModelProto, ModelStructure, Arrays]:
    """Three linear groups over one input, and a table, in one graph: x W0 + b0, its Relu and x, times W1 and W2."""
    arrays = _draw(
        tables__item__weight=(50, 20), a__weight=(24, 20), a__bias=(24,), b__weight=(6, 24), c__weight=(20, 6)
    )
    nodes = [
        _node("Gather", "model.tables.item.weight item", "i"),
        _node("Add", "x i", "xi"),
        _node("Gemm", "xi model.a.weight model.a.bias", "p", transB=1),
        _node("Relu", "p", "q"),
        _node("Gemm", "q model.b.weight", "r", transB=1),
        _node("MatMul", "xi model.c.weight", "s"),
        _node("Mul", "r s", "t"),
        _node("ReduceSum", "t one", "scores", keepdims=0),
    ]
    graph = _graph(nodes, arrays, x=(FLOAT, ["rows", 20]), item=(INT64, ["rows"]))
    groups = [Group(n, "linear", (n,), 0, (), "not asked") for n in "abc"]
    structure = ModelStructure((*groups, Group("tables", "table", ("tables.item",), 0, (), "not asked")))
    return graph, structure, {"x": _floats(ROWS, 20), "item": _ids(ROWS)}


@pytest.mark.parametrize("a", PRODUCT_WIDTHS)
@pytest.mark.parametrize("b", PRODUCT_WIDTHS)
@pytest.mark.parametrize(("c", "tables"), [("int8-static", "int2"), ("int4", "int8"), ("fp32", "int4")])
def test_groups_have_widths_of_their_own(a: str, b: str, c: str, tables: str) -> None:
    graph, structure, rows = _mixed()
    asked = {"a": a, "b": b, "c": c, "tables": tables}
    narrow = quantize(graph, Precision(tuple(asked.items())), structure, rows)
    assert read_widths(narrow, structure) == asked
    assert np.corrcoef(run_onnx(narrow, rows), run_onnx(graph, rows))[0, 1] > 0.6
    assert np.array_equal(run_onnx(graph, rows), run_onnx(_mixed()[0], rows))  # the source is as it was


# -- kernels that saturate


INT8_WIDTHS = ("int8-dynamic", "int8-static")
BITS: tuple[Int8WeightBits, ...] = (7, 8)


@pytest.mark.parametrize("form", PRODUCTS)
@pytest.mark.parametrize("width", INT8_WIDTHS)
def test_weights_of_7_bits_are_exact_where_sums_saturate(form: str, width: str) -> None:
    """Weights of 8 bits are far off: what the engine's kernels would give on a CPU without VNNI."""
    case = PRODUCTS[form]()
    narrow = case.narrow(width, bits=7)
    exact = case.expected(narrow, width)
    assert np.abs(case.expected(narrow, width, Saturating) - exact).mean() < 1e-3 * exact.std()
    narrow = case.narrow(width, bits=8)
    exact = case.expected(narrow, width)
    assert np.abs(case.expected(narrow, width, Saturating) - exact).mean() > 0.02 * exact.std()


@pytest.mark.parametrize("form", PRODUCTS)
@pytest.mark.parametrize("width", [*INT8_WIDTHS, "int4"])
def test_a_graph_says_how_many_bits_its_int8_products_need(form: str, width: str) -> None:
    """The metadata, which engines read, equal the codes; both halves of a cut graph tell those that they have."""
    case = PRODUCTS[form]()
    for bits in BITS:
        narrow = case.narrow(width, bits=bits)
        said = {entry.key: entry.value for entry in narrow.metadata_props}
        assert said == ({} if width == "int4" else {WEIGHT_BITS: str(bits)})
        assert read_weight_bits(narrow) == (None if width == "int4" else bits)
        codes = [c for name, c in _held(narrow).items() if name.endswith("weight_quantized") and c.dtype == np.int8]
        assert all(np.abs(c.astype(int)).max() == 2 ** (bits - 1) - 1 for c in codes)
    assert read_weight_bits(case.graph) is None and not case.graph.metadata_props


@pytest.mark.parametrize("bits", BITS)
def test_the_bits_are_read_of_weights_in_a_file_beside(bits: Int8WeightBits, tmp_path: Path) -> None:
    """The weights of a large model are in a file of their own."""
    narrow = _gemm().narrow("int8-static", bits=bits)
    path = tmp_path / "model.onnx"
    onnx.save(narrow, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert read_weight_bits(load_graph(path)) == bits


def test_the_dense_part_of_a_cut_graph_keeps_the_bits() -> None:
    graph, structure, rows = _mixed()
    narrow = quantize(graph, Precision((("a", "int8-static"),)), structure, rows, weight_bits=7)
    tables, dense = split_embeddings(narrow)
    assert {entry.key: entry.value for entry in dense.metadata_props} == {WEIGHT_BITS: "7"}
    assert not tables.metadata_props


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("form", PRODUCTS)
@pytest.mark.parametrize("width", INT8_WIDTHS)
def test_engines_are_exact_on_this_cpu(engine: str, form: str, width: str, tmp_path: Path) -> None:
    """The weights have as many bits as a study on this CPU gives them, and run on the engine that serves."""
    pytest.importorskip(engine)
    case = PRODUCTS[form]()
    narrow = case.narrow(width, bits=int8_weight_bits())
    onnx.save(narrow, str(tmp_path / "model.onnx"))
    got = open_replica(tmp_path / "model.onnx", InstanceGroup(engine), None).run(case.rows)
    _agree(got, case.expected(narrow, width), width)


@pytest.mark.parametrize("here", BITS)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("width", INT8_WIDTHS)
def test_a_model_made_for_another_cpu_is_exact_or_refused(
    width: str, bits: Int8WeightBits, here: Int8WeightBits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime takes kernels that do not saturate where others would, and only there; OpenVINO has none."""
    case, file = _gemm(), tmp_path / "model.onnx"
    narrow = case.narrow(width, bits=bits)
    onnx.save(narrow, str(file))
    made: list[str] = []
    load = onnxruntime.InferenceSession

    def noted(model: str, options: onnxruntime.SessionOptions, **given: object) -> object:
        try:
            made.append(options.get_session_config_entry("session.x64quantprecision"))
        except RuntimeError:  # it was not set
            made.append("0")
        return load(model, options, **given)

    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "InferenceSession", noted)
        patch.setattr(engines, "int8_weight_bits", lambda: here)
        found = open_engine("onnxruntime", file)
        assert isinstance(found, OnnxRuntime)
        assert made == (["0", "1"] if bits > here else ["0"])
        if here <= int8_weight_bits() or bits <= int8_weight_bits():
            _agree(found.run(case.rows), case.expected(narrow, width), width)
        if "openvino" not in engines.engines_here():
            return
        if bits > here:
            with pytest.raises(EngineError, match=r"weights of 7 bits .* no VNNI .* but got 8; .*leanrec build"):
                open_engine("openvino", file)
        else:
            open_engine("openvino", file)


QEMU = shutil.which("qemu-x86_64")
# qemu has /proc/cpuinfo tell the flags of the machine, not those of the CPU that it emulates.
EMULATED = """
import sys
from pathlib import Path
import numpy as np
from objectives.serving import devices, engines
from spaces.techniques.placement import InstanceGroup
devices.cpu_features = lambda: ("avx2",)
for file in sorted(Path(sys.argv[1]).glob("*.onnx")):
    rows = dict(np.load(file.with_suffix(".npz")))
    np.save(file.with_suffix(".npy"), engines.open_replica(file, InstanceGroup(threads=1), None).run(rows))
"""


@pytest.mark.skipif(QEMU is None, reason="qemu-user is not installed, which emulates a CPU without VNNI")
def test_onnxruntime_is_exact_on_an_emulated_cpu_without_vnni(tmp_path: Path) -> None:
    """ONNX Runtime's AVX2 kernels are exact in every form on the emulated CPU.

    A file that does not tell its bits saturates, as the oracle has it.
    """
    assert QEMU is not None
    cases = {(form, width, bits): PRODUCTS[form]() for form in PRODUCTS for width in INT8_WIDTHS for bits in BITS}
    made = {}
    for number, ((_, width, bits), case) in enumerate(cases.items()):
        made[number] = case.narrow(width, bits=bits)
        onnx.save(made[number], str(tmp_path / f"{number}.onnx"))
        np.savez(tmp_path / f"{number}.npz", **case.rows)
    plain, case = len(made), PRODUCTS["gemm"]()
    untold = case.narrow("int8-dynamic", bits=8)
    untold.ClearField("metadata_props")
    onnx.save(untold, str(tmp_path / f"{plain}.onnx"))
    np.savez(tmp_path / f"{plain}.npz", **case.rows)
    command = [QEMU, "-cpu", "Haswell", sys.executable, "-c", EMULATED, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for number, ((_, width, _bits), each) in enumerate(cases.items()):
        _agree(np.load(tmp_path / f"{number}.npy"), each.expected(made[number], width), width)
    got, exact = np.load(tmp_path / f"{plain}.npy"), case.expected(untold, "int8-dynamic")
    saturated = case.expected(untold, "int8-dynamic", Saturating)
    assert np.abs(got - saturated).max() < 1e-5 * exact.std() < 0.01 * np.abs(got - exact).mean()


# -- ranges of static int8


def _input_step(graph: onnx.ModelProto, weight: str) -> tuple[float, int]:
    """Return (scale, zero) that the activation is rounded with that meets a weight."""
    by_input = {name: node for node in graph.graph.node for name in node.input}
    made_by = {name: node for node in graph.graph.node for name in node.output}
    product = by_input[by_input[f"{weight}_quantized"].output[0]]
    narrow = made_by[made_by[product.input[0]].input[0]]
    held = _held(graph)
    return float(held[narrow.input[1]]), int(held[narrow.input[2]])


def _with_outlier() -> Case:
    """One value of 200,000 is 40; the others are normal."""
    case = _flat_matmul()
    x = np.random.default_rng(0).normal(size=(10_000, 20)).astype(np.float32)
    x[17, 3] = 40
    return replace(case, rows={"x": x})


def test_an_outlier_counts_for_minmax_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """The range of minmax is all; the percentile's is that of the sorted values; entropy's ends in the normal's tail.

    So the many are rounded more finely, by about the ratio of the ranges. Nothing is printed.
    """
    case = _with_outlier()
    ordered = np.sort(case.rows["x"].ravel())
    cut = len(ordered) // 20_000  # half of 0.01% on each side
    usual = {"x": np.delete(case.rows["x"], 17, axis=0)}
    spans, errors = {}, {}
    for rule in CALIBRATIONS:
        narrow = case.narrow("int8-static", rule)
        spans[rule] = 255 * _input_step(narrow, "model.mlp.0.weight")[0]
        weight_alone = _replaced(case.graph, "model.mlp.0.weight", _matrix(narrow, "model.mlp.0.weight"))
        errors[rule] = np.square(run_onnx(narrow, usual) - run_onnx(weight_alone, usual)).mean() ** 0.5
    assert spans["minmax"] == pytest.approx(40 - ordered[0], rel=1e-6)
    assert ordered[-cut - 1] - ordered[cut] <= spans["percentile"] <= ordered[-cut] - ordered[cut - 1]
    assert 5 < spans["entropy"] < 12
    for rule in ("percentile", "entropy"):
        assert errors["minmax"] / errors[rule] == pytest.approx(spans["minmax"] / spans[rule], rel=0.3)
    assert capsys.readouterr().out == ""


def _matrix(graph: onnx.ModelProto, weight: str) -> Array:
    held = _held(graph)
    return (held[f"{weight}_quantized"] * held[f"{weight}_scale"]).astype(np.float32)


def _replaced(graph: onnx.ModelProto, name: str, values: Array) -> onnx.ModelProto:
    other = copy.deepcopy(graph)
    tensor = next(t for t in other.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    return other


@pytest.mark.parametrize("rule", CALIBRATIONS)
@pytest.mark.parametrize("x", [0.0, 1e-42, 3.0])
def test_a_value_that_never_changes_has_a_range(rule: Calibration, x: float) -> None:
    """A single row has a range too; zero and the value itself are codes."""
    case = replace(_flat_matmul(), rows={"x": np.full((1, 20), x, np.float32)})
    scale, zero = _input_step(case.narrow("int8-static", rule), "model.mlp.0.weight")
    assert (scale, zero) == (pytest.approx(3 / 255) if x == 3 else 1, 0)


@pytest.mark.parametrize("rule", CALIBRATIONS)
@pytest.mark.parametrize("x", [np.nan, np.inf])
def test_calibration_rows_give_finite_values(rule: Calibration, x: float) -> None:
    with pytest.raises(ValueError, match="'x'"):
        replace(_flat_matmul(), rows={"x": np.full((1, 20), x, np.float32)}).narrow("int8-static", rule)


def test_ranges_that_were_learned_need_no_rows() -> None:
    """The learned ranges are the graph's, as (high - low) / 255 and the code of zero; a Relu's starts at zero."""
    case = replace(_gemm(), rows={})
    narrow = case.narrow("int8-static", ranges={"mlp.0": (-1.0, 3.0), "mlp.2": (-0.5, 5.0)})
    assert _input_step(narrow, "model.mlp.0.weight") == (pytest.approx(4 / 255), 64)
    assert _input_step(narrow, "model.mlp.2.weight") == (pytest.approx(5 / 255), 0)


def test_ranges_that_were_not_learned_are_measured() -> None:
    case = _gemm()
    narrow, measured = case.narrow("int8-static", ranges={"mlp.2": (0.0, 5.0)}), case.narrow("int8-static")
    assert _input_step(narrow, "model.mlp.2.weight") == (pytest.approx(5 / 255), 0)
    assert _input_step(narrow, "model.mlp.0.weight") == _input_step(measured, "model.mlp.0.weight")


def test_both_halves_and_each_factor_have_the_modules_range() -> None:
    narrow = _halves().narrow("int8-static", ranges={"mlp.0": (-1.0, 3.0)})
    for side in ("user", "item"):
        assert _input_step(narrow, f"model.mlp.0.weight.{side}") == (pytest.approx(4 / 255), 64)
    factors = replace(_factors(), rows={})
    narrow = factors.narrow("int8-static", ranges={"mlp.0.first": (-1.0, 3.0), "mlp.0.second": (-2.0, 6.0)})
    assert _input_step(narrow, "model.mlp.0.first.weight") == (pytest.approx(4 / 255), 64)
    assert _input_step(narrow, "model.mlp.0.second.weight") == (pytest.approx(8 / 255), 64)


def test_one_value_is_rounded_once_for_all_that_share_its_range() -> None:
    graph, structure, rows = _mixed()
    asked = Precision((("a", "int8-static"), ("c", "int8-static")))
    for ranges, count in ((None, 1), ({"a": (-1.0, 3.0), "c": (-1.0, 3.0)}, 1), ({"a": (-1.0, 3.0)}, 2)):
        narrow = quantize(graph, asked, structure, rows, ranges)
        assert sum(node.op_type == "QuantizeLinear" for node in narrow.graph.node) == count


def test_a_bias_too_large_for_its_steps_is_added_in_fp32() -> None:
    """The bias belongs to a unit with hardly any weight, where 32 bits of steps would not reach it."""
    case = _gemm()
    weight = _held(case.graph)["model.mlp.0.weight"].copy()
    weight[3] = 1e-9
    weight[5] = 0
    other = replace(case, graph=_replaced(case.graph, "model.mlp.0.weight", weight))
    got = run_onnx(other.narrow("int8-static"), case.rows)
    assert np.corrcoef(got, run_onnx(other.graph, case.rows))[0, 1] > 0.99


# -- what is refused


def test_ranges_of_other_modules_are_refused() -> None:
    with pytest.raises(ValueError, match=r"int8-static, .*\['mlp.9'\]"):
        _gemm().narrow("int8-static", ranges={"mlp.9": (0.0, 1.0), "mlp.0": (0.0, 1.0)})
    with pytest.raises(ValueError, match=r"int8-static, .*\['mlp.0'\]"):
        _gemm().narrow("int4", ranges={"mlp.0": (0.0, 1.0)})


@pytest.mark.parametrize("span", [(1.0, -1.0), (0.0, np.inf), (np.nan, 1.0)])
def test_a_range_is_finite_and_forward(span: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=f"range .*{span[0]}.*{span[1]}"):
        _gemm().narrow("int8-static", ranges={"mlp.0": span, "mlp.2": (0.0, 1.0)})


def test_a_group_that_there_is_not_is_refused() -> None:
    case = _gemm()
    with pytest.raises(ValueError, match=r"groups .*'mlp'.*but got 'cross'"):
        quantize(case.graph, Precision((("cross", "int4"),)), case.structure, case.rows)


@pytest.mark.parametrize("width", PRODUCT_WIDTHS)
def test_a_group_whose_weights_the_graph_lacks_is_no_silent_success(width: str) -> None:
    """An export that loses names has groups whose weights the graph lacks."""
    case = _gemm()
    elsewhere = replace(case, structure=_anatomy(mlp=("encoder.0", "encoder.2")))
    with pytest.raises(WidthError, match=f"mlp: .*{width}"):
        elsewhere.narrow(width)
    kept = quantize(case.graph, Precision((("mlp", "fp32"),)), elsewhere.structure, case.rows)
    assert list(kept.graph.node) == list(case.graph.graph.node)
    assert {t.name: t for t in kept.graph.initializer} == {t.name: t for t in case.graph.graph.initializer}


@pytest.mark.parametrize("width", ["int8-dynamic", "int8-static"])
@pytest.mark.parametrize("form", ["shared", "tied", "compressed"])
def test_a_table_has_no_width_of_products(width: str, form: str) -> None:
    with pytest.raises(WidthError, match=f"tables: .*{width}"):
        TABLES[form]().narrow(width)


def _read_by(*nodes: NodeProto) -> Case:
    """Return a case in which these nodes too read the MLP's first weight."""
    case = _gemm()
    other = copy.deepcopy(case.graph)
    for node in nodes:
        other.graph.node.append(node)
        other.graph.output.append(helper.make_tensor_value_info(node.output[0], FLOAT, None))
    return replace(case, graph=other)


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (_node("Identity", "model.mlp.0.weight", "z"), "feeds .*'Identity'"),
        (_node("Gemm", "x model.mlp.0.weight", "z", transB=1, transA=1), "transA"),
        (_node("MatMul", "model.mlp.0.weight x", "z"), "model.mlp.0.weight"),
        (_node("MatMul", "b model.mlp.0.weight", "z"), "model.mlp.0.weight"),
        (_node("Gather", "model.mlp.0.weight one", "z", axis=1), "axis"),
    ],
)
@pytest.mark.parametrize("width", [*PRODUCT_WIDTHS, "int2"])
def test_weights_that_are_read_otherwise_are_refused(node: NodeProto, reason: str, width: str) -> None:
    with pytest.raises(WidthError, match=reason):
        _read_by(node).narrow(width)


@pytest.mark.parametrize("width", [*PRODUCT_WIDTHS, *TABLE_WIDTHS])
def test_a_pass_that_does_nothing_is_an_error(width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph is read back, rather than what was asked."""
    for name in ("dynamic_int8", "block_product", "half_product", "block_rows", "half_rows", "int8_rows"):
        monkeypatch.setattr(f"objectives.compression.quantization.{name}", lambda *_, **__: None)
    monkeypatch.setattr("objectives.compression.quantization.static_int8", lambda *_: None)
    case = _shared() if width in TABLE_WIDTHS else _gemm()
    with pytest.raises(WidthError, match=f"{case.name}: .*{width}, .*fp32"):
        case.narrow(width)


# -- what is read back


def test_parts_in_several_widths_read_as_mixed() -> None:
    case = _factors()
    part = replace(case, structure=_anatomy(part=("mlp.0.first",)))
    for width in PRODUCT_WIDTHS:
        assert read_widths(part.narrow(width), case.structure) == {"mlp": f"mixed: fp32, {width}"}


def test_whole_numbers_beside_wide_activations_are_not_static_int8() -> None:
    """A weight that is stored in int8 and multiplied in fp32."""
    case = _gemm()
    narrow = case.narrow("int8-static")
    widened = {node.output[0]: node.input[0] for node in narrow.graph.node if node.op_type == "DequantizeLinear"}
    narrowed = {node.output[0]: node.input[0] for node in narrow.graph.node if node.op_type == "QuantizeLinear"}
    for node in narrow.graph.node:
        if node.op_type == "Gemm":
            node.input[0] = narrowed[widened[node.input[0]]]
    assert read_widths(narrow, case.structure) == {"mlp": "int8 in DequantizeLinear"}


def test_what_is_only_added_has_no_width() -> None:
    """Positions are only added."""
    case = _shared()
    other = copy.deepcopy(case.graph)
    other.graph.initializer.append(numpy_helper.from_array(_floats(6, 16), "model.tables.item.positions"))
    history = next(node for node in other.graph.node if node.output[0] == "h")
    history.output[0] = "h0"
    other.graph.node.insert(1, _node("Add", "h0 model.tables.item.positions", "h"))
    narrow = replace(case, graph=other).narrow("int4")
    assert read_widths(narrow, case.structure) == {"tables": "int4"}
    assert _held(narrow)["model.tables.item.positions"].dtype == np.float32


# -- narrow tables where the graph is cut at them


@pytest.mark.parametrize("columns", [4, 10, 16, 50])
@pytest.mark.parametrize("form", TABLES)
@pytest.mark.parametrize("width", TABLE_WIDTHS)
def test_the_tables_part_gives_whole_rows(form: str, width: str, columns: int) -> None:
    """Both parts one after the other equal the whole; embeddings of the first have their own columns, no padding."""
    case = TABLES[form](columns)
    narrow = case.narrow(width)
    once = once_inputs(narrow)
    feeds = {name: values[:1] if name in once else values for name, values in case.rows.items()}
    tables, dense = split_embeddings(narrow)
    found = _run(tables, {i.name: feeds[i.name] for i in tables.graph.input})
    assert {value.shape[-1] for value in found.values()} <= {columns, 5}
    shapes = {i.name: i.type.tensor_type.shape.dim[-1].dim_value for i in dense.graph.input if i.name in found}
    assert shapes == {name: value.shape[-1] for name, value in found.items()}
    scores = _run(dense, {i.name: (feeds | found)[i.name] for i in dense.graph.input})["scores"]
    assert np.allclose(scores, run_onnx(narrow, case.rows), atol=1e-4)
    assert not any(node.op_type in ("Gather", "GatherBlockQuantized") for node in dense.graph.node)


def _run(graph: onnx.ModelProto, feeds: Arrays) -> Arrays:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in graph.graph.output]
    return dict(zip(names, session.run(names, feeds), strict=True))


# -- the other engine


WHOLE_BLOCKS = [
    (form, width) for form in TABLES for width in TABLE_WIDTHS if form != "compressed" or width in ("fp16", "int8")
]


@pytest.mark.parametrize(
    ("form", "width"), [*((form, width) for form in PRODUCTS for width in PRODUCT_WIDTHS), *WHOLE_BLOCKS]
)
def test_openvino_gives_about_the_same_scores(form: str, width: str, tmp_path: Path) -> None:
    """OpenVINO reads all that ONNX Runtime does but tables whose rows end within a block."""
    pytest.importorskip("openvino")
    case = (PRODUCTS | TABLES)[form]()
    narrow = case.narrow(width, bits=int8_weight_bits())
    onnx.save(narrow, str(tmp_path / "model.onnx"))
    got = open_replica(tmp_path / "model.onnx", InstanceGroup("openvino"), None).run(case.rows)
    expected = run_onnx(narrow, case.rows)
    assert np.abs(got - expected).max() < 0.1 * expected.std()
