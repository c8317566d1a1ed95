"""Service curves of real models beside the baseline, and loads that are simulated with them, against closed forms."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from objectives.jobs.requests import ServiceCurveRequest
from objectives.measure import deployment as opening
from objectives.measure import service_curves, targets
from objectives.measure.deployment import Deployment, close_kept, on_one_thread
from objectives.measure.service_curves import further_sizes, rested_requests, service_curve
from objectives.measure.targets import open_targets
from objectives.measure.virtual_target import SimulatedLoad, VirtualTarget
from objectives.measurement.arrivals import Traffic
from objectives.measurement.latency import Load
from objectives.measurement.load_target import LiveTarget
from objectives.measurement.service_curve import FEWEST_RUNS, Line, Runs, ServiceCurve
from objectives.records import rows_of
from objectives.serving.pool import Pool
from objectives.serving.pool.scheduler import Scheduler
from spaces.techniques.placement import Admission, Batching, EmbeddingDevice, InstanceGroup, Placement, Route
from tests.measure_tests.test_measure import ONE_THREAD, _artifact, holdout, model
from tests.measurement_tests.simulated import requests_of

__all__ = ["holdout", "model"]

# Runs of 1 ms on average whose times are exponential, by 999 quantiles.
EXPONENTIAL = Line((1.0, 1000.0), (1e6, 1e6), tuple((-np.log1p(-(np.arange(999) + 0.5) / 999)).tolist()))


def curve(times: float) -> ServiceCurve:
    return ServiceCurve(*[EXPONENTIAL] * 4, 0.0, 0.0, 0, 1, 1000).scaled(times)


def target(times: float, placement: Placement = Placement(), seed: int = 0) -> VirtualTarget:  # noqa: B008
    return VirtualTarget.of(placement, [curve(times)], seed, 2 * placement.replicas)


@pytest.mark.parametrize("times", [1.0, 0.5])
def test_a_simulated_load_is_that_of_an_mm1_queue(times: float) -> None:
    """The time in the system is exponential with rate mu - lambda.

    At load 0.4 of the baseline's mu, its p95 is ln 20 / (0.6 mu), and the SLO is twice that. The rate that keeps the
    SLO is 0.3 of the baseline's mu below each deployment's own mu.
    """
    requests, found = requests_of([10] * 50), []
    for seed in range(8):
        load = SimulatedLoad.of(target(1.0, seed=seed), requests, Load(Traffic(), 0.4, 95, None), seed)
        found.append(load.ratios(target(times, seed=100 + seed)))
    mu = 1 / times
    ratios = [name for name in vars(found[0]) if name.endswith("_ratio")]
    mean = {name: np.mean([getattr(one, name) for one in found]) for name in ratios}
    assert mean["p95_ratio"] == pytest.approx(0.6 / (mu - 0.4), rel=0.07)
    assert mean["p50_ratio"] == pytest.approx(0.6 / (mu - 0.4), rel=0.05)
    assert mean["throughput_ratio"] == pytest.approx((mu - 0.3) / 0.7, rel=0.07)
    assert mean["capacity_ratio"] == pytest.approx(mu, rel=0.07)
    assert mean["service_p50_ratio"] == pytest.approx(times, rel=0.1)


@pytest.mark.parametrize("share", [1.0, 0.99, 0.9, 5 / 6, 0.7, 0.5])
def test_enough_requests_find_all_replicas_idle(share: float) -> None:
    """SciPy's binomial distribution has enough in 97 of 100 draws, and one request less is not far more than enough."""
    count = rested_requests(share)
    assert binom.sf(FEWEST_RUNS - 1, count, share) >= 0.97
    assert binom.sf(FEWEST_RUNS - 1, count - 1, share) < 0.995


def test_a_second_replica_waits_less_and_serves_twice_as_much() -> None:
    """All runs take equally long; of exponential ones the caller would wait for the longer one."""
    requests, one, two = requests_of([10] * 50), Placement(), Placement(InstanceGroup(replicas=2))
    same = replace(
        curve(1.0), **dict.fromkeys(("idle", "rested", "alone", "crowded"), Line((1.0, 99.0), (1e6, 1e6), (1.0,)))
    )
    targets = [VirtualTarget.of(each, [same], 0, 2 * each.replicas) for each in (one, two)]
    found = SimulatedLoad.of(targets[0], requests, Load(Traffic(), 0.8, 95, None), 0).ratios(targets[1])
    assert found.p95_ratio is not None and found.p95_ratio < 0.5
    assert found.capacity_ratio == pytest.approx(2, rel=0.01) and found.service_p50_ratio == 1.0


