"""Pruning, distilling, exporting and narrowing a small DCN-V2, each against an oracle of its own."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from objectives.compression.distillation import distil, predict, soft_loss
from objectives.compression.export import ParityError, check_parity, run_onnx, to_onnx
from objectives.compression.precision import WidthError, quantise, read_widths
from objectives.compression.pruning import kept_units, prune
from objectives.compression.user_once import compute_once
from objectives.recommenders.dcn_v2 import DCNV2, Sizes, anatomy
from objectives.recommenders.features import Field
from spaces.anatomy import Anatomy
from spaces.distillation import Distillation
from spaces.precision import Precision
from spaces.pruning import Pruning

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


# -- pruning


@pytest.mark.parametrize(("width", "ratio", "kept"), [(400, 0.5, 192), (64, 0.5, 32), (48, 0.9, 16), (8, 0.5, 8)])
def test_widths_are_rounded_to_vectors(width: int, ratio: float, kept: int) -> None:
    assert kept_units(width, ratio) == kept


def test_a_pruned_model_is_the_dense_one_with_units_silenced(model: DCNV2, rows: dict[str, torch.Tensor]) -> None:
    """Which units went is found by comparing rows; silencing them in the dense model gives the same scores."""
    pruned = prune(model, Pruning((("mlp", 0.5),)), anatomy(model), {k: v[:2] for k, v in rows.items()})
    silenced = copy.deepcopy(model)
    kept_before = torch.arange(model.mlp[0].in_features)
    for i, kept_count in ((0, 32), (4, 32)):
        dense, small = model.mlp[i], pruned.mlp[i]  # type: ignore[index,union-attr]
        assert small.out_features == kept_count
        same = (dense.weight[:, None, kept_before] == small.weight[None]).all(-1)
        kept = same.any(1).nonzero()[:, 0]
        assert len(kept) == small.out_features
        gone = torch.tensor([j for j in range(dense.out_features) if j not in kept.tolist()])
        with torch.no_grad():
            silenced.mlp[i + 1].weight[gone] = 0
            silenced.mlp[i + 1].bias[gone] = 0
        kept_before = kept
    assert torch.allclose(predict(pruned, rows), predict(silenced, rows), atol=1e-5)
    for a, b in zip(model.cross.parameters(), pruned.cross.parameters(), strict=True):  # type: ignore[union-attr]
        assert torch.equal(a, b)
    assert model.mlp[0].out_features == 64, "the dense model is left as it was"


def test_a_group_that_cannot_be_pruned_says_why(model: DCNV2, rows: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="elementwise product"):
        prune(model, Pruning((("cross", 0.5),)), anatomy(model), {k: v[:2] for k, v in rows.items()})


# -- distillation


@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
def test_the_soft_loss_is_hintons_over_two_classes(temperature: float) -> None:
    """One logit z is the softmax of (z, 0): the cross entropy of both softened distributions, times T squared."""
    student, teacher = torch.randn(50), torch.randn(50)
    pair = [torch.stack([z, torch.zeros_like(z)], 1) / temperature for z in (student, teacher)]
    expected = temperature**2 * -(pair[1].softmax(1) * pair[0].log_softmax(1)).sum(1).mean()
    assert soft_loss(student, teacher, temperature).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_student_with_the_teachers_weight_at_one_comes_to_its_scores(
    model: DCNV2, rows: dict[str, torch.Tensor]
) -> None:
    """The labels are noise, so agreeing with the teacher is learnt from the teacher alone."""
    teacher = predict(model, rows)
    labels = torch.randint(0, 2, (600,), generator=torch.Generator().manual_seed(5)).float()

    def correlation(weight: float) -> float:
        torch.manual_seed(3)
        student = DCNV2(INPUTS, Sizes(8, 1, (32,)))
        optimizer = torch.optim.Adam(student.parameters(), lr=5e-3)
        loss = torch.nn.functional.binary_cross_entropy_with_logits
        distil(student, teacher, rows, labels, loss, optimizer, Distillation(2.0, weight, 120), seed=0)
        return float(np.corrcoef(predict(student, rows).numpy(), teacher.numpy())[0, 1])

    assert correlation(1.0) > 0.8
    assert abs(correlation(0.0)) < 0.4


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
    with pytest.raises(ParityError, match=r"differ by 0\.01"):
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


@pytest.mark.parametrize("width", ["fp16", "int8"])
def test_narrow_tables_are_the_rounded_tables(
    model: DCNV2, graph: onnx.ModelProto, rows: dict[str, torch.Tensor], width: str
) -> None:
    """The same scores as an fp32 graph whose tables were rounded by hand."""
    tables = {f"model.tables.{f}.weight": model.tables[f].weight.detach().numpy() for f in FIELDS}
    rounded = {k: v.astype(np.float16) if width == "fp16" else _round_trip(v, 1) for k, v in tables.items()}
    narrow = quantise(graph, Precision((("tables", width),)), anatomy(model), _arrays(rows))
    expected = run_onnx(_replaced(graph, rounded), _arrays(rows))
    assert np.allclose(run_onnx(narrow, _arrays(rows)), expected, atol=1e-5)
    assert len(narrow.SerializeToString()) < len(graph.SerializeToString())


@pytest.mark.parametrize("width", ["int8-dynamic", "int8-static"])
@pytest.mark.parametrize("groups", [("mlp",), ("mlp", "cross")])
def test_int8_products_stay_near(
    model: DCNV2, graph: onnx.ModelProto, rows: dict[str, torch.Tensor], width: str, groups: tuple[str, ...]
) -> None:
    narrow = quantise(graph, Precision(tuple((g, width) for g in groups)), anatomy(model), _arrays(rows))
    scores, expected = run_onnx(narrow, _arrays(rows)), run_onnx(graph, _arrays(rows))
    assert 0 < np.abs(scores - expected).max() < 0.1 * expected.std()
    assert read_widths(narrow, anatomy(model)) == {
        "tables": "fp32", **{g: width if g in groups else "fp32" for g in ("cross", "mlp")}
    }  # fmt: skip


def test_widths_mix_freely(model: DCNV2, graph: onnx.ModelProto, rows: dict[str, torch.Tensor]) -> None:
    asked = Precision((("mlp", "int8-static"), ("cross", "int8-dynamic"), ("tables", "int8")))
    narrow = quantise(graph, asked, anatomy(model), _arrays(rows))
    assert read_widths(narrow, anatomy(model)) == dict(asked.widths)


def test_one_pass_one_answer_whatever_the_rows(
    model: DCNV2, graph: onnx.ModelProto, rows: dict[str, torch.Tensor]
) -> None:
    """Static ranges do not hang on the request: one row alone scores as it does among others."""
    narrow = quantise(graph, Precision((("mlp", "int8-static"),)), anatomy(model), _arrays(rows))
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
        quantise(graph, Precision((("mlp", "int8-static"),)), anatomy(model), _arrays(rows)),
    )
    for made in (wide, narrow):
        made.graph.output[0].CopyFrom(helper.make_tensor_value_info(crossed, TensorProto.FLOAT, None))
    assert np.array_equal(run_onnx(narrow, _arrays(rows)), run_onnx(wide, _arrays(rows)))


def test_a_smaller_sibling_lacks_layers_and_is_narrowed_all_the_same(
    model: DCNV2, rows: dict[str, torch.Tensor]
) -> None:
    sibling = DCNV2(INPUTS, Sizes(4, 1, (16,))).eval()
    narrow = quantise(
        to_onnx(sibling, rows), Precision((("mlp", "int8-dynamic"), ("cross", "int8-dynamic"))), anatomy(model),
        _arrays(rows),
    )  # fmt: skip
    assert read_widths(narrow, anatomy(model))["cross"] == "int8-dynamic"


def test_a_pass_that_changes_nothing_is_an_error(
    model: DCNV2, graph: onnx.ModelProto, rows: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("objectives.compression.precision._dynamic_int8", lambda graph, weight: None)
    with pytest.raises(WidthError, match="mlp: asked int8-dynamic, but the graph holds fp32"):
        quantise(graph, Precision((("mlp", "int8-dynamic"),)), anatomy(model), _arrays(rows))


def test_a_half_narrowed_group_reads_as_mixed(model: DCNV2, graph: onnx.ModelProto) -> None:
    half = copy.deepcopy(graph)
    name = "model.tables.user.weight"
    old = next(t for t in half.graph.initializer if t.name == name)
    half.graph.initializer.remove(old)
    half.graph.initializer.append(
        helper.make_tensor(name, TensorProto.FLOAT16, old.dims, numpy_helper.to_array(old).astype(np.float16).ravel())
    )
    only_tables = Anatomy(tuple(g for g in anatomy(model).groups if g.name == "tables"))
    assert read_widths(half, only_tables) == {"tables": "mixed: fp16, fp32"}


@pytest.mark.parametrize("cut", [False, True])
def test_static_int8_is_computed_in_whole_numbers(
    model: DCNV2,
    graph: onnx.ModelProto,
    once: onnx.ModelProto,
    rows: dict[str, torch.Tensor],
    tmp_path: Path,
    cut: bool,
) -> None:
    """Of what ONNX Runtime makes of the graph: all products but the head's, which is in no group, have int8 kernels."""
    asked = Precision((("mlp", "int8-static"), ("cross", "int8-static")))
    narrow = quantise(once if cut else graph, asked, anatomy(model), _arrays(rows))
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
    narrow = quantise(once, Precision((("tables", width),)), anatomy(model), _arrays(rows))
    of_one_user = {k: np.repeat(v[:1], 50) if k in USER else v[:50] for k, v in _arrays(rows).items()}
    expected = run_onnx(_replaced(graph, rounded), of_one_user)
    assert np.allclose(run_onnx(narrow, of_one_user), expected, atol=1e-5)
    assert read_widths(narrow, anatomy(model)) == {"tables": width, "cross": "fp32", "mlp": "fp32"}


