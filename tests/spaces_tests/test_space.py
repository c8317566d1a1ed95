"""The space is drawn by optuna's own trials, and a candidate is named by its content."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces.candidate import Candidate
from spaces.domains import Choice, Domain, FixedValues, Float, Integer, Scalar
from spaces.model_structure import AxisSlice, Group, PrunableDim
from spaces.search_space import SearchSpace
from spaces.serialization import from_plain, to_plain
from spaces.techniques.architecture import Architecture
from spaces.techniques.attention import Attention
from spaces.techniques.distillation import Distillation
from spaces.techniques.embeddings import MixedDimensions, QuotientRemainder
from spaces.techniques.low_rank import LowRank
from spaces.techniques.placement import (
    Admission,
    Batching,
    EmbeddingDevice,
    InstanceGroup,
    Placement,
    PlacementSpace,
    Route,
    layouts,
    parse_layout,
    parse_place,
)
from spaces.techniques.pruning import Pruning
from spaces.techniques.quantization import Precision, PrecisionSpace
from spaces.weights import TableSpace, Weights, WeightsSpace

LEARNING = {
    "temperature": Float(1.0, 8.0, log=True),
    "teacher_weight": Float(0.0, 1.0),
    "feature_weight": Choice((0.0,)),
}


@pytest.fixture
def space() -> SearchSpace:
    return SearchSpace(
        weights=WeightsSpace(
            architecture={"width": Choice((8, 16, 32)), "depth": Integer(1, 3)},
            pruning={"mlp": Float(0.0, 0.75, step=0.25)},
            distillation=LEARNING,
            epochs=3,
            importance=Choice(("magnitude", "taylor")),
            steps=Choice((1, 2)),
            low_rank={"mlp": Choice((1.0, 0.5))},
            tables={
                "tables": TableSpace(
                    Choice(("full", "quotient-remainder", "mixed-dimensions")), Choice((0.1, 0.5)), Float(0.1, 0.6)
                )
            },
            window=Choice((0, 8)),
            history=Choice((0, 16)),
            quantization_aware=Choice((False, True)),
        ),
        precision=PrecisionSpace(
            {
                "mlp": Choice(("fp32", "int8-dynamic", "int8-static", "int4")),
                "tables": Choice(("fp32", "fp16", "int8", "int2")),
            },
            compute=Choice(("fp32", "bf16")),
            calibration=Choice(("minmax", "entropy")),
        ),
        placement=PlacementSpace(
            engine=Choice(("onnxruntime", "openvino")),
            layout=Choice(layouts(2)),
            pinned=Choice((False, True)),
            inline=Choice((False, True)),
            batch_rows=Choice((0, 400)),
            batch_wait_us=Choice((0, 200)),
            split_rows=Choice((0, 200)),
            route_rows=Choice((0, 200)),
            user_once=Choice((False, True)),
            score_catalogue=Choice((False, True)),
            keep_warm_ms=Choice((0.0, 2.0)),
        ),
    )


def test_the_first_start_is_the_baseline(space: SearchSpace) -> None:
    candidate = space.suggest(optuna.trial.FixedTrial(space.starts()[0]))
    assert candidate == Candidate(Weights(), Precision((("mlp", "fp32"), ("tables", "fp32"))), Placement())
    assert candidate.is_baseline and Candidate().is_baseline
    assert not Candidate(precision=Precision((("mlp", "int8-dynamic"),))).is_baseline
    assert not Candidate(placement=Placement(inline=True)).is_baseline
    assert Candidate(placement=Placement(admission=Admission(8))).is_baseline, "who is refused is no choice"


def test_what_a_calibration_changes_costs_the_same() -> None:
    narrow = (("mlp", "int8-static"),)
    ours, theirs = (Candidate(precision=Precision(narrow, calibration=rule)) for rule in ("minmax", "entropy"))
    assert ours != theirs and ours.untrained == theirs.untrained


def test_every_start_can_be_drawn_and_each_origin_is_among_them(space: SearchSpace) -> None:
    drawn = [space.suggest(optuna.trial.FixedTrial(start)) for start in space.starts()]
    roads = ["student", "pruned", "pruned", "student", "baseline"]
    assert [c.weights.origin for c in drawn] == ["baseline", *roads, *roads, *roads[:-1]]
    assert len({c.id for c in drawn}) == 15
    narrow, whole, threaded = drawn[1:6], drawn[6:11], drawn[11:]
    assert {c.placement for c in (*narrow, *whole)} == {
        Placement(InstanceGroup("onnxruntime", "cpu", 1, 1), inline=True, keep_warm_ms=2.0)
    }
    assert {c.placement for c in threaded} == {Placement()}
    assert [c.weights for c in narrow] == [c.weights for c in whole]
    assert [(c.weights, c.precision) for c in threaded] == [(c.weights, c.precision) for c in whole[:-1]]
    assert {c.precision for c in narrow} == {Precision((("mlp", "int8-dynamic"), ("tables", "fp16")))}
    assert {c.precision for c in whole} == {Precision((("mlp", "fp32"), ("tables", "fp32")))}
    sizes = [dict(c.weights.architecture.sizes) for c in whole if c.weights.architecture]
    assert sizes[1] == {"width": 8, "depth": 1}
    assert [c.weights.attention for c in whole] == [None, None, Attention(8, 16), None, None]


def test_starts_without_a_width_to_choose_stand_once(space: SearchSpace) -> None:
    held = dataclasses.replace(space, precision=PrecisionSpace({"mlp": Choice(("fp32",))}))
    drawn = [held.suggest(optuna.trial.FixedTrial(start)) for start in held.starts()]
    assert len(drawn) == len({c.id for c in drawn}) == 10


def test_the_knobs_of_weights_give_the_same_weights_however_they_are_stored_and_run(space: SearchSpace) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    learned = 0
    for _ in range(60):
        trial = study.ask()
        first = space.suggest(trial)
        study.enqueue_trial(space.weights_knobs(trial.params))
        again = space.suggest(study.ask())
        assert again.weights == first.weights
        learned += bool(first.weights.quantization_aware)
        for group in first.weights.quantization_aware:
            assert again.precision.width(group) == "int8-static"
    assert learned


def test_a_student_of_the_baselines_own_sizes_is_the_baseline(space: SearchSpace) -> None:
    """Nothing else is asked of such a student, and what it is stored and run as is another question."""
    own = Architecture((("width", 32), ("depth", 3)))
    weights = dataclasses.replace(space.weights, own={"width": 32, "depth": "3"})
    drawn = {"weights.origin": "student", "architecture.width": 32, "architecture.depth": 3}
    assert weights.suggest(optuna.trial.FixedTrial(drawn), ()) == Weights()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    candidates = [dataclasses.replace(space, weights=weights).suggest(study.ask()) for _ in range(300)]
    students = [c.weights.architecture for c in candidates if c.weights.architecture is not None]
    assert own not in students and len(set(students)) == 8


def test_a_road_that_leads_to_the_baseline_is_none(space: SearchSpace) -> None:
    """A choice of two has its second in the middle, which may be the baseline's own."""

    def students(**domains: Choice) -> list[tuple[Scalar, ...]]:
        weights = dataclasses.replace(space.weights, own={"width": 32, "depth": 2}, architecture=domains)
        starts = [start for start in weights.starts() if start["weights.origin"] == "student"]
        assert ("student" in weights.origins) == bool(starts)
        return [tuple(start[f"architecture.{name}"] for name in domains) for start in starts]

    assert students(width=Choice((8, 32)), depth=Choice((1, 2))) == [(8, 1)]
    assert students(width=Choice((32,)), depth=Choice((2,))) == []
    assert students(width=Choice((8, 16, 32)), depth=Choice((1, 2))) == [(16, 2), (8, 1)]


