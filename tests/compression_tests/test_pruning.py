"""Cuts, importance and steps of pruning, against zeroed and independently sliced models, numpy and brute force."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from objectives.compression.importance import Evidence, importances
from objectives.compression.module_edit import keep, names_of, replace_module
from objectives.compression.pruning import prune, pruning_steps, shrunk
from spaces.model_structure import AxisSlice, Group, ModelStructure, PrunableDim
from spaces.techniques.pruning import IMPORTANCES, Importance, Pruning, kept_units, ways_to_prune
from tests.protos import check_parity, to_onnx

ROWS = {"user": 30, "item": 40}
D, HEADS, HEAD = 8, 4, 4
NORM = ("weight", "bias", "running_mean", "running_var")


class Ranker(nn.Module):
    """Two tables, a cross layer over both, a tower with batch normalisation, a head that reads both."""

    def __init__(self, d: int = D, tower: tuple[int, int] = (32, 24)) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({name: nn.Embedding(rows, d) for name, rows in ROWS.items()})
        self.cross = nn.Linear(2 * d, 2 * d)
        widths = (2 * d, *tower)
        layers = [[nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()] for a, b in zip(widths, tower, strict=False)]
        self.tower = nn.Sequential(*(layer for group in layers for layer in group))
        self.head = nn.Linear(2 * d + tower[1], 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        x = torch.cat([self.tables["user"](user), self.tables["item"](item)], 1)
        return self.head(torch.cat([x * self.cross(x) + x, self.tower(x)], 1)).squeeze(1)  # type: ignore[no-any-return]


def ranker_anatomy() -> ModelStructure:
    both = {"repeats": 2, "period": D}
    dimension = PrunableDim(
        "embedding_dim", D,
        (
            AxisSlice("tables.user.weight", 1), AxisSlice("tables.item.weight", 1),
            AxisSlice("cross.weight", 0, **both), AxisSlice("cross.weight", 1, **both),
            AxisSlice("cross.bias", 0, **both), AxisSlice("tower.0.weight", 1, **both),
            AxisSlice("head.weight", 1, **both),
        ),
    )  # fmt: skip
    first = (
        AxisSlice("tower.0.weight", 0),
        AxisSlice("tower.0.bias", 0),
        *(AxisSlice(f"tower.1.{n}", 0) for n in NORM),
    )
    second = (
        AxisSlice("tower.3.weight", 0),
        AxisSlice("tower.3.bias", 0),
        *(AxisSlice(f"tower.4.{n}", 0) for n in NORM),
    )
    return ModelStructure(
        (
            Group("tables", "table", ("tables.user", "tables.item"), 70 * D, (dimension,)),
            Group("cross", "linear", ("cross",), 272, (), "tied by the elementwise product"),
            Group(
                "tower", "linear", ("tower.0", "tower.3"), 1000,
                (
                    PrunableDim("tower.0", 32, (*first, AxisSlice("tower.3.weight", 1))),
                    PrunableDim("tower.3", 24, (*second, AxisSlice("head.weight", 1, first=2 * D))),
                ),
            ),
        )
    )  # fmt: skip


class Attending(nn.Module):
    """Ids, (rows, 5), attend to each other in heads; the sum of the answers is normalised over the dimension."""

    def __init__(self, d: int = D, heads: int = HEADS) -> None:
        super().__init__()
        self.table = nn.Embedding(40, d)
        self.q, self.k, self.v = (nn.Linear(d, heads * HEAD) for _ in range(3))
        self.out = nn.Linear(heads * HEAD, d)
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, 1)

    def forward(self, history: Tensor) -> Tensor:
        x = self.table(history)
        q, k, v = (torch.unflatten(f(x), -1, (-1, HEAD)).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(HEAD), -1) @ v
        return self.head(self.norm(x + self.out(mixed.transpose(1, 2).flatten(2))).sum(1)).squeeze(1)  # type: ignore[no-any-return]


def attending_anatomy() -> ModelStructure:
    heads = tuple(AxisSlice(f"{name}.{of}", 0, size=HEAD) for name in "qkv" for of in ("weight", "bias"))
    reads = tuple(AxisSlice(f"{name}.weight", 1) for name in (*"qkv", "table", "head"))
    gives = tuple(AxisSlice(f"{name}.{of}", 0) for name in ("out", "norm") for of in ("weight", "bias"))
    return ModelStructure(
        (
            Group("tables", "table", ("table",), 40 * D, (PrunableDim("d", D, (*reads, *gives), normalised=True),)),
            Group(
                "attention", "attention", (*"qkv", "out"), 500,
                (PrunableDim("heads", HEADS, (*heads, AxisSlice("out.weight", 1, size=HEAD))),),
            ),
        )
    )  # fmt: skip


def lively(model: nn.Module) -> nn.Module:
    """Draw weights and statistics in place at which every unit shows in the scores, each by another amount."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.4)
            if name.endswith(("running_var", "bias")):
                tensor.copy_(tensor.abs() + 0.3)
    return model.eval()


