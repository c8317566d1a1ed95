"""The cost model: which curves it needs, what it simulates with them, and that it goes on where it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from objectives.jobs.requests import ServiceCurveResponse, TransportRequest, TransportResponse
from objectives.measurement.arrivals import Traffic
from search.explore import cost_model as module
from search.explore.cost_model import BASELINE, CostModel
from search.workers.meter_jobs import MeterJobs, curve_parts
from spaces.candidate import Candidate
from spaces.techniques.distillation import Distillation
from spaces.techniques.placement import Admission, Batching, InstanceGroup, Placement, Route
from spaces.techniques.pruning import Pruning
from spaces.techniques.quantization import Precision
from spaces.weights import Weights
from tests.explore_tests.curves import ROWS, cost_model, curve
from tests.explore_tests.test_explorer import parts

__all__ = ["parts"]


@pytest.fixture
def jobs(parts: dict[str, Any]) -> MeterJobs:
    return MeterJobs(parts["config"], parts["task"], parts["prepared"], Traffic())


def student(temperature: float, placement: Placement) -> Candidate:
    weights = Weights(pruning=Pruning((("mlp", 0.5),)), distillation=Distillation(temperature, 0.5, 1))
    return Candidate(weights, placement=placement)


def learn(model: CostModel, candidate: Candidate, times: float) -> None:
    for part in model.missing(candidate):
        model.learn(candidate, part, ServiceCurveResponse(curve(times), 3.0))


ONE = Placement(InstanceGroup(threads=1))


def test_a_curve_serves_every_training_and_every_path_of_requests(jobs: MeterJobs, tmp_path: Path) -> None:
    """Queues, deadlines and the rows of a route are simulated; what changes the runs is measured.

    So do the replicas of a second instance group on the same cores.
    """
    model = cost_model(jobs, tmp_path)
    ours = student(2.0, ONE)
    assert [part.placement for part in model.missing(ours)] == [ONE]
    learn(model, ours, 0.5)
    assert not model.missing(student(4.0, ONE)), "other training, the same cost"
    large = InstanceGroup(threads=2)
    routed = [student(2.0, Placement(ONE.instance_group, route=Route(rows, large))) for rows in (200, 400)]
    assert [part.placement for part in model.missing(routed[0])] == [ONE, Placement(large)]
    for part in model.missing(routed[0]):
        model.learn(routed[0], part, ServiceCurveResponse(curve(0.5), 3.0, 700))
    assert not model.missing(routed[1]), "what is routed does not change the runs"
    assert model.missing(student(2.0, Placement(InstanceGroup(threads=1), batching=Batching(600))))
    assert model.missing(student(2.0, Placement(InstanceGroup(threads=1), inline=True)))


def test_the_bytes_of_the_model_file_stand_beside_the_ratios(jobs: MeterJobs, tmp_path: Path) -> None:
    """They are kept with the curve, and are unknown where an earlier version has kept it."""
    model, ours, before = cost_model(jobs, tmp_path), student(2.0, ONE), student(2.0, Placement())
    learn(model, before, 0.5)
    for part in model.missing(ours):
        model.learn(ours, part, ServiceCurveResponse(curve(0.5), 3.0, 700))
    again = CostModel(jobs, model._file)
    assert again.ratios(ours).model_bytes == model.ratios(ours).model_bytes == 700
    assert again.ratios(before).model_bytes is None


def test_the_models_own_weights_have_the_baselines_curve(jobs: MeterJobs, tmp_path: Path) -> None:
    """The precision of own weights may be said of each group or of none; narrow widths have a curve of their own."""
    model = cost_model(jobs, tmp_path)
    told = Candidate(precision=Precision((("mlp", "fp32"),)))
    assert not model.missing(told) and model.curves(told) == model.curves(BASELINE)
    assert model.missing(Candidate(precision=Precision((("mlp", "int8-dynamic"),))))


def test_parts_of_a_placement_know_the_sizes_of_their_runs() -> None:
    two = InstanceGroup(replicas=2, threads=1)
    (split,) = curve_parts(Placement(two, split_rows=100))
    assert (split.placement, split.batch_rows, split.split_over) == (Placement(two), None, 2)
    (batched,) = curve_parts(Placement(batching=Batching(600)))
    assert (batched.placement, batched.batch_rows, batched.split_over) == (Placement(), 600, None)
    assert split.beside == batched.beside == ()
    large = InstanceGroup("openvino")
    small_part, large_part = curve_parts(Placement(two, route=Route(300, large)))
    assert (small_part.placement, small_part.beside) == (Placement(two), (large,))
    assert (large_part.placement, large_part.beside) == (Placement(large), (two,))
    forms = Placement(user_once=True, score_catalogue=True, keep_warm_ms=2.0)
    assert [part.placement for part in curve_parts(replace(forms, inline=True))] == [replace(forms, inline=True)]


def test_requests_through_a_server_wait_for_an_inline_replica(
    jobs: MeterJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that is busy for most of the time refuses what comes while a request waits."""
    traffic = jobs.config.traffic.model_copy(update={"through": "http"})
    through = replace(jobs, config=jobs.config.model_copy(update={"traffic": traffic}))
    monkeypatch.setattr(module, "call", lambda *asked: TransportResponse(transport_ms=0.01, pace_ms=3.0))
    pairs: Any = SimpleNamespace(meter=None, console=SimpleNamespace(say=None))
    ours = student(2.0, replace(ONE, inline=True, admission=Admission(queue=1)))
    pool, served = cost_model(jobs, tmp_path / "pool"), cost_model(through, tmp_path / "served")
    served.measure_baseline(pairs)
    for model in (pool, served):
        learn(model, ours, 2.0)
    assert pool.ratios(ours).p95_ratio is not None, "who submits to a pool waits for an inline run"
    assert served.ratios(ours).p95_ratio is None


