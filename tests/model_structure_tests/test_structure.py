"""Traced structures, compared with those written by hand for the families, and on models drawn at random."""

from __future__ import annotations

import copy
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from objectives.compression.embeddings import compress_tables
from objectives.compression.module_edit import keep, tensors
from objectives.compression.pruning import prune
from objectives.compression.structure import trace
from objectives.compression.structure.program import TraceError
from objectives.recommenders.datasets.features import Field
from objectives.recommenders.families import dcn_v2, dlrm, sasrec
from spaces.model_structure import ModelStructure, PrunableDim, Table
from spaces.techniques.embeddings import QuotientRemainder
from spaces.techniques.pruning import Pruning
from tests.compression_tests.random_models import HEADS, Attention, Heads, random_model, rows
from tests.families_tests.mixed_fields import draw, lively
from tests.model_structure_tests.norm_of_some import NormOfSome
from tests.model_structure_tests.written_structures import dcn_v2_anatomy, dlrm_anatomy, sasrec_anatomy

FIELDS = (
    Field(name="user", side="user", vocabulary=300),
    Field(name="age", side="user", kind="numeric"),
    Field(name="item", side="item", vocabulary=400),
    Field(name="tags", side="item", kind="multi", vocabulary=20, length=3),
)
LENGTH = 12


def _crossed() -> nn.Module:
    return lively(dcn_v2.DCNV2(FIELDS, dcn_v2.Sizes(8, 3, (32, 16))))


def _dotted() -> nn.Module:
    return lively(dlrm.DLRM(FIELDS, dlrm.Sizes(8, (32, 16), (24, 12))))


def _attending() -> nn.Module:
    torch.manual_seed(0)
    return sasrec.SASRec(400, sasrec.Sizes(16, 2, 2, 24, LENGTH)).eval()


def _history() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    history = torch.randint(1, 401, (1, LENGTH), generator=generator)
    history[:, :3] = 0
    return {"history": history, "item": torch.randint(1, 401, (7,), generator=generator)}


FAMILIES: dict[str, tuple[Callable[[], nn.Module], Callable[..., ModelStructure], Callable[[], dict[str, Tensor]]]] = {
    "dcn-v2": (_crossed, dcn_v2_anatomy, lambda: draw(FIELDS, 7)),
    "dlrm": (_dotted, dlrm_anatomy, lambda: draw(FIELDS, 7)),
    "sasrec": (_attending, sasrec_anatomy, _history),
}


def _lies(width: PrunableDim) -> set[tuple[str, int, int]]:
    every = range(width.units)
    return {(cut.tensor, cut.axis, position) for cut in width.axis_slices for position in cut.positions(every)}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_families_are_found_as_they_are_written_down(family: str) -> None:
    """Tracing finds the same layers in the same groups of the same kinds.

    What may leave lies at the same places. A width of all tables that is one by hand may be found as one for each
    table, since a dimension of each may leave alone.
    """
    make, by_hand, example = FAMILIES[family]
    model = make()
    found, written = trace(model, example()).structure, by_hand(model)
    assert [(g.kind, set(g.modules), g.parameters, g.prunable) for g in found.groups] == [
        (g.kind, set(g.modules), g.parameters, g.prunable) for g in written.groups
    ]
    for mine, theirs in zip(found.groups, written.groups, strict=True):
        assert set().union(*map(_lies, mine.dims)) == set().union(*map(_lies, theirs.dims))
        assert any(w.normalised for w in mine.dims) == any(w.normalised for w in theirs.dims)
        if mine.kind != "table":
            assert {frozenset(w.axis_slices) for w in mine.dims} == {frozenset(w.axis_slices) for w in theirs.dims}


def test_tables_are_found_with_the_inputs_that_they_look_up() -> None:
    assert trace(_crossed(), draw(FIELDS, 7)).structure.tables == (
        Table("tables.user", 300, ("user",)),
        Table("tables.item", 400, ("item",)),
        Table("tables.tags", 20, ("tags",)),
    )
    assert trace(_attending(), _history()).structure.tables == (
        Table("tables.item", 401, ("history", "item")),
        Table("tables.position", LENGTH, ()),
    )