def test_instance_groups_that_share_a_core_serve_no_more_together() -> None:
    """A run takes twice as long beside the other group, so that both answer as many requests as one."""
    one = Line((1.0, 99.0), (1e6, 1e6), (1.0,))
    crowded = replace(
        curve(1.0), idle=one, rested=one, alone=one, crowded=one.scaled(2.0), others=1, least_rows=10, most_rows=90
    )
    routed, requests = Placement(route=Route(50, InstanceGroup("openvino"))), requests_of([10, 90] * 50)
    both = VirtualTarget.of(routed, [crowded, crowded], 0, 4)
    assert both.saturated(requests, 1.0, 2) == pytest.approx(1000, rel=0.01)
    assert both.closed_loop(requests[:4]).tolist() == [1.0] * 4


def test_what_refuses_requests_has_no_percentiles() -> None:
    requests = requests_of([10] * 50)
    load = SimulatedLoad.of(target(1.0), requests, Load(Traffic(), 0.8, 95, 5.0), 0)
    found = load.ratios(target(1.0, Placement(admission=Admission(queue=1))))
    assert found.p95_ratio is None and found.p50_ratio is not None
    assert load.slo_ms == 5.0
    slow = load.ratios(target(6.0))
    assert slow.throughput_ratio == 0.0 and slow.p95_ratio is not None and slow.p95_ratio > 10


def test_a_run_after_a_long_idle_time_takes_its_own_line() -> None:
    """Between the median idle times of both lines the time follows the logarithm of the idle time."""
    flat = Line((1.0, 1000.0), (1e6, 1e6), (1.0,))
    rested = replace(curve(1.0), idle=flat, rested=flat.scaled(3.0), idle_ns=1e4, rested_ns=1e6)
    draw = rested.sampler(0)
    found = [draw(10, idle_ns, 0) for idle_ns in (0, 10_000, 100_000, 1_000_000, 10_000_000)]
    assert found == pytest.approx([1e6, 1e6, 2e6, 3e6, 3e6])
    same = replace(rested, rested=flat, rested_ns=1e4).sampler(0)
    assert same(10, 10_000_000, 0) == pytest.approx(1e6)


