"""Weights that the exporter turned are found again by the names of their parameters."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

from objectives.compression.export import PREFIX
from spaces.model_structure import Group, ModelStructure
from spaces.techniques.quantization import Precision
from tests.protos import name_turned, quantize, read_widths, run_onnx, to_onnx


class Encoder(nn.Module):
    """A block of attention over a history, its factorised output, and candidates from the same table."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({"item": nn.Embedding(40, 16), "position": nn.Embedding(6, 16)})
        self.q, self.k = nn.Linear(16, 16), nn.Linear(16, 16, bias=False)
        self.out = nn.ModuleDict({"first": nn.Linear(16, 4, bias=False), "second": nn.Linear(4, 16)})
        self.inner, self.outer = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 16)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        x = self.tables["item"](history) + self.tables["position"].weight
        weights = torch.softmax(self.q(x) @ self.k(x).transpose(1, 2), dim=-1)
        x = x + self.out["second"](self.out["first"](weights @ x))
        x = x + self.outer(torch.relu(self.inner(x)))
        u = self.head(self.head(x)[:, -1])
        return (self.tables["item"](item) @ u.T).squeeze(1)


ANATOMY = ModelStructure(
    tuple(
        Group(name, kind, modules, 0, (), "not asked")  # type: ignore[arg-type]
        for name, kind, modules in (
            ("tables", "table", ("tables.item", "tables.position")),
            ("attention", "attention", ("q", "k", "out")),
            ("mlp", "linear", ("inner", "outer", "head")),
        )
    )
)


@pytest.fixture(scope="module")
def model() -> Encoder:
    torch.manual_seed(0)
    return Encoder().eval()


@pytest.fixture(scope="module")
def parameters(model: Encoder) -> dict[str, np.ndarray]:
    return {PREFIX + name: value.numpy() for name, value in model.state_dict().items()}


class _ByPosition(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        scores: Tensor = self.model(history, item)
        return scores


@pytest.fixture(scope="module")
def exported(model: Encoder) -> onnx.ModelProto:
    """Export as it comes: the weights over three axes have no names."""
    example = (torch.randint(0, 40, (1, 6)), torch.randint(0, 40, (5,)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _ByPosition(model),
            example,
            dynamo=True,
            input_names=["history", "item"],
            output_names=["scores"],
            dynamic_shapes={"history": {}, "item": {0: torch.export.Dim.DYNAMIC}},
            external_data=False,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


@pytest.fixture(scope="module")
def graph(exported: onnx.ModelProto, parameters: dict[str, np.ndarray]) -> onnx.ModelProto:
    return name_turned(exported, parameters)  # type: ignore[no-any-return]


def _rows() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {"history": np.tile(draw.integers(0, 40, (1, 6)), (64, 1)), "item": draw.integers(0, 40, 64)}


def test_all_matrices_have_their_parameters_names(
    exported: onnx.ModelProto, graph: onnx.ModelProto, parameters: dict[str, np.ndarray]
) -> None:
    """A matrix is turned where a product reads it as (inputs, outputs); `head` is applied both ways."""
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    for name, value in parameters.items():
        assert name in held
        if value.ndim == 2:
            assert np.array_equal(held[name], value) or np.array_equal(held[name].T, value)
    head = "model.head.weight"
    assert np.array_equal(held[head].T, held[f"{head}.turned"])
    anonymous = {tensor.name for tensor in exported.graph.initializer} - set(parameters)
    assert sum(len(t.dims) == 2 for t in exported.graph.initializer if t.name in anonymous) >= 6
    assert not [name for name, value in held.items() if value.ndim == 2 and not name.startswith(PREFIX)]


def test_the_scores_stay(exported: onnx.ModelProto, graph: onnx.ModelProto, model: Encoder) -> None:
    onnx.checker.check_model(graph, full_check=True)
    rows = _rows()
    assert np.array_equal(run_onnx(graph, rows), run_onnx(exported, rows))
    expected = model(torch.from_numpy(rows["history"][:1]), torch.from_numpy(rows["item"]))
    assert np.allclose(run_onnx(graph, rows), expected.detach().numpy(), atol=1e-4)


@pytest.mark.parametrize("attention", ["int8-dynamic", "int8-static", "int4", "int4-dynamic"])
@pytest.mark.parametrize("mlp", ["int8-dynamic", "int8-static", "int4", "int4-dynamic"])
@pytest.mark.parametrize("tables", ["int8", "int2"])
def test_an_attention_block_takes_every_width(graph: onnx.ModelProto, attention: str, mlp: str, tables: str) -> None:
    asked = {"attention": attention, "mlp": mlp, "tables": tables}
    narrow = quantize(graph, Precision(tuple(asked.items())), ANATOMY, _rows())
    assert read_widths(narrow, ANATOMY) == asked
    assert np.corrcoef(run_onnx(narrow, _rows()), run_onnx(graph, _rows()))[0, 1] > 0.7
    assert len(narrow.SerializeToString()) < len(graph.SerializeToString())


def test_equal_parameters_have_a_name_each() -> None:
    graph = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[N, 2] x) => (float[N, 3] y)'
        "{ a = MatMul(x, val_1)\n b = MatMul(x, val_2)\n y = Add(a, b) }"
    )
    matrix = np.arange(6, dtype=np.float32).reshape(3, 2)
    for name in ("val_1", "val_2"):
        graph.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(matrix.T), name))
    graph = name_turned(graph, {"model.a.weight": matrix, "model.b.weight": matrix})
    assert [node.input[1] for node in graph.graph.node[:2]] == ["model.a.weight", "model.b.weight"]