def test_inputs_may_have_any_names() -> None:
    """torch.export writes names in lower case, and takes none that is no identifier."""
    fields = (
        Field(name="C1", side="user", vocabulary=300),
        Field(name="ad group", side="item", vocabulary=400),
        Field(name="2nd", side="item", vocabulary=20),
        Field(name="price (USD)", side="item", kind="numeric"),
    )
    model = lively(dcn_v2.DCNV2(fields, dcn_v2.Sizes(8, 3, (32, 16))))
    found = trace(model, draw(fields, 5)).structure
    assert [table.inputs for table in found.tables] == [("C1",), ("ad group",), ("2nd",)]


# Of those behind the first twelve, each has an attention of several heads: of a fixed number, a fixed size, or both.
SEEDS = (*range(12), 13, 20, 33, 43, 53, 61, 72, 91)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_found_of_a_random_model_can_be_cut_and_the_rest_stays(seed: int) -> None:
    """Without every third unit of a width, the model gives the scores of the dense one with those units at zero.

    The dense model is normalised over the other units alone. Each width is cut in turn, and the units that stay may
    come in any order.
    """
    model = random_model(seed)
    structure = trace(model, rows(9)).structure
    given = rows(20, seed=1)
    for group in structure.groups:
        assert group.prunable or group.unprunable_reason
        for width in group.dims:
            gone = range(0, width.units, 3)
            kept = [unit for unit in range(width.units) if unit not in gone]
            dense, normalised = _dense(model, width, kept)
            with torch.inference_mode():
                expected = dense(**given)
                for units in (kept, kept[::-1]):
                    torch.testing.assert_close(_with(model, width, units)(**given), expected, rtol=1e-4, atol=1e-4)
            assert width.normalised == normalised, width.name
    touched = {cut.tensor for group in structure.groups for width in group.dims for cut in width.axis_slices}
    assert touched <= set(tensors(model))


