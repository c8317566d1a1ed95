"""Reference points: which placement they get, and that they are benchmarked."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from objectives.records import Artifact, InputSpec, Prepared, SimulatedRatios, Tried
from search.choose.choose import Confirmed, choice
from search.choose.run import tuned_ratios
from search.cli.console import Console
from search.config.loss_limits import Limits
from search.errors import JobError
from search.explore.reference_points import QUANTIZED, references_of, tuned_placement
from search.report.render import render
from search.results import TUNED, Front, Point
from search.study import Study
from search.study_front import study_front
from search.verdict import verdict
from spaces.candidate import Candidate
from spaces.domains import Choice
from spaces.model_structure import Group, ModelStructure
from spaces.serialization import to_plain
from spaces.techniques.placement import InstanceGroup, Placement, PlacementSpace, layouts
from spaces.techniques.quantization import Precision, PrecisionSpace
from spaces.weights import Weights
from tests.explore_tests.test_explorer import answers, each, parts, response, search, slow, timed
from tests.search_tests.measurements import complete_outcome, in_memory, small_space

__all__ = ["parts"]

SPACE = PlacementSpace(
    Choice(("onnxruntime", "openvino")), Choice(layouts(2)), Choice((False, True)), Choice((False, True)),
    batch_rows=Choice((0, 400)), split_rows=Choice((0, 200)), user_once=Choice((False, True)),
    score_catalogue=Choice((False, True)), keep_warm_ms=Choice((0.0, 2.0)),
)  # fmt: skip


def simulated(p95: float, throughput: float) -> SimulatedRatios:
    return SimulatedRatios(p95, throughput, p95, p95, p95, throughput)


class Bench:
    """A bench of placements of known speed."""

    def __init__(self, best: Placement) -> None:
        self.best, self.asked = best, list[Placement]()

    def __call__(self, placement: Placement) -> SimulatedRatios:
        self.asked.append(placement)
        if placement.instance_group.layout == "1x2" and placement.instance_group.engine == "onnxruntime":
            raise ValueError("it cannot be run so")
        wrong = sum(
            ours != theirs
            for ours, theirs in (
                (placement.instance_group.place, self.best.instance_group.place),
                (placement.instance_group.layout, self.best.instance_group.layout),
                (placement.instance_group.pinned, self.best.instance_group.pinned),
                (placement.inline, self.best.inline),
                (placement.user_once, self.best.user_once),
                (placement.score_catalogue, self.best.score_catalogue),
                (placement.keep_warm_ms, self.best.keep_warm_ms),
                (placement.split_rows, self.best.split_rows),
            )
        )
        return simulated(0.2 * 1.3**wrong, 1.5)


@pytest.mark.parametrize(
    "best",
    [
        Placement(InstanceGroup("openvino", threads=2), user_once=True),
        Placement(InstanceGroup(threads=1), user_once=True, score_catalogue=True),
        Placement(InstanceGroup("openvino", threads=1, pinned=True), inline=True, user_once=True, keep_warm_ms=2.0),
        Placement(InstanceGroup("onnxruntime", replicas=2, threads=1, pinned=True), split_rows=200),
    ],
)
def test_the_best_placement_is_found_without_trying_all(best: Placement) -> None:
    bench = Bench(best)
    assert tuned_placement(SPACE, bench) == best
    assert len(bench.asked) == len(set(bench.asked)) < 20, "of more than a hundred"
    assert Placement() not in bench.asked, "it is what the others are compared with"


def test_a_baseline_that_no_placement_betters_stays_as_it_is() -> None:
    assert tuned_placement(SPACE, lambda placement: simulated(1.2, 1.1)) == Placement()
    # Twice the throughput for less than twice the time is worth it.
    several = tuned_placement(
        SPACE, lambda p: simulated(1.7, 2.0) if p.instance_group.replicas == 2 else simulated(1.2, 1.1)
    )
    assert several.replicas == 2
    # A rate of 0 is a rate; none at all leaves the capacity.
    kept = lambda rate: tuned_placement(SPACE, lambda p: SimulatedRatios(3, 10, 3, 3, 3, rate))  # noqa: E731
    assert kept(0.0) == Placement() != kept(None)


PREPARED = Prepared(
    "k", "holdout",
    ModelStructure((Group("mlp", "linear", ("m",), 10, (), "no"), Group("tables", "table", ("t",), 10, (), "no"))), {},
    (InputSpec("item", "int64", (), 5),), Artifact("base", "base/model.onnx", {"mlp": "fp32"}, 5000, 0.0),
    "split", {}, 3, {}, {}, simple=("popularity", "logistic_regression"),
)  # fmt: skip
BEST = Placement(InstanceGroup(threads=2))
WIDTHS = PrecisionSpace({"mlp": Choice(("fp32", "int8-dynamic")), "tables": Choice(("fp32", "int8"))})


def test_the_reference_points_are_what_a_user_gets_without_a_search() -> None:
    found = references_of(PREPARED, WIDTHS, BEST)
    assert found == {
        TUNED: Candidate(precision=Precision((("mlp", "fp32"), ("tables", "fp32"))), placement=BEST),
        QUANTIZED: Candidate(precision=Precision((("mlp", "int8-dynamic"), ("tables", "fp32")))),
        "popularity": Candidate(Weights(reference="popularity")),
        "logistic regression": Candidate(Weights(reference="logistic_regression")),
    }
    assert TUNED not in references_of(PREPARED, WIDTHS, Placement()), "trial 0 is the tuned baseline already"


def test_what_cannot_be_quantized_stays_as_it_is_in_the_quantized_point() -> None:
    """A width that was asked for would fail, and the point would be missing."""
    masked = Group("masked", "linear", ("n",), 10, (), "no")
    prepared = replace(
        PREPARED,
        structure=replace(PREPARED.structure, groups=(*PREPARED.structure.groups, masked)),
        tried=(Tried("masked", "int8-dynamic", "it is not held"), Tried("mlp", "int4", "it is odd")),
    )
    widths = PrecisionSpace({**WIDTHS.widths, "masked": Choice(("fp32",))})
    found = references_of(prepared, widths, BEST)[QUANTIZED].precision
    assert (found.width("mlp"), found.width("masked")) == ("int8-dynamic", "fp32")
    none = replace(prepared, tried=tuple(Tried(name, "int8-dynamic", "no") for name in ("mlp", "masked")))
    assert QUANTIZED not in references_of(none, widths, BEST)


def losing(losses: Mapping[str, float]) -> Any:
    """Quality by what was built, whose key is its origin."""

    def judged(arguments: Mapping[str, Any]) -> dict[str, Any]:
        loss = losses.get(arguments["scores"]["candidate"]["artifact"]["key"], 0.001)
        measured = complete_outcome(loss=loss).measurement
        assert measured is not None
        return {"quality": to_plain(measured.quality), "reused": False}

    return judged


def exported(arguments: Mapping[str, Any]) -> dict[str, Any]:
    weights = arguments["candidate"]["weights"]
    key = weights["reference"] or ("small" if weights["distillation"] else "base")
    return {"artifact": to_plain(Artifact(key, f"{key}/model.onnx", {}, 900, 0.0)), "reused": False}


def begin(parts: dict[str, Any]) -> Study:
    study: Study = parts["study"]
    first, *starts = parts["space"].starts()
    study.enqueue(first)
    for name, candidate in references_of(PREPARED, parts["space"].precision, BEST).items():
        study.enqueue_reference(name, candidate)
    for start in starts:
        study.enqueue(start)
    return study


def told(parts: dict[str, Any], **facts: Any) -> Front:
    parts["study"].note(**facts)
    return study_front(parts["config"], parts["study"])


def test_reference_points_are_benchmarked_whatever_a_glance_says(parts: dict[str, Any]) -> None:
    """A simple model that loses too much is not benchmarked."""
    visits: Counter[str] = Counter()

    def time(trial: int) -> dict[str, Any]:
        visits[f"trial-{trial}"] += 1
        return timed(0.9, 1.1)

    study = begin(parts)
    script = answers(
        service_curve=slow,
        group_benchmark=each(time),
        export=exported,
        evaluate=losing({"popularity": 0.2, "base": 0.0}),
    )
    search(parts, script, 6)
    rows = told(parts).rows
    ended = {row.knobs["weights.origin"]: row for row in rows[:5]}
    assert [row.state for row in rows[:5]] == ["complete", "complete", "complete", "stopped", "complete"]
    assert "20.00%" in str(ended["popularity"].reason)
    assert [row.reference for row in rows[1:5]] == [TUNED, QUANTIZED, "popularity", "logistic regression"]
    assert [visits[f"trial-{n}"] for n in (1, 2, 3, 4)] == [1, 1, 0, 1]
    assert study.references == (TUNED, QUANTIZED, "popularity", "logistic regression")
    assert study.spent() == 5, "of six trials one is the baseline; reference points are none of the search's"


def test_a_better_placement_that_the_search_finds_is_the_tuned_baseline_from_then_on(parts: dict[str, Any]) -> None:
    """The placement is benchmarked although a smaller model is faster."""
    parts["space"] = replace(parts["space"], precision=replace(parts["space"].precision, widths={}))
    fast = {"base": (0.55, 1.9), "small": (0.1, 9.0)}

    def by(deployment: Mapping[str, Any]) -> tuple[float, float]:
        key = deployment["model"].split("/")[-2]
        instance_group = deployment["placement"]["instance_group"]
        if key != "base":
            return fast["small"]
        return (
            (1.0, 1.0)
            if instance_group["threads"] is None
            else (0.8, 1.2)
            if instance_group["replicas"] == 1
            else fast["base"]
        )

    def time(arguments: Mapping[str, Any]) -> dict[str, Any]:
        return response([timed(*by(deployment)) for deployment in arguments["candidates"]])

    study = begin(parts)
    better = {**parts["space"].starts()[0], "placement.layout": "2x1"}
    script = answers(group_benchmark=time, export=exported, evaluate=losing({"base": 0.0}))
    search(parts, script, 2)
    before = told(parts)
    assert before.tuned_baseline is not None and before.tuned_baseline.trial == 1
    study.enqueue(better)
    search(parts, script, 8)
    after = told(parts)
    tuned = after.tuned_baseline
    assert tuned is not None and tuned.p95_ratio == 0.55 and tuned.knobs["placement.replicas"] == 2
    assert after.rows[1].reference is None
    assert tuned.tuned is not None and (tuned.tuned.p95_ratio, tuned.tuned.p95_ratio_interval) == (1.0, (1.0, 1.0))
    assert tuned.tuned.capacity_ratio_interval == (1.0, 1.0), "beside itself"
    small = next(point.tuned for point in after.points if point.origin == "pruned")
    assert small is not None and small.trial == tuned.trial
    assert small.p95_ratio == pytest.approx(0.1 / 0.55)
    assert small.p95_ratio_interval == pytest.approx((0.1 * 0.95 / (0.55 * 1.05), 0.1 * 1.05 / (0.55 * 0.95)))
    assert small.throughput_ratio == pytest.approx(9 / 1.9)


def test_a_reference_point_that_was_interrupted_is_asked_for_again() -> None:
    study = Study("s", in_memory(), ["latency_p95"], Limits(0.01), 0)
    study.enqueue_reference(QUANTIZED, references_of(PREPARED, WIDTHS, BEST)[QUANTIZED])
    trial, candidate = study.ask(small_space())
    assert trial.params == {} and candidate.precision.width("mlp") == "int8-dynamic"
    study.sweep()
    again, same = study.ask(small_space())
    assert same == candidate and again.user_attrs["reference"] == QUANTIZED


def test_reference_points_that_a_kill_interrupted_are_measured_within_a_budget_of_trials(parts: dict[str, Any]) -> None:
    """Trials that were under way come before the budget's own, so that no reference point is left out."""
    study = begin(parts)
    for _ in range(4):
        study.ask(parts["space"])
    script = answers(export=exported, evaluate=losing({"base": 0.0}))
    study.sweep()
    search(parts, script, 2)
    ended = {t.reference: t.outcome.state for t in study.ended() if t.reference and t.outcome.informative}
    assert set(ended) == {TUNED, QUANTIZED, "popularity", "logistic regression"}
    assert set(ended.values()) == {"complete"} and study.spent() <= 2 and not study.reference_waits


