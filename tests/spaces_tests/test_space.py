"""The space is drawn by optuna's own trials, and a candidate is named by its content."""

from __future__ import annotations

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
from spaces.placement import Placement, layouts, parse_layout
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
        engines=Choice(("onnxruntime", "openvino")),
        layouts=Choice(layouts(2)),
        passes=3,
    )


def test_the_first_start_is_the_baseline(space: SearchSpace) -> None:
    candidate = space.suggest(optuna.trial.FixedTrial(space.starts()[0]))
    assert candidate == Candidate(Weights(), Precision((("mlp", "fp32"), ("tables", "fp32"))), Placement())


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
                "placement": {"engine": space.engines, "layout": space.layouts},
                "weights": {"origin": Choice(space.origins)},
            }
            assert value in domains[section][knob]
        if candidate.precision.compute == "bf16":
            assert candidate.placement.engine == "openvino"
            assert "placement.engine" not in trial.params


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
        Placement(replicas=replicas, threads=threads),
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
        (lambda: Placement(replicas=0), "replica"),
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
