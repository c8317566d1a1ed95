"""DCN-V2 over fields of every kind.

Covers the paper's forward, its graph, and the units that its structure offers for pruning.
"""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from objectives.recommenders.datasets.features import Field
from objectives.recommenders.families.dcn_v2 import BASELINE, DCNV2, STUDENT, Sizes
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
from tests.model_structure_tests.written_structures import dcn_v2_anatomy as structure
from tests.protos import check_parity, compute_once, multiply_adds, run_onnx, to_onnx

SIZES = Sizes(embedding_dim=6, crosses=2, mlp=(20, 12))
X = 5 * 6 + 2  # columns of x_0


def _model(fields: tuple[Field, ...] = FIELDS, sizes: Sizes = SIZES) -> DCNV2:
    model = lively(DCNV2(fields, sizes))
    assert isinstance(model, DCNV2)
    return model


@pytest.fixture(scope="module")
def model() -> DCNV2:
    return _model()


@pytest.fixture(scope="module")
def graph(model: DCNV2) -> onnx.ModelProto:
    return to_onnx(model, draw(FIELDS, 4))


# -- the forward


@pytest.mark.parametrize("fields", [FIELDS, CODES, FIELDS[2:3]])
@pytest.mark.parametrize("crosses", [0, 2])
def test_the_forward_is_the_papers(fields: tuple[Field, ...], crosses: int) -> None:
    """Equation (1) written out in numpy, with batch normalisation by its own formula."""
    model, inputs = _model(fields, Sizes(6, crosses, (20, 12))), draw(fields, 50)
    state = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    numbers = [inputs[f.name].numpy()[:, None] for f in fields if f.kind == "numeric"]
    x0 = np.concatenate([*vectors_by_hand(model, fields, inputs), *numbers], axis=1)
    x = x0
    for i in range(crosses):
        x = x0 * (x @ state[f"cross.{i}.weight"].T + state[f"cross.{i}.bias"]) + x
    h = x0
    for i in (0, 4):
        h = h @ state[f"mlp.{i}.weight"].T + state[f"mlp.{i}.bias"]
        norm = {name: state[f"mlp.{i + 1}.{name}"] for name in ("weight", "bias", "running_mean", "running_var")}
        h = (h - norm["running_mean"]) / np.sqrt(norm["running_var"] + 1e-5) * norm["weight"] + norm["bias"]
        h = np.maximum(h, 0)
    expected = np.concatenate([x, h], axis=1) @ state["head.weight"].T + state["head.bias"]
    assert np.allclose(scores(model, inputs), expected[:, 0], atol=1e-4)