@pytest.mark.parametrize(
    ("reference", "baseline_ms", "rate_rps"), [(3.0, 8.0, 25.0), (None, 8.0, 50.0), (3.0, None, 800.0)]
)
def test_a_curve_is_measured_at_the_machines_pace_and_given_at_its_reference_speed(
    reference: float | None, baseline_ms: float | None, rate_rps: float, holdout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine is half as fast as at its reference speed: the baseline takes 16 ms and not 8."""
    rates: list[float] = []

    def measured(*given: Any) -> ServiceCurve:
        rates.append(given[4].rps(mean_ms=0.5))
        return curve(1.0)

    monkeypatch.setattr(service_curves, "pace_ms", lambda *given: 6.0)
    monkeypatch.setattr(service_curves, "measure_service_curve", measured)
    deployment = Deployment(_artifact("ours"), "model.onnx", ONE_THREAD, "fp32")
    asked = ServiceCurveRequest(str(holdout), deployment, deployment, 0, 0.4)
    found = service_curve(replace(asked, baseline_ms=baseline_ms, reference_pace_ms=reference, blocks=2))
    assert rates == [pytest.approx(rate_rps)]
    assert found.pace_ms == pytest.approx(6.0)
    assert found.curve.alone(10) == pytest.approx(curve(1.0).alone(10) * (1.0 if reference is None else 0.5))


def test_the_pace_is_of_the_same_files_in_the_same_engine() -> None:
    """A split model has no file of its own, and ONNX Runtime does not compute in bf16."""
    split = Placement(InstanceGroup(replicas=2, threads=2), embedding_device=EmbeddingDevice("onnxruntime", "cuda"))
    found = on_one_thread(Deployment(_artifact("ours"), "model.onnx", split, "fp32"))
    assert found.placement == Placement(InstanceGroup(threads=1), embedding_device=split.embedding_device)
    narrow = Placement(InstanceGroup("openvino", "gpu"), batching=Batching(600))
    found = on_one_thread(Deployment(_artifact("ours"), "model.onnx", narrow, "bf16"))
    assert found.placement == Placement(InstanceGroup("openvino", "gpu", threads=1)) and found.compute == "bf16"


def test_sizes_of_batches_and_of_parts_are_measured_too() -> None:
    requests = [{"user": np.zeros(1), "item": np.zeros(rows)} for rows in (10, 21)]
    assert further_sizes(requests, None, None) == []
    assert [rows_of(request) for request in further_sizes(requests, None, 2)] == [5, 11]
    assert len(further_sizes(requests, None, 2)[0]["user"]) == 1
    assert [rows_of(request) for request in further_sizes(requests_of([3, 4, 9]), 8, None)] == [7, 9]


@pytest.fixture
def closed() -> Iterator[None]:
    yield
    close_kept()


@pytest.mark.usefixtures("closed")
def test_curves_of_a_real_model_are_measured_beside_a_baseline_that_stays_open(
    model: Path, holdout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No time is compared: on a busy machine a run takes longer."""
    opened: list[Deployment] = []
    open_deployment = opening.open_deployment

    def noted(deployment: Deployment) -> Pool:
        opened.append(deployment)
        return open_deployment(deployment)

    monkeypatch.setattr(opening, "open_deployment", noted)
    deployment = Deployment(_artifact("ours"), str(model), ONE_THREAD, "fp32")
    baseline = replace(deployment, placement=Placement(InstanceGroup(threads=2)))
    asked = ServiceCurveRequest(str(holdout), deployment, baseline, 0, 0.4)
    first = service_curve(asked)
    assert first.pace_ms > 0 and first.curve.alone(first.curve.most_rows) > 0
    again = service_curve(replace(asked, reference_pace_ms=1e3 * first.pace_ms))
    assert opened == [deployment], "the baseline's model stays open, on one thread"
    assert math.log10(again.curve.alone(10) / first.curve.alone(10)) > 1.5, "as on a machine a thousand times as slow"
    with open_targets((deployment,), requests_of([4])):
        assert opening._KeptOpen.pool is None, "nothing else is open during a benchmark"


@pytest.mark.usefixtures("closed")
def test_a_curve_is_of_requests_and_not_of_the_runs_that_keep_engines_warm(
    model: Path, holdout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runs of a single row are many."""
    fitted: list[list[int]] = []
    warm_runs = Counter[int]()
    begin = Scheduler.begin_warm_run

    def begun(scheduler: Scheduler[Any], replica: int, now_ns: int) -> bool:
        began = begin(scheduler, replica, now_ns)
        warm_runs[replica] += began
        return began

    monkeypatch.setattr(Scheduler, "begin_warm_run", begun)
    fit = ServiceCurve.fit

    def noted(runs: Runs, rested: Runs | None) -> ServiceCurve:
        fitted.append(runs.rows.tolist())
        return fit(runs, rested)

    monkeypatch.setattr(ServiceCurve, "fit", noted)
    monkeypatch.setattr(service_curves, "read_requests", lambda folder: requests_of([5, 9, 20] * 10))
    warm = Placement(InstanceGroup(replicas=2, threads=1), keep_warm_ms=0.1)
    deployment = Deployment(_artifact("ours"), str(model), warm, "fp32")
    found = service_curve(ServiceCurveRequest(str(holdout), deployment, deployment, 0, 0.4))
    assert found.curve.alone(10) > 0
    assert {rows for each in fitted for rows in each} == {5, 9, 20}
    assert min(warm_runs[replica] for replica in (0, 1)) > 20


def test_engines_that_are_kept_warm_rest_before_each_part_of_a_measurement(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rested: list[Pool] = []
    rest = Pool.rest
    monkeypatch.setattr(Pool, "rest", lambda pool: (rested.append(pool), rest(pool)))
    warm = Deployment(_artifact("ours"), str(model), replace(ONE_THREAD, keep_warm_ms=0.5), "fp32")
    plain = replace(warm, placement=ONE_THREAD)
    with open_targets((warm, plain), requests_of([4, 9])) as targets:
        for number, target in enumerate(targets, 1):
            target.settle()
            assert len(set(rested)) == 2 and len(rested) == 2 * number, "of all deployments, not its own only"
            target.closed_loop(requests_of([4] * 5))


def test_servers_that_are_kept_warm_are_left_alone_before_a_part_until_they_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The wait counts from the end of the last part that asked one.

    The first server is kept warm, the second is not.
    """
    slept, clock = list[float](), [0.0]

    def sleep(seconds: float) -> None:
        slept.append(round(seconds, 3))
        clock[0] += seconds

    monkeypatch.setattr(targets, "time", SimpleNamespace(sleep=sleep, perf_counter_ns=lambda: round(clock[0] * 1e9)))
    monkeypatch.setattr(targets, "open_server", lambda *given: nullcontext(SimpleNamespace(process=1)))
    monkeypatch.setattr(targets, "served_target", lambda *given: LiveTarget(lambda request: None, 1, 1))  # type: ignore[arg-type, return-value]
    plain = Deployment(_artifact("ours"), "model.onnx", ONE_THREAD, "fp32")
    warm = replace(plain, placement=replace(ONE_THREAD, keep_warm_ms=0.5))
    parts: list[None] = []
    with open_targets((warm, plain), [], [], lambda: parts.append(None)) as (first, second):
        opened = len(parts)
        for target in (first, second, second, first, first, second):
            target.next_part()
            clock[0] += 0.1
        assert len(parts) == opened + 6
    assert slept == [0.25, 0.25, 0.0, 0.0, 0.25, 0.25]
    slept.clear()
    with open_targets((plain, plain), [], [], lambda: None) as (first, second):
        for target in (first, second):
            target.next_part()
    assert slept == [0.0, 0.0]
