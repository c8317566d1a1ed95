"""The graph cut at its tables: both parts, one after the other, equal the whole; on one engine and across two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from objectives.compression.graph_passes.split_embeddings import SplitError
from objectives.int8_weights import EXACT_SUMS
from objectives.recommenders.datasets.features import Field
from objectives.recommenders.families.dcn_v2 import DCNV2, Sizes
from spaces.techniques.quantization import Precision
from tests.model_structure_tests.written_structures import dcn_v2_anatomy
from tests.protos import compute_once, once_inputs, quantize, run_onnx, split_embeddings, to_onnx

INPUTS = [
    Field(name="user", side="user", vocabulary=60),
    Field(name="item", side="item", vocabulary=80),
    Field(name="hour", side="user", vocabulary=24),
]
FIELDS = {field.name: field.vocabulary for field in INPUTS}
USER = frozenset({"user", "hour"})
ROWS = (1, 2, 7, 64, 257)
Arrays = dict[str, np.ndarray]
Run = Callable[[onnx.ModelProto, Arrays], Arrays]


def _request(rows: int) -> Arrays:
    draw = np.random.default_rng(rows)
    made = {name: draw.integers(0, size, rows) for name, size in FIELDS.items()}
    return {name: np.repeat(values[:1], rows) if name in USER else values for name, values in made.items()}


def _onnxruntime(graph: onnx.ModelProto, feeds: Arrays) -> Arrays:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(*EXACT_SUMS)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in graph.graph.output]
    return dict(zip(names, session.run(names, feeds), strict=True))


def _openvino(graph: onnx.ModelProto, feeds: Arrays) -> Arrays:
    openvino = pytest.importorskip("openvino")
    read = openvino.Core().read_model(graph.SerializeToString())
    answer = openvino.Core().compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(feeds)
    return {output.name: answer[output.name] for output in graph.graph.output}


def _in_two(
    graph: onnx.ModelProto, request: Arrays, first: Run = _onnxruntime, second: Run = _onnxruntime
) -> np.ndarray:
    """Run the request through the tables, then their embeddings and the request through the rest."""
    once = once_inputs(graph)
    values = {name: value[:1] if name in once else value for name, value in request.items()}
    tables, dense = split_embeddings(graph)
    values |= first(tables, {i.name: values[i.name] for i in tables.graph.input})
    return second(dense, {i.name: values[i.name] for i in dense.graph.input})["scores"]


@pytest.fixture(scope="module")
def model() -> DCNV2:
    torch.manual_seed(0)
    made = DCNV2(INPUTS, Sizes(8, 2, (32,)))
    for table in made.tables.values():
        torch.nn.init.normal_(table.weight, std=0.3)  # type: ignore[arg-type]
    return made.eval()


@pytest.fixture(scope="module")
def graph(model: DCNV2) -> onnx.ModelProto:
    return to_onnx(model, {name: torch.zeros(4, dtype=torch.long) for name in FIELDS})


def _narrow(graph: onnx.ModelProto, model: DCNV2, **widths: str) -> onnx.ModelProto:
    return quantize(graph, Precision(tuple(widths.items())), dcn_v2_anatomy(model), _request(64))


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("width", ["fp32", "fp16", "int8"])
def test_both_parts_are_the_whole(model: DCNV2, graph: onnx.ModelProto, width: str, once: bool) -> None:
    whole = _narrow(compute_once(graph, USER) if once else graph, model, tables=width)
    for rows in ROWS:
        request = _request(rows)
        limit = 1e-4 if width == "fp32" else 1e-3
        assert np.allclose(_in_two(whole, request), run_onnx(whole, request), atol=limit)


def test_every_width_at_once(model: DCNV2, graph: onnx.ModelProto) -> None:
    whole = _narrow(compute_once(graph, USER), model, tables="int8", mlp="int8-static", cross="int8-dynamic")
    assert np.allclose(_in_two(whole, _request(64)), run_onnx(whole, _request(64)), atol=1e-3)


@pytest.mark.parametrize(("first", "second"), [(_onnxruntime, _openvino), (_openvino, _onnxruntime)])
def test_each_part_on_an_engine_of_its_own(graph: onnx.ModelProto, first: Run, second: Run) -> None:
    for whole in (graph, compute_once(graph, USER)):
        for rows in ROWS:
            request = _request(rows)
            assert np.allclose(_in_two(whole, request, first, second), run_onnx(whole, request), atol=1e-4)


@pytest.mark.parametrize("width", ["fp32", "fp16", "int8"])
def test_the_tables_give_the_rows_of_the_tables(model: DCNV2, graph: onnx.ModelProto, width: str) -> None:
    """Embeddings by numpy, in the stored width; nothing dense is in the tables' part, no table in the dense part."""
    tables, dense = split_embeddings(_narrow(graph, model, tables=width))
    request = _request(7)
    got = _onnxruntime(tables, request)
    for name, field in zip(("embedding", "embedding_1", "embedding_2"), FIELDS, strict=True):
        table = model.tables[field].weight.detach().numpy()
        step = {"fp32": 0, "fp16": 1e-3, "int8": np.abs(table).max() / 254}[width]
        assert np.allclose(got[name], table[request[field]], atol=step + 1e-6)
    assert {t.name.split(".")[1] for t in tables.graph.initializer} == {"tables"}
    assert not any("tables" in t.name for t in dense.graph.initializer)
    assert [i.name for i in tables.graph.input] == list(FIELDS)
    assert [i.name for i in dense.graph.input] == [o.name for o in tables.graph.output] == list(got)


