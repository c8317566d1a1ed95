"""A small DCN-V2 exported and quantized: what the whole graph of a real model holds, computes and leaves alone."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from objectives.compression.export import PARITY_ROWS
from objectives.parity import LIMIT, ParityError
from objectives.recommenders.datasets.features import Field
from objectives.recommenders.families.dcn_v2 import DCNV2, Sizes
from spaces.model_structure import Table
from spaces.techniques.quantization import Precision
from tests.model_structure_tests.written_structures import dcn_v2_anatomy
from tests.protos import check_parity, compute_once, largest_difference, quantize, read_widths, run_onnx, to_onnx

INPUTS = [
    Field(name="user", side="user", vocabulary=60),
    Field(name="item", side="item", vocabulary=80),
    Field(name="hour", side="user", vocabulary=24),
]
FIELDS = {field.name: field.vocabulary for field in INPUTS}


@pytest.fixture(scope="module")
def rows() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randint(0, size, (600,), generator=generator) for name, size in FIELDS.items()}


@pytest.fixture(scope="module")
def model(rows: dict[str, torch.Tensor]) -> DCNV2:
    torch.manual_seed(0)
    made = DCNV2(INPUTS, Sizes(8, 2, (64, 48)))
    for table in made.tables.values():
        torch.nn.init.normal_(table.weight, std=0.5)  # type: ignore[arg-type]
    made.train()
    for _ in range(3):  # batch normalisation with statistics of its own
        made(**rows)
    return made.eval()


@pytest.fixture(scope="module")
def graph(model: DCNV2, rows: dict[str, torch.Tensor]) -> onnx.ModelProto:
    return to_onnx(model, rows)


def _arrays(rows: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: values.numpy() for name, values in rows.items()}


# -- export


def test_export_answers_any_number_of_rows(model: DCNV2, graph: onnx.ModelProto, rows: dict[str, torch.Tensor]) -> None:
    assert check_parity(model, graph, rows) < 1e-5
    assert {i.name for i in graph.graph.input} == set(FIELDS)


def test_a_graph_of_other_weights_fails_parity(
    model: DCNV2, graph: onnx.ModelProto, rows: dict[str, torch.Tensor]
) -> None:
    other = copy.deepcopy(graph)
    tensor = next(t for t in other.graph.initializer if t.name == "model.head.bias")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 0.01, tensor.name))
    with pytest.raises(ParityError, match=r"0\.01 "):
        check_parity(model, other, rows)
    scores = np.concatenate([run_onnx(graph, {n: v[:count].numpy() for n, v in rows.items()}) for count in PARITY_ROWS])
    assert largest_difference(other, graph, _arrays(rows)) == pytest.approx(0.01 / scores.std(), rel=1e-3)
    with pytest.raises(ParityError, match=r"0\.001"):
        largest_difference(other, graph, _arrays(rows), LIMIT)


def test_a_graph_with_another_form_of_scores_fails_parity(
    model: DCNV2, graph: onnx.ModelProto, rows: dict[str, torch.Tensor]
) -> None:
    other = copy.deepcopy(graph)
    other.graph.initializer.append(numpy_helper.from_array(np.array([1]), "second"))
    other.graph.node.append(helper.make_node("Unsqueeze", ["scores", "second"], ["columns"]))
    other.graph.output[0].CopyFrom(helper.make_tensor_value_info("columns", TensorProto.FLOAT, None))
    with pytest.raises(ParityError, match=r"\(1,\).*\(1, 1\)"):
        check_parity(model, other, rows)


# -- precision


def _round_trip(table: np.ndarray, axis: int) -> np.ndarray:
    scale = np.abs(table).max(axis=axis, keepdims=True) / 127
    return np.rint(table / scale) * scale


def _replaced(graph: onnx.ModelProto, change: dict[str, np.ndarray]) -> onnx.ModelProto:
    other = copy.deepcopy(graph)
    for tensor in other.graph.initializer:
        if tensor.name in change:
            tensor.CopyFrom(numpy_helper.from_array(change[tensor.name].astype(np.float32), tensor.name))
    return other


def test_one_pass_one_answer_whatever_the_rows(
    model: DCNV2, graph: onnx.ModelProto, rows: dict[str, torch.Tensor]
) -> None:
    """Static ranges do not depend on the request: one row alone scores as it does among others."""
    narrow = quantize(graph, Precision((("mlp", "int8-static"),)), dcn_v2_anatomy(model), _arrays(rows))
    together = run_onnx(narrow, _arrays(rows))[:5]
    alone = [run_onnx(narrow, {k: v[i : i + 1] for k, v in _arrays(rows).items()})[0] for i in range(5)]
    assert np.allclose(together, alone, atol=1e-5)


def test_static_int8_leaves_other_groups_alone(
    model: DCNV2, graph: onnx.ModelProto, rows: dict[str, torch.Tensor]
) -> None:
    """The cross network reads the same x_0 as the MLP, and gives bit for bit what it gives in fp32."""
    both = _product(graph, "model.head.weight").input[0]
    crossed = next(node for node in graph.graph.node if both in node.output).input[0]
    wide, narrow = (
        copy.deepcopy(graph),
        quantize(graph, Precision((("mlp", "int8-static"),)), dcn_v2_anatomy(model), _arrays(rows)),
    )
    for made in (wide, narrow):
        made.graph.output[0].CopyFrom(helper.make_tensor_value_info(crossed, TensorProto.FLOAT, None))
    assert np.array_equal(run_onnx(narrow, _arrays(rows)), run_onnx(wide, _arrays(rows)))


def test_a_smaller_sibling_lacks_layers_and_is_narrowed_all_the_same(
    model: DCNV2, rows: dict[str, torch.Tensor]
) -> None:
    sibling = DCNV2(INPUTS, Sizes(4, 1, (16,))).eval()
    narrow = quantize(
        to_onnx(sibling, rows), Precision((("mlp", "int8-dynamic"), ("cross", "int8-dynamic"))), dcn_v2_anatomy(model),
        _arrays(rows),
    )  # fmt: skip
    assert read_widths(narrow, dcn_v2_anatomy(model))["cross"] == "int8-dynamic"


@pytest.mark.parametrize("cut", [False, True])
def test_static_int8_is_computed_in_whole_numbers(
    model: DCNV2,
    graph: onnx.ModelProto,
    once: onnx.ModelProto,
    rows: dict[str, torch.Tensor],
    tmp_path: Path,
    cut: bool,
) -> None:
    """Products have int8 kernels in ONNX Runtime's own graph, all but the head's, which is in no group."""
    asked = Precision((("mlp", "int8-static"), ("cross", "int8-static")))
    narrow = quantize(once if cut else graph, asked, dcn_v2_anatomy(model), _arrays(rows))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(narrow.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    assert kinds.count("QGemm") == (6 if cut else 4)
    assert [kind for kind in kinds if "Gemm" in kind and kind != "QGemm"] == ["Gemm"]


# -- precision where the user's side is computed once

USER = frozenset({"user", "hour"})


@pytest.fixture(scope="module")
def once(graph: onnx.ModelProto) -> onnx.ModelProto:
    return compute_once(graph, USER)


def _held(graph: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}


@pytest.mark.parametrize("width", ["fp16", "int8"])
def test_narrow_tables_of_one_user_are_the_rounded_tables(
    model: DCNV2, graph: onnx.ModelProto, once: onnx.ModelProto, rows: dict[str, torch.Tensor], width: str
) -> None:
    tables = {f"model.tables.{f}.weight": model.tables[f].weight.detach().numpy() for f in FIELDS}
    rounded = {k: v.astype(np.float16) if width == "fp16" else _round_trip(v, 1) for k, v in tables.items()}
    narrow = quantize(once, Precision((("tables", width),)), dcn_v2_anatomy(model), _arrays(rows))
    of_one_user = {k: np.repeat(v[:1], 50) if k in USER else v[:50] for k, v in _arrays(rows).items()}
    expected = run_onnx(_replaced(graph, rounded), of_one_user)
    assert np.allclose(run_onnx(narrow, of_one_user), expected, atol=1e-5)
    assert read_widths(narrow, dcn_v2_anatomy(model)) == {"tables": width, "cross": "fp32", "mlp": "fp32"}


@pytest.mark.parametrize(
    "widths",
    [{"tables": "int8", "tables.item": "fp16"}, {"tables": "int8", "tables.item": "fp32"}, {"tables.item": "int8"}],
)
def test_a_table_by_itself_has_its_own_width(
    model: DCNV2, graph: onnx.ModelProto, rows: dict[str, torch.Tensor], widths: dict[str, str]
) -> None:
    structure = replace(dcn_v2_anatomy(model), tables=tuple(Table(f"tables.{f}", 1, (f,)) for f in FIELDS))
    rounds = {"fp32": lambda v: v, "fp16": lambda v: v.astype(np.float16), "int8": lambda v: _round_trip(v, 1)}
    of = {f: widths.get(f"tables.{f}", widths.get("tables", "fp32")) for f in FIELDS}
    tables = {f"model.tables.{f}.weight": rounds[of[f]](model.tables[f].weight.detach().numpy()) for f in FIELDS}
    narrow = quantize(graph, Precision(tuple(widths.items())), structure, _arrays(rows))
    assert np.allclose(run_onnx(narrow, _arrays(rows)), run_onnx(_replaced(graph, tables), _arrays(rows)), atol=1e-5)
    asked = {"tables": "fp32", "cross": "fp32", "mlp": "fp32"} | widths
    assert read_widths(narrow, structure, widths) == asked
    told = set(of.values())
    together = told.pop() if len(told) == 1 else "mixed: " + ", ".join(sorted(told))
    assert read_widths(narrow, structure)["tables"] == together


def test_static_ranges_are_those_of_rows_with_their_own_user(
    model: DCNV2, once: onnx.ModelProto, rows: dict[str, torch.Tensor]
) -> None:
    """Scales are (max - min) / 255 over all calibration rows, zero included, as the torch model computes them."""
    seen: list[torch.Tensor] = []
    hook = model.mlp[4].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.inference_mode():
        model.eval()(**rows)
    hook.remove()
    tables = {f: model.tables[f].weight.detach().numpy()[rows[f].numpy()] for f in FIELDS}
    expected = {
        "user half": np.concatenate([tables["user"], tables["hour"]], axis=1),
        "item half": tables["item"],
        "second layer": torch.cat(seen).numpy(),
    }
    narrow = quantize(once, Precision((("mlp", "int8-static"),)), dcn_v2_anatomy(model), _arrays(rows))
    held, made_by = _held(narrow), {name: node for node in narrow.graph.node for name in node.output}
    scales = []
    for layer in ("0.weight.user", "0.weight.item", "4.weight"):
        widened = _product(narrow, f"model.mlp.{layer}_quantized").output[0]
        rounded = made_by[_product(narrow, widened).input[0]]
        scales.append(float(held[rounded.input[1]]))
    ranges = [(max(0.0, v.max()) - min(0.0, v.min())) / 255 for v in expected.values()]
    assert scales == pytest.approx(ranges, rel=1e-4)


def _product(graph: onnx.ModelProto, weight: str) -> onnx.NodeProto:
    return next(node for node in graph.graph.node if weight in node.input)
