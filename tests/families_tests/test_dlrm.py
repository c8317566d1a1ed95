"""DLRM over fields of every kind: the paper's forward, its graph, and the units that can be pruned."""

from __future__ import annotations

import copy
from itertools import combinations

import numpy as np
import onnx
import pytest
import torch

from objectives.compression.graph_passes.user_once import UserOnceError
from objectives.recommenders.datasets.features import Field
from objectives.recommenders.families.dlrm import BASELINE, DLRM, STUDENT, Sizes
from objectives.recommenders.families.sizes import resized
from spaces.techniques.architecture import Architecture
from tests.families_tests.mixed_fields import (
    CODES,
    FIELDS,
    ROWS,
    USER,
    draw,
    factored,
    lively,
    one_users,
    scores,
    sliced,
    vectors_by_hand,
)
from tests.model_structure_tests.written_structures import dlrm_anatomy as structure
from tests.protos import check_parity, compute_once, multiply_adds, run_onnx, to_onnx

SIZES = Sizes(embedding_dim=6, bottom=(10, 8), top=(20, 12))
ONE_NUMBER = FIELDS[:2]  # a table and a number: one pair


def _model(fields: tuple[Field, ...] = FIELDS, sizes: Sizes = SIZES) -> DLRM:
    model = lively(DLRM(fields, sizes))
    assert isinstance(model, DLRM)
    return model


@pytest.fixture(scope="module")
def model() -> DLRM:
    return _model()


@pytest.fixture(scope="module")
def graph(model: DLRM) -> onnx.ModelProto:
    return to_onnx(model, draw(FIELDS, 4))


# -- the forward


@pytest.mark.parametrize("fields", [FIELDS, CODES, ONE_NUMBER])
@pytest.mark.parametrize("bottom", [(10, 8), ()])
def test_the_forward_is_the_papers(fields: tuple[Field, ...], bottom: tuple[int, ...]) -> None:
    """Section 2.1.3 and figure 1, a dot product at a time."""
    model, inputs = _model(fields, Sizes(6, bottom, (20, 12))), draw(fields, 50)
    state = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}

    def tower(x: np.ndarray, name: str, layers: int) -> np.ndarray:
        for i in range(0, 3 * layers, 3):
            x = np.maximum(x @ state[f"{name}.{i}.weight"].T + state[f"{name}.{i}.bias"], 0)
        return x

    vectors = vectors_by_hand(model, fields, inputs)
    numbers = [inputs[f.name].double().numpy() for f in fields if f.kind == "numeric"]
    dense = [tower(np.stack(numbers, axis=1), "bottom", len(bottom) + 1)] if numbers else []
    vectors = [*dense, *vectors]
    dots = [(vectors[i] * vectors[j]).sum(1) for i in range(len(vectors)) for j in range(i)]
    features = tower(np.concatenate([*dense, np.stack(dots, axis=1)], axis=1), "top", 2)
    expected = features @ state["head.weight"].T + state["head.bias"]
    assert np.allclose(scores(model, inputs), expected[:, 0], atol=1e-4)


def test_the_baseline_has_the_published_shapes_on_criteos_fields() -> None:
    """26 tables and 13 numbers: 27 vectors, 351 pairs, and the bottom's 16 units."""
    numbers = [Field(name=f"I{i}", side="item", kind="numeric") for i in range(13)]
    codes = [Field(name=f"C{i}", side="item", vocabulary=5) for i in range(26)]
    shapes = [tuple(p.shape) for name, p in DLRM([*numbers, *codes], BASELINE).named_parameters() if p.dim() == 2]
    assert shapes == [(5, 16)] * 26 + [(512, 13), (256, 512), (64, 256), (16, 64), (512, 367), (256, 512), (1, 256)]


def test_layers_are_drawn_as_in_the_reference() -> None:
    """Weights with variance 2 / (in + out), biases with 1 / out."""
    layer = DLRM(FIELDS, BASELINE).get_submodule("bottom.3")
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    assert weight.std().item() == pytest.approx((2 / (512 + 256)) ** 0.5, rel=0.02)
    assert bias.std().item() == pytest.approx(256**-0.5, rel=0.15)


def test_dropout_is_in_the_top_alone_and_in_training_alone() -> None:
    model, inputs = lively(DLRM(FIELDS, SIZES, dropout=0.5)), draw(FIELDS, 20)
    assert np.allclose(scores(model, inputs), scores(_model(), inputs))
    model.train()
    torch.manual_seed(0)
    assert not np.allclose(scores(model, inputs), scores(_model(), inputs), atol=1e-3)
    model.get_submodule("top").eval()
    assert np.allclose(scores(model, inputs), scores(_model(), inputs))