def test_the_budgets_trials_mean_the_same_in_a_run_and_when_it_goes_on(parts: dict[str, Any]) -> None:
    """Stopped and failed trials count as measured ones; choices made before count as nothing."""
    begin(parts)
    count = iter(range(1000))
    flaky = lambda a: "SIGSEGV" if next(count) % 3 == 0 else {"reused": False}  # noqa: E731
    script = answers(fit=flaky, service_curve=slow, export=exported, evaluate=losing({}))
    _, ended, _ = search(parts, script, 12)
    states = {t.outcome.state for t in ended}
    assert states == {"complete", "stopped", "failed"}
    assert parts["study"].spent() == 11
    search(parts, script, 15 - 11)
    assert parts["study"].spent() == 15


def test_the_verdict_begins_with_the_simple_model_and_tells_the_tuned_baseline(parts: dict[str, Any]) -> None:
    def time(arguments: Mapping[str, Any]) -> dict[str, Any]:
        base = ["base" in deployment["model"] for deployment in arguments["candidates"]]
        return response([timed(0.5, 2.0) if own else timed(0.1, 9.0) for own in base])

    begin(parts)
    script = answers(group_benchmark=time, export=exported, evaluate=losing({"base": 0.0, "popularity": 0.3}))
    search(parts, script, 4)
    found = told(parts)
    _, first, *others = [verdict(found).headline, *verdict(found).sentences]
    assert re.search(r"logistic regression \(trial 4\) .*10%", first)
    assert any(re.search(r"tuned baseline.* 50%", line) for line in others)
    assert any(re.search(r"quantization.*\(trial 2\).* 50%", line) for line in others)
    rows = [row for row in found.rows if not isinstance(row, Point) or row.reference is None]
    of_rule = replace(found, rows=tuple(rows), references={"baseline": 0.8, "popularity": 0.795})
    assert re.search("1%.* popularity", verdict(of_rule).sentences[0])


