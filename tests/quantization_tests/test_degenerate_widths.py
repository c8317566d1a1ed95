"""Every width on degenerate tables and weights, on every engine that reads them.

They have rows of zeros, constant rows, blocks of zeros and tiny numbers. The scores are compared with numpy, by the
codes that the graph holds.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn

from objectives.compression.pruning import prune
from objectives.compression.quantization import WidthError
from objectives.serving.devices import ENGINES, engines_here, int8_weight_bits
from objectives.serving.engines import open_engine
from spaces.model_structure import AxisSlice, Group, ModelStructure, PrunableDim
from spaces.techniques.pruning import Pruning
from spaces.techniques.quantization import LINEAR_WIDTHS, PACKED_WIDTHS, TABLE_WIDTHS, Precision
from tests.protos import quantize, read_widths, run_onnx, to_onnx
from tests.quantization_tests.test_widths import INT64, Arithmetic, Array, _anatomy, _graph, _held, _node

ROWS, OUTPUTS = 40, 24
# Rows of the table below that are of one kind each.
ZERO, CONSTANT, NEGATIVE, HALF_ZERO, CANCELLING, TINY, DENORMAL = range(7)


def table(columns: int) -> Array:
    values = np.random.default_rng(columns).normal(0, 0.1, (ROWS, columns)).astype(np.float32)
    values[ZERO] = 0
    values[CONSTANT], values[NEGATIVE] = 0.07, -0.07
    values[HALF_ZERO, columns // 2 :] = 0
    values[CANCELLING] = np.resize([0.1, -0.1], columns)
    values[TINY], values[DENORMAL] = 1e-30, 1e-42
    return values


def matrix(columns: int) -> Array:
    """Return a matrix, (outputs, columns), with rows of the same kinds as the table's, and a column of zeros."""
    values = np.random.default_rng(columns + 1).normal(size=(OUTPUTS, columns)).astype(np.float32)
    values[ZERO], values[CONSTANT], values[NEGATIVE] = 0, 0.3, -0.3
    values[HALF_ZERO, columns // 2 :] = 0
    values[TINY] = 1e-30
    values[:, 0] = 0
    return values


def lookup_and_product(columns: int) -> tuple[onnx.ModelProto, ModelStructure]:
    arrays = {"model.t.weight": table(columns), "model.l.weight": matrix(columns)}
    arrays["model.l.bias"] = np.linspace(-1, 1, OUTPUTS, dtype=np.float32)
    nodes = [
        _node("Gather", "model.t.weight item", "x"),
        _node("Gemm", "x model.l.weight model.l.bias", "a", transB=1),
        _node("Tanh", "a", "b"),
        _node("ReduceSum", "b one", "scores", keepdims=0),
    ]
    groups = (Group("t", "table", ("t",), 0, (), "not asked"), Group("l", "linear", ("l",), 0, (), "not asked"))
    return _graph(nodes, arrays, item=(INT64, ["rows"])), ModelStructure(groups)


def in_numpy(by: Arithmetic, item: Array, columns: int) -> Array:
    x = by.look_up(item, "model.t.weight", columns)
    bias = np.linspace(-1, 1, OUTPUTS, dtype=np.float32)
    scores: Array = np.tanh(by.multiply(x, "model.l.weight") + bias).sum(axis=1)
    return scores


REQUESTS: dict[str, Array] = {
    "every row": np.arange(ROWS),
    "one row": np.array([CONSTANT]),
    "a row of zeros": np.array([ZERO]),
    "rows of zeros": np.full(9, ZERO),
    "next to nothing": np.array([TINY, DENORMAL, ZERO, TINY]),
    "constant": np.array([CONSTANT, CONSTANT, NEGATIVE]),
    "many": np.resize(np.arange(ROWS), 1000),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("columns", [3, 9, 16, 35, 64])
@pytest.mark.parametrize("width", LINEAR_WIDTHS)
@pytest.mark.parametrize("rows_in", TABLE_WIDTHS)
def test_scores_are_those_of_the_codes(rows_in: str, width: str, columns: int, engine: str, tmp_path: Path) -> None:
    if engine not in engines_here():
        pytest.skip(f"{engine} is not installed")
    if engine != "onnxruntime" and PACKED_WIDTHS & {rows_in, width}:
        pytest.skip("blocks are read by ONNX Runtime alone")
    graph, structure = lookup_and_product(columns)
    asked = Precision((("t", rows_in), ("l", width)))
    # OpenVINO refuses weights that this CPU's kernels would saturate.
    narrow = quantize(graph, asked, structure, {"item": np.arange(ROWS)}, weight_bits=int8_weight_bits())
    assert read_widths(narrow, structure) == {"t": rows_in, "l": width}
    held = _held(narrow)
    assert all(np.isfinite(value).all() for value in held.values() if value.dtype.kind == "f")
    source = Arithmetic(_held(graph), {}, {})
    source.look_up = Arithmetic(held, {}, {}).look_up  # type: ignore[method-assign]
    in_numpy(source, np.arange(ROWS), columns)
    ranges = source.seen if width == "int8-static" else {}
    onnx.save(narrow, str(tmp_path / "model.onnx"))
    loaded = open_engine(engine, tmp_path / "model.onnx", threads=1)
    for name, item in REQUESTS.items():
        expected = in_numpy(Arithmetic(held, ranges, {}), item, columns)
        assert np.isfinite(expected).all()
        got = loaded.run({"item": item})
        # A static activation may fall on the other side of a rounding edge; so may a zero point in OpenVINO.
        edge = width in ("int8-static", "int4-dynamic") or (width == "int8-dynamic" and engine == "openvino")
        limit = 0.2 if edge else 1e-4
        assert np.allclose(got, expected, atol=limit), (name, np.abs(got - expected).max())


@pytest.mark.parametrize("rows_in", TABLE_WIDTHS)
def test_bf16_gives_scores_near_those_of_fp32(rows_in: str, tmp_path: Path) -> None:
    if "openvino" not in engines_here() or rows_in in PACKED_WIDTHS:
        pytest.skip("bf16 is computed by OpenVINO, which reads no blocks")
    graph, structure = lookup_and_product(35)
    narrow = quantize(graph, Precision((("t", rows_in),), compute="bf16"), structure, {})
    onnx.save(narrow, str(tmp_path / "model.onnx"))
    loaded = open_engine("openvino", tmp_path / "model.onnx", threads=1, compute="bf16")
    for item in REQUESTS.values():
        expected = in_numpy(Arithmetic(_held(narrow), {}, {}), item, 35)
        assert np.allclose(loaded.run({"item": item}), expected, atol=0.1)


@pytest.mark.parametrize("columns", [3, 9, 16, 35, 64])
@pytest.mark.parametrize("width", TABLE_WIDTHS[1:])
def test_rows_keep_what_makes_them_special(width: str, columns: int) -> None:
    """Zeros stay zeros, a constant row stays constant, and no row adds up to nought that did not before."""
    graph, structure = lookup_and_product(columns)
    narrow = quantize(graph, Precision((("t", width),)), structure, {})
    got = Arithmetic(_held(narrow), {}, {}).look_up(np.arange(ROWS), "model.t.weight", columns).astype(np.float64)
    assert (got[ZERO] == 0).all() and (got[HALF_ZERO, columns // 2 :] == 0).all()
    for row in (CONSTANT, NEGATIVE):
        assert len(np.unique(got[row])) == 1 and got[row, 0] == pytest.approx(table(columns)[row, 0], rel=0.01)
    told = np.abs(table(columns).astype(np.float64).sum(axis=1)) > 1e-7
    assert (np.abs(got.sum(axis=1))[told] > 1e-7).all()


def graph_of(values: Array) -> tuple[onnx.ModelProto, ModelStructure]:
    nodes = [_node("Gather", "model.t.weight item", "x"), _node("ReduceSum", "x one", "scores", keepdims=0)]
    graph = _graph(nodes, {"model.t.weight": values}, item=(INT64, ["rows"]))
    return graph, _anatomy("table", t=("t",))


ROWS_OF_ANY_KIND = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 8), st.integers(3, 70)), elements=st.floats(-4, 4, width=16)
)


@given(ROWS_OF_ANY_KIND, st.sampled_from(TABLE_WIDTHS[1:]))
def test_no_row_becomes_padding(values: Array, width: str) -> None:
    """A row whose sum is not nought keeps that; what moved for it lies within two steps of what it was."""
    graph, structure = graph_of(values)
    held = _held(quantize(graph, Precision((("t", width),)), structure, {}))
    got = Arithmetic(held, {}, {}).look_up(np.arange(len(values)), "model.t.weight", values.shape[1])
    total, size = (of.astype(np.float64).sum(1) for of in (values, np.abs(values)))
    told = np.abs(total) > 1e-6 * size
    assert (got.astype(np.float64).sum(1)[told] != 0).all()
    peak = np.abs(values).max(axis=1, keepdims=True)
    steps = {"fp16": 2**-10, "int8": 1 / 127, "int4": 1 / 8, "int2": 1 / 2}
    assert (np.abs(got - values) <= 2 * steps[width] * peak + 1e-6).all()


def test_a_number_that_fp16_cannot_hold_is_refused() -> None:
    values = np.ones((4, 8), np.float32)
    values[2, 3] = -1e5
    graph, structure = graph_of(values)
    with pytest.raises(WidthError, match=r"model\.t\.weight .*65504 .*fp16, .*100000"):
        quantize(graph, Precision((("t", "fp16"),)), structure, {})


# -- a model that tells padding by the sum of a row, as FuxiCTR's pooling does


class Pooled(nn.Module):
    """A mean over a list's rows whose sum is not nought, a normalisation, and a gate that multiplies.

    What is divided by next to nothing soon overflows.
    """

    def __init__(self, d: int) -> None:
        super().__init__()
        self.tag = nn.Embedding(30, d, padding_idx=0)
        self.norm = nn.LayerNorm(d)
        self.gate = nn.Linear(d, d)
        self.hidden = nn.Linear(d, 12)
        self.head = nn.Linear(12, 1)

    def forward(self, tags: Tensor) -> Tensor:
        rows = self.tag(tags)
        given_rows = (rows.sum(-1) != 0).float().sum(-1, keepdim=True)
        mean = rows.sum(1) / (given_rows + 1e-12)
        x = self.hidden(self.gate(mean) * self.norm(mean) * mean.square())
        return self.head(torch.relu(x)).squeeze(1)  # type: ignore[no-any-return]


@cache
def pooled() -> tuple[nn.Module, ModelStructure, dict[str, Tensor], onnx.ModelProto]:
    """A pooled model pruned by 0.45 to 9 of 16 dimensions, rows of one tag and more, and the exported graph."""
    torch.manual_seed(0)
    model = Pooled(16).eval()
    names = ("tag.weight", "gate.weight", "hidden.weight")
    axis_slices = (
        *(AxisSlice(name, 1) for name in names),
        *(AxisSlice(f"{n}", 0) for n in ("gate.weight", "gate.bias")),
    )
    axis_slices = (*axis_slices, AxisSlice("norm.weight", 0), AxisSlice("norm.bias", 0))
    whole = ModelStructure(
        (
            Group("tables", "table", ("tag",), 480, (PrunableDim("embedding_dim", 16, axis_slices, normalised=True),)),
            Group("gate", "linear", ("gate",), 0, (), "not asked"),
            Group("hidden", "linear", ("hidden",), 0, (), "not asked"),
        )
    )
    model, structure = prune(model, Pruning((("tables", 0.45),), multiple=1), whole)
    random = np.random.default_rng(0)
    tags = random.integers(1, 30, (300, 4))
    tags[np.arange(4) >= random.integers(1, 5, (300, 1))] = 0
    tags[:30, 0], tags[:30, 1:] = np.arange(30), 0
    rows = {"tags": torch.from_numpy(tags)}
    return model, structure, rows, to_onnx(model, rows)


@pytest.mark.parametrize("products", LINEAR_WIDTHS)
@pytest.mark.parametrize("width", TABLE_WIDTHS)
def test_a_model_that_tells_padding_by_sums_keeps_finite_scores(width: str, products: str) -> None:
    """The oracle is the model with the rows that its narrow table gives."""
    model, structure, rows, graph = pooled()
    assert model.get_parameter("tag.weight").shape == (30, 9)
    arrays = {name: values.numpy() for name, values in rows.items()}
    narrow = quantize(
        graph, Precision((("tables", width), ("gate", products), ("hidden", products))), structure, arrays
    )
    got = run_onnx(narrow, arrays)
    assert np.isfinite(got).all()
    filled = copy.deepcopy(model)
    held = Arithmetic(_held(narrow), {}, {}).look_up(np.arange(30), "model.tag.weight", 9).astype(np.float32)
    filled.get_parameter("tag.weight").data = torch.from_numpy(held)
    with torch.inference_mode():
        expected = filled(**rows).numpy()
    off = np.abs(got - expected) / expected.std()
    assert off.max() < 1e-4 if products == "fp32" else off.mean() < 0.2