def test_without_static_widths_no_rounding_is_learned(space: SearchSpace) -> None:
    widths = {"mlp": Choice(("fp32", "int8-dynamic"))}
    narrowed = dataclasses.replace(space, precision=PrecisionSpace(widths))
    assert False in narrowed.weights.quantization_aware and True not in narrowed.weights.quantization_aware
    assert True in space.weights.quantization_aware


@pytest.mark.parametrize("seed", range(5))
def test_random_draws_stay_in_their_domains_and_ask_only_what_matters(space: SearchSpace, seed: int) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for _ in range(40):
        trial = study.ask()
        candidate = space.suggest(trial)
        prefixes = {name.split(".")[0] for name in trial.params}
        assert ("architecture" in prefixes) == (candidate.weights.origin == "student")
        assert ("pruning" in prefixes) == (candidate.weights.origin == "pruned")
        for technique in ("distillation", "tables", "attention", "low_rank"):
            assert (technique in prefixes) == (candidate.weights.origin != "baseline")
        domains = _domains(space)
        assert all(_holds(domains[name], value) for name, value in trial.params.items())
        _check_weights(candidate, trial.params)
        settled = {"bf16": "openvino", "fp32": "onnxruntime"}[candidate.precision.compute]
        if candidate.precision.compute == "bf16" or candidate.precision.packed:
            assert candidate.placement.instance_group.engine == settled
            assert not {"placement.engine", "placement.route_rows", "placement.embedding_device"} & set(trial.params)
        _check_placement(candidate.placement, trial.params, "int8-dynamic" in dict(candidate.precision.widths).values())


