"""Every width in every form of weight: the graph's scores beside numpy's, computed from the codes that the graph holds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from objectives.compression.export import run_onnx
from objectives.compression.precision import WidthError, quantise, read_widths
from objectives.compression.user_once import compute_once
from spaces.anatomy import Anatomy, Group, Kind
from spaces.precision import Precision

Array = np.ndarray
Arrays = dict[str, Array]
Ranges = dict[str, tuple[float, float]]
PRODUCT_WIDTHS = ("int8-dynamic", "int8-static", "int4")
TABLE_WIDTHS = ("fp16", "int8", "int4", "int2")
ROWS = 300


# -- small graphs


def _anatomy(kind: Kind = "linear", **groups: tuple[str, ...]) -> Anatomy:
    return Anatomy(tuple(Group(name, kind, modules, 0, (), "not asked") for name, modules in groups.items()))


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


AXES: Arrays = {"one": np.array([1]), "two": np.array([1, 2]), "root": np.array(7)}
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
    """uint8 with a zero point: the QuantizeLinear of the ONNX standard, and back."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / 255)
    zero = np.rint(-low / scale)
    return ((np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale).astype(np.float32)


@dataclass
class Arithmetic:
    """Products and lookups as a graph holds them; `seen` notes what range each product's input has."""

    held: Arrays
    ranges: Ranges
    seen: Ranges

    def multiply(self, x: Array, name: str) -> Array:
        """x W, with W (inputs, outputs); no weight of these tests is square."""
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
            return (codes * self.held[f"{name}_rows_scale"])[ids]
        if codes.dtype != np.uint8:
            return codes.astype(np.float32)[ids]
        values = _fields(codes, 8 // (-(-columns // codes.shape[1])))
        scale = np.repeat(self.held[f"{name}_rows_scale"], 16 if columns <= 16 else 32, axis=1)
        return (values * scale[:, : values.shape[1]])[ids][..., :columns]


@dataclass(frozen=True)
class Case:
    """A graph with one group, rows for it, and its scores in numpy."""

    graph: onnx.ModelProto
    anatomy: Anatomy
    rows: Arrays
    scores: Callable[[Arithmetic, Arrays], Array]

    def source(self) -> Arithmetic:
        return Arithmetic(_held(self.graph), {}, {})

    @property
    def name(self) -> str:
        return self.anatomy.groups[0].name

    def narrow(self, width: str, **options: object) -> onnx.ModelProto:
        return quantise(self.graph, Precision(((self.name, width),)), self.anatomy, self.rows, **options)  # type: ignore[arg-type]


def _gemm(relu_last: bool = True, bias: bool = True) -> Case:
    """Two layers of torch's form; the last Relu goes to no product."""
    arrays = _draw(mlp__0__weight=(24, 20), mlp__0__bias=(24,), mlp__2__weight=(8, 24), mlp__2__bias=(8,))
    first, second = ("model.mlp.0.bias", "model.mlp.2.bias") if bias else ("", "")
    nodes = [
        _node("Gemm", f"x model.mlp.0.weight {first}", "a", transB=1),
        _node("Relu", "a", "b"),
        _node("Gemm", f"b model.mlp.2.weight {second}", "c", transB=1),
        _node("Relu" if relu_last else "Identity", "c", "d"),
        _node("ReduceSum", "d one", "scores", keepdims=0),
    ]

    def scores(by: Arithmetic, rows: Arrays) -> Array:
        held = by.held | {"": np.float32(0)}
        b = np.maximum(by.multiply(rows["x"], "model.mlp.0.weight") + arrays.get(first, held[""]), 0)
        c = by.multiply(b, "model.mlp.2.weight") + arrays.get(second, held[""])
        return (np.maximum(c, 0) if relu_last else c).sum(axis=1)

    graph = _graph(nodes, arrays, x=(FLOAT, ["rows", 20]))
    return Case(graph, _anatomy(mlp=("mlp.0", "mlp.2")), {"x": _floats(ROWS, 20)}, scores)


def _stack() -> Case:
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

    graph = _graph(nodes, arrays, x=(FLOAT, ["rows", 5, 20]))
    return Case(graph, _anatomy(mlp=("mlp.0", "mlp.2")), {"x": _floats(ROWS, 5, 20)}, scores)


def _flat_matmul() -> Case:
    """Of two axes, and an Add that the engine would make a Gemm of."""
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


def _factors() -> Case:
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

    graph = _graph(nodes, arrays, x=(FLOAT, ["rows", 20]))
    return Case(graph, _anatomy(mlp=("mlp.0",)), {"x": _floats(ROWS, 20)}, scores)


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
    arrays = _draw(tables__item__weight=(50, columns))
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
    "gemm without Relu": lambda: _gemm(relu_last=False),
    "gemm without bias": lambda: _gemm(bias=False),
    "matmul": _stack,
    "matmul of two axes": _flat_matmul,
    "factors": _factors,
    "halves": _halves,
}
TABLES = {"shared": _shared, "multi": _multi, "compressed": _compressed, "tied": _tied}


@pytest.mark.parametrize("form", PRODUCTS)
def test_the_small_graphs_are_what_numpy_computes(form: str) -> None:
    case = PRODUCTS[form]()
    assert np.allclose(run_onnx(case.graph, case.rows), case.scores(case.source(), case.rows), atol=1e-4)


@pytest.mark.parametrize("form", PRODUCTS)
@pytest.mark.parametrize("width", PRODUCT_WIDTHS)
def test_products_are_those_of_the_codes(form: str, width: str) -> None:
    """Activations are rounded where the width says so, to the range of the request or of the calibration rows."""
    case = PRODUCTS[form]()
    wide = case.source()
    expected_wide = case.scores(wide, case.rows)
    narrow = case.narrow(width)
    by = Arithmetic(_held(narrow), wide.seen if width == "int8-static" else {}, {})
    expected = case.scores(by, case.rows)
    got = run_onnx(narrow, case.rows)
    print(form, width, np.abs(got - expected).max() / expected.std(), np.abs(got - expected_wide).max() / expected.std())
    assert read_widths(narrow, case.anatomy) == {"mlp": width}


@pytest.mark.parametrize("columns", [4, 10, 16, 50, 64])
@pytest.mark.parametrize("form", TABLES)
@pytest.mark.parametrize("width", TABLE_WIDTHS)
def test_lookups_are_those_of_the_codes(form: str, width: str, columns: int) -> None:
    case = TABLES[form](columns)
    assert np.allclose(run_onnx(case.graph, case.rows), case.scores(case.source(), case.rows), atol=1e-4)
    narrow = case.narrow(width)
    expected = case.scores(Arithmetic(_held(narrow), {}, {}), case.rows)
    assert np.allclose(run_onnx(narrow, case.rows), expected, atol=1e-5 * np.abs(expected).max())
    assert read_widths(narrow, case.anatomy) == {"tables": width}