@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("form", HEADS)
def test_heads_leave_or_become_narrower_as_their_forward_counts_them(form: Heads, heads: int) -> None:
    """Removing one of a fixed number of heads raises no error, but makes another network.

    The remaining units would be read as the same number of narrower heads.
    """
    torch.manual_seed(0)
    model = Attending(Attention(16, heads, fused=False, form=form)).eval()
    structure = trace(model, {"history": torch.randint(40, (5, 6))}).structure
    attend = structure.group("attend")
    found = [(width.name, width.units, width.normalised) for width in attend.dims]
    if form == "of a size":
        assert found == [("attend.heads", heads, False)]
    elif form == "of a number":
        assert found == [("attend.q", 16 // heads, False), ("attend.v", 16 // heads, False)]
        assert {(cut.repeats, cut.period) for width in attend.dims for cut in width.axis_slices} == {
            (heads, 16 // heads)
        }
        _, pruned = prune(model, Pruning((("attend", 0.5),), multiple=1), structure)
        assert [width.units for width in pruned.group("attend").dims] == [8 // heads, 8 // heads]
    else:
        assert found == [] and "fails" in str(attend.unprunable_reason)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [*range(0, 12, 3), 43, 91])
def test_the_groups_of_a_random_model_are_pruned_together(seed: int) -> None:
    model = random_model(seed)
    structure = trace(model, rows(9)).structure
    ratios = tuple((group.name, 0.5) for group in structure.groups if group.prunable)
    pruned, after = prune(model, Pruning(ratios, multiple=2), structure)
    with torch.inference_mode():
        assert torch.isfinite(pruned(**rows(20, seed=1))).all()
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in model.parameters())
    again = trace(pruned, rows(9)).structure
    assert [(g.name, g.parameters, sorted(w.units for w in g.dims)) for g in again.groups] == [
        (g.name, g.parameters, sorted(w.units for w in g.dims if w.units > 1)) for g in after.groups
    ], "what is left is found again"


def _with(model: nn.Module, width: PrunableDim, units: Sequence[int]) -> nn.Module:
    """The model with these units of the width alone, in this order."""
    smaller = copy.deepcopy(model)
    gone: dict[tuple[str, int], set[int]] = defaultdict(set)
    moved: dict[tuple[str, int], dict[int, int]] = defaultdict(dict)
    for cut in width.axis_slices:
        sources, targets = cut.positions(units), cut.positions(sorted(units))
        moved[cut.tensor, cut.axis] |= dict(zip(targets, sources, strict=True))
        gone[cut.tensor, cut.axis] |= set(cut.positions(set(range(width.units)) - set(units)))
    for (name, axis), at in moved.items():
        size = tensors(smaller)[name].shape[axis]
        keep(smaller, name, axis, [at.get(p, p) for p in range(size) if p not in gone[name, axis]])
    return smaller


def _dense(model: nn.Module, width: PrunableDim, kept: Sequence[int]) -> tuple[nn.Module, bool]:
    """Return the whole model with all but the kept units at zero, and whether anything is computed over the units.

    Such computations, as the statistics of a layer norm and torch's scale of scores, are of the kept units alone.
    """
    silent, spans = copy.deepcopy(model), False
    gone = sorted(set(range(width.units)) - set(kept))
    with torch.no_grad():
        for cut in width.axis_slices:
            tensors(silent)[cut.tensor].index_fill_(cut.axis, torch.tensor(cut.positions(gone)), 0)
        for cut in width.axis_slices:
            owner = cut.tensor.rpartition(".")[0]
            module = silent.get_submodule(owner)
            if isinstance(module, nn.LayerNorm):
                silent.set_submodule(owner, NormOfSome(module, cut.positions(kept)))
                spans = True
            narrower = cut.axis == 0 and cut.tensor == "attend.q.weight" and cut.size == 1
            attend = getattr(silent, "attend", None)
            if narrower and isinstance(attend, Attention) and attend.fused:
                scale = (width.units / len(kept)) ** 0.5
                attend.q.weight *= scale
                attend.q.bias *= scale
                spans = True
    return silent, spans


def test_a_model_that_cannot_be_traced_is_named_with_the_line_at_fault() -> None:
    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 4)

        def forward(self, numbers: Tensor) -> Tensor:
            if numbers.sum() > 0:
                return self.layer(numbers).sum(1)
            return self.layer(-numbers).sum(1)

    with pytest.raises(TraceError, match=r"torch\.export.*forward, line \d+ of test_structure\.py") as caught:
        trace(Choosing(), {"numbers": torch.randn(5, 2)})
    assert "\n" not in str(caught.value)


# --- the hard cases: each is compressed where it can be, or left alone and said ---


class Bagged(nn.Module):
    """An EmbeddingBag with offsets, a table that two inputs share, and a tower with batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(50, 8, mode="sum", include_last_offset=True)
        self.item = nn.Embedding(40, 8)
        self.tower = nn.Sequential(nn.Linear(24, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, words: Tensor, ends: Tensor, item: Tensor, last: Tensor) -> Tensor:
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), ends])
        return self.tower(torch.cat([self.bag(words, offsets), self.item(item), self.item(last)], 1)).squeeze(1)


def test_a_bag_and_a_shared_table_are_tables() -> None:
    torch.manual_seed(0)
    example = {
        "words": torch.randint(50, (12,)),
        "ends": torch.tensor([3, 5, 9, 12]),
        "item": torch.randint(40, (4,)),
        "last": torch.randint(40, (4,)),
    }
    traced = trace(Bagged(), example)
    tables, tower = traced.structure.groups
    assert (tables.name, set(tables.modules)) == ("tables", {"bag", "item"}) and tables.prunable
    assert {(cut.tensor, cut.axis, cut.repeats) for width in tables.dims for cut in width.axis_slices} == {
        ("bag.weight", 1, 1),
        ("item.weight", 1, 1),
        ("tower.0.weight", 1, 1),
        ("tower.0.weight", 1, 2),
    }
    assert [width.units for width in tower.dims] == [32] and tower.modules == ("tower.0",)
    assert {table.name: table.inputs for table in traced.structure.tables}["item"] == ("item", "last")


class Attending(nn.Module):
    """An attention over a history, and a tower."""

    def __init__(self, attend: nn.Module) -> None:
        super().__init__()
        self.item = nn.Embedding(40, 16)
        self.attend = attend
        self.tower = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 1))

    def forward(self, history: Tensor) -> Tensor:
        read = self.item(history)
        if isinstance(self.attend, nn.MultiheadAttention):
            read = self.attend(read, read, read, need_weights=False)[0]
        else:
            read = self.attend(read)
        return self.tower(read.mean(1)).squeeze(1)


def test_torchs_own_attention_is_left_alone_with_its_reason() -> None:
    model = Attending(nn.MultiheadAttention(16, 4, batch_first=True))
    traced = trace(model, {"history": torch.randint(40, (5, 6))})
    groups = {group.name: group for group in traced.structure.groups}
    assert "projections" in traced.left_alone["attend"]
    assert groups["attend"].kind == "attention" and groups["attend"].modules == ("attend.out_proj",)
    assert [width.name for width in groups["attend"].dims] == ["attend.out_proj"], "only what it gives"
    assert not groups["tables"].prunable and groups["tables"].unprunable_reason
    assert groups["tower"].prunable

    assert groups["attend"].unfactorable_reason is not None and not groups["attend"].factorable
    assert "no attribute 'weight'" in groups["attend"].unfactorable_reason and groups["tower"].factorable


class Two(nn.Module):
    """Two layers and what stands between them."""

    def __init__(self, between: Callable[[Tensor], Tensor], width: int = 16) -> None:
        super().__init__()
        self.first, self.between, self.second = nn.Linear(4, 16), between, nn.Linear(width, 1)

    def forward(self, numbers: Tensor) -> Tensor:
        return self.second(self.between(self.first(numbers))).squeeze(1)


def _normed(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize(
    ("between", "width", "prunable"),
    [
        (lambda x: torch.relu(x.double().float()), 16, True),
        (lambda x: nn.functional.normalize(x, dim=1), 16, True),
        (lambda x: x.unsqueeze(1).repeat(1, 3, 1).mean(1), 16, True),
        (nn.RMSNorm(16), 16, True),
        (nn.LayerNorm(16), 16, True),
        (lambda x: x / x.sum(dtype=torch.float32), 16, True),
        (lambda x: x.repeat(1, 2), 32, False),
        (_normed, 16, False),
        (lambda x: x * x.prod(1, keepdim=True), 16, False),
        (lambda x: x + x[x > 0].sum(), 16, False),
    ],
    ids=["cast", "unit length", "repeat", "rms", "layer norm", "sum of all", "tiled", "by hand", "product", "masked"],
)
def test_what_stands_between_two_layers_is_followed_or_pins(
    between: Callable[[Tensor], Tensor], width: int, prunable: bool
) -> None:
    torch.manual_seed(0)
    traced = trace(Two(between, width), {"numbers": torch.randn(5, 4)})
    (group,) = traced.structure.groups
    assert group.prunable == prunable and (group.unprunable_reason is None) == prunable
    assert traced.left_alone.keys() == {"second"}


def test_a_model_that_cannot_be_copied_is_named() -> None:
    model = Two(torch.relu)
    model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(TraceError, match=r"copy\.deepcopy .*TypeError: "):
        trace(model, {"numbers": torch.randn(5, 4)})


class Looking(nn.Module):
    """Ids that come packed, together, and beside layers that serving does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.item, self.kind, self.user = nn.Embedding(40, 8), nn.Embedding(9, 8), nn.Embedding(70_000, 8)
        self.seen = nn.Embedding(40, 8)
        self.seen.weight = self.item.weight
        self.spare, self.unread = nn.Linear(8, 4), nn.Embedding(5, 8)
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(8, 4))

    def forward(self, packed: Tensor, user: Tensor, history: Tensor, last: Tensor) -> Tensor:
        both = self.seen(torch.cat([history, last.unsqueeze(1)], 1)).mean(1)
        x = self.item(packed[:, 0]) + self.kind(packed[:, 1]) + self.user(user) + both
        return self.head(x).sum(1)