def _holds(domain: Domain, value: Any) -> bool:
    """Return True if the value is one of a choice, or of a range and on its grid."""
    if isinstance(domain, Choice):
        return value in domain
    steps = 0.0 if domain.step is None else (value - domain.low) / domain.step
    kind = int if isinstance(domain, Integer) else float
    return type(value) is kind and domain.low <= value <= domain.high and steps == pytest.approx(round(steps))


def _domains(space: SearchSpace) -> dict[str, Domain]:
    weights, precision, placement = space.weights, space.precision, space.placement
    found: dict[str, Domain] = {"weights.origin": Choice(weights.origins)}
    for prefix, domains in (
        ("architecture", weights.architecture),
        ("pruning", weights.pruning),
        ("low_rank", weights.low_rank),
        ("distillation", weights.distillation),
        ("precision", precision.widths),
    ):
        found |= {f"{prefix}.{name}": domain for name, domain in domains.items()}
    for group, tables in weights.tables.items():
        found |= {f"tables.{group}.{f.name}": getattr(tables, f.name) for f in dataclasses.fields(TableSpace)}
    found |= {f"placement.{f.name}": getattr(placement, f.name) for f in dataclasses.fields(PlacementSpace)}
    return found | {
        "pruning.importance": weights.importance,
        "pruning.steps": weights.steps,
        "attention.window": weights.window,
        "attention.history": weights.history,
        **{f"weights.quantization_aware.{group}": weights.quantization_aware for group in precision.widths},
        "precision.compute": precision.compute,
        "precision.calibration": precision.calibration,
        "placement.route_layout": placement.layout,
    }


def _check_weights(candidate: Candidate, asked: dict[str, object]) -> None:
    """A technique's further knobs are asked for where it is drawn, and what is drawn is what was asked."""
    weights, static = candidate.weights, set(candidate.precision.groups("int8-static"))
    changed = weights.origin != "baseline"
    assert ("pruning.steps" in asked) == (weights.pruning is not None)
    assert ("tables.tables.full_rows_share" in asked) == bool(weights.quotient_remainder)
    assert ("tables.tables.temperature" in asked) == bool(weights.mixed_dimensions)
    aware = {n.removeprefix("weights.quantization_aware."): v for n, v in asked.items() if ".quantization_aware." in n}
    assert set(aware) == (static if changed else set())
    assert set(weights.quantization_aware) == {group for group, learns in aware.items() if learns}
    assert ("precision.calibration" in asked) == bool(static - set(weights.quantization_aware))
    assert (weights.attention is not None) == bool(asked.get("attention.window") or asked.get("attention.history"))


def test_every_technique_is_drawn_alone_and_with_others(space: SearchSpace) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=2))
    drawn = [space.suggest(study.ask()).weights for _ in range(400)]
    for has in (
        lambda w: w.architecture, lambda w: w.pruning, lambda w: w.low_rank, lambda w: w.quotient_remainder,
        lambda w: w.mixed_dimensions, lambda w: w.attention, lambda w: w.quantization_aware,
    ):  # fmt: skip
        assert any(has(w) for w in drawn) and not all(has(w) for w in drawn)
    assert any(w.low_rank and w.pruning and w.attention and w.quotient_remainder for w in drawn)