@pytest.mark.parametrize("width", ["int8-dynamic", "int8-static"])
def test_both_halves_of_a_weight_have_the_width(
    model: DCNV2, once: onnx.ModelProto, rows: dict[str, torch.Tensor], width: str
) -> None:
    """Codes times scales are the weights, within half a step of each unit; with them in fp32 the scores are near."""
    asked = Precision((("mlp", width), ("cross", width)))
    narrow = quantise(once, asked, anatomy(model), _arrays(rows))
    before, after = _held(once), _held(narrow)
    rounded = {}
    for layer in ("mlp.0", "cross.0"):
        for side in ("user", "item"):
            name = f"model.{layer}.weight.{side}"
            assert after[f"{name}_quantized"].dtype == np.int8
            codes, weight = after[f"{name}_quantized"].astype(np.float32), before[name]
            codes = codes.T if width == "int8-dynamic" else codes
            scale = after[f"{name}_scale"].reshape(-1, 1)
            assert np.all(np.abs(codes * scale - weight) <= scale * 0.501)
            rounded[name] = codes * scale
            assert name not in after
    scores, expected = run_onnx(narrow, _arrays(rows)), run_onnx(_replaced(once, rounded), _arrays(rows))
    assert 0 < np.abs(scores - expected).max() < 0.1 * expected.std()
    assert read_widths(narrow, anatomy(model)) == {"tables": "fp32", "cross": width, "mlp": width}