def test_tables_know_the_inputs_that_they_look_up_whole() -> None:
    example = {
        "packed": torch.randint(9, (5, 2)),
        "user": torch.randint(70_000, (5,)),
        "history": torch.randint(40, (5, 3)),
        "last": torch.randint(40, (5,)),
    }
    traced = trace(Looking(), example)
    inputs = {table.name: set(table.inputs) for table in traced.structure.tables}
    assert inputs["kind"] == set() and inputs["user"] == {"user"}
    assert inputs["item"] == {"history", "last"}, "of packed ids nobody says which are its own"
    assert traced.left_alone["spare"] == traced.left_alone["unread"]
    assert [reason for name, reason in traced.left_alone.items() if name.startswith("head")]
    tables = next(group for group in traced.structure.groups if group.kind == "table")
    assert tables.prunable and [width.units for width in tables.dims] == [8]


def test_an_operator_without_a_rule_pins_what_it_reads() -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(4, 16), nn.Linear(16, 12), nn.Linear(12, 1)

        def forward(self, numbers: Tensor) -> Tensor:
            x = torch.cumsum(self.first(numbers), dim=1)
            return self.third(torch.relu(self.second(x))).squeeze(1)

    traced = trace(Sorted(), {"numbers": torch.randn(5, 4)})
    widths = [width.name for group in traced.structure.groups for width in group.dims]
    assert widths == ["second"], "only what the running sum does not read"