def test_embeddings_have_one_row_where_ids_have(graph: onnx.ModelProto) -> None:
    _, dense = split_embeddings(compute_once(graph, USER))
    dims = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in dense.graph.input}
    assert dims == {"embedding": [1, 8], "embedding_1": [0, 8], "embedding_2": [1, 8]}
    assert once_inputs(dense) == {"embedding", "embedding_2"}


# -- small graphs


def _text(body: str, inputs: str = "int64[N] user, int64[N] item") -> onnx.ModelProto:
    """Tables `table` (9, 4), `remap` (9,) of whole numbers, and a matrix."""
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 18]> g ({inputs}) => (float[N] scores) {{ {body} }}'
    )
    draw = np.random.default_rng(7)
    arrays = {
        "table": draw.normal(size=(9, 4)).astype(np.float32),
        "matrix": draw.normal(size=(4, 1)).astype(np.float32),
        "remap": draw.permutation(9),
        "one": np.array([1]),
        "most": np.array(8),
    }
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items() if n in body)
    return model


HEAD = "y = MatMul(x, matrix)\n scores = Squeeze(y, one)"


def test_other_inputs_and_shared_tables_go_where_they_are_read() -> None:
    """Clipped ids are ids; those that the dense part reads too are inputs of both."""
    model = _text(
        "i = Min(item, most)\n u = Gather(table, user)\n v = Gather(table, i)\n k = Cast<to = 1>(item)\n"
        "k1 = Unsqueeze(k, one)\n d1 = Unsqueeze(price, one)\n a = Mul(u, v)\n b = Add(a, k1)\n x = Mul(b, d1)\n"
        + HEAD,
        inputs="int64[N] user, int64[N] item, float[N] price",
    )
    tables, dense = split_embeddings(model)
    assert [i.name for i in tables.graph.input] == ["user", "item"]
    assert [i.name for i in dense.graph.input] == ["u", "v", "item", "price"]
    request = {"user": np.array([1, 2]), "item": np.array([3, 12]), "price": np.array([0.5, 2], np.float32)}
    assert np.allclose(_in_two(model, request), run_onnx(model, request), atol=1e-5)


def test_whole_numbers_looked_up_for_themselves_are_no_embeddings() -> None:
    model = _text(
        "x0 = Gather(table, user)\n n = Gather(remap, item)\n c = Equal(n, item)\n k = Cast<to = 1>(c)\n"
        "k1 = Unsqueeze(k, one)\n x = Add(x0, k1)\n" + HEAD
    )
    tables, dense = split_embeddings(model)
    assert [o.name for o in tables.graph.output] == ["x0"]
    assert [i.name for i in dense.graph.input] == ["x0", "item"]
    request = {"user": np.array([1, 2]), "item": np.array([3, 5])}
    assert np.allclose(_in_two(model, request), run_onnx(model, request), atol=1e-5)


def test_ids_that_are_looked_up_themselves_are_ids() -> None:
    """The ids are those of a compressed table, which are not sorted by frequency."""
    model = _text("n = Gather(remap, item)\n x = Gather(table, n)\n" + HEAD)
    tables, dense = split_embeddings(model)
    assert [o.name for o in tables.graph.output] == ["x"]
    assert [i.name for i in dense.graph.input] == ["x"]
    request = {"user": np.array([1, 2]), "item": np.array([3, 5])}
    assert np.allclose(_in_two(model, request), run_onnx(model, request), atol=1e-5)


# -- refusals


def _branching() -> onnx.ModelProto:
    model = _text("x = Gather(table, item)\n" + HEAD)
    branch = helper.make_graph([], "branch", [], [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)])
    model.graph.node.append(helper.make_node("If", ["user"], ["z"], "if", then_branch=branch, else_branch=branch))
    return model


ROOT = "f = Cast<to = 1>(item)\n g = Sqrt(f)\n n = Cast<to = 7>(g)\n x = Gather(table, n)\n" + HEAD


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: _text(ROOT), "come from .*'f', 'g'"),
        (lambda: _text("x = Cast<to = 1>(item)\n scores = Identity(x)"), "none"),
        (
            lambda: _text("x = Gather(table, item)\n y = MatMul(table, matrix)\n scores = Squeeze(y, one)"),
            "none",
        ),
        (_branching, "branches"),
    ],
)
def test_what_cannot_be_cut_says_why(make: Callable[[], onnx.ModelProto], reason: str) -> None:
    with pytest.raises(SplitError, match=reason):
        split_embeddings(make())


def test_a_graph_of_lookups_alone_has_no_dense_part() -> None:
    model = _text("scores = Gather(bias, item)", inputs="int64[N] item")
    model.graph.initializer.append(numpy_helper.from_array(np.ones(9, np.float32), "bias"))
    with pytest.raises(SplitError, match="none are"):
        split_embeddings(model)


def test_parts_are_files_of_their_own(graph: onnx.ModelProto, tmp_path: Path) -> None:
    for name, part in zip(("tables", "dense"), split_embeddings(graph), strict=True):
        onnx.save(part, str(tmp_path / f"{name}.onnx"))
        onnx.checker.check_model(str(tmp_path / f"{name}.onnx"), full_check=True)
    whole = sum(len(t.SerializeToString()) for t in graph.graph.initializer)
    parts = [sum(len(t.SerializeToString()) for t in part.graph.initializer) for part in split_embeddings(graph)]
    assert sum(parts) == whole