def test_static_ranges_are_those_of_rows_with_their_own_user(
    model: DCNV2, once: onnx.ModelProto, rows: dict[str, torch.Tensor]
) -> None:
    """Scales are (max - min) / 255 over all calibration rows, zero included, as the torch model computes them."""
    seen: list[torch.Tensor] = []
    hook = model.mlp[4].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    predict(model, rows)
    hook.remove()
    tables = {f: model.tables[f].weight.detach().numpy()[rows[f].numpy()] for f in FIELDS}
    expected = {
        "user half": np.concatenate([tables["user"], tables["hour"]], axis=1),
        "item half": tables["item"],
        "second layer": torch.cat(seen).numpy(),
    }
    narrow = quantise(once, Precision((("mlp", "int8-static"),)), anatomy(model), _arrays(rows))
    held, made_by = _held(narrow), {name: node for node in narrow.graph.node for name in node.output}
    scales = []
    for layer in ("0.weight.user", "0.weight.item", "4.weight"):
        widened = _product(narrow, f"model.mlp.{layer}_quantized").output[0]
        rounded = made_by[_product(narrow, widened).input[0]]
        scales.append(float(held[rounded.input[1]]))
    ranges = [(max(0.0, v.max()) - min(0.0, v.min())) / 255 for v in expected.values()]
    assert scales == pytest.approx(ranges, rel=1e-4)