def test_groups_learn_with_the_rounding_that_they_are_held_in() -> None:
    weights = Weights(distillation=Distillation(1.0, 0.5, 1), quantization_aware=("mlp",))
    knobs = Candidate(weights, Precision((("mlp", "int8-static"),))).knobs()
    assert knobs["weights.quantization_aware.mlp"] is True and "precision.calibration" not in knobs
    beside = Candidate(weights, Precision((("cross", "int8-static"), ("mlp", "int8-static")), calibration="entropy"))
    assert beside.knobs()["precision.calibration"] == "entropy", "one learns its ranges, and the other's are looked for"
    assert "weights.quantization_aware.cross" not in beside.knobs()
    with pytest.raises(ValueError, match=r"int8-static, .*\['mlp'\] .*\[\]"):
        Candidate(weights, Precision((("mlp", "int8-dynamic"),)))


@pytest.mark.parametrize(
    "placement", [Placement(batching=Batching(64)), Placement(InstanceGroup(replicas=2), split_rows=64)]
)
def test_requests_are_scored_whole_where_ranges_are_theirs(placement: Placement) -> None:
    for width in ("fp32", "int8-static", "int4"):
        assert Candidate(precision=Precision((("mlp", width),)), placement=placement).placement == placement
    with pytest.raises(ValueError, match="int8-dynamic"):
        Candidate(precision=Precision((("cross", "fp32"), ("mlp", "int8-dynamic"))), placement=placement)


def _check_placement(placement: Placement, asked: dict[str, object], whole: bool) -> None:
    """A knob that would do nothing is not asked for, nor one that cuts or joins requests that are scored `whole`."""
    several = placement.instance_group.replicas > 1
    assert ("placement.inline" in asked) == (not several)
    assert ("placement.split_rows" in asked) == (several and not whole)
    by_size = placement.instance_group.engine == "openvino"
    batched = not placement.inline and not placement.user_once and not by_size and not whole
    assert ("placement.batch_rows" in asked) == batched
    assert placement.route is None or placement.batching is None
    assert ("placement.batch_wait_us" in asked) == (placement.batching is not None)
    assert ("placement.route_layout" in asked) == (placement.route is not None)
    threads = placement.instance_group.threads
    pinnable = threads is not None and (placement.instance_group.engine == "onnxruntime" or threads == 1)
    assert ("placement.pinned" in asked) == (pinnable and placement.route is None)
    if placement.route is not None:
        assert placement.route.instance_group.engine != placement.instance_group.engine


def test_all_that_can_be_drawn_of_a_placement_is_reached(space: SearchSpace) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    drawn = [space.suggest(study.ask()).placement for _ in range(300)]
    for has in (
        lambda p: p.inline,
        lambda p: p.batching is not None and p.batching.wait_us == 200,
        lambda p: p.split_rows == 200,
        lambda p: p.route is not None and p.route.instance_group.replicas == 2,
        lambda p: p.instance_group.pinned,
        lambda p: p.user_once,
        lambda p: p.score_catalogue,
        lambda p: p.keep_warm_ms == 2.0 and p.knobs()["placement.keep_warm_ms"] == 2.0,
        lambda p: p.keep_warm_ms is None and p.knobs()["placement.keep_warm_ms"] == 0.0,
    ):
        assert any(has(p) for p in drawn) and not all(has(p) for p in drawn)


WHOLE_CATALOGUE = PlacementSpace(
    Choice(("onnxruntime",)),
    Choice(("1xauto",)),
    batch_rows=Choice((0, 64)),
    embedding_device=Choice(("same", "onnxruntime:cuda")),
    user_once=Choice((False, True)),
    score_catalogue=Choice((False, True)),
    tables=("tables", "item"),
)