@pytest.fixture
def ranker() -> nn.Module:
    return lively(Ranker())


@pytest.fixture
def attending() -> nn.Module:
    return lively(Attending())


def requests(count: int = 300, seed: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randint(0, rows, (count,), generator=generator) for name, rows in ROWS.items()}


def histories(count: int = 300) -> dict[str, Tensor]:
    return {"history": torch.randint(0, 40, (count, 5), generator=torch.Generator().manual_seed(3))}


def evidence(batches: int = 3) -> Evidence:
    labels = torch.rand(50, generator=torch.Generator().manual_seed(1)).round()
    loss = nn.functional.binary_cross_entropy_with_logits
    rows = [(requests(50, seed), labels) for seed in range(batches)]
    return Evidence(rows, lambda model, inputs: model(**inputs), loss)


def scores(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        return model(**inputs)  # type: ignore[no-any-return]


def norms(model: nn.Module, width: PrunableDim) -> np.ndarray:
    """Squared norms of the units by numpy, position by position."""
    state = {name: tensor.detach().numpy() for name, tensor in model.named_parameters()}
    total = np.zeros(width.units)
    for cut in width.axis_slices:
        for unit in range(width.units):
            if cut.tensor in state:
                total[unit] += sum((np.take(state[cut.tensor], p, cut.axis) ** 2).sum() for p in cut.positions([unit]))
    return total


def zeroed(model: nn.Module, gone: dict[PrunableDim, list[int]]) -> nn.Module:
    """The dense model with all parameters of some units at zero."""
    silent = copy.deepcopy(model)
    parameters = dict(silent.named_parameters())
    with torch.no_grad():
        for width, units in gone.items():
            for cut in width.axis_slices:
                if cut.tensor in parameters:
                    parameters[cut.tensor].index_fill_(cut.axis, torch.tensor(cut.positions(units)), 0.0)
    return silent


def least(model: nn.Module, structure: ModelStructure, kept: dict[str, int]) -> dict[PrunableDim, list[int]]:
    """Units that stay, of the least norm that leave, by the dimension's name."""
    widths = [width for group in structure.groups for width in group.dims if width.name in kept]
    return {w: np.argsort(norms(model, w), kind="stable")[: w.units - kept[w.name]].tolist() for w in widths}


# -- how many stay


@pytest.mark.parametrize(
    ("units", "ratio", "multiple", "size", "kept"),
    [
        (400, 0.5, 16, 1, 192), (400, 0.5, 1, 1, 200), (64, 0.5, 16, 1, 32), (48, 0.9, 16, 1, 16),
        (10, 0.5, 16, 1, 4), (10, 0.2, 16, 1, 8), (50, 0.5, 16, 1, 32), (8, 0.9, 16, 1, 4), (2, 0.5, 16, 1, 1),
        (1, 0.9, 16, 1, 1), (4, 0.5, 16, 16, 2), (4, 0.75, 16, 32, 1), (8, 0.8, 16, 8, 2), (2, 0.5, 16, 25, 1),
    ],
)  # fmt: skip
def test_what_stays_fills_vectors_where_there_are_any(
    units: int, ratio: float, multiple: int, size: int, kept: int
) -> None:
    assert kept_units(units, ratio, multiple, size) == kept


@given(st.integers(1, 600), st.floats(0.01, 0.99), st.floats(0.01, 0.99), st.integers(1, 40), st.integers(1, 40))
def test_any_width_can_be_about_halved_and_more_leaves_at_a_higher_ratio(
    units: int, one: float, other: float, multiple: int, size: int
) -> None:
    low, high = sorted((one, other))
    assert 1 <= kept_units(units, high, multiple, size) <= kept_units(units, low, multiple, size) <= units
    assert units / 4 <= kept_units(units, 0.5, multiple, size) <= max(1, 3 * units / 4)


@given(
    st.lists(st.tuples(st.integers(1, 600), st.integers(1, 20)), min_size=1, max_size=3),
    st.lists(st.floats(0.0, 0.99), min_size=1, max_size=8, unique=True),
    st.sampled_from([1, 8, 16]),
)
def test_every_shape_is_offered_once(widths: list[tuple[int, int]], ratios: list[float], multiple: int) -> None:
    parts = tuple(PrunableDim(f"w{i}", n, (AxisSlice(f"w{i}", 0, size=size),)) for i, (n, size) in enumerate(widths))
    group = Group("mlp", "linear", ("mlp.0",), 1, parts)

    def left(ratio: float) -> tuple[int, ...]:
        return tuple(kept_units(n, ratio, multiple, size) for n, size in widths)

    def away(ratio: float) -> float:
        return sum(abs(n * (1 - ratio) - kept) for (n, _), kept in zip(widths, left(ratio), strict=True))

    ways = ways_to_prune(group, ratios, multiple)
    assert sorted(map(left, ways)) == sorted(set(map(left, ratios)))
    assert list(ways) == [ratio for ratio in ratios if ratio in ways], "in their order"
    assert left(0.0) == tuple(n for n, _ in widths), "nothing is to go"
    for way in ways:
        assert away(way) == min(away(ratio) for ratio in ratios if left(ratio) == left(way))


# -- what leaves


RANKER_CASES = [
    ({"tower": 0.5}, {"tower.0": 16, "tower.3": 12}),
    ({"tables": 0.5}, {"embedding_dim": 4}),
    ({"tables": 0.25, "tower": 0.25}, {"embedding_dim": 6, "tower.0": 24, "tower.3": 18}),
]


@pytest.mark.parametrize(("ratios", "kept"), RANKER_CASES)
def test_a_pruned_model_is_the_dense_one_with_the_units_at_zero(
    ranker: nn.Module, ratios: dict[str, float], kept: dict[str, int]
) -> None:
    pruned, _ = prune(ranker, Pruning(tuple(ratios.items()), multiple=1), ranker_anatomy())
    silent = zeroed(ranker, least(ranker, ranker_anatomy(), kept))
    assert torch.allclose(scores(pruned, requests()), scores(silent, requests()), atol=1e-5)
    assert not torch.allclose(scores(pruned, requests()), scores(ranker, requests()), atol=1e-2)


def test_pruned_heads_are_the_dense_ones_at_zero(attending: nn.Module) -> None:
    pruned, _ = prune(attending, Pruning((("attention", 0.5),), multiple=1), attending_anatomy())
    silent = zeroed(attending, least(attending, attending_anatomy(), {"heads": 2}))
    assert pruned.get_submodule("q").out_features == 2 * HEAD
    assert torch.allclose(scores(pruned, histories()), scores(silent, histories()), atol=1e-5)


def test_where_a_normalisation_spans_the_units_it_is_a_smaller_model_of_sliced_tensors(attending: nn.Module) -> None:
    pruned, _ = prune(attending, Pruning((("tables", 0.5),), multiple=1), attending_anatomy())
    width = attending_anatomy().group("tables").dims[0]
    kept = np.sort(np.argsort(norms(attending, width), kind="stable")[D // 2 :])
    state = {name: tensor.numpy() for name, tensor in attending.state_dict().items()}
    for name in ("q.weight", "k.weight", "v.weight", "table.weight", "head.weight"):
        state[name] = state[name][:, kept]
    for name in ("out.weight", "out.bias", "norm.weight", "norm.bias"):
        state[name] = state[name][kept]
    small = Attending(d=D // 2).eval()
    small.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    assert torch.allclose(scores(pruned, histories()), scores(small, histories()), atol=1e-6)


@pytest.mark.parametrize(("ratios", "kept"), RANKER_CASES)
def test_shapes_shrink_as_asked_and_nothing_else_changes(
    ranker: nn.Module, ratios: dict[str, float], kept: dict[str, int]
) -> None:
    before = copy.deepcopy(ranker.state_dict())
    pruned, smaller = prune(ranker, Pruning(tuple(ratios.items()), multiple=1), ranker_anatomy())
    asked = Ranker(kept.get("embedding_dim", D), (kept.get("tower.0", 32), kept.get("tower.3", 24)))
    after = pruned.state_dict()
    assert {n: t.shape for n, t in after.items()} == {n: t.shape for n, t in asked.state_dict().items()}
    assert [str(m) for m in pruned.modules()] == [str(m) for m in asked.modules()], "modules know their sizes"
    gone = least(ranker, ranker_anatomy(), kept)
    for name, tensor in before.items():
        for axis in range(tensor.dim()):
            axis_slices = [
                (cut, units)
                for w, units in gone.items()
                for cut in w.axis_slices
                if (cut.tensor, cut.axis) == (name, axis)
            ]
            leave = [p for cut, units in axis_slices for p in cut.positions(units)]
            tensor = torch.from_numpy(np.delete(tensor.numpy(), leave, axis))
        assert torch.equal(after[name], tensor), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in ranker.state_dict().items()), "a copy was pruned"
    assert {w.name: w.units for g in smaller.groups for w in g.dims if w.name in kept} == kept
    sizes = {
        g.name: sum(p.numel() for m in g.modules for p in asked.get_submodule(m).parameters()) for g in smaller.groups
    }
    assert {group.name: group.parameters for group in smaller.groups} == sizes


def test_a_pruned_model_is_exported_for_any_number_of_rows(ranker: nn.Module) -> None:
    pruned, _ = prune(ranker, Pruning((("tables", 0.5), ("tower", 0.5))), ranker_anatomy())
    assert check_parity(pruned, to_onnx(pruned, requests()), requests()) < 1e-4


def test_a_pruned_model_can_be_trained_though_the_dense_one_was_frozen(ranker: nn.Module) -> None:
    pruned, _ = prune(ranker.requires_grad_(False), Pruning((("tower", 0.5),)), ranker_anatomy())
    assert all(parameter.requires_grad for parameter in pruned.parameters())
    assert not any(parameter.requires_grad for parameter in ranker.parameters())


@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
def test_what_is_frozen_stays_frozen(importance: Importance, ranker: nn.Module) -> None:
    """Pretrained vectors of a table lose dimensions, by their importance, and are not trained."""
    frozen = {"tables.item.weight"}
    ranker.get_parameter("tables.item.weight").requires_grad_(False)
    pruned, _ = prune(ranker, Pruning((("tables", 0.5),), importance=importance), ranker_anatomy(), evidence())
    assert {name for name, parameter in pruned.named_parameters() if not parameter.requires_grad} == frozen


# -- importance


def widths_of(structure: ModelStructure) -> list[PrunableDim]:
    return [width for group in structure.groups for width in group.dims]


def test_magnitude_is_the_squared_norm_of_all_parameters(ranker: nn.Module, attending: nn.Module) -> None:
    for model, structure in ((ranker, ranker_anatomy()), (attending, attending_anatomy())):
        for width, got in zip(widths_of(structure), importances(model, widths_of(structure), "magnitude"), strict=True):
            assert np.allclose(got, norms(model, width) / norms(model, width).sum(), rtol=1e-5)


def test_taylor_is_the_squared_slope_of_the_loss_as_a_unit_fades(ranker: nn.Module) -> None:
    """Central differences in float64 are the oracle: all parameters of the unit times 1 - t, at t = 0."""
    width = ranker_anatomy().group("tower").dims[0]
    model, given = ranker.double(), evidence()
    slopes = []
    for unit in range(width.units):
        losses = []
        for t in (-1e-5, 1e-5):
            faded = copy.deepcopy(model)
            held = dict(faded.named_parameters())
            with torch.no_grad():
                for cut in width.axis_slices:
                    if cut.tensor in held:
                        at = torch.tensor(cut.positions([unit]))
                        held[cut.tensor].index_copy_(
                            cut.axis, at, held[cut.tensor].index_select(cut.axis, at) * (1 - t)
                        )
                losses.append([float(given.loss(faded(**x), y.double())) for x, y in given.batches])
        slopes.append((np.array(losses[1]) - np.array(losses[0])) / 2e-5)
    expected = (np.array(slopes) ** 2).mean(1)
    doubled = replace(given, batches=[(x, y.double()) for x, y in given.batches])
    (got,) = importances(model, [width], "taylor", doubled)
    assert np.allclose(got, expected / expected.sum(), rtol=1e-3, atol=1e-6)


def test_activation_is_what_the_next_layer_reads(ranker: nn.Module) -> None:
    inputs = [inputs for inputs, _ in evidence().batches]
    x = torch.cat([torch.cat([ranker.tables[n](i[n]) for n in ROWS], 1) for i in inputs])  # type: ignore[index,operator]
    first = ranker.tower[:3](x)  # type: ignore[index,operator]
    second = ranker.tower[3:](first)  # type: ignore[index,operator]
    widths = ranker_anatomy().group("tower").dims
    for got, read in zip(importances(ranker, widths, "activation", evidence()), (first, second), strict=True):
        expected = read.detach().abs().mean(0).numpy()
        assert np.allclose(got, expected / expected.sum(), rtol=1e-4)


def test_activation_of_units_that_no_layer_reads_is_what_their_layers_give(ranker: nn.Module) -> None:
    """Queries and keys meet in a product, which no layer reads."""
    inputs = [inputs for inputs, _ in evidence().batches]
    x = torch.cat([torch.cat([ranker.tables[n](i[n]) for n in ROWS], 1) for i in inputs])  # type: ignore[index,operator]
    first = ranker.tower[0](x)  # type: ignore[index,operator]
    second = ranker.tower[3](ranker.tower[:3](x))  # type: ignore[index,operator]
    axis_slices = (
        AxisSlice("tower.0.weight", 0),
        AxisSlice("tower.0.bias", 0),
        AxisSlice("tower.3.weight", 0, first=4),
    )
    (got,) = importances(ranker, [PrunableDim("met", 20, axis_slices)], "activation", evidence())
    expected = (first[:, :20].abs().mean(0) + second[:, 4:24].abs().mean(0)).detach().numpy()
    assert np.allclose(got, expected / expected.sum(), rtol=1e-4)


def test_activation_of_embeddings_counts_each_row_as_often_as_it_is_read(ranker: nn.Module) -> None:
    expected = np.zeros(D)
    for name, rows in ROWS.items():
        ids = torch.cat([inputs[name] for inputs, _ in evidence().batches])
        often = np.bincount(ids, minlength=rows) / len(ids)
        expected += often @ np.abs(ranker.get_parameter(f"tables.{name}.weight").detach().numpy())
    (got,) = importances(ranker, ranker_anatomy().group("tables").dims, "activation", evidence())
    assert np.allclose(got, expected / expected.sum(), rtol=1e-4)


@pytest.mark.parametrize("kind", IMPORTANCES)
def test_units_that_do_nothing_leave_first(ranker: nn.Module, kind: Importance) -> None:
    structure = ranker_anatomy()
    idle = {width: list(range(0, width.units, 2)) for width in widths_of(structure)}
    dead = zeroed(ranker, idle)
    pruned, _ = prune(dead, Pruning((("tables", 0.5), ("tower", 0.5)), kind, multiple=1), structure, evidence())
    assert torch.allclose(scores(pruned, requests()), scores(dead, requests()), atol=1e-5)


def test_looking_changes_nothing_of_the_model(ranker: nn.Module) -> None:
    before = copy.deepcopy(ranker.state_dict())
    for kind in IMPORTANCES:
        importances(ranker, widths_of(ranker_anatomy()), kind, evidence())
    assert all(torch.equal(tensor, before[name]) for name, tensor in ranker.state_dict().items())
    assert not any(module._forward_hooks for module in ranker.modules())
    assert all(parameter.grad is None for parameter in ranker.parameters())


# -- in steps


@given(st.floats(0.01, 0.99), st.integers(1, 8))
def test_steps_leave_the_same_share_of_what_was_left(ratio: float, count: int) -> None:
    steps = pruning_steps(Pruning((("tower", ratio),), steps=count))
    left = [1.0, *(1 - step.ratios[0][1] for step in steps)]
    assert len(steps) == count and all(step.steps == 1 for step in steps)
    assert steps[-1].ratios[0][1] == ratio
    assert np.allclose([b / a for a, b in pairwise(left)], (1 - ratio) ** (1 / count))


@settings(max_examples=12)
@given(st.sampled_from([0.3, 0.5, 0.62, 0.75, 0.9]), st.integers(2, 5), st.sampled_from([1, 4, 16]))
def test_steps_end_at_the_widths_of_one_shot(ratio: float, count: int, multiple: int) -> None:
    model, structure, seen = lively(Ranker()), ranker_anatomy(), []
    asked = Pruning((("tables", ratio), ("tower", ratio)), steps=count, multiple=multiple)
    once, expected = prune(model, replace(asked, steps=1), structure)
    stepped, smaller = prune(
        model, asked, structure, between=lambda m: seen.append(sum(p.numel() for p in m.parameters()))
    )
    assert {n: t.shape for n, t in stepped.state_dict().items()} == {n: t.shape for n, t in once.state_dict().items()}
    assert smaller == expected
    total = sum(p.numel() for p in stepped.parameters())
    assert len(seen) == count - 1 and sorted([*seen, total], reverse=True) == [*seen, total]


def test_each_step_judges_what_training_left(ranker: nn.Module) -> None:
    """Training between the steps makes the last units of what is left the least: they go, not those of before."""
    width = ranker_anatomy().group("tower").dims[0]
    (gone,) = least(ranker, ranker_anatomy(), {"tower.0": 23}).values()
    left = [unit for unit in range(width.units) if unit not in gone]

    def train(model: nn.Module) -> None:
        assert model.get_submodule("tower.0").out_features == 23
        with torch.no_grad():
            for name in ("tower.0.weight", "tower.0.bias", "tower.1.weight", "tower.1.bias"):
                model.get_parameter(name)[-7:] = 0
            model.get_parameter("tower.3.weight")[:, -7:] = 0

    only = ModelStructure((replace(ranker_anatomy().group("tower"), dims=(width,)),))
    pruned, _ = prune(ranker, Pruning((("tower", 0.5),), steps=2, multiple=1), only, between=train)
    assert torch.equal(pruned.get_parameter("tower.0.weight"), ranker.get_parameter("tower.0.weight")[left[:-7]])


# -- the anatomy of what is left


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[PrunableDim], dict[PrunableDim, list[int]]]:
    """Widths that lie on one axis beside each other, some repeated with a shared period, and what leaves each."""
    axis_slices: list[tuple[int, AxisSlice]] = []
    at = 0
    for _ in range(draw(st.integers(1, 3))):
        block = [(draw(st.integers(1, 5)), draw(st.integers(1, 3))) for _ in range(draw(st.integers(1, 3)))]
        repeats = draw(st.integers(1, 3))
        padding = draw(st.integers(0, 2))
        period = sum(units * size for units, size in block) + padding
        for units, size in block:
            axis_slices.append((units, AxisSlice("t", 0, at, size, repeats, period if repeats > 1 else 0)))
            at += units * size
        at += padding + (repeats - 1) * period
    widths = [PrunableDim(f"w{i}", units, (cut,)) for i, (units, cut) in enumerate(axis_slices)]
    gone = {w: sorted(draw(st.sets(st.integers(0, w.units - 1), max_size=w.units - 1))) for w in widths}
    return widths, gone


@given(layouts())
def test_cuts_move_with_the_positions_that_they_name(
    layout: tuple[list[PrunableDim], dict[PrunableDim, list[int]]],
) -> None:
    """Every position is labelled; labels of the removed units are deleted; the new cuts find the others in order."""
    widths, gone = layout
    end = 2 + max(max(w.axis_slices[0].positions(range(w.units))) for w in widths)
    labels: list[object] = [None] * end
    for width in widths:
        cut = width.axis_slices[0]
        for unit in range(width.units):
            for number, position in enumerate(cut.positions([unit])):
                labels[position] = (width.name, unit, number)
    left = [
        label for label in labels
        if not (isinstance(label, tuple) and label[1] in next(gone[w] for w in widths if w.name == label[0]))
    ]  # fmt: skip
    small = shrunk(ModelStructure((Group("g", "linear", ("t",), 1, tuple(widths)),)), gone).groups[0].dims
    for before, after in zip(widths, small, strict=True):
        units = [unit for unit in range(before.units) if unit not in gone[before]]
        assert after.units == len(units)
        for new, old in enumerate(units):
            found = [left[p] for p in after.axis_slices[0].positions([new])]
            assert found == [(before.name, old, number) for number in range(len(found))]
            assert len(found) == len(before.axis_slices[0].positions([old]))


def test_repeats_that_no_longer_lie_at_one_distance_are_cuts_of_their_own() -> None:
    """One width lies between two repeats of another, and not between the next two."""
    even = PrunableDim("even", 2, (AxisSlice("t", 0, repeats=3, period=4),))
    odd = PrunableDim("odd", 2, (AxisSlice("t", 0, first=2),))
    structure = ModelStructure((Group("g", "linear", ("t",), 1, (even, odd)),))
    after, _ = shrunk(structure, {odd: [1]}).groups[0].dims
    assert after.axis_slices == (AxisSlice("t", 0, 0), AxisSlice("t", 0, 3), AxisSlice("t", 0, 7))


def test_units_that_no_longer_lie_side_by_side_are_refused() -> None:
    wide, within = (
        PrunableDim("wide", 2, (AxisSlice("t", 0, size=2),)),
        PrunableDim("within", 2, (AxisSlice("t", 0, first=1),)),
    )
    structure = ModelStructure((Group("g", "linear", ("t",), 1, (wide, within)),))
    with pytest.raises(ValueError, match="axis 0 of 't'"):
        shrunk(structure, {within: [0]})


# -- surgery


def test_tied_weights_are_cut_once_and_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(6, 4, padding_idx=2)
            self.out = nn.Linear(4, 6, bias=False)
            self.out.weight = self.table.weight

    model = Tied()
    width = PrunableDim("d", 4, (AxisSlice("table.weight", 1), AxisSlice("out.weight", 1)))
    structure = ModelStructure((Group("g", "table", ("table", "out"), 24, (width,)),))
    pruned, _ = prune(model, Pruning((("g", 0.5),), multiple=1), structure)
    assert pruned.get_parameter("table.weight") is pruned.get_parameter("out.weight")
    assert pruned.get_submodule("table").embedding_dim == pruned.get_submodule("out").in_features == 2
    assert names_of(pruned, "out.weight") == ("table.weight", "out.weight")


@pytest.mark.parametrize(("positions", "padding"), [((0, 2, 5), 1), ((0, 5), None)])
def test_padding_moves_with_its_row(positions: tuple[int, ...], padding: int | None) -> None:
    model = nn.ModuleDict({"table": nn.Embedding(6, 4, padding_idx=2)})
    rows = model["table"].weight[list(positions)]
    keep(model, "table.weight", 0, positions)
    assert torch.equal(model["table"](torch.arange(len(positions))), rows)
    assert (model["table"].num_embeddings, model["table"].padding_idx) == (len(positions), padding)


def test_a_module_is_replaced_wherever_it_stands() -> None:
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(nn.ReLU(), shared)})
    replace_module(model, "b.1", nn.Identity())
    assert isinstance(model["a"], nn.Identity) and model.get_submodule("b.1") is model["a"]


