"""What tracing finds, beside what is written down by hand for the families, and on models drawn at random."""

from __future__ import annotations

import copy
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


@pytest.mark.parametrize("seed", range(30))
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


@pytest.mark.parametrize("seed", range(0, 30, 3))
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