def test_a_choice_is_timed_beside_the_tuned_baseline() -> None:
    measured, asked = complete_outcome(0.25, 4.0).measurement, list[Any]()
    assert measured is not None
    ours, tuned = (
        (Artifact(name, f"{name}/model.onnx", {}, 10, 0.0), Candidate(placement=p))
        for name, p in (("ours", Placement()), ("tuned", BEST))
    )

    def benchmark(*given: Any) -> Any:
        asked.append(given)
        return measured

    pairs: Any = SimpleNamespace(
        jobs=SimpleNamespace(recording=str), console=Console(quiet=True, as_json=False), benchmark=benchmark
    )
    sides = {2: ours, 3: tuned}
    found = tuned_ratios(pairs, 2, measured, 3, sides)
    assert found is not None and (found.trial, found.p95_ratio, found.throughput_ratio) == (3, 0.25, 4.0)
    assert asked[0][:2] == (ours, "confirm") and asked[0][-1] == tuned
    confirmed = Confirmed(measured, 1, tuned=found)
    point: Any = None
    assert choice(point, confirmed, Path("bundle"), "why", None).confirmed.tuned_baseline == found
    config: Any = SimpleNamespace(name="shop")
    card = render(
        "model_card.md.j2", config=config, candidate=ours[1], artifact=ours[0], confirmed=confirmed, reason="why",
        machine="machine",
    )  # fmt: skip
    assert re.search(r"\| p95.*trial 3.* \| 0\.250 \[0\.237, 0\.263\] \|", card)

    def disturbed(*given: Any) -> Any:
        raise JobError("busy")

    pairs.benchmark = disturbed
    assert tuned_ratios(pairs, 2, measured, 3, sides) is None
    known = tuned_ratios(pairs, 2, measured, 0, sides)
    assert known is not None and (known.trial, known.p95_ratio) == (0, 0.25), "as measured beside the baseline"
    assert tuned_ratios(pairs, 3, measured, 3, sides) is None