@pytest.mark.parametrize(
    ("other", "widths", "full_tables", "scored"),
    [
        ({}, (), True, True),
        ({}, (("mlp", "int8-dynamic"),), True, True),
        ({"placement.user_once": False}, (), True, False),
        ({"placement.embedding_device": "onnxruntime:cuda"}, (), True, False),
        ({}, (("mlp", "int4"),), True, True),
        ({}, (("tables", "int4"),), True, False),
        ({}, (("item", "fp16"),), True, False),
        ({}, (), False, False),
    ],
)
def test_the_catalogue_is_scored_whole_by_one_vector_and_tables_with_all_rows(
    other: dict[str, Scalar], widths: tuple[tuple[str, str], ...], full_tables: bool, scored: bool
) -> None:
    knobs = {"placement.user_once": True, "placement.score_catalogue": True} | other
    placement = WHOLE_CATALOGUE.suggest(FixedValues(knobs), Precision(widths), full_tables)
    assert placement.score_catalogue == scored
    assert placement.knobs()["placement.score_catalogue"] == scored


def test_a_model_that_takes_its_user_once_scores_the_catalogue_as_it_is() -> None:
    space = dataclasses.replace(WHOLE_CATALOGUE, user_once=Choice((False,)))
    knobs: dict[str, Scalar] = {"placement.score_catalogue": True}
    assert space.suggest(FixedValues(knobs), Precision()) == Placement(score_catalogue=True)
    assert not space.suggest(FixedValues(knobs | {"placement.batch_rows": 64}), Precision()).score_catalogue
    lean = space.suggest(FixedValues({**space.baseline(), **space.lean()}), Precision())
    assert lean.score_catalogue, "the first small models are tried so"
    narrow = Precision((("item", "int8"),))
    assert not space.suggest(FixedValues({**space.baseline(), **space.lean()}), narrow).score_catalogue


def test_small_models_are_first_tried_with_a_warm_engine() -> None:
    offered = PlacementSpace(Choice(("onnxruntime",)), Choice(("1xauto", "1x1")), keep_warm_ms=Choice((0.0, 4.0, 2.0)))
    lean = offered.suggest(FixedValues({**offered.baseline(), **offered.lean()}), Precision())
    assert lean == Placement(InstanceGroup(threads=1), keep_warm_ms=4.0)
    never = dataclasses.replace(offered, keep_warm_ms=Choice((0.0,)))
    assert never.suggest(FixedValues(never.lean()), Precision()).keep_warm_ms is None


def test_a_policy_holds_in_every_candidate() -> None:
    kept = PlacementSpace(
        Choice(("onnxruntime",)), Choice(("1xauto",)), queue=Choice((8,)), deadline_ms=Choice((20.0,))
    )
    assert kept.suggest(optuna.trial.FixedTrial({}), Precision()) == Placement(admission=Admission(8, 20.0))


def test_tables_may_lie_elsewhere_and_a_route_leads_to_another_place() -> None:
    space = PlacementSpace(
        Choice(("onnxruntime", "openvino", "onnxruntime:cuda")),
        Choice(("1xauto",)),
        route_rows=Choice((0, 64)),
        embedding_device=Choice(("same", "onnxruntime")),
    )
    asked = {
        "placement.engine": "onnxruntime:cuda",
        "placement.embedding_device": "onnxruntime",
        "placement.route_rows": 64,
    }
    drawn = space.suggest(
        optuna.trial.FixedTrial({**asked, "placement.route_from_onnxruntime:cuda": "openvino"}), Precision()
    )
    assert drawn.instance_group == InstanceGroup("onnxruntime", "cuda") and drawn.embedding_device == EmbeddingDevice(
        "onnxruntime"
    )
    assert drawn.route == Route(64, InstanceGroup("openvino"))
    same = {**asked, "placement.engine": "onnxruntime", "placement.route_rows": 0}
    assert space.suggest(optuna.trial.FixedTrial(same), Precision()).embedding_device is None


@given(
    ratio=st.floats(0.01, 0.99),
    temperature=st.floats(1, 8),
    widths=st.dictionaries(st.sampled_from(["mlp", "cross"]), st.sampled_from(["fp32", "int8-dynamic"])),
    replicas=st.integers(1, 8),
    threads=st.none() | st.integers(1, 8),
)
def test_a_candidate_survives_json_and_keeps_its_name(
    ratio: float, temperature: float, widths: dict[str, str], replicas: int, threads: int | None
) -> None:
    candidate = Candidate(
        Weights(pruning=Pruning((("mlp", ratio),)), distillation=Distillation(temperature, 0.5, 2)),
        Precision(tuple(widths.items())),
        Placement(
            InstanceGroup(replicas=replicas, threads=threads),
            split_rows=10 if replicas > 1 and "int8-dynamic" not in widths.values() else None,
            route=Route(5, InstanceGroup("openvino")),
            embedding_device=EmbeddingDevice("openvino"),
            admission=Admission(deadline_ms=2.5),
        ),
    )
    again = from_plain(Candidate, json.loads(json.dumps(to_plain(candidate))))
    assert again == candidate
    assert again.id == candidate.id


