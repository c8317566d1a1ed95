"""A candidate that keeps the SLO at no rate: a throughput ratio of 0 is a measurement, and ends no search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from objectives.records import Artifact
from search.config.loss_limits import Limits
from search.results import TUNED, Point
from search.study import Study
from search.verdict import verdict
from spaces.serialization import to_plain
from tests.explore_tests.test_explorer import answers, each, parts, search, timed
from tests.explore_tests.test_reference_points import begin, told
from tests.search_tests.measurements import complete_outcome, in_memory

__all__ = ["parts"]


def by_reference(arguments: Mapping[str, Any]) -> dict[str, Any]:
    key = "small" if arguments["candidate"]["weights"]["distillation"] else "base"
    return {"artifact": to_plain(Artifact(key, f"{key}/model.onnx", {}, 900, 0.0)), "reused": False}


def test_a_reference_point_that_keeps_the_slo_at_no_rate_ends_no_search(parts: dict[str, Any]) -> None:
    def time(trial: int) -> dict[str, Any]:
        return timed(5.0, 0.0) if trial == 1 else timed()

    begin(parts)
    search(parts, answers(group_benchmark=each(time), export=by_reference), 4)
    parts["study"].sweep()
    found = told(parts)
    point = found.rows[1]
    assert parts["study"].references[0] == TUNED
    assert isinstance(point, Point) and point.throughput_ratio == 0.0
    assert found.tuned_baseline == found.baseline is not None and not point.on_front
    assert verdict(found).headline


@pytest.mark.parametrize("loss", [0.0, 0.5])
def test_a_candidate_that_keeps_the_slo_at_no_rate_ends_no_search(loss: float, parts: dict[str, Any]) -> None:
    """The candidate is recorded whether or not it is feasible, and the study opens again."""
    measured = complete_outcome(loss=loss).measurement
    assert measured is not None
    time = each(lambda trial: timed(5.0, 0.0) if trial > 0 else timed())
    evaluate = lambda arguments: {"quality": to_plain(measured.quality), "reused": False}  # noqa: E731
    search(parts, answers(group_benchmark=time, evaluate=evaluate), 4)
    parts["study"].sweep()
    slow = [point for point in told(parts).points if point.throughput_ratio == 0]
    assert slow and all(point.money_per_million is None for point in slow)
    assert not any(point.on_front for point in slow)


def test_an_objective_that_was_not_measured_is_a_failed_trial(parts: dict[str, Any]) -> None:
    """The p99 is missing because some requests were refused, of a candidate that loses too much besides."""
    objectives = ("latency_p99", "quality")
    parts["config"] = parts["config"].model_copy(update={"objectives": objectives})
    parts["study"] = Study("p99", in_memory(), objectives, Limits(0.01), 0)
    measured = complete_outcome(loss=0.5).measurement
    assert measured is not None

    def time(trial: int) -> dict[str, Any]:
        found = timed()
        return found if trial == 0 else {**found, "latency": {**found["latency"], "p99_ratio": None}}

    evaluate = lambda arguments: {"quality": to_plain(measured.quality), "reused": False}  # noqa: E731
    _, ended, _ = search(parts, answers(group_benchmark=each(time), evaluate=evaluate), 4)
    failed = [one.outcome for one in ended if one.outcome.state == "failed"]
    assert failed and all("latency_p99" in str(outcome.reason) for outcome in failed)
