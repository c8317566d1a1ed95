"""Sizes of a family by name, and each family's description of a model in one form."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from objectives.recommenders.families import dcn_v2, dlrm, sasrec
from objectives.recommenders.families.pointwise import FAMILIES
from objectives.recommenders.families.sizes import no_larger, resized, told
from spaces.domains import Choice
from spaces.techniques.architecture import Architecture
from tests.families_tests.mixed_fields import FIELDS, draw


@pytest.mark.parametrize(
    ("published", "given", "expected"),
    [
        (dcn_v2.BASELINE, {}, dcn_v2.BASELINE),
        (dcn_v2.BASELINE, {"mlp": "64-32"}, dcn_v2.Sizes(10, 5, (64, 32))),
        (dcn_v2.BASELINE, {"mlp": 64, "crosses": "2", "embedding_dim": 4}, dcn_v2.Sizes(4, 2, (64,))),
        (dlrm.BASELINE, {"bottom": "8", "top": "16-8"}, dlrm.Sizes(16, (8,), (16, 8))),
        (sasrec.BASELINE, {"embedding_dim": 16, "heads": 2, "length": 20}, sasrec.Sizes(16, 2, 2, 50, 20)),
    ],
)
def test_what_is_not_given_is_as_published(published: Any, given: dict[str, Any], expected: Any) -> None:
    assert resized(published, given) == expected


@pytest.mark.parametrize(
    ("published", "given", "line"),
    [
        (dcn_v2.BASELINE, {"width": 3}, r"^sizes\.width: .*embedding_dim, crosses, mlp$"),
        (sasrec.BASELINE, {"d": 8}, r"^sizes\.d: .*embedding_dim, blocks, heads"),
        (dcn_v2.BASELINE, {"mlp": "64-wide"}, r"^sizes\.mlp: .*'64-wide'$"),
        (dcn_v2.BASELINE, {"mlp": 6.5}, r"^sizes\.mlp: .*6\.5$"),
        (dcn_v2.BASELINE, {"crosses": "64-32"}, r"^sizes\.crosses: .*'64-32'$"),
        (sasrec.BASELINE, {"blocks": 1.5}, r"^sizes\.blocks: .*1\.5$"),
        (sasrec.BASELINE, {"heads": True}, r"^sizes\.heads: .*True$"),
        (sasrec.BASELINE, {"heads": 3}, r"Sizes\(.*heads=3"),
        (dlrm.BASELINE, {"top": "0"}, r"Sizes\(.*top=\(0,\)"),
    ],
)
def test_a_size_that_cannot_be_is_named(published: Any, given: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line) as caught:
        resized(published, given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_makes_what_it_describes(name: str) -> None:
    """Students take the first value of each size."""
    family = FAMILIES[name]
    domains = family.student(FIELDS)
    first = tuple((size, d.values[0]) for size, d in domains.items() if isinstance(d, Choice))
    assert len(first) == len(domains)
    model = resized(family, Architecture(first).as_dict()).build(FIELDS).eval()
    widths: list[int] = []
    model.get_submodule(family.hidden).register_forward_hook(lambda *args: widths.append(args[2].shape[-1]))
    scores = model(**draw(FIELDS, 9))
    assert scores.shape == (9,) and widths == [16]
    tables = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Embedding)}
    assert tables == {f"tables.{f.name}" for f in FIELDS if f.kind != "numeric"}


@pytest.mark.parametrize(
    ("published", "own", "offered"),
    [
        ((4, 8, 10, 16), 10, (4, 8, 10)),
        ((4, 8, 16), 12, (4, 8, 12)),
        ((4, 8, 16), 2, (2,)),
        (("16", "32", "64-32", "128-64", "400-400-400"), "64-32", ("16", "32", "64-32")),
        (("16", "64-32", "32-16-8"), "64", ("16", "64")),
        (("16", "64-32"), "100-50-25", ("16", "64-32", "100-50-25")),
        (("64", "128-64", "256-128"), "256-64", ("64", "128-64", "256-64")),
        (("16", "64"), "16-64", ("16", "16-64")),
    ],
)
def test_students_are_no_larger_than_the_baseline(
    published: tuple[int | str, ...], own: int | str, offered: tuple[int | str, ...]
) -> None:
    assert no_larger(Choice(published), own).values == offered


@pytest.mark.parametrize("heads", [1, 2, 5])
def test_every_student_of_sasrec_can_be_built_with_the_baselines_heads_and_others(heads: int) -> None:
    own = sasrec.Sizes(embedding_dim=40, blocks=3, heads=heads, feed_forward=20, length=50)
    offered = sasrec.student(own)
    assert {name: values[-1] for name, values in offered.items() if name != "heads"} == {
        "embedding_dim": 40,
        "blocks": 3,
        "feed_forward": 20,
    }
    assert heads in offered["heads"] and offered["embedding_dim"] == ((40,) if heads == 5 else (8, 16, 32, 40))
    for values in itertools.product(*offered.values()):
        resized(own, Architecture(tuple(zip(offered, values, strict=True))).as_dict())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_published_sizes_are_a_students_too(name: str) -> None:
    family = FAMILIES[name]
    of = told(family, family.student(FIELDS))
    assert all(value in family.student(FIELDS)[size] for size, value in of.items())
    assert resized(family, Architecture(tuple(of.items())).as_dict()) == family
