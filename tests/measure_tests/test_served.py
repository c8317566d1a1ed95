"""Deployments behind real servers: what a client gets, what is planted in them, and servers that do not start."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from objectives.held_out_rows import write_requests
from objectives.jobs.requests import BenchmarkRequest, TransportRequest
from objectives.measure import benchmark as timing
from objectives.measure import targets
from objectives.measure.deployment import Deployment, close_kept, open_deployment
from objectives.measure.remote_model import RemoteModel
from objectives.measure.served import open_server
from objectives.measure.targets import open_pace_target, open_targets
from objectives.measure.transport import transport
from objectives.measurement.arrivals import Traffic
from objectives.measurement.latency import Load, Window
from objectives.measurement.load_target import LiveTarget
from objectives.measurement.recording import read_recording
from objectives.records import Artifact, InputSpec, Interval, Latency, Throughput
from objectives.serving.pool import Pool
from spaces.techniques.placement import Admission, Batching, InstanceGroup, Placement
from tests.measure_tests.lookup import ITEMS, WEIGHTS, write_lookup

ROOT = Path(__file__).resolve().parents[2]
INPUTS = (InputSpec("item", "int64", (), ITEMS),)
ONE_THREAD = Placement(InstanceGroup(threads=1))
SMALL = Window(blocks=20, requests=7, service_requests=2, probe_requests=140, patience_seconds=1.0)
pytestmark = pytest.mark.usefixtures("importable")


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    """A deployment whose scores are WEIGHTS[item]."""
    path = write_lookup(tmp_path)
    return Deployment(Artifact("ours", "model.onnx", {}, 4321, 0.0), str(path), ONE_THREAD, "fp32")


def requests_of(sizes: list[int]) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(1)
    return [{"item": random.integers(0, ITEMS, size)} for size in sizes]


@pytest.fixture
def holdout(tmp_path: Path) -> Path:
    """30 requests of 5 to 34 rows."""
    folder = tmp_path / "holdout"
    folder.mkdir()
    write_requests(requests_of(list(range(5, 35))), folder)
    return folder


def waiting(deployment: Deployment, seconds: float) -> Deployment:
    """Return the deployment with a placement that holds every request for so many seconds.

    It waits for others to join the request: a planted time, which takes no CPU.
    """
    placement = Placement(InstanceGroup(threads=1), batching=Batching(100, round(1e6 * seconds)))
    return replace(deployment, placement=placement)


def benchmark(
    candidate: Deployment, baseline: Deployment, holdout: Path, recording: Path, load: Load
) -> tuple[Latency, Throughput]:
    asked = BenchmarkRequest(str(holdout), candidate, baseline, load, SMALL, 5, str(recording), False)
    found = timing.benchmark(asked)
    return found.latency, found.throughput


def twice_as_wide(interval: Interval) -> Interval:
    """The interval with twice its width in the logarithm, outside of which luck alone seldom leads."""
    low, high = interval
    times = math.sqrt(high / low)
    return low / times, high * times


THROUGH = Load(Traffic(), 0.4, 95, None, served_inputs=INPUTS)


def test_a_served_deployment_gives_the_scores_of_its_model_to_requests_of_any_size(deployment: Deployment) -> None:
    requests = requests_of([1, 7, 20_000])
    with open_server(deployment, INPUTS, requests) as served:
        process = Path(f"/proc/{served.process}")
        assert process.exists()
        with RemoteModel(served.url, connections=2) as remote:
            for request in requests:
                np.testing.assert_array_equal(remote.submit(request).result(), WEIGHTS[request["item"]])
    assert not process.exists(), "the server ends with the block"


def test_a_server_that_does_not_start_says_why_in_one_line(deployment: Deployment) -> None:
    """The bundle's manifest says another type than the graph has, so that the example is not scored."""
    odd = (InputSpec("item", "float32", (), None),)
    with (
        pytest.raises(RuntimeError, match=r"did not start: \w+: .*tensor\(int64\)") as caught,
        open_server(deployment, odd, requests_of([3])),
    ):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_refusals_of_a_served_pool_have_infinite_latency_and_cpu_time_of_servers_is_our_own(
    deployment: Deployment,
) -> None:
    """A queue of one, of requests that are held for 50 ms: the third at once is refused."""
    held = waiting(deployment, 0.05)
    full = replace(held, placement=replace(held.placement, admission=Admission(queue=1)))
    requests = requests_of([10] * 8)
    with open_targets((held, full), requests, INPUTS) as (patient, strict):
        assert len(set(patient.children)) == 2 and patient.children == strict.children
        gaps = np.full(8, 1000)
        assert np.isfinite(patient.open_loop(requests, gaps).latency_ms).all()
        refused = np.isinf(strict.open_loop(requests, gaps).latency_ms)
        assert refused.any() and not refused.all()
        before = patient._cpu_seconds()
        patient.saturated(requests, 0.3, 1)
        assert patient._cpu_seconds() > before


