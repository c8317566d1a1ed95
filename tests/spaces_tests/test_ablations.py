"""Candidates with one technique taken back, and with one alone: the knobs say what changed and what did not."""

from __future__ import annotations

from dataclasses import replace

import optuna
import pytest

from spaces.ablations import techniques
from spaces.candidate import Candidate
from spaces.domains import Choice, Float
from spaces.search_space import SearchSpace
from spaces.techniques.attention import Attention
from spaces.techniques.distillation import Distillation
from spaces.techniques.embeddings import MixedDimensions, QuotientRemainder
from spaces.techniques.low_rank import LowRank
from spaces.techniques.placement import InstanceGroup, Placement, PlacementSpace, layouts
from spaces.techniques.pruning import Pruning
from spaces.techniques.quantization import Precision, PrecisionSpace
from spaces.weights import TableSpace, Weights, WeightsSpace

LEARNING = Distillation(2.0, 0.5, 3)
# The knobs that each technique may change, by the beginning of their names.
OF = {
    "lighter architecture": ("architecture.",),
    "quotient-remainder tables": ("tables.",),
    "mixed dimensions": ("tables.",),
    "sparse attention": ("attention.",),
    "pruning": ("pruning.",),
    "low rank": ("low_rank.",),
    "distillation": ("distillation.",),
    "learning with rounding": ("weights.quantization_aware", "precision."),
    "narrower weights": ("precision.", "weights.quantization_aware"),
    "computing in bf16": ("precision.compute", "placement.engine"),
    "engine and threads": ("placement.",),
    "splitting": ("placement.",),
}
ALWAYS = ("weights.origin", "distillation.", "weights.quantization_aware")


def space() -> SearchSpace:
    return SearchSpace(
        WeightsSpace(
            {"width": Choice((8, 16))},
            {"mlp": Choice((0.0, 0.5))},
            {"temperature": Choice((2.0,)), "teacher_weight": Choice((0.0, 0.5)), "feature_weight": Choice((0.0,))},
            epochs=3,
            low_rank={"mlp": Choice((1.0, 0.5))},
            tables={
                "tables": TableSpace(
                    Choice(("full", "quotient-remainder", "mixed-dimensions")), Choice((0.1,)), Float(0.1, 0.6)
                )
            },
            window=Choice((0, 8)),
            quantization_aware=Choice((False, True)),
        ),
        PrecisionSpace(
            {"mlp": Choice(("fp32", "int8-dynamic", "int8-static")), "cross": Choice(("fp32", "int8-static", "int4"))},
            compute=Choice(("fp32", "bf16")),
        ),
        PlacementSpace(
            Choice(("onnxruntime", "openvino")),
            Choice(layouts(2)),
            inline=Choice((False, True)),
            batch_rows=Choice((0, 100)),
            split_rows=Choice((0, 100)),
            route_rows=Choice((0, 100)),
            user_once=Choice((False, True)),
            score_catalogue=Choice((False, True)),
            keep_warm_ms=Choice((0.0, 2.0)),
        ),
    )


def differing(one: Candidate, other: Candidate) -> set[str]:
    ours, theirs = one.knobs(), other.knobs()
    return {name for name in {*ours, *theirs} if ours.get(name, "fp32") != theirs.get(name, "fp32")}


@pytest.mark.parametrize("seed", range(4))
def test_a_technique_changes_its_own_knobs_alone(seed: int) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    met = set()
    for _ in range(100):
        candidate = space().suggest(study.ask())
        for technique in techniques(candidate):
            met.add(technique.name)
            own = OF.get(technique.name, ("placement.",))
            changed = differing(candidate, technique.without)
            assert changed and all(name.startswith((*own, *ALWAYS)) for name in changed), technique.name
            added = differing(technique.alone, Candidate())
            assert added and all(name.startswith((*own, *ALWAYS)) for name in added), technique.name
    assert met >= {*OF, "batching", "routing", "inline answers", "the user's side once", "the whole catalogue scored"}
    assert "kept warm" in met


def test_the_catalogue_needs_the_users_side_once() -> None:
    candidate = Candidate(placement=Placement(user_once=True, score_catalogue=True))
    by_name = {technique.name: technique for technique in techniques(candidate)}
    once, scored = by_name["the user's side once"], by_name["the whole catalogue scored"]
    assert once.without.placement == Placement() and once.alone.placement == Placement(user_once=True)
    assert scored.without.placement == Placement(user_once=True) and scored.alone == candidate


