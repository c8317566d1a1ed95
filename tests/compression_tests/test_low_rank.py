"""Factors against numpy's singular value decomposition, the layers that keep their weights, and the exported graph."""

from __future__ import annotations

import copy
import re

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from objectives.compression.low_rank import LowRankLinear, factorize, factors, rank_of
from spaces.model_structure import Group, Kind, ModelStructure
from spaces.techniques.low_rank import LowRank
from tests.protos import check_parity, to_onnx


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 40)
        self.layers = nn.Sequential(
            nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 48, bias=False), nn.ReLU(), nn.Linear(48, 2)
        )
        self.head = nn.Linear(2, 1)

    def forward(self, item: Tensor) -> Tensor:
        return self.head(self.layers(self.table(item))).squeeze(1)  # type: ignore[no-any-return]


def structure(kind: Kind = "linear") -> ModelStructure:
    whole = "its width is left alone"
    layers = ("layers.0", "layers.2", "layers.4")
    return ModelStructure(
        (
            Group("tower", kind, layers, 5824, (), whole),
            Group("head", "linear", ("head",), 3, (), whole),
            Group("table", "table", ("table",), 800, (), whole),
        )
    )


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Tower().eval()


@pytest.fixture
def rows() -> dict[str, Tensor]:
    return {"item": torch.randint(0, 20, (300,), generator=torch.Generator().manual_seed(1))}


@given(st.integers(2, 30), st.integers(2, 30), st.integers(0, 2**31), st.data())
def test_no_product_of_that_rank_is_nearer(rows: int, columns: int, seed: int, data: st.DataObject) -> None:
    """Eckart and Young: the distance is that of the singular values that are left out."""
    rank = data.draw(st.integers(1, min(rows, columns)))
    matrix = np.random.default_rng(seed).normal(size=(rows, columns))
    left, right = (factor.numpy() for factor in factors(torch.from_numpy(matrix), rank))
    assert left.shape == (rows, rank) and right.shape == (rank, columns)
    gone = np.linalg.svd(matrix, compute_uv=False)[rank:]
    assert np.linalg.norm(matrix - left @ right) == pytest.approx(np.sqrt((gone**2).sum()), abs=1e-9)
    assert np.allclose(np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1)), "both factors are as large"


@pytest.mark.parametrize("shape", [(200_000, 8), (8, 200_000), (1, 1), (70_000, 1)])
@pytest.mark.parametrize("held", [0, 1, 3])
def test_factors_of_a_long_matrix_hold_all_that_it_holds(shape: tuple[int, int], held: int) -> None:
    """A matrix of rank 0, 1 or 3 is its own nearest product, in fp32, whichever side is the longer."""
    random = np.random.default_rng(held)
    matrix = (random.normal(size=(shape[0], held)) @ random.normal(size=(held, shape[1]))).astype(np.float32)
    rank = min(*shape, max(held, 2))
    left, right = (factor.numpy() for factor in factors(torch.from_numpy(matrix), rank))
    assert left.dtype == right.dtype == np.float32 and left.shape == (shape[0], rank)
    assert np.abs(left @ right - matrix).max() <= 1e-5 * max(1.0, np.abs(matrix).max())


@pytest.mark.parametrize(
    ("inputs", "outputs", "share", "rank"),
    [
        (400, 400, 0.25, 96), (400, 100, 0.25, 24), (64, 64, 0.25, 16), (64, 64, 0.05, 3), (64, 64, 0.001, 1),
        (10, 10, 0.25, 2), (64, 64, 0.5, None), (400, 400, 0.48, 192), (48, 2, 0.5, 1), (2, 1, 0.5, None),
        (32, 32, 0.375, 8), (16, 16, 0.375, 6), (24, 24, 0.5, None), (40, 64, 0.7, None),
    ],
)  # fmt: skip
def test_ranks_fill_vectors_and_are_worth_two_layers(inputs: int, outputs: int, share: float, rank: int | None) -> None:
    assert rank_of(inputs, outputs, share) == rank


