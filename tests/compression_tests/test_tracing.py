"""What tracing finds, beside what is written down by hand for the families, and on models drawn at random."""

from __future__ import annotations

import copy
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from objectives.compression.pruning import prune
from objectives.compression.surgery import keep, tensors
from objectives.compression.tracing import TraceError, trace
from objectives.recommenders import dcn_v2, dlrm, sasrec
from objectives.recommenders.features import Field
from spaces.anatomy import Anatomy, Table, Width
from spaces.pruning import Pruning
from tests.compression_tests.random_models import random_model, rows
from tests.recommenders_tests.mixed_fields import draw, lively
from tests.written_anatomies import dcn_v2_anatomy, dlrm_anatomy, sasrec_anatomy

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


FAMILIES: dict[str, tuple[Callable[[], nn.Module], Callable[..., Anatomy], Callable[[], dict[str, Tensor]]]] = {
    "dcn-v2": (_crossed, dcn_v2_anatomy, lambda: draw(FIELDS, 7)),
    "dlrm": (_dotted, dlrm_anatomy, lambda: draw(FIELDS, 7)),
    "sasrec": (_attending, sasrec_anatomy, _history),
}


def _lies(width: Width) -> set[tuple[str, int, int]]:
    every = range(width.units)
    return {(cut.tensor, cut.axis, position) for cut in width.cuts for position in cut.positions(every)}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_families_are_found_as_they_are_written_down(family: str) -> None:
    """The same layers in the same groups of the same kinds; what may leave lies at the same places. A width of all
    tables that is one by hand may be found as one for each table, since a dimension of each may leave alone."""
    make, by_hand, example = FAMILIES[family]
    model = make()
    found, written = trace(model, example()).anatomy, by_hand(model)
    assert [(g.kind, set(g.modules), g.parameters, g.prunable) for g in found.groups] == [
        (g.kind, set(g.modules), g.parameters, g.prunable) for g in written.groups
    ]
    for mine, theirs in zip(found.groups, written.groups, strict=True):
        assert set().union(*map(_lies, mine.widths)) == set().union(*map(_lies, theirs.widths))
        assert any(w.normalised for w in mine.widths) == any(w.normalised for w in theirs.widths)
        if mine.kind != "table":
            assert {frozenset(w.cuts) for w in mine.widths} == {frozenset(w.cuts) for w in theirs.widths}


def test_tables_are_found_with_the_inputs_that_they_look_up() -> None:
    assert trace(_crossed(), draw(FIELDS, 7)).anatomy.tables == (
        Table("tables.user", 300, ("user",)),
        Table("tables.item", 400, ("item",)),
        Table("tables.tags", 20, ("tags",)),
    )
    assert trace(_attending(), _history()).anatomy.tables == (
        Table("tables.item", 401, ("history", "item")),
        Table("tables.position", LENGTH, ()),
    )


@pytest.mark.parametrize("seed", range(12))
def test_what_is_found_of_a_random_model_can_be_cut_and_the_rest_stays(seed: int) -> None:
    """Each width in turn: every third of its units goes. Where nothing normalises over them the scores are those of the
    dense model with the units at zero."""
    model = random_model(seed)
    anatomy = trace(model, rows(9)).anatomy
    given = rows(20, seed=1)
    for group in anatomy.groups:
        assert group.prunable or group.unprunable_reason
        for width in group.widths:
            gone = range(0, width.units, 3)
            smaller, silent = _without(model, width, gone), _silenced(model, width, gone)
            with torch.inference_mode():
                scores, dense = smaller(**given), silent(**given)
            assert scores.shape == dense.shape and torch.isfinite(scores).all()
            if not width.normalised:
                torch.testing.assert_close(scores, dense, rtol=1e-4, atol=1e-4)
    touched = {cut.tensor for group in anatomy.groups for width in group.widths for cut in width.cuts}
    assert touched <= set(tensors(model))


@pytest.mark.parametrize("seed", range(0, 12, 3))
def test_the_groups_of_a_random_model_are_pruned_together(seed: int) -> None:
    model = random_model(seed)
    anatomy = trace(model, rows(9)).anatomy
    ratios = tuple((group.name, 0.5) for group in anatomy.groups if group.prunable)
    pruned, after = prune(model, Pruning(ratios, multiple=2), anatomy)
    with torch.inference_mode():
        assert torch.isfinite(pruned(**rows(20, seed=1))).all()
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in model.parameters())
    again = trace(pruned, rows(9)).anatomy
    assert [(g.name, g.parameters, sorted(w.units for w in g.widths)) for g in again.groups] == [
        (g.name, g.parameters, sorted(w.units for w in g.widths if w.units > 1)) for g in after.groups
    ], "what is left is found again"