def test_the_order_of_knobs_does_not_change_the_name() -> None:
    one = Weights(Architecture((("a", 1), ("b", 2))), distillation=Distillation(1.0, 0.5, 1))
    two = Weights(Architecture((("b", 2), ("a", 1))), distillation=Distillation(1.0, 0.5, 1))
    assert one.id == two.id
    assert one.id != Weights(Architecture((("a", 1), ("b", 3))), distillation=Distillation(1.0, 0.5, 1)).id


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(ValueError, match="colour"):
        from_plain(Placement, {"engine": "onnxruntime", "colour": "red"})


@pytest.mark.parametrize(("modules", "metrics"), [("mlp.0", {}), (["mlp.0"], [])])
def test_a_list_and_a_mapping_are_read_from_nothing_else(modules: object, metrics: object) -> None:
    plain = {"origin": "given", "parts": modules, "numbers": metrics}
    with pytest.raises(ValueError, match="is read from a"):
        from_plain(_Read, plain)


@dataclasses.dataclass(frozen=True)
class _Read:
    origin: str
    parts: tuple[str, ...]
    numbers: Mapping[str, float]


def test_a_group_is_read_by_its_former_key() -> None:
    group = Group("mlp", "linear", ("mlp.0",), 8, (PrunableDim("mlp.0", 2, (AxisSlice("mlp.0.weight", 0),)),))
    plain = to_plain(group)
    plain["widths"] = plain.pop("dims")
    assert from_plain(Group, plain) == group


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Choice(()), "none"),
        (lambda: Choice((1, 1)), "different"),
        (lambda: Integer(3, 2), "low"),
        (lambda: Integer(0, 4, log=True), "log"),
        (lambda: Float(0.0, 1.0, step=0.3), "step"),
        (lambda: Float(0.0, float("inf")), "finite"),
        (lambda: Pruning((("mlp", 1.0),)), "between 0 and 1"),
        (lambda: Distillation(0.5, 0.5, 1), "at least 1"),
        (lambda: Precision((("mlp", "int3"),)), "int3"),
        (lambda: InstanceGroup(replicas=0), "replica"),
        (lambda: InstanceGroup(threads=0), "thread"),
        (lambda: InstanceGroup(pinned=True), "threads"),
        (lambda: Batching(1), "2 rows"),
        (lambda: Batching(8, -1), "0 us"),
        (lambda: Route(0, InstanceGroup()), "above 1 row"),
        (lambda: Admission(queue=0), "1 request"),
        (lambda: Admission(deadline_ms=0.0), "above 0 ms"),
        (lambda: Placement(InstanceGroup(replicas=2, threads=1), inline=True), "inline"),
        (lambda: Placement(inline=True, batching=Batching(8)), "batches nothing"),
        (lambda: Placement(split_rows=8), "two replicas"),
        (lambda: Placement(user_once=True, batching=Batching(8)), "not batched"),
        (lambda: Placement(score_catalogue=True, batching=Batching(8)), "not batched"),
        (lambda: Placement(score_catalogue=True, embedding_device=EmbeddingDevice("openvino")), "device"),
        (lambda: Placement(keep_warm_ms=0.0), "0.01 to 250 ms, but got 0.0"),
        (lambda: Placement(keep_warm_ms=0.001), "0.01 to 250 ms, but got 0.001"),
        (lambda: Placement(keep_warm_ms=250.0), "0.01 to 250 ms, but got 250.0"),
        (lambda: Placement(keep_warm_ms=float("nan")), "0.01 to 250 ms, but got nan"),
        (lambda: parse_place("onnxruntime:"), "ENGINE:DEVICE"),
        (lambda: PlacementSpace(Choice(("openvino",)), Choice(("1xauto",))), "onnxruntime"),
        (lambda: PlacementSpace(Choice(("onnxruntime",)), Choice(("1x1",))), "1xauto"),
        (lambda: Weights(pruning=Pruning((("mlp", 0.5),))), "distilled"),
        (lambda: parse_layout("2by1"), "REPLICASxTHREADS"),
        (lambda: Pruning((("mlp", 0.5),), steps=0), "at least 1"),
        (lambda: Pruning((("mlp", 0.5),), "size"), "magnitude, taylor, activation"),  # type: ignore[arg-type]
        (lambda: LowRank((("mlp", 1.0),)), "between 0 and 1"),
        (lambda: LowRank(()), "group"),
        (lambda: QuotientRemainder("tables", 1.0), r"lies in \[0, 1\)"),
        (lambda: MixedDimensions("tables", 0.0), r"lies in \(0, 1\]"),
        (lambda: Attention(), "neither"),
        (lambda: Attention(window=0), "at least 1"),
        (lambda: Distillation(1.0, 0.5, 1, -0.1), "at least 0"),
        (lambda: Precision(calibration="mean"), "minmax, entropy, percentile"),  # type: ignore[arg-type]
        (lambda: AxisSlice("w", 0, repeats=2), "period"),
        (lambda: PrunableDim("w", 0, (AxisSlice("w", 0),)), "'w'"),
        (lambda: Group("g", "linear", ("m",), 1), "'g'"),
        (lambda: TableSpace(Choice(("quotient-remainder",)), Choice((0.1,)), Choice((0.1,))), "full"),
        (lambda: WeightsSpace({}, {}, LEARNING, 1, low_rank={"mlp": Choice((0.5,))}), "baseline's 1.0"),
        (lambda: WeightsSpace({}, {}, {"temperature": Choice((1.0,))}, 1), "distillation has"),
        (lambda: PrecisionSpace({"mlp": Choice(("int4",))}), "fp32"),
    ],
)
def test_what_exists_is_valid(make: object, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        make()  # type: ignore[operator]


def test_the_positions_of_a_cut_are_those_of_its_units() -> None:
    """Two heads of size 3 behind 4 other rows; a dimension of three fields of 5 side by side."""
    assert AxisSlice("q", 0, first=4, size=3).positions((0, 1)) == (4, 5, 6, 7, 8, 9)
    assert AxisSlice("q", 0, first=4, size=3).positions((1,)) == (7, 8, 9)
    assert AxisSlice("w", 1, repeats=3, period=5).positions((0, 4)) == (0, 4, 5, 9, 10, 14)


def test_layouts_never_share_a_core() -> None:
    assert layouts(1) == ("1xauto", "1x1")
    for text in layouts(6)[1:]:
        replicas, threads = parse_layout(text)
        assert threads is not None
        assert replicas * threads <= 6


@pytest.mark.parametrize(
    ("place", "batched"), [("onnxruntime", True), ("onnxruntime:tensorrt", False), ("openvino", False)]
)
def test_what_prepares_kernels_by_size_is_offered_no_batches(place: str, batched: bool) -> None:
    engines = Choice(tuple(dict.fromkeys(("onnxruntime", place))))
    space = PlacementSpace(engine=engines, layout=Choice(("1xauto",)), batch_rows=Choice((0, 400)))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    asked = set()
    for _ in range(20):
        trial = study.ask()
        if space.suggest(trial, Precision()).instance_group.place == place:
            asked |= {"placement.engine", *trial.params}
    assert asked and ("placement.batch_rows" in asked) == batched


def test_a_candidate_is_found_by_its_content_in_another_process_too() -> None:
    """Its hash is kept, but hashes of text differ from process to process."""
    candidate = Candidate(placement=Placement(InstanceGroup("openvino")))
    assert candidate in {Candidate(placement=Placement(InstanceGroup("openvino")))} and candidate not in {Candidate()}
    code = "import pickle, sys; candidate, same = pickle.load(sys.stdin.buffer); hash(same); print(candidate in {same})"
    pickled = pickle.dumps((candidate, dataclasses.replace(candidate)))
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-c", code], input=pickled, env=environment, capture_output=True, check=True)
    assert done.stdout.strip() == b"True"