@pytest.mark.parametrize(
    ("name", "axis", "positions", "message"),
    [
        ("head.wait", 0, (0,), "'head.wait'"),
        ("head.bias", 1, (0,), "axis 1 .*0, .*0 to 0"),
        ("head.weight", 1, (3, 40), "'head.weight' on axis 1 .*40, .*3 to 40"),
        ("head.weight", 1, (), "40, .*none"),
    ],
)
def test_positions_that_are_not_there_are_refused(
    ranker: nn.Module, name: str, axis: int, positions: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        keep(ranker, name, axis, positions)


# -- refusals


def test_what_cannot_be_pruned_is_refused_with_the_reason(ranker: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"'cross' .*elementwise product"):
        prune(ranker, Pruning((("cross", 0.5),)), ranker_anatomy())
    with pytest.raises(ValueError, match=r"0\.05 of 'tower' .*\[32, 24\]"):
        prune(ranker, Pruning((("tables", 0.5), ("tower", 0.05))), ranker_anatomy())
    with pytest.raises(ValueError, match="3 steps"):
        prune(ranker, Pruning((("tower", 0.5),), steps=3), ranker_anatomy())


def test_an_anatomy_of_another_model_is_refused(ranker: nn.Module) -> None:
    small = lively(Ranker(tower=(16, 24)))
    with pytest.raises(ValueError, match=r"'tower\.0' .*31 on axis 0 of 'tower\.0\.weight'"):
        prune(nn.Sequential(nn.Linear(2, 2)), Pruning((("tower", 0.5),)), ranker_anatomy())
    with pytest.raises(ValueError, match=r"31 on axis 0 of 'tower\.0\.weight', .*\(16, 16\)"):
        prune(small, Pruning((("tower", 0.5),)), ranker_anatomy())


@pytest.mark.parametrize("kind", ["taylor", "activation"])
def test_rows_are_needed_where_importance_is_judged_on_them(ranker: nn.Module, kind: Importance) -> None:
    with pytest.raises(ValueError, match=f"Importance by {kind} "):
        prune(ranker, Pruning((("tower", 0.5),), kind), ranker_anatomy())


def test_evidence_has_a_batch() -> None:
    with pytest.raises(ValueError, match="batch"):
        replace(evidence(), batches=[])


def test_units_without_activations_are_judged_by_magnitude(ranker: nn.Module) -> None:
    """No layer has the units of a normalisation alone, and none of the layers is called by a forward around them."""
    blind = PrunableDim("blind", 32, (AxisSlice("tower.1.weight", 0),))
    idle = replace(evidence(), outputs=lambda model, inputs: torch.zeros(50))
    for widths, rows in (([blind], evidence()), (ranker_anatomy().group("tower").dims, idle)):
        found, expected = importances(ranker, widths, "activation", rows), importances(ranker, widths, "magnitude")
        assert all(map(torch.equal, found, expected))


class OwnBags(nn.EmbeddingBag):
    """Bags whose forward has another name for its input."""

    def forward(self, ids: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(ids)


class Bags(nn.Module):
    """A table of bags, and two layers called by the name of their input, of which a forward leaves one out."""

    def __init__(self) -> None:
        super().__init__()
        self.bags, self.first, self.unused = OwnBags(30, 6), nn.Linear(6, 5), nn.Linear(6, 5)
        self.last = nn.Linear(5, 1)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = torch.relu(self.first(input=self.bags(ids=ids)))
        return self.last(input=hidden).squeeze(1)  # type: ignore[no-any-return]


def test_activation_of_bags_and_of_layers_called_by_name() -> None:
    torch.manual_seed(0)
    model, ids = Bags(), torch.randint(30, (40, 3))
    rows = Evidence(
        [({"ids": ids}, torch.zeros(40))], lambda model, inputs: model(**inputs), lambda outputs, _: outputs
    )
    tables = [AxisSlice("bags.weight", 1), AxisSlice("first.weight", 1), AxisSlice("unused.weight", 1)]
    hidden = [AxisSlice("first.weight", 0), AxisSlice("unused.weight", 0), AxisSlice("last.weight", 1)]
    read = [AxisSlice("first.weight", 1), AxisSlice("unused.weight", 1)]
    bags = model.bags(ids).detach()
    for cuts, seen in ((tables, bags), (hidden, torch.relu(model.first(bags)).detach()), (read, bags)):
        (got,) = importances(model, [PrunableDim("of", seen.shape[1], tuple(cuts))], "activation", rows)
        expected = seen.abs().mean(0)
        assert torch.allclose(got, expected / expected.sum(), rtol=1e-4)


def test_a_loss_that_is_not_finite_is_refused(ranker: nn.Module) -> None:
    broken = replace(evidence(), loss=lambda outputs, labels: outputs.sum() * math.nan)
    with pytest.raises(ValueError, match=r"taylor 32 of 32 of 'tower\.0'"):
        importances(ranker, ranker_anatomy().group("tower").dims, "taylor", broken)