def _without(model: nn.Module, width: Width, gone: Sequence[int]) -> nn.Module:
    smaller = copy.deepcopy(model)
    leaving: dict[tuple[str, int], set[int]] = defaultdict(set)
    for cut in width.cuts:
        leaving[cut.tensor, cut.axis] |= set(cut.positions(gone))
    for (name, axis), positions in leaving.items():
        size = tensors(smaller)[name].shape[axis]
        keep(smaller, name, axis, [position for position in range(size) if position not in positions])
    return smaller


def _silenced(model: nn.Module, width: Width, gone: Sequence[int]) -> nn.Module:
    silent = copy.deepcopy(model)
    with torch.no_grad():
        for cut in width.cuts:
            tensors(silent)[cut.tensor].index_fill_(cut.axis, torch.tensor(cut.positions(gone)), 0)
    return silent


def test_a_model_that_cannot_be_traced_is_named_with_the_line_at_fault() -> None:
    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 4)

        def forward(self, numbers: Tensor) -> Tensor:
            if numbers.sum() > 0:
                return self.layer(numbers).sum(1)
            return self.layer(-numbers).sum(1)

    with pytest.raises(TraceError, match=r"torch\.export, but got .*forward, line \d+ of test_tracing\.py") as caught:
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
    tables, tower = traced.anatomy.groups
    assert (tables.name, set(tables.modules)) == ("tables", {"bag", "item"}) and tables.prunable
    assert {(cut.tensor, cut.axis, cut.repeats) for width in tables.widths for cut in width.cuts} == {
        ("bag.weight", 1, 1),
        ("item.weight", 1, 1),
        ("tower.0.weight", 1, 1),
        ("tower.0.weight", 1, 2),
    }
    assert [width.units for width in tower.widths] == [32] and tower.modules == ("tower.0",)
    assert {table.name: table.inputs for table in traced.anatomy.tables}["item"] == ("item", "last")


def test_torchs_own_attention_is_left_alone_with_its_reason() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.item = nn.Embedding(40, 16)
            self.attend = nn.MultiheadAttention(16, 4, batch_first=True)
            self.tower = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 1))

        def forward(self, history: Tensor) -> Tensor:
            read = self.item(history)
            return self.tower(self.attend(read, read, read, need_weights=False)[0].mean(1)).squeeze(1)

    traced = trace(Attending(), {"history": torch.randint(40, (5, 6))})
    groups = {group.name: group for group in traced.anatomy.groups}
    assert "packs its projections" in traced.left_alone["attend"]
    assert groups["attend"].kind == "attention" and groups["attend"].modules == ("attend.out_proj",)
    assert [width.name for width in groups["attend"].widths] == ["attend.out_proj"], "only what it gives"
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
    (group,) = traced.anatomy.groups
    assert group.prunable == prunable and (group.unprunable_reason is None) == prunable
    assert traced.left_alone == {"second": "it gives a single number"}


def test_a_model_that_cannot_be_copied_is_named() -> None:
    model = Two(torch.relu)
    model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(TraceError, match=r"copy\.deepcopy takes, but got TypeError: cannot pickle"):
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
    inputs = {table.name: set(table.inputs) for table in traced.anatomy.tables}
    assert inputs["kind"] == set() and inputs["user"] == {"user"}
    assert inputs["item"] == {"history", "last"}, "of packed ids nobody says which are its own"
    assert traced.left_alone["spare"] == traced.left_alone["unread"] == "it is not used for scores"
    assert [reason for name, reason in traced.left_alone.items() if name.startswith("head")]
    tables = next(group for group in traced.anatomy.groups if group.kind == "table")
    assert tables.prunable and [width.units for width in tables.widths] == [8]


def test_an_operator_without_a_rule_pins_what_it_reads() -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(4, 16), nn.Linear(16, 12), nn.Linear(12, 1)

        def forward(self, numbers: Tensor) -> Tensor:
            x = torch.cumsum(self.first(numbers), dim=1)
            return self.third(torch.relu(self.second(x))).squeeze(1)

    traced = trace(Sorted(), {"numbers": torch.randn(5, 4)})
    widths = [width.name for group in traced.anatomy.groups for width in group.widths]
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
    (group,) = traced.anatomy.groups
    assert group.unprunable_reason == "leanrec has no rule for leanrec_test::twice, which reads it"


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
    (group,) = traced.anatomy.groups
    assert group.unprunable_reason is not None
    assert group.unprunable_reason.startswith("with a unit less the model fails: RuntimeError: ")