def test_transport_is_measured_once_and_slows_both_sides(
    jobs: MeterJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transport counts as 2 ms, at the machine's reference speed.

    When it was measured, the machine was half as fast.
    """
    traffic = jobs.config.traffic.model_copy(update={"through": "http"})
    through = replace(jobs, config=jobs.config.model_copy(update={"traffic": traffic}))
    asked: list[object] = []

    def call(worker: object, request: object, limit: float, say: object) -> TransportResponse:
        asked.append(request)
        return TransportResponse(transport_ms=4.0, pace_ms=6.0)

    monkeypatch.setattr(module, "call", call)
    pairs: Any = SimpleNamespace(meter=None, console=SimpleNamespace(say=None))
    ours, bare = student(2.0, ONE), cost_model(jobs, tmp_path / "bare")
    learn(bare, ours, 0.5)
    served = cost_model(through, tmp_path / "served")
    learn(served, ours, 0.5)
    for _ in range(2):
        served.measure_baseline(pairs)
    assert len(asked) == 1 and isinstance(asked[0], TransportRequest)
    again = CostModel(through, served._file)
    again.measure_baseline(pairs)
    assert len(asked) == 1 and again.transport_ms == pytest.approx(4.0 * 3.0 / 6.0)
    assert again.baseline_ms == pytest.approx(bare.baseline_ms), "in its pool"
    (part,) = curve_parts(Placement())
    asked_for = again.request(through.baseline[0], BASELINE, part)
    assert (asked_for.baseline_ms, asked_for.transport_ms) == (again.baseline_ms, pytest.approx(2.0))
    ratios, without = again.ratios(ours), bare.ratios(ours)
    assert without.service_p50_ratio == pytest.approx(0.5, rel=0.01)
    taken_ms = 1 + 0.01 * np.array(ROWS)
    middle_ms = float(np.median(taken_ms))
    assert ratios.service_p50_ratio == pytest.approx((0.5 * middle_ms + 2) / (middle_ms + 2), rel=0.05)
    assert ratios.capacity_ratio == pytest.approx(taken_ms.mean() / 2, rel=0.05), "500 requests/s pass HTTP"


def test_ratios_are_those_of_the_curves(jobs: MeterJobs, tmp_path: Path) -> None:
    """Runs of half the time: one request at a time takes half, and twice as many are served."""
    model = cost_model(jobs, tmp_path)
    ours = student(2.0, ONE)
    learn(model, ours, 0.5)
    found = model.ratios(ours)
    assert found.service_p50_ratio == pytest.approx(0.5) and found.capacity_ratio == pytest.approx(2.0, rel=0.02)
    assert found.p95_ratio is not None and found.p95_ratio < 0.5, "it waits less besides"
    same = model.ratios(Candidate())
    assert (same.service_p50_ratio, same.p95_ratio, same.throughput_ratio) == (1.0, 1.0, 1.0)


def test_the_baseline_is_measured_several_times_and_the_middle_one_is_kept(
    jobs: MeterJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second measurement the machine was slower while its pace was taken, but not for the curve."""
    cost_model(jobs, tmp_path)
    measured = iter([(1.1, 6.6), (9.0, 27.0), (1.0, 3.0), (0.9, 2.7), (1.3, 3.9)])

    def call(*asked: object) -> ServiceCurveResponse:
        times, pace_ms = next(measured)
        return ServiceCurveResponse(curve(times), pace_ms)

    monkeypatch.setattr(module, "call", call)
    model = CostModel(jobs, tmp_path / "others.jsonl")
    pairs: Any = SimpleNamespace(meter=None, console=SimpleNamespace(say=None))
    for _ in range(2):
        model.measure_baseline(pairs)
    (part,) = curve_parts(Placement())
    artifact, baseline = jobs.baseline
    asked = model.request(artifact, baseline, part)
    assert asked.reference_pace_ms == pytest.approx(3.9), "the median"
    (kept,) = model.curves(baseline)
    assert kept.alone(100) == pytest.approx(curve(1.3).alone(100)), "a third of the pace, as in four of five"
    mean_ms = float(np.mean([1.3 * (1 + 0.01 * rows) for rows in ROWS]))
    assert asked.baseline_ms == pytest.approx(mean_ms, rel=0.05), "what the baseline takes, whatever the pace is of"


def test_a_size_without_a_time_is_not_simulated(jobs: MeterJobs, tmp_path: Path) -> None:
    """Curves of the tests end at 1000 rows; batches are larger."""
    model = cost_model(jobs, tmp_path)
    ours = student(2.0, Placement(InstanceGroup(threads=1), batching=Batching(5000, wait_us=1_000_000)))
    learn(model, ours, 0.5)
    for _ in range(2):
        with pytest.raises(ValueError, match="has 25 to 1000 rows"):
            model.ratios(ours)


def test_curves_are_read_again_up_to_a_line_that_a_kill_left(jobs: MeterJobs, tmp_path: Path) -> None:
    model = cost_model(jobs, tmp_path)
    ours, others = student(2.0, ONE), student(2.0, Placement(InstanceGroup(threads=2)))
    for candidate in (ours, others):
        learn(model, candidate, 0.5)
    file = tmp_path / "curves.jsonl"
    file.write_text(file.read_text()[:-30])
    again = CostModel(jobs, file)
    assert not again.missing(ours) and again.missing(others)
    assert again.ratios(ours) == model.ratios(ours)
    learn(again, others, 0.7)
    assert not CostModel(jobs, file).missing(others), "a line that was cut is ended before the next one"
