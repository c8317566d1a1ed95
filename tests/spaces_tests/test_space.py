"""The space is drawn by optuna's own trials, and a candidate is named by its content."""

from __future__ import annotations

import dataclasses
import json

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces.architecture import Architecture
from spaces.candidate import Candidate, Weights
from spaces.canonical import from_plain, to_plain
from spaces.distillation import Distillation
from spaces.domains import Choice, Domain, Float, Integer
from spaces.placement import Admission, Batching, Lookup, Placement, Route, Seat, layouts, parse_layout, parse_place
from spaces.placement_space import PlacementSpace
from spaces.precision import Precision
from spaces.pruning import Pruning
from spaces.space import SearchSpace


@pytest.fixture
def space() -> SearchSpace:
    return SearchSpace(
        architecture={"width": Choice((8, 16, 32)), "depth": Integer(1, 3)},
        pruning={"mlp": Float(0.25, 0.75, step=0.25)},
        distillation={"temperature": Float(1.0, 8.0, log=True), "teacher_weight": Float(0.0, 1.0)},
        precision={"mlp": Choice(("fp32", "int8-dynamic", "int8-static")), "tables": Choice(("fp32", "fp16", "int8"))},
        compute=Choice(("fp32", "bf16")),
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
        ),
        passes=3,
    )


def test_the_first_start_is_the_baseline(space: SearchSpace) -> None:
    candidate = space.suggest(optuna.trial.FixedTrial(space.starts()[0]))
    assert candidate == Candidate(Weights(), Precision((("mlp", "fp32"), ("tables", "fp32"))), Placement())
    assert candidate.is_baseline and Candidate().is_baseline
    assert not Candidate(precision=Precision((("mlp", "int8-dynamic"),))).is_baseline
    assert not Candidate(placement=Placement(inline=True)).is_baseline


def test_every_start_can_be_drawn_and_each_origin_is_among_them(space: SearchSpace) -> None:
    drawn = [space.suggest(optuna.trial.FixedTrial(start)) for start in space.starts()]
    assert [c.weights.origin for c in drawn] == ["baseline", "student", "pruned", "baseline"]
    assert len({c.id for c in drawn}) == 4


@pytest.mark.parametrize("seed", range(5))
def test_random_draws_stay_in_their_domains_and_ask_only_what_matters(space: SearchSpace, seed: int) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for _ in range(40):
        trial = study.ask()
        candidate = space.suggest(trial)
        prefixes = {name.split(".")[0] for name in trial.params}
        assert ("architecture" in prefixes) == (candidate.weights.origin == "student")
        assert ("pruning" in prefixes) == (candidate.weights.origin == "pruned")
        assert ("distillation" in prefixes) == (candidate.weights.origin != "baseline")
        for name, value in trial.params.items():
            section, _, knob = name.partition(".")
            domains: dict[str, dict[str, Domain]] = {
                "architecture": dict(space.architecture),
                "pruning": dict(space.pruning),
                "distillation": dict(space.distillation),
                "precision": {**space.precision, "compute": space.compute},
                "placement": {
                    **{f.name: getattr(space.placement, f.name) for f in dataclasses.fields(PlacementSpace)},
                    "route_layout": space.placement.layout,
                },
                "weights": {"origin": Choice(space.origins)},
            }
            assert value in domains[section][knob]
        if candidate.precision.compute == "bf16":
            assert candidate.placement.seat.engine == "openvino"
            assert not {"placement.engine", "placement.route_rows"} & set(trial.params)
        _check_placement(candidate.placement, trial.params)


def _check_placement(placement: Placement, asked: dict[str, object]) -> None:
    """What was asked for beside what: a knob that would do nothing is not asked for."""
    several = placement.seat.replicas > 1
    assert ("placement.inline" in asked) == (not several)
    assert ("placement.split_rows" in asked) == several
    by_size = placement.seat.engine == "openvino"
    assert ("placement.batch_rows" in asked) == (not placement.inline and not placement.user_once and not by_size)
    assert placement.route is None or placement.batching is None
    assert ("placement.batch_wait_us" in asked) == (placement.batching is not None)
    assert ("placement.route_layout" in asked) == (placement.route is not None)
    threads = placement.seat.threads
    pinnable = threads is not None and (placement.seat.engine == "onnxruntime" or threads == 1)
    assert ("placement.pinned" in asked) == (pinnable and placement.route is None)
    if placement.route is not None:
        assert placement.route.seat.engine != placement.seat.engine


def test_all_that_can_be_drawn_of_a_placement_is_reached(space: SearchSpace) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    drawn = [space.suggest(study.ask()).placement for _ in range(300)]
    for has in (
        lambda p: p.inline,
        lambda p: p.batching is not None and p.batching.wait_us == 200,
        lambda p: p.split_rows == 200,
        lambda p: p.route is not None and p.route.seat.replicas == 2,
        lambda p: p.seat.pinned,
        lambda p: p.user_once,
    ):
        assert any(has(p) for p in drawn) and not all(has(p) for p in drawn)