def test_half_of_a_weight_narrowed_reads_as_mixed(model: DCNV2, once: onnx.ModelProto) -> None:
    half = copy.deepcopy(once)
    tensor = next(t for t in half.graph.initializer if t.name == "model.mlp.0.weight.item")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    assert read_widths(half, anatomy(model))["mlp"] == "mixed: fp16, fp32"


# -- what a weight may feed


def _product(graph: onnx.ModelProto, weight: str) -> onnx.NodeProto:
    return next(node for node in graph.graph.node if weight in node.input)


@pytest.mark.parametrize("width", ["int8-dynamic", "int8-static"])
def test_a_product_without_bias_is_narrowed(
    model: DCNV2, graph: onnx.ModelProto, rows: dict[str, torch.Tensor], width: str
) -> None:
    bare = copy.deepcopy(graph)
    gemm = _product(bare, "model.mlp.4.weight")
    del gemm.input[2]
    narrow = quantise(bare, Precision((("mlp", width),)), anatomy(model), _arrays(rows))
    scores, expected = run_onnx(narrow, _arrays(rows)), run_onnx(bare, _arrays(rows))
    assert 0 < np.abs(scores - expected).max() < 0.1 * expected.std()


@pytest.mark.parametrize("width", ["fp16", "int8"])
def test_a_table_that_two_inputs_share_is_narrowed_for_both(
    model: DCNV2, graph: onnx.ModelProto, rows: dict[str, torch.Tensor], width: str
) -> None:
    shared = copy.deepcopy(graph)
    _product(shared, "model.tables.hour.weight").input[0] = "model.tables.user.weight"
    narrow = quantise(shared, Precision((("tables", width),)), anatomy(model), _arrays(rows))
    tables = {f"model.tables.{f}.weight": model.tables[f].weight.detach().numpy() for f in FIELDS}
    rounded = {k: v.astype(np.float16) if width == "fp16" else _round_trip(v, 1) for k, v in tables.items()}
    assert np.allclose(run_onnx(narrow, _arrays(rows)), run_onnx(_replaced(shared, rounded), _arrays(rows)), atol=1e-5)


def test_weights_that_are_read_otherwise_are_refused(
    model: DCNV2, graph: onnx.ModelProto, rows: dict[str, torch.Tensor]
) -> None:
    scaled, also = copy.deepcopy(graph), copy.deepcopy(graph)
    _product(scaled, "model.mlp.0.weight").attribute.append(helper.make_attribute("alpha", 0.5))
    also.graph.node.append(helper.make_node("Identity", ["model.mlp.0.weight"], ["copy"], "copy"))
    for other, reason in ((scaled, "must be read alike, as a whole weight, but .*alpha"), (also, "feeds .*Identity")):
        with pytest.raises(WidthError, match=reason):
            quantise(other, Precision((("mlp", "int8-dynamic"),)), anatomy(model), _arrays(rows))