def test_tables_are_small_at_first_and_only_fields_with_codes_have_one() -> None:
    model = DCNV2(FIELDS, BASELINE)
    assert list(model.tables) == [field.name for field in CODES]
    every = torch.cat([table.get_parameter("weight").flatten() for table in model.tables.values()])
    assert every.std().item() == pytest.approx(1e-2, rel=0.1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (FIELDS[1:2], FIELDS[1].name),
        ((FIELDS[0], FIELDS[0]), f"'{FIELDS[0].name}'.*'{FIELDS[0].name}'"),
        ((Field(name="a.b", side="item", vocabulary=3),), r"'a\.b'"),
        ((Field(name="items", side="item", vocabulary=3),), "'items'"),
    ],
)
def test_fields_without_tables_are_refused(fields: tuple[Field, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DCNV2(fields, SIZES)


@pytest.mark.parametrize("sizes", [(0, 1, (4,)), (4, -1, (4,)), (4, 1, ()), (4, 1, (4, 0))])
def test_sizes_are_positive(sizes: tuple[int, int, tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=f"embedding_dim={sizes[0]}, crosses={sizes[1]}, "):
        Sizes(*sizes)


def test_the_baselines_sizes_are_among_the_students() -> None:
    chosen = {"embedding_dim": 10, "crosses": 5, "mlp": "400-400-400"}
    assert resized(SIZES, Architecture(tuple(chosen.items())).as_dict()) == BASELINE
    assert all(chosen[name] in domain for name, domain in STUDENT.items())


def test_tables_and_layers_in_other_forms_are_read_alike(model: DCNV2) -> None:
    factors, whole = factored(model, "mlp.0")
    assert np.allclose(scores(factors, draw(FIELDS, 30)), scores(whole, draw(FIELDS, 30)), atol=1e-5)


def test_hidden_features_are_what_the_mlp_gives(model: DCNV2) -> None:
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(SIZES.hidden).register_forward_hook(lambda *call: seen.append(call[2]))
    scores(model, draw(FIELDS, 5))
    handle.remove()
    assert [tuple(features.shape) for features in seen] == [(5, 12)]


# -- the graph


def test_the_graph_gives_the_same_scores(model: DCNV2, graph: onnx.ModelProto) -> None:
    assert check_parity(model, graph, draw(FIELDS, 257)) < 1e-5
    assert [i.name for i in graph.graph.input] == [field.name for field in FIELDS]


def test_the_users_side_is_computed_once(graph: onnx.ModelProto) -> None:
    """The user has 13 of x_0's 32 columns, its number and its mean among them: two embeddings and the age."""
    once = compute_once(graph, USER)
    for rows in ROWS:
        request = one_users(draw(FIELDS, rows, seed=rows), rows // 2)
        assert np.allclose(run_onnx(once, request), run_onnx(graph, request), atol=1e-5)
    weights = {tensor.name: tuple(tensor.dims) for tensor in once.graph.initializer}
    assert weights["model.mlp.0.weight.user"] == (20, 13)
    assert weights["model.cross.0.weight.item"] == (X, X - 13)
    assert multiply_adds(graph, 100) - multiply_adds(once, 100) == 99 * 13 * (20 + X)


# -- the anatomy


def test_every_group_is_named_with_its_layers(model: DCNV2) -> None:
    groups = {group.name: group for group in structure(model).groups}
    assert {name: (group.kind, group.modules) for name, group in groups.items()} == {
        "tables": ("table", tuple(f"tables.{field.name}" for field in CODES)),
        "cross": ("linear", ("cross.0", "cross.1")),
        "mlp": ("linear", ("mlp.0", "mlp.4")),
    }
    assert groups["tables"].parameters == 6 * sum(field.vocabulary for field in CODES)
    assert groups["cross"].parameters == 2 * (X * X + X)
    assert groups["mlp"].parameters == (X * 20 + 20) + (20 * 12 + 12)
    assert not groups["cross"].prunable and "elementwise product" in str(groups["cross"].unprunable_reason)
    assert [(w.name, w.units, w.normalised) for g in groups.values() for w in g.dims] == [
        ("embedding_dim", 6, False), ("mlp.0", 20, False), ("mlp.4", 12, False)
    ]  # fmt: skip


def test_without_crosses_there_is_no_cross_group() -> None:
    assert [group.name for group in structure(_model(sizes=Sizes(4, 0, (8,)))).groups] == ["tables", "mlp"]


@pytest.mark.parametrize("fields", [FIELDS, CODES, FIELDS[:3], FIELDS[2:3]])
@pytest.mark.parametrize(
    ("group", "which", "gone", "smaller"),
    [
        ("tables", 0, (0, 3), Sizes(4, 2, (20, 12))),
        ("tables", 0, (5,), Sizes(5, 2, (20, 12))),
        ("mlp", 0, (1, 2, 7, 19), Sizes(6, 2, (16, 12))),
        ("mlp", 1, (0, 11), Sizes(6, 2, (20, 10))),
    ],
)
def test_a_model_cut_by_hand_is_the_dense_one_with_units_at_zero(
    fields: tuple[Field, ...], group: str, which: int, gone: tuple[int, ...], smaller: Sizes
) -> None:
    dense, inputs = _model(fields), draw(fields, 40)
    cut = DCNV2(fields, smaller).eval()
    cut.load_state_dict(sliced(dense, structure(dense).group(group).dims[which], gone))
    silenced = copy.deepcopy(dense)
    with torch.no_grad():
        if group == "tables":
            for table in silenced.tables.values():
                table.get_parameter("weight")[:, gone] = 0
        else:
            norm = silenced.mlp[4 * which + 1]
            assert isinstance(norm, nn.BatchNorm1d)
            norm.weight[[*gone]] = 0
            norm.bias[[*gone]] = 0
    assert np.allclose(scores(cut, inputs), scores(silenced, inputs), atol=1e-6)
    assert not np.allclose(scores(cut, inputs), scores(dense, inputs), atol=1e-4)


def test_the_anatomy_follows_a_model_that_was_cut(model: DCNV2) -> None:
    cut = DCNV2(FIELDS, Sizes(4, 2, (20, 12)))
    cut.load_state_dict(sliced(model, structure(model).group("tables").dims[0], (0, 3)))
    assert structure(cut) == structure(DCNV2(FIELDS, Sizes(4, 2, (20, 12))))