def test_a_policy_holds_in_every_candidate() -> None:
    kept = PlacementSpace(
        Choice(("onnxruntime",)), Choice(("1xauto",)), queue=Choice((8,)), deadline_ms=Choice((20.0,))
    )
    assert kept.suggest(optuna.trial.FixedTrial({}), "fp32") == Placement(admission=Admission(8, 20.0))


def test_tables_may_lie_elsewhere_and_a_route_leads_to_another_place() -> None:
    space = PlacementSpace(
        Choice(("onnxruntime", "openvino", "onnxruntime:cuda")),
        Choice(("1xauto",)),
        route_rows=Choice((0, 64)),
        lookup=Choice(("same", "onnxruntime")),
    )
    asked = {"placement.engine": "onnxruntime:cuda", "placement.lookup": "onnxruntime", "placement.route_rows": 64}
    drawn = space.suggest(
        optuna.trial.FixedTrial({**asked, "placement.route_from_onnxruntime:cuda": "openvino"}), "fp32"
    )
    assert drawn.seat == Seat("onnxruntime", "cuda") and drawn.lookup == Lookup("onnxruntime")
    assert drawn.route == Route(64, Seat("openvino"))
    same = {**asked, "placement.engine": "onnxruntime", "placement.route_rows": 0}
    assert space.suggest(optuna.trial.FixedTrial(same), "fp32").lookup is None


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
            Seat(replicas=replicas, threads=threads),
            split_rows=10 if replicas > 1 else None,
            route=Route(5, Seat("openvino")),
            lookup=Lookup("openvino"),
            admission=Admission(deadline_ms=2.5),
        ),
    )
    again = from_plain(Candidate, json.loads(json.dumps(to_plain(candidate))))
    assert again == candidate
    assert again.id == candidate.id


def test_the_order_of_knobs_does_not_change_the_name() -> None:
    one = Weights(Architecture((("a", 1), ("b", 2))), None, Distillation(1.0, 0.5, 1))
    two = Weights(Architecture((("b", 2), ("a", 1))), None, Distillation(1.0, 0.5, 1))
    assert one.id == two.id
    assert one.id != Weights(Architecture((("a", 1), ("b", 3))), None, Distillation(1.0, 0.5, 1)).id


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(ValueError, match="colour"):
        from_plain(Placement, {"engine": "onnxruntime", "colour": "red"})


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Choice(()), "at least one"),
        (lambda: Choice((1, 1)), "different"),
        (lambda: Integer(3, 2), "low"),
        (lambda: Integer(0, 4, log=True), "log"),
        (lambda: Float(0.0, 1.0, step=0.3), "step"),
        (lambda: Float(0.0, float("inf")), "finite"),
        (lambda: Pruning((("mlp", 1.0),)), "between 0 and 1"),
        (lambda: Distillation(0.5, 0.5, 1), "at least 1"),
        (lambda: Precision((("mlp", "int3"),)), "int3"),
        (lambda: Seat(replicas=0), "replica"),
        (lambda: Seat(threads=0), "thread"),
        (lambda: Seat(pinned=True), "number of threads"),
        (lambda: Batching(1), "2 rows or more"),
        (lambda: Batching(8, -1), "0 us or more"),
        (lambda: Route(0, Seat()), "above 1 row"),
        (lambda: Admission(queue=0), "1 request or more"),
        (lambda: Admission(deadline_ms=0.0), "above 0 ms"),
        (lambda: Placement(Seat(replicas=2, threads=1), inline=True), "the only one"),
        (lambda: Placement(inline=True, batching=Batching(8)), "batches nothing"),
        (lambda: Placement(split_rows=8), "two replicas"),
        (lambda: Placement(user_once=True, batching=Batching(8)), "not batched"),
        (lambda: parse_place("onnxruntime:"), "ENGINE:DEVICE"),
        (lambda: PlacementSpace(Choice(("openvino",)), Choice(("1xauto",))), "onnxruntime"),
        (lambda: PlacementSpace(Choice(("onnxruntime",)), Choice(("1x1",))), "1xauto"),
        (lambda: Weights(pruning=Pruning((("mlp", 0.5),))), "distilled"),
        (lambda: parse_layout("2by1"), "REPLICASxTHREADS"),
    ],
)
def test_what_exists_is_valid(make: object, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        make()  # type: ignore[operator]


def test_layouts_never_share_a_core() -> None:
    assert layouts(1) == ("1xauto", "1x1")
    for text in layouts(6)[1:]:
        replicas, threads = parse_layout(text)
        assert threads is not None
        assert replicas * threads <= 6