def test_a_model_without_a_pair_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Dot products .*1 "):
        DLRM(FIELDS[:1], SIZES)
    with pytest.raises(ValueError, match=FIELDS[1].name):
        DLRM(FIELDS[1:2], SIZES)


@pytest.mark.parametrize("sizes", [(0, (4,), (4,)), (4, (0,), (4,)), (4, (), ()), (4, (4,), (4, -1))])
def test_sizes_are_positive(sizes: tuple[int, tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=rf"Sizes\(embedding_dim={sizes[0]}, "):
        Sizes(*sizes)


def test_the_baselines_sizes_are_among_the_students() -> None:
    chosen = {"embedding_dim": 16, "bottom": "512-256-64", "top": "512-256"}
    assert resized(SIZES, Architecture(tuple(chosen.items())).as_dict()) == BASELINE
    assert all(chosen[name] in domain for name, domain in STUDENT.items())


def test_without_numbers_a_student_has_no_bottom_to_choose() -> None:
    assert set(BASELINE.student(FIELDS)) == {"embedding_dim", "bottom", "top"}
    assert set(BASELINE.student(CODES)) == {"embedding_dim", "top"}
    student = resized(BASELINE, Architecture((("embedding_dim", 4), ("top", "16"))).as_dict())
    assert (student.embedding_dim, student.top) == (4, (16,)) and student.build(CODES).bottom is None


def test_tables_and_layers_in_other_forms_are_read_alike(model: DLRM) -> None:
    factors, whole = factored(model, "bottom.0")
    assert np.allclose(scores(factors, draw(FIELDS, 30)), scores(whole, draw(FIELDS, 30)), atol=1e-5)


def test_hidden_features_are_what_the_top_gives_before_its_last_layer(model: DLRM) -> None:
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(SIZES.hidden).register_forward_hook(lambda *call: seen.append(call[2]))
    scores(model, draw(FIELDS, 5))
    handle.remove()
    assert [tuple(features.shape) for features in seen] == [(5, 12)]


# -- the graph


@pytest.mark.parametrize("fields", [FIELDS, CODES, ONE_NUMBER])
def test_the_graph_gives_the_same_scores(fields: tuple[Field, ...], graph: onnx.ModelProto) -> None:
    model = _model(fields)
    graph = graph if fields is FIELDS else to_onnx(model, draw(fields, 4))
    assert check_parity(model, graph, draw(fields, 257)) < 1e-5
    assert [i.name for i in graph.graph.input] == [field.name for field in fields]


def test_the_interaction_is_one_product_and_one_lookup_of_runs_of_rows(graph: onnx.ModelProto) -> None:
    """One lookup is along the first axis, where ONNX Runtime copies all rows at once; each table has its own."""
    kinds = [node.op_type for node in graph.graph.node]
    assert kinds.count("MatMul") == 1
    axes = [
        sum(given.i for given in node.attribute if given.name == "axis")
        for node in graph.graph.node
        if node.op_type == "Gather"
    ]
    assert axes == [0] * (len(CODES) + 1)
    assert not {"GatherND", "Shape", "Expand", "NonZero", "ScatterND"} & set(kinds)


def test_the_users_side_is_computed_once(graph: onnx.ModelProto) -> None:
    """The user's number meets the bottom's first layer of 10 units apart, and the mean of the codes has one row."""
    once = compute_once(graph, USER)
    for rows in ROWS:
        request = one_users(draw(FIELDS, rows, seed=rows), rows // 2)
        assert np.allclose(run_onnx(once, request), run_onnx(graph, request), atol=1e-5)
    assert multiply_adds(graph, 100) - multiply_adds(once, 100) == 99 * 10


def test_where_only_the_user_has_numbers_the_whole_bottom_is_computed_once() -> None:
    fields = tuple(field for field in FIELDS if field.name != "price")
    graph = to_onnx(_model(fields), draw(fields, 4))
    once = compute_once(graph, USER)
    request = one_users(draw(fields, 64), 5)
    assert np.allclose(run_onnx(once, request), run_onnx(graph, request), atol=1e-5)
    of_bottom = 1 * 10 + 10 * 8 + 8 * 6
    assert multiply_adds(graph, 100) - multiply_adds(once, 100) == 99 * (of_bottom + 6 * 20)


def test_where_the_user_has_codes_alone_nothing_is_saved_and_that_is_said() -> None:
    """A dot product meets vectors of both sides, so that after the lookups nothing hangs on the user alone."""
    fields = tuple(field for field in FIELDS if field.name in ("item", "user", "hour"))
    with pytest.raises(UserOnceError, match="user"):
        compute_once(to_onnx(_model(fields), draw(fields, 4)), frozenset({"user"}))


# -- the anatomy


def test_every_group_is_named_with_its_layers(model: DLRM) -> None:
    groups = {group.name: group for group in structure(model).groups}
    assert {name: (group.kind, group.modules) for name, group in groups.items()} == {
        "tables": ("table", tuple(f"tables.{field.name}" for field in CODES)),
        "bottom": ("linear", ("bottom.0", "bottom.3", "bottom.6")),
        "top": ("linear", ("top.0", "top.3")),
    }
    pairs = len(list(combinations(range(6), 2)))
    assert groups["tables"].parameters == 6 * sum(field.vocabulary for field in CODES)
    assert groups["bottom"].parameters == (2 * 10 + 10) + (10 * 8 + 8) + (8 * 6 + 6)
    assert groups["top"].parameters == ((6 + pairs) * 20 + 20) + (20 * 12 + 12)
    assert [(w.name, w.units, w.normalised) for g in groups.values() for w in g.dims] == [
        ("embedding_dim", 6, False), ("bottom.0", 10, False), ("bottom.3", 8, False), ("top.0", 20, False),
        ("top.3", 12, False),
    ]  # fmt: skip


def test_without_numbers_there_is_no_bottom_group() -> None:
    assert [group.name for group in structure(_model(CODES)).groups] == ["tables", "top"]


def test_a_bottom_of_one_layer_is_as_wide_as_the_tables() -> None:
    bottom = structure(_model(sizes=Sizes(6, (), (20,)))).group("bottom")
    assert not bottom.prunable and "dot products" in str(bottom.unprunable_reason)


def _silence(model: DLRM, group: str, which: int, gone: tuple[int, ...]) -> DLRM:
    """Return a copy in which the units give 0; relu keeps it."""
    silenced = copy.deepcopy(model)
    layers = {"tables": ["bottom.6"], "bottom": [f"bottom.{3 * which}"], "top": [f"top.{3 * which}"]}[group]
    with torch.no_grad():
        for layer in layers if silenced.bottom is not None or group == "top" else []:
            silenced.get_parameter(f"{layer}.weight")[[*gone]] = 0
            silenced.get_parameter(f"{layer}.bias")[[*gone]] = 0
        for table in silenced.tables.values() if group == "tables" else ():
            table.get_parameter("weight")[:, gone] = 0
    return silenced


CUTS = [
    ("tables", 0, (0, 3), Sizes(4, (10, 8), (20, 12))),
    ("tables", 0, (5,), Sizes(5, (10, 8), (20, 12))),
    ("top", 0, (1, 2, 7, 19), Sizes(6, (10, 8), (16, 12))),
    ("top", 1, (0, 11), Sizes(6, (10, 8), (20, 10))),
]
BOTTOM_CUTS = [
    ("bottom", 0, (2, 3, 9), Sizes(6, (7, 8), (20, 12))),
    ("bottom", 1, (0, 7), Sizes(6, (10, 6), (20, 12))),
]


@pytest.mark.parametrize(
    ("fields", "group", "which", "gone", "smaller"),
    [
        *((fields, *cut) for fields in (FIELDS, ONE_NUMBER) for cut in CUTS + BOTTOM_CUTS),
        *((CODES, *cut) for cut in CUTS),
    ],
)
def test_a_model_cut_by_hand_is_the_dense_one_with_units_at_zero(
    fields: tuple[Field, ...], group: str, which: int, gone: tuple[int, ...], smaller: Sizes
) -> None:
    dense, inputs = _model(fields), draw(fields, 40)
    cut = DLRM(fields, smaller).eval()
    cut.load_state_dict(sliced(dense, structure(dense).group(group).dims[which], gone))
    assert np.allclose(scores(cut, inputs), scores(_silence(dense, group, which, gone), inputs), atol=1e-6)
    assert not np.allclose(scores(cut, inputs), scores(dense, inputs), atol=1e-4)


def test_the_anatomy_follows_a_model_that_was_cut(model: DLRM) -> None:
    cut = DLRM(FIELDS, Sizes(4, (10, 8), (20, 12)))
    cut.load_state_dict(sliced(model, structure(model).group("tables").dims[0], (0, 3)))
    assert structure(cut) == structure(DLRM(FIELDS, Sizes(4, (10, 8), (20, 12))))