def test_some_static_groups_learn_and_others_are_calibrated() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    drawn = [space().suggest(study.ask()) for _ in range(300)]
    both = [c for c in drawn if len(c.precision.groups("int8-static")) == 2 and c.weights.origin != "baseline"]
    assert {c.weights.quantization_aware for c in both} == {(), ("cross",), ("mlp",), ("cross", "mlp")}


def test_what_is_left_after_the_last_stage_that_learns_is_the_baselines_own_weights() -> None:
    candidate = Candidate(
        Weights(pruning=Pruning((("mlp", 0.5),)), distillation=LEARNING), Precision((("mlp", "int4"),))
    )
    by_name = {technique.name: technique for technique in techniques(candidate)}
    assert set(by_name) == {"pruning", "distillation", "narrower weights"}
    assert by_name["pruning"].without == Candidate(precision=candidate.precision)
    assert by_name["pruning"].alone == Candidate(candidate.weights)
    labels = by_name["distillation"].without.weights.distillation
    assert labels == Distillation(1.0, 0.0, 3), "from the labels alone, for as long"
    assert by_name["distillation"].alone == Candidate(Weights(distillation=LEARNING))
    assert by_name["narrower weights"].alone == Candidate(precision=candidate.precision)


def test_each_group_is_a_technique_of_its_own() -> None:
    precision = Precision((("cross", "int8-static"), ("mlp", "int8-static"), ("tables", "fp32")))
    weights = Weights(attention=Attention(window=4), distillation=LEARNING, quantization_aware=("cross", "mlp"))
    found = [t for t in techniques(Candidate(weights, precision)) if t.name == "narrower weights"]
    assert [t.group for t in found] == ["cross", "mlp"]
    assert found[0].without.weights.quantization_aware == ("mlp",)
    assert found[0].alone.weights == Weights(distillation=LEARNING, quantization_aware=("cross",))


def test_a_group_is_narrowed_alone_without_the_table_that_has_its_own_width() -> None:
    precision = Precision((("mlp", "int4"), ("tables", "int8"), ("tables.item", "fp32")))
    found = {t.group: t for t in techniques(Candidate(precision=precision))}
    assert set(found) == {"mlp", "tables"}
    alone = found["tables"].alone.precision
    assert {name: alone.width(name) for name in ("mlp", "tables")} == {"mlp": "fp32", "tables": "int8"}
    assert ("tables.item", "fp32") in alone.widths, "else the group's width would be its own too"


def test_each_group_is_cut_and_each_table_formed_by_a_technique_of_its_own() -> None:
    weights = Weights(
        quotient_remainder=(QuotientRemainder("tables.item", 0.1),),
        mixed_dimensions=(MixedDimensions("tables.user", 0.3),),
        pruning=Pruning((("mlp", 0.5), ("tables", 0.3)), importance="taylor", steps=3),
        low_rank=LowRank((("cross", 0.25), ("mlp", 0.125))),
        distillation=LEARNING,
    )
    candidate = Candidate(weights)
    found = {(t.name, t.group): t for t in techniques(candidate)}
    assert set(found) == {
        ("quotient-remainder tables", "tables.item"), ("mixed dimensions", "tables.user"),
        ("pruning", "mlp"), ("pruning", "tables"),
        ("low rank", "cross"), ("low rank", "mlp"), ("distillation", None),
    }  # fmt: skip
    mlp = found["pruning", "mlp"]
    assert mlp.without.weights == replace(weights, pruning=Pruning((("tables", 0.3),), importance="taylor", steps=3))
    alone = Pruning((("mlp", 0.5),), importance="taylor", steps=3)
    assert mlp.alone == Candidate(Weights(pruning=alone, distillation=LEARNING))
    cross = found["low rank", "cross"]
    assert cross.without.weights == replace(weights, low_rank=LowRank((("mlp", 0.125),)))
    assert cross.alone == Candidate(Weights(low_rank=LowRank((("cross", 0.25),)), distillation=LEARNING))
    shared = found["quotient-remainder tables", "tables.item"]
    assert shared.without.weights == replace(weights, quotient_remainder=())
    assert shared.alone == Candidate(Weights(quotient_remainder=weights.quotient_remainder, distillation=LEARNING))
    last = techniques(
        Candidate(replace(weights, quotient_remainder=(), mixed_dimensions=(), low_rank=None, pruning=alone))
    )
    assert last[0].without == Candidate(), "with the last group goes the technique, and what had to learn"


def test_the_baseline_has_no_technique() -> None:
    assert techniques(Candidate()) == ()
    assert [t.name for t in techniques(Candidate(placement=Placement(InstanceGroup(threads=1))))] == [
        "engine and threads"
    ]
