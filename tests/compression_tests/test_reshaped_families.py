"""Each family pruned, factorised and with compressed tables, group by group.

The structure is the one written by hand, or the traced one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from objectives.compression.embeddings import MixedTable, QuotientRemainderTable, compress_tables
from objectives.compression.importance import Evidence, importances
from objectives.compression.low_rank import LowRankLinear, factorize
from objectives.compression.pruning import prune
from objectives.compression.structure import trace
from objectives.recommenders.datasets.features import Field
from objectives.recommenders.families import dcn_v2, dlrm, sasrec
from spaces.model_structure import ModelStructure, PrunableDim
from spaces.techniques.embeddings import MixedDimensions, QuotientRemainder, TableForm
from spaces.techniques.low_rank import LowRank
from spaces.techniques.pruning import IMPORTANCES, Importance, Pruning
from tests.families_tests.mixed_fields import draw, lively
from tests.model_structure_tests.norm_of_some import NormOfSome
from tests.model_structure_tests.written_structures import dcn_v2_anatomy, dlrm_anatomy, sasrec_anatomy
from tests.protos import run_onnx, to_onnx

FIELDS = (
    Field(name="user", side="user", vocabulary=300),
    Field(name="age", side="user", kind="numeric"),
    Field(name="item", side="item", vocabulary=400),
    Field(name="tags", side="item", kind="multi", vocabulary=20, length=3),
)
ITEMS, LENGTH = 400, 12


@dataclass(frozen=True)
class Family:
    """A small model, how it is asked while serving and while training, and rows for both."""

    make: Callable[[], nn.Module]
    structure: Callable[[nn.Module], ModelStructure]
    serving: dict[str, Tensor]
    evidence: Evidence
    prunable: tuple[str, ...]
    linear: tuple[str, ...]


def _of_rows(
    make: Callable[[], nn.Module], structure: Callable[..., ModelStructure], *groups: tuple[str, ...]
) -> Family:
    rows, labels = draw(FIELDS, 64), torch.arange(64).remainder(2).float()
    loss = nn.functional.binary_cross_entropy_with_logits
    evidence = Evidence([(rows, labels)], lambda model, inputs: model(**inputs), loss)
    return Family(make, structure, rows, evidence, *groups)


def _sequences(heads: int) -> Family:
    random = np.random.default_rng(0)
    history = torch.from_numpy(random.integers(1, ITEMS + 1, (8, LENGTH)))
    history[:, :3] = 0
    candidates = torch.from_numpy(random.integers(1, ITEMS + 1, (8, LENGTH, 4)))
    evidence = Evidence(
        [({"history": history, "candidates": candidates}, torch.zeros(0))],
        lambda model, inputs: sasrec.outputs(model, inputs),  # type: ignore[arg-type]
        lambda outputs, _: sasrec.loss(outputs),
    )
    sizes = sasrec.Sizes(embedding_dim=16, blocks=2, heads=heads, feed_forward=24, length=LENGTH)
    serving = {"history": history[:1], "item": torch.arange(1, 65)}
    return Family(
        lambda: sasrec.SASRec(ITEMS, sizes), sasrec_anatomy, serving, evidence,  # type: ignore[arg-type]
        ("tables", "attention", "mlp"), ("attention", "mlp"),
    )  # fmt: skip


FAMILIES = {
    "dcn-v2": _of_rows(
        lambda: dcn_v2.DCNV2(FIELDS, dcn_v2.Sizes(16, 2, (48, 32))), dcn_v2_anatomy,
        ("tables", "mlp"), ("cross", "mlp"),
    ),
    "dlrm": _of_rows(
        lambda: dlrm.DLRM(FIELDS, dlrm.Sizes(16, (32, 24), (48, 32))), dlrm_anatomy,
        ("tables", "bottom", "top"), ("bottom", "top"),
    ),
    "sasrec": _sequences(heads=4),
}  # fmt: skip


WRITTEN = tuple(FAMILIES)


def _traced(family: Family, prunable: tuple[str, ...], linear: tuple[str, ...]) -> Family:
    def structure(model: nn.Module) -> ModelStructure:
        return trace(model, family.serving).structure

    return replace(family, structure=structure, prunable=prunable, linear=linear)


_BLOCKS = ("attention", "feed_forward")
FAMILIES |= {
    "dcn-v2, traced": _traced(FAMILIES["dcn-v2"], ("tables", "mlp"), ("cross", "mlp")),
    "dlrm, traced": _traced(FAMILIES["dlrm"], ("tables", "bottom", "top"), ("bottom", "top")),
    "sasrec, traced": _traced(FAMILIES["sasrec"], ("tables", *_BLOCKS), _BLOCKS),
    "sasrec of one head, traced": _traced(_sequences(heads=1), ("tables", *_BLOCKS), _BLOCKS),
}
PRUNED = [(name, group) for name, family in FAMILIES.items() for group in family.prunable]
FACTORISED = [(name, group) for name, family in FAMILIES.items() for group in family.linear]


def made(family: Family) -> nn.Module:
    torch.manual_seed(0)
    return lively(family.make())


def scores(model: nn.Module, family: Family) -> Tensor:
    with torch.inference_mode():
        return model(**family.serving)  # type: ignore[no-any-return]


def gone(model: nn.Module, family: Family, group: str, kind: Importance) -> dict[PrunableDim, list[int]]:
    """The less important half of each width."""
    widths = family.structure(model).group(group).dims
    found = importances(model, widths, kind, family.evidence)
    return {w: torch.argsort(s, stable=True)[: w.units // 2].tolist() for w, s in zip(widths, found, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", IMPORTANCES)
@pytest.mark.parametrize(("name", "group"), PRUNED)
def test_pruned_is_the_dense_model_at_zero_and_the_rest_is_as_it_was(name: str, group: str, kind: Importance) -> None:
    """A normalisation or a scale over the units is taken over the others alone in the dense model."""
    family = FAMILIES[name]
    model = made(family)
    pruned, smaller = prune(model, Pruning(((group, 0.5),), kind, multiple=1), family.structure(model), family.evidence)
    removed = gone(model, family, group, kind)
    silent = copy.deepcopy(model)
    cut: dict[tuple[str, int], set[int]] = {}
    for width, units in removed.items():
        for c in width.axis_slices:
            cut.setdefault((c.tensor, c.axis), set()).update(c.positions(units))
    state, dense = pruned.state_dict(), silent.state_dict()
    for tensor, values in model.state_dict().items():
        for axis in range(values.dim()):
            leave = cut.get((tensor, axis), set())
            values = values.index_select(axis, torch.tensor([p for p in range(values.shape[axis]) if p not in leave]))
        assert torch.equal(state[tensor], values), tensor
    for (tensor, axis), leave in cut.items():
        if not tensor.endswith(("running_mean", "running_var")):
            dense[tensor].index_fill_(axis, torch.tensor(sorted(leave)), 0.0)
    for owner in [tensor.rpartition(".")[0] for tensor, _ in cut]:
        if isinstance(norm := silent.get_submodule(owner), nn.LayerNorm):
            leave = cut[f"{owner}.weight", 0]
            silent.set_submodule(owner, NormOfSome(norm, [i for i in range(len(norm.weight)) if i not in leave]))
    if isinstance(silent, sasrec.SASRec) and group == "tables":
        _scaled_as_of(silent, pruned.get_submodule("tables.item").weight.shape[1])
    assert torch.allclose(scores(pruned, family), scores(silent, family), rtol=1e-4, atol=1e-4)
    assert smaller == family.structure(pruned), "the family reads the same anatomy from the pruned model"


def _scaled_as_of(model: sasrec.SASRec, dimension: int) -> None:
    """Embeddings of a history times the root of another dimension than they have (Kang and McAuley 2018, eq. 1)."""

    def embed(history: Tensor) -> tuple[Tensor, Tensor]:
        from_end = torch.arange(history.shape[-1] - 1, -1, -1)
        x = model.tables["item"](history) * dimension**0.5 + model.tables["position"](from_end)
        padded = history == 0
        return x.masked_fill(padded.unsqueeze(-1), 0.0), torch.where(padded.unsqueeze(-2), -1e4, 0.0)

    model._embed = embed  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_all_groups_at_once_in_steps_and_exported(name: str) -> None:
    family = FAMILIES[name]
    model = made(family)
    asked = Pruning(tuple((group, 0.5) for group in family.prunable), "taylor", steps=3, multiple=4)
    calls: list[Tensor] = []
    pruned, smaller = prune(
        model, asked, family.structure(model), family.evidence, lambda m: calls.append(scores(m, family))
    )
    assert len(calls) == 2 and smaller == family.structure(pruned)
    for group in family.prunable:
        for before, after in zip(family.structure(model).group(group).dims, smaller.group(group).dims, strict=True):
            assert after.units == before.units // 2
    graph = to_onnx(pruned, family.serving)
    got = run_onnx(graph, {n: v.numpy() for n, v in family.serving.items()})
    assert np.allclose(got, scores(pruned, family), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "group"), FACTORISED)
def test_factors_stand_for_the_truncated_weights(name: str, group: str) -> None:
    family = FAMILIES[name]
    model = made(family)
    factorized = factorize(model, LowRank(((group, 0.25),)), family.structure(model))
    changed = 0
    for module in family.structure(model).group(group).modules:
        layer = factorized.get_submodule(module)
        if isinstance(layer, LowRankLinear):
            changed += 1
            product = (layer.second.weight @ layer.first.weight).detach()
            left, values, right = np.linalg.svd(model.get_parameter(f"{module}.weight").detach().numpy())
            rank = layer.first.out_features
            assert np.allclose(product, (left[:, :rank] * values[:rank]) @ right[:rank], atol=1e-4)
            model.get_parameter(f"{module}.weight").data = product
    assert changed
    assert torch.allclose(scores(factorized, family), scores(model, family), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("form", [QuotientRemainder("tables", 0.2), MixedDimensions("tables", 0.4)])
@pytest.mark.parametrize("name", WRITTEN)
def test_compressed_tables_then_pruned_everywhere_still_answer(name: str, form: TableForm) -> None:
    """A candidate may ask for tables, then pruning of all groups, then factors."""
    family = FAMILIES[name]
    model = made(family)
    tables = {name: model.get_parameter(f"{name}.weight") for name in family.structure(model).group("tables").modules}
    counts = {name: 1 / torch.arange(1, len(weight) + 1) for name, weight in tables.items()}
    compressed, structure = compress_tables(model, [form], family.structure(model), counts)
    kinds = [type(compressed.get_submodule(module)) for module in structure.group("tables").modules]
    assert {QuotientRemainderTable, MixedTable} & set(kinds)
    asked = Pruning(tuple((group, 0.5) for group in family.prunable), "activation", multiple=4)
    pruned, smaller = prune(compressed, asked, structure, family.evidence)
    group = family.linear[-1]
    factorized = factorize(pruned, LowRank(((group, 0.2),)), smaller)
    assert scores(factorized, family).shape == (64,)
    assert torch.isfinite(scores(factorized, family)).all()