@pytest.mark.slow
def test_a_deployment_beside_itself_has_ratios_of_1(deployment: Deployment, holdout: Path, tmp_path: Path) -> None:
    """A/A: both sides are behind servers of their own.

    One visit's intervals leave out what happens between visits, so one of three is enough: a bias in every one of them
    is found.
    """
    recording, found = tmp_path / "timings.npz", []
    for _ in range(3):  # other work may come in between
        latency, throughput = benchmark(deployment, deployment, holdout, recording, THROUGH)
        close_kept()
        assert latency.through == "http" and latency.candidate.refused_share == 0
        kept = read_recording(recording)
        assert kept.through == "http" and kept.summarize() == (latency, throughput)
        found.append(
            (
                latency.p95_ratio_interval,
                latency.service_p50_ratio_interval,
                throughput.capacity_ratio_interval,
                throughput.ratio_interval,
            )
        )
        if all(low <= 1 <= high for low, high in map(twice_as_wide, found[-1])):
            return
    pytest.fail(f"{found}, where 1 was planted")


@pytest.mark.slow
def test_a_planted_time_shows_in_the_ratio_that_a_client_sees(
    deployment: Deployment, holdout: Path, tmp_path: Path
) -> None:
    """A client waits for the planted time and for what HTTP adds.

    Requests come one at a time; the candidate holds them for 4 ms, the baseline for 8 ms. What HTTP adds is measured
    apart, on the deployment that holds none.
    """
    ours, theirs = waiting(deployment, 0.004), waiting(deployment, 0.008)
    assert transport(TransportRequest(str(holdout), deployment, INPUTS)).transport_ms >= 0
    found = []
    for _ in range(3):  # other work may come in between
        latency, _ = benchmark(ours, theirs, holdout, tmp_path / "timings.npz", THROUGH)
        close_kept()
        assert latency.candidate.service_p50_ms >= 4 and latency.baseline.service_p50_ms >= 8
        found.append(latency.service_p50_ratio_interval)
        if found[-1][1] < 1 and twice_as_wide(found[-1])[1] > 0.5:
            return
    pytest.fail(f"{found}, where less than 1 and at least 0.5 was planted")


@pytest.mark.slow
def test_what_http_adds_is_the_difference_of_two_closed_loops(deployment: Deployment, holdout: Path) -> None:
    """A placement that holds each request for 30 ms takes those in the pool; they are no part of what is added.

    Nor are they of the pace, which is that of one replica without them.
    """
    for _ in range(3):  # other work may come in between
        held, plain = (
            transport(TransportRequest(str(holdout), each, INPUTS)) for each in (waiting(deployment, 0.03), deployment)
        )
        close_kept()
        if held.pace_ms < 30 and held.transport_ms < plain.transport_ms + 15:
            return
    pytest.fail(f"{held} beside {plain}")


def test_pools_stay_in_this_process(deployment: Deployment) -> None:
    with open_targets((deployment,), requests_of([4])) as (target,), open_deployment(deployment) as pool:
        assert target.children == ()
        request = {"item": np.arange(5)}
        assert target.submit(request).result().tolist() == pool.submit(request).result().tolist()  # type: ignore[attr-defined]


def test_the_pace_is_that_of_the_baselines_model_on_one_thread(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is idle once the servers of the targets are, whose processes it knows."""
    opened: list[Placement] = []

    def noted(one: Deployment) -> Pool:
        opened.append(one.placement)
        return open_deployment(one)

    monkeypatch.setattr(targets, "open_deployment", noted)
    baseline, parts = replace(deployment, placement=Placement(InstanceGroup(replicas=2, threads=2))), list[str]()
    beside = LiveTarget(lambda request: None, 1, 1, children=(7,), next_part=lambda: parts.append("next"))  # type: ignore[arg-type, return-value]
    with open_pace_target(baseline, requests_of([4]), beside) as target:
        assert opened == [Placement(InstanceGroup(threads=1))] and target.children == (7,) and parts
        assert np.isfinite(target.closed_loop(requests_of([4, 9]))).all()