def test_a_custom_operator_is_named() -> None:
    @torch.library.custom_op("leanrec_test::twice", mutates_args=())
    def twice(x: Tensor) -> Tensor:
        return 2 * x

    @twice.register_fake
    def _(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 16)
            self.head = nn.Linear(16, 1)

        def forward(self, numbers: Tensor) -> Tensor:
            return self.head(torch.ops.leanrec_test.twice(self.first(numbers))).squeeze(1)

    traced = trace(Custom(), {"numbers": torch.randn(5, 4)})
    (group,) = traced.structure.groups
    assert "leanrec_test::twice" in str(group.unprunable_reason)


def test_a_size_that_the_code_holds_is_found_by_trying() -> None:
    """Nothing in the traced program tells that the forward counts on 16 units."""

    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 16), nn.Linear(16, 1)

        def forward(self, numbers: Tensor) -> Tensor:
            x = torch.relu(self.first(numbers))
            return self.second(x.view(-1, 16)).squeeze(1)

    traced = trace(Counted(), {"numbers": torch.randn(5, 4)})
    (group,) = traced.structure.groups
    assert "RuntimeError: " in str(group.unprunable_reason)


@pytest.mark.foreign
def test_rtdls_attention_keeps_its_number_of_heads() -> None:
    """FT-Transformer's attention loses half of each head.

    What is left computes what its own code computes of the sliced matrices, here read in numpy.
    """
    rtdl = pytest.importorskip("rtdl_revisiting_models")

    class Attentive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Embedding(40, 16)
            self.attend = rtdl.MultiheadAttention(d_embedding=16, n_heads=4, dropout=0.0)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.token(tokens)
            return self.attend(x, x)

    torch.manual_seed(0)
    model = Attentive().eval()
    tokens = torch.randint(40, (7, 5))
    structure = trace(model, {"tokens": tokens}).structure
    attend = structure.group("attend")
    assert [(w.name, w.units, w.normalised) for w in attend.dims] == [
        ("attend.W_q", 4, True),
        ("attend.W_v", 4, False),
    ]
    pruned, _ = prune(model, Pruning((("attend", 0.5),), multiple=1), structure)
    state = {name: tensor.numpy().astype(float) for name, tensor in pruned.state_dict().items()}
    x = state["token.weight"][tokens.numpy()]

    def heads(part: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        made = x @ state[f"attend.W_{part}.weight"].T + state[f"attend.W_{part}.bias"]
        return made.reshape(7, 5, 4, 2).transpose(0, 2, 1, 3)

    weights = np.exp(heads("q") @ heads("k").transpose(0, 1, 3, 2) / 2**0.5)
    mixed = (weights / weights.sum(-1, keepdims=True) @ heads("v")).transpose(0, 2, 1, 3).reshape(7, 5, 8)
    expected = mixed @ state["attend.W_out.weight"].T + state["attend.W_out.bias"]
    with torch.inference_mode():
        np.testing.assert_allclose(pruned(tokens), expected, rtol=1e-4, atol=1e-5)
    for part in ("q", "k", "v"):
        whole, left = tensors(model)[f"attend.W_{part}.weight"].detach(), tensors(pruned)[f"attend.W_{part}.weight"]
        within = [[i for i in range(4) if any(torch.equal(whole[4 * h + i], row) for row in left)] for h in range(4)]
        assert all(positions == within[0] and len(positions) == 2 for positions in within), "the same of every head"


# --- what a layer or a table does of its own is kept, or it is left alone ---


class Scaled(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 8.0


class Masked(nn.Linear):
    """A linear layer of which half of the weights count as 0."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("mask", (torch.rand(outputs, inputs, generator=generator) < 0.5).float())

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight * self.mask, self.bias)


def _hooked(inputs: int, outputs: int) -> nn.Module:
    layer = nn.Linear(inputs, outputs)
    layer.register_forward_hook(lambda module, given, out: out.tanh())
    return layer


class Own(nn.Module):
    """A table, a layer and a head."""

    def __init__(self, table: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.item, self.layer, self.head = table, layer, nn.Linear(24, 1)

    def forward(self, item: Tensor) -> Tensor:
        return self.head(torch.relu(self.layer(self.item(item)))).squeeze(1)


OTHER = "the model gives other answers"


@pytest.mark.parametrize(
    ("table", "layer", "form_refused", "unfactorable"),
    [
        (nn.Embedding, nn.Linear, None, None),
        (Scaled, nn.Linear, "rows", None),
        (nn.Embedding, Masked, None, "rank"),
        (nn.Embedding, _hooked, None, "rank"),
    ],
    ids=["plain", "scaled", "masked", "hooked"],
)
def test_a_forward_of_its_own_survives_what_is_offered(
    table: Callable[[int, int], nn.Module],
    layer: Callable[[int, int], nn.Module],
    form_refused: str | None,
    unfactorable: str | None,
) -> None:
    """Pruning slices what the subclass holds, and keeps its forward; what would replace it is not offered."""
    torch.manual_seed(0)
    model = Own(table(300, 16), layer(16, 24)).eval()
    given = {"item": torch.randint(300, (20,))}
    structure = trace(model, {"item": torch.arange(7)}).structure
    for reason, words in (
        (structure.tables[0].form_refused, form_refused),
        (structure.group("layer").unfactorable_reason, unfactorable),
    ):
        assert (reason is None) == (words is None) and re.search(words or "", reason or "")
    for group, name in (("tables", "embedding_dim"), ("layer", "layer")):
        (width,) = structure.group(group).dims
        assert width.name == name and not width.normalised
        pruned, _ = prune(model, Pruning(((group, 0.5),), multiple=1), structure)
        squares = sum(
            tensors(model)[cut.tensor].detach().square().movedim(cut.axis, 0).reshape(width.units, -1).sum(1)
            for cut in width.axis_slices
            if isinstance(tensors(model)[cut.tensor], nn.Parameter)
        )
        assert isinstance(squares, Tensor)
        kept = sorted(squares.argsort(stable=True)[width.units // 2 :].tolist())
        dense, _ = _dense(model, width, kept)
        with torch.inference_mode():
            torch.testing.assert_close(pruned(**given), dense(**given), rtol=1e-4, atol=1e-4)


class Tied(nn.Module):
    """A table whose rows are what a history is compared with, as a matrix; and a bag."""

    def __init__(self, through: str) -> None:
        super().__init__()
        self.through = through
        self.item, self.word = nn.Embedding(300, 16), nn.EmbeddingBag(300, 16, mode="sum")
        self.seen, self.output = nn.Embedding(300, 16), nn.Linear(16, 300, bias=False)
        if through == "embedding":
            self.seen.weight = self.item.weight
        if through == "linear":
            self.output.weight = self.item.weight

    def forward(self, item: Tensor, words: Tensor) -> Tensor:
        x = self.item(item) + self.word(words)
        if self.through == "embedding":
            return x * self.seen(item.flip(0))
        return x @ self.item.weight.t() if self.through == "matrix" else self.output(x)


@pytest.mark.parametrize(
    ("through", "reason"),
    [
        ("embedding", "seen "),
        ("linear", "output "),
        ("matrix", ".*AttributeError"),
    ],
)
def test_bags_and_tied_tables_have_no_other_form(through: str, reason: str) -> None:
    torch.manual_seed(0)
    model = Tied(through).eval()
    structure = trace(model, {"item": torch.randint(300, (7,)), "words": torch.randint(300, (7, 3))}).structure
    refused = {table.name: table.form_refused for table in structure.tables}
    assert re.match(reason, str(refused["item"]))
    assert "EmbeddingBag" in str(refused["word"])
    with pytest.raises(ValueError, match=r"QuotientRemainder\("):
        compress_tables(
            model, [QuotientRemainder("tables", 0.1)], structure, dict.fromkeys(("item", "word"), torch.ones(300))
        )


def test_answers_are_compared_beside_what_they_vary_by() -> None:
    """A model whose scores are near a thousandth: what a table adds to them is small, and counts."""

    class Small(Own):
        def forward(self, item: Tensor) -> Tensor:
            return torch.sigmoid(super().forward(item) / 10 - 9)

    torch.manual_seed(0)
    structure = trace(Small(Scaled(300, 16), Masked(16, 24)).eval(), {"item": torch.arange(7)}).structure
    assert OTHER in str(structure.tables[0].form_refused)
    assert OTHER in str(structure.group("layer").unfactorable_reason)