class TiedOutput(nn.Module):
    """A table of users' last items that also gives the scores of all items, larger than what the exporter folds."""

    def __init__(self, steps: bool) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({"item": nn.Embedding(1000, 16)})
        self.steps = steps

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        table = self.tables["item"]
        vectors: Tensor = table(user)
        scores = F.linear(vectors.unsqueeze(1), table.weight).squeeze(1) if self.steps else vectors @ table.weight.T
        return scores.gather(1, item.unsqueeze(1)).squeeze(1)


@pytest.mark.parametrize("width", ["fp16", "int8", "int4", "int2"])
@pytest.mark.parametrize("steps", [False, True])
def test_a_table_that_is_also_the_output_takes_every_width(steps: bool, width: str) -> None:
    torch.manual_seed(0)
    model = TiedOutput(steps).eval()
    rows = {name: torch.randint(0, 1000, (64,)) for name in ("user", "item")}
    plain = to_onnx(model, rows)
    held = sum(len(numpy_helper.to_array(value).ravel()) for value in plain.graph.initializer)
    assert 1000 * 16 <= held < 1000 * 16 + 20, "the file has the table once"
    kinds = [node.op_type for node in plain.graph.node]
    assert (kinds.count("Gemm"), kinds.count("Transpose")) == ((0, 1) if steps else (1, 0))
    given = {name: values.numpy() for name, values in rows.items()}
    expected = model(**rows).detach().numpy()
    assert np.allclose(run_onnx(plain, given), expected, atol=1e-4)
    structure = ModelStructure((Group("tables", "table", ("tables.item",), 0, (), "not asked"),))
    narrow = quantize(plain, Precision((("tables", width),)), structure, given)
    assert read_widths(narrow, structure) == {"tables": width}
    assert np.corrcoef(run_onnx(narrow, given), expected)[0, 1] > {"int2": 0.6, "int4": 0.95}.get(width, 0.999)


class TwiceInSteps(nn.Module):
    """A layer over the steps of two sequences, larger than what the exporter folds."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(160, 160)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return (self.layer(first) * self.layer(second)).sum(dim=(1, 2))


def test_a_layer_of_several_products_has_a_constant_and_its_name() -> None:
    torch.manual_seed(0)
    model = TwiceInSteps().eval()
    rows = {name: torch.randn(8, 3, 160) for name in ("first", "second")}
    plain = to_onnx(model, rows)
    assert "Transpose" not in [node.op_type for node in plain.graph.node]
    structure = ModelStructure((Group("mlp", "linear", ("layer",), 0, (), "not asked"),))
    assert read_widths(plain, structure) == {"mlp": "fp32"}
    given = {name: values.numpy() for name, values in rows.items()}
    assert np.allclose(run_onnx(plain, given), model(**rows).detach().numpy(), rtol=1e-3, atol=1e-2)