def test_a_factorised_model_is_the_one_with_truncated_weights(model: nn.Module, rows: dict[str, Tensor]) -> None:
    truncated = copy.deepcopy(model)
    factorized = factorize(model, LowRank((("tower", 0.25),)), structure())
    for name, rank in (("layers.0", 8), ("layers.2", 16), ("layers.4", 1)):
        layer, made = model.get_submodule(name), factorized.get_submodule(name)
        left, values, right = np.linalg.svd(layer.weight.detach().numpy(), full_matrices=False)  # type: ignore[union-attr]
        nearest = (left[:, :rank] * values[:rank]) @ right[:rank]
        truncated.get_parameter(f"{name}.weight").data = torch.from_numpy(nearest)
        assert isinstance(made, LowRankLinear)
        assert (made.in_features, made.out_features) == (layer.in_features, layer.out_features)
        assert (made.first.out_features, made.second.in_features, made.first.bias) == (rank, rank, None)
        assert (made.second.bias is None) == (layer.bias is None)
    with torch.inference_mode():
        assert torch.allclose(factorized(**rows), truncated(**rows), atol=1e-5)


def test_the_rest_keeps_its_weights_and_the_factors_their_names(model: nn.Module) -> None:
    before = copy.deepcopy(model.state_dict())
    after = factorize(model, LowRank((("tower", 0.25),)), structure()).state_dict()
    replaced = {f"layers.{i}.{of}" for i in (0, 2, 4) for of in ("weight", "bias")}
    made = {f"layers.{i}.{of}" for i in (0, 2, 4) for of in ("first.weight", "second.weight", "second.bias")}
    assert set(after) == (set(before) - replaced) | (made - {"layers.2.second.bias"})
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if name not in replaced)
    assert torch.equal(after["layers.0.second.bias"], before["layers.0.bias"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "a copy was changed"


def test_a_layer_that_two_factors_would_not_make_smaller_stays_whole(model: nn.Module) -> None:
    """A layer 48 -> 2 at rank 1 holds 50 for 96; 40 -> 64 and 64 -> 48 at 32 hold 3328 for 2560 and 3584 for 3072."""
    factorized = factorize(model, LowRank((("tower", 0.7),)), structure())
    kinds = [type(factorized.get_submodule(f"layers.{i}")) for i in (0, 2, 4)]
    assert kinds == [nn.Linear, nn.Linear, LowRankLinear]
    sizes = {m: sum(p.numel() for p in m.parameters()) for m in (model, factorized)}
    assert sizes[factorized] == sizes[model] - 96 + 50


def test_factors_are_exported_by_name_for_any_number_of_rows(model: nn.Module, rows: dict[str, Tensor]) -> None:
    factorized = factorize(model, LowRank((("tower", 0.25),)), structure())
    graph: onnx.ModelProto = to_onnx(factorized, rows)
    assert check_parity(factorized, graph, rows) < 1e-5
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer}
    assert shapes["model.layers.0.first.weight"] == (8, 40) and shapes["model.layers.0.second.weight"] == (64, 8)


def test_attention_layers_have_factors_too_and_sequences_pass(model: nn.Module) -> None:
    factorized = factorize(model, LowRank((("tower", 0.25),)), structure("attention"))
    assert factorized.get_submodule("layers.0")(torch.zeros(3, 5, 40)).shape == (3, 5, 64)


def test_factors_are_trained(model: nn.Module, rows: dict[str, Tensor]) -> None:
    factorized = factorize(model, LowRank((("tower", 0.25),)), structure())
    factorized(**rows).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in factorized.layers[0].parameters())  # type: ignore[index,union-attr]


def test_factors_of_frozen_weights_are_frozen(model: nn.Module) -> None:
    layer = model.get_submodule("layers.0")
    layer.weight.requires_grad_(False)  # type: ignore[union-attr,operator]
    factors = factorize(model, LowRank((("tower", 0.25),)), structure()).get_submodule("layers.0")
    assert [name for name, factor in factors.named_parameters() if factor.requires_grad] == ["second.bias"]


def test_nothing_to_gain_is_refused_by_group(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"0\.5 .*'head'"):
        factorize(model, LowRank((("head", 0.5), ("tower", 0.25))), structure())


def test_a_group_without_linear_layers_is_refused(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"'table' .*kind table"):
        factorize(model, LowRank((("table", 0.5),)), structure())


@pytest.mark.parametrize("first", [nn.Linear(4, 3), nn.Linear(4, 2, bias=False)])
def test_factors_that_do_not_fit_are_refused(first: nn.Linear) -> None:
    with pytest.raises(ValueError, match=re.escape(str(first))):
        LowRankLinear(first, nn.Linear(3, 5))
