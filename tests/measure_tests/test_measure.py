"""Evaluation, timing and footprint, on engines whose scores are known and on a real model of one node."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from objectives.build import evaluate as judging
from objectives.build.evaluate import evaluate, run_blocks
from objectives.held_out_rows import HeldOut, read_held_out, read_requests, write_held_out, write_requests
from objectives.jobs.protocol import UNHEARD
from objectives.jobs.requests import (
    BenchmarkRequest,
    EvaluateRequest,
    EvaluateResponse,
    ScoreRequest,
    VisitRequest,
    VisitResponse,
)
from objectives.measure import benchmark as timing
from objectives.measure.benchmark import weigh
from objectives.measure.deployment import Deployment, quiet, warm_up
from objectives.measurement import throughput
from objectives.measurement.arrivals import Traffic
from objectives.measurement.latency import Load, Window
from objectives.measurement.load_target import LiveTarget
from objectives.measurement.recording import Recording, read_recording
from objectives.records import Artifact, Footprint, Latency, NotFiniteError, Throughput
from objectives.serving.engines import EngineError
from spaces.serialization import from_plain
from spaces.techniques.placement import Batching, EmbeddingDevice, InstanceGroup, Placement, Route
from tests.measure_tests.lookup import ITEMS, WEIGHTS, write_lookup

ROOT = Path(__file__).resolve().parents[2]
ROWS = 400
ONE_THREAD = Placement(InstanceGroup(threads=1))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model file whose scores are WEIGHTS[item]."""
    return write_lookup(tmp_path)


@pytest.fixture
def holdout(tmp_path: Path) -> Path:
    """Held-out rows of 40 users, and 30 requests of 1 to 30 rows, as a builder writes them."""
    random, folder = np.random.default_rng(1), tmp_path / "holdout"
    folder.mkdir()
    item = random.integers(0, ITEMS, ROWS)
    labels = (WEIGHTS[item] + random.normal(size=ROWS) > 0).astype(np.float32)
    groups = random.integers(0, 40, ROWS)
    held = HeldOut(({"item": item},), labels, groups, {"even items": item % 2 == 0, "nobody": groups < 0})
    write_held_out(held, folder, "validation")
    sizes = random.permutation(np.arange(1, 31)).tolist()
    write_requests([{"item": random.integers(0, ITEMS, size)} for size in sizes], folder)
    return folder


class Fake:
    """An engine that keeps the parts it was given; the score of a row is told by its own values alone."""

    def __init__(self, once: Sequence[str] = ()) -> None:
        self.once = frozenset(once)
        self.parts: list[Mapping[str, NDArray[Any]]] = []

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        self.parts.append(inputs)
        values = {name: values[:1] if name in self.once else values for name, values in inputs.items()}
        liked = values["liked"] @ [2e5, 4e5]
        return np.asarray(values["item"] + 1000.0 * values["user"] + 5e4 * values["age"] + liked, dtype=np.float32)


def _rows(seed: int, count: int, users: int) -> dict[str, NDArray[Any]]:
    """An age and what is liked go with no user: together they make the side that is the same in a request."""
    random = np.random.default_rng(seed)
    sizes = {"user": users, "age": 2, "item": 900}
    rows: dict[str, NDArray[Any]] = {name: random.integers(0, size, count) for name, size in sizes.items()}
    return {**rows, "age": rows["age"].astype(np.float32), "liked": random.integers(0, 2, (count, 2))}


def _side(rows: Mapping[str, NDArray[Any]]) -> list[tuple[float, ...]]:
    """The user, the age and what is liked, of each row."""
    return [(*pair, *liked) for *pair, liked in zip(rows["user"], rows["age"], rows["liked"].tolist(), strict=True)]


def _expected(rows: Mapping[str, NDArray[Any]]) -> list[float]:
    sides = zip(rows["item"].tolist(), _side(rows), strict=True)
    return [i + 1000.0 * u + 5e4 * a + 2e5 * b + 4e5 * c for i, (u, a, b, c) in sides]


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 8))
def test_what_is_taken_once_is_the_same_in_each_part(seed: int, count: int, users: int) -> None:
    """Inputs are codes, numbers and several codes a row."""
    rows, engine = _rows(seed, count, users), Fake(once=["user", "age", "liked"])
    assert run_blocks(engine, [rows]).tolist() == _expected(rows)
    assert all(len(set(_side(part))) == 1 for part in engine.parts)
    seen = [_side(part)[0] for part in engine.parts]
    assert len(set(seen)) == len(seen), "nobody is computed twice"
    assert sum(len(part["item"]) for part in engine.parts) == count


@pytest.mark.parametrize(("count", "parts"), [(1, [1]), (4096, [4096]), (9000, [4096, 4096, 808])])
def test_rows_go_in_chunks_in_their_order(count: int, parts: list[int]) -> None:
    rows, engine = _rows(0, count, 30), Fake()
    assert run_blocks(engine, [rows]).tolist() == _expected(rows)
    assert [len(part["item"]) for part in engine.parts] == parts
    assert np.array_equal(np.concatenate([part["item"] for part in engine.parts]), rows["item"])


def _artifact(key: str) -> Artifact:
    return Artifact(key, f"{key}/model.onnx", {}, 4321, 0.0)


class Judged:
    """Quality by engines that blur the true scores: the baseline's file not at all, the others by seat."""

    def __init__(self, folder: Path, holdout: Path, monkeypatch: pytest.MonkeyPatch, blur: Mapping[str, float]) -> None:
        self.cache, self.holdout, self.blur = folder / "cache", holdout, blur
        self.opened: list[tuple[InstanceGroup, EmbeddingDevice | None]] = []
        monkeypatch.setattr(judging, "open_replica", self._open)

    def _open(self, file: Path, instance_group: InstanceGroup, lookup: EmbeddingDevice | None, compute: str) -> Any:
        self.opened.append((instance_group, lookup))
        blur = 0.0 if file.parent.name == "base" else self.blur[instance_group.engine]
        return SimpleNamespace(once=frozenset(), run=lambda inputs: self.scores(inputs["item"], blur))

    def scores(self, item: NDArray[np.int64], blur: float) -> NDArray[np.float32]:
        noise = np.random.default_rng(7).normal(size=len(item))
        return (WEIGHTS[item] + blur * noise).astype(np.float32)

    def __call__(self, placement: Placement) -> EvaluateResponse:
        ours = Deployment(_artifact("ours"), "ours/model.onnx", placement, "fp32")
        base = Deployment(_artifact("base"), "base/model.onnx", Placement(), "fp32")
        scores = ScoreRequest(ours, base, str(self.cache), str(self.holdout), "validation")
        return evaluate(EvaluateRequest(scores, "auc", 0, 0.95))

    def loss(self, blur: float) -> float:
        held = read_held_out(self.holdout, "validation")
        item, labels = held.inputs[0]["item"], held.labels
        auc, base = (roc_auc_score(labels, self.scores(item, b)) for b in (blur, 0.0))
        return float((base - auc) / base)


ROUTED = Placement(
    InstanceGroup(threads=1, replicas=2), route=Route(100, InstanceGroup("openvino", threads=2)), user_once=False
)


@pytest.mark.parametrize("blur", [{"onnxruntime": 0.2, "openvino": 2.0}, {"onnxruntime": 2.0, "openvino": 0.2}])
def test_of_two_engines_the_one_that_loses_more_speaks_for_both(
    blur: Mapping[str, float], tmp_path: Path, holdout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = Judged(tmp_path, holdout, monkeypatch, blur)
    response = judged(ROUTED)
    quality = response.quality
    assert quality.loss == pytest.approx(judged.loss(2.0), abs=1e-9)
    assert quality.loss > judged.loss(0.2)
    assert not response.reused
    assert (quality.rows, quality.groups) == (ROWS, 40)


def test_scores_depend_on_the_seats_engines_alone_and_are_kept(
    tmp_path: Path, holdout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = Judged(tmp_path, holdout, monkeypatch, {"onnxruntime": 0.2, "openvino": 2.0})
    first = judged(ROUTED)
    one_replica = {InstanceGroup(), InstanceGroup("openvino")}
    assert len(judged.opened) == 3 and {instance_group for instance_group, _ in judged.opened} == one_replica
    again = judged(replace(ROUTED, instance_group=InstanceGroup(threads=2), split_rows=None))
    assert again.reused and again.quality == first.quality
    assert len(judged.opened) == 3, "layouts change no score"
    alone = judged(Placement(batching=Batching(64)))
    assert alone.reused and alone.quality.loss == pytest.approx(judged.loss(0.2), abs=1e-9)
    judged(Placement(embedding_device=EmbeddingDevice("openvino")))
    assert judged.opened[3:] == [(InstanceGroup(), EmbeddingDevice("openvino"))]


def test_the_baseline_loses_nothing_against_itself(
    tmp_path: Path, holdout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quality = Judged(tmp_path, holdout, monkeypatch, {"onnxruntime": 0.0})(Placement()).quality
    assert quality.loss == 0 and quality.loss_interval == (0, 0)


def _warmed(sizes: Sequence[int], placement: Placement) -> list[int]:
    seen: list[int] = []

    def submit(request: Mapping[str, Any]) -> Any:
        seen.append(len(request["item"]))
        return SimpleNamespace(finished_ns=0, result=lambda: None)

    warm_up(submit, [{"item": np.zeros(rows)} for rows in sizes], placement)
    return seen


SIZES = [7, 3, *range(60, 0, -1), 9, *range(1, 30)]


def test_the_largest_requests_come_first_and_a_few_sizes_are_enough() -> None:
    assert _warmed(SIZES, Placement()) == list(range(60, 0, -3))
    assert _warmed([5, 1, 5, 9], Placement()) == [9, 5, 1]


@pytest.mark.parametrize(
    "placement",
    [
        Placement(InstanceGroup("openvino")),
        Placement(InstanceGroup(device="tensorrt")),
        Placement(InstanceGroup(device="tensorrt:1")),
        Placement(embedding_device=EmbeddingDevice("openvino")),
        Placement(embedding_device=EmbeddingDevice("onnxruntime", "tensorrt")),
    ],
)
def test_an_engine_that_prepares_by_size_gets_every_size_once(placement: Placement) -> None:
    assert _warmed(SIZES, placement) == list(range(60, 0, -1))


def test_the_row_that_keeps_an_engine_warm_is_among_the_sizes() -> None:
    warm = Placement(InstanceGroup("openvino"), keep_warm_ms=2.0)
    assert _warmed([4, 8], warm) == [8, 4, 1] and _warmed([8, 1], warm) == [8, 1]


def test_every_replica_is_warmed() -> None:
    assert _warmed([4, 8], Placement(InstanceGroup(replicas=3, threads=1))) == [8, 8, 8, 4, 4, 4]
    routed = Placement(route=Route(5, InstanceGroup("openvino", replicas=2, threads=1)))
    assert _warmed([4, 8], routed) == [8, 8, 8, 4, 4, 4]
    assert len(_warmed(SIZES, routed)) == 3 * 60, "one seat that prepares by size is enough"


def test_what_was_changed_while_the_clock_ran_is_put_back() -> None:
    before = sys.getswitchinterval()
    with pytest.raises(ZeroDivisionError), quiet():
        assert sys.getswitchinterval() == pytest.approx(5e-5)
        assert not gc.isenabled()
        raise ZeroDivisionError
    assert sys.getswitchinterval() == pytest.approx(before)
    assert gc.isenabled()


LOAD = Load(Traffic(), 0.5, 95, None)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the loops."""
    monkeypatch.setattr(throughput, "_CAPACITY_SECONDS", 0.01)
    monkeypatch.setattr(throughput, "_PROBE_SECONDS", 0.01)


SMALL = Window(blocks=20, requests=7, service_requests=1, probe_requests=140, patience_seconds=1.0)


class Heard:
    """Progress that is kept."""

    def __init__(self) -> None:
        self.lines, self.parts = list[str](), 0

    def __call__(self, line: str) -> None:
        self.lines.append(line)

    def next_part(self) -> None:
        self.parts += 1


def _time(
    holdout: Path,
    candidate: Deployment,
    recording: Path,
    baseline: Deployment | None = None,
    load: Load = LOAD,
    window: Window = SMALL,
) -> tuple[Latency, Throughput]:
    """Benchmark a deployment beside the baseline, by default itself."""
    request = BenchmarkRequest(
        holdout=str(holdout),
        candidate=candidate,
        baseline=baseline or candidate,
        load=load,
        window=window,
        seed=5,
        recording=str(recording),
        weighed=False,
    )
    heard = Heard()
    found = timing.benchmark(request, heard)
    visits = window.visits if window.visits > 1 else 0
    assert [line.partition(",")[0] for line in heard.lines] == [
        f"timing: visit {n + 1} of {visits}" for n in range(visits)
    ]
    # Both are opened, in each turn there is a block of each, each burst, and each rate that is tried.
    assert heard.parts >= window.visits * 2 * (1 + window.blocks + throughput.BURSTS + window.probes)
    assert found.footprint == Footprint(4321), "nothing but the file's size"
    return found.latency, found.throughput


@pytest.mark.slow
@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("slo_ms", [None, 50.0])
def test_a_real_model_is_timed_beside_itself(model: Path, holdout: Path, tmp_path: Path, slo_ms: float | None) -> None:
    deployment, recording = (
        Deployment(_artifact("ours"), str(model), ONE_THREAD, "fp32"),
        tmp_path / "timings" / "3.npz",
    )
    load, window = replace(LOAD, slo_ms=slo_ms), SMALL if slo_ms is None else replace(SMALL, visits=2)
    latency, found = _time(holdout, deployment, recording, load=load, window=window)
    assert latency.requests == 7 * latency.blocks and latency.blocks >= 20
    assert latency.pairs == latency.blocks + latency.repeated_blocks
    assert 0 < latency.candidate.p50_ms <= latency.candidate.p95_ms
    assert latency.candidate.refused_share == latency.baseline.refused_share == 0
    assert 0 < found.rps <= found.capacity_rps and 0 < found.baseline_rps <= found.baseline_capacity_rps
    kept = read_recording(recording)
    baseline = kept.visits[0].timings.kept().baseline
    twice = 2 * np.percentile(baseline, 95, method="inverted_cdf")
    assert found.slo_ms == pytest.approx(twice if slo_ms is None else slo_ms)
    assert kept.summarize() == (latency, found), "the same numbers again from the file"
    assert baseline.shape[1] == 7
    assert len(kept.visits[0].candidate.probes) >= 4 and len(kept.visits[0].baseline.probes) >= 4


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_visits_of_several_deployments_are_added_to_their_recordings(
    model: Path, holdout: Path, tmp_path: Path
) -> None:
    """Both deployments are beside the same baseline: its probes and bursts are the same in both recordings."""
    both = tuple(Deployment(_artifact(key), str(model), ONE_THREAD, "fp32") for key in ("ours", "others"))
    recordings = tuple(str(tmp_path / f"{number}.npz") for number in (3, 5))
    for number in range(2):
        asked = VisitRequest(str(holdout), both, both[0], LOAD, SMALL, 5, number, recordings)
        heard = Heard()
        assert timing.visit_together(asked, heard) == VisitResponse((number + 1, number + 1))
        assert heard.parts >= 3 * (1 + SMALL.blocks + throughput.BURSTS + SMALL.probes)
    ours, others = (read_recording(Path(path)) for path in recordings)
    assert len(ours.summarize()[0].p95_visits) == 2
    for one, other in zip(ours.visits, others.visits, strict=True):
        assert np.array_equal(one.baseline.capacity_rps, other.baseline.capacity_rps)
        assert not np.array_equal(one.candidate.capacity_rps, other.candidate.capacity_rps)
        assert np.array_equal(one.timings.baseline, other.timings.baseline)
        assert not np.array_equal(one.timings.candidate, other.timings.candidate)
        mine, theirs = ({probe.latency_ms.tobytes() for probe in each.baseline.probes} for each in (one, other))
        assert len(mine & theirs) >= SMALL.probes
    schedules = [visit.timings.candidate[0].tolist() for visit in ours.visits]
    assert schedules[0] != schedules[1]


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="CUDA is here")
def test_a_provider_that_is_missing_is_an_error(model: Path, holdout: Path, tmp_path: Path) -> None:
    ours = Deployment(_artifact("ours"), str(model), Placement(InstanceGroup(device="cuda")), "fp32")
    recording = tmp_path / "3.npz"
    with pytest.raises(EngineError, match="asked for CUDAExecutionProvider"):
        _time(holdout, ours, recording, Deployment(_artifact("ours"), str(model), ONE_THREAD, "fp32"))
    assert not recording.exists()


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.mark.usefixtures("importable")
def test_a_real_model_is_weighed_in_a_process_of_its_own(model: Path, holdout: Path) -> None:
    found = weigh(holdout, Deployment(_artifact("ours"), str(model), ONE_THREAD, "fp32"))
    assert found.model_bytes == 4321
    assert found.peak_memory_bytes is not None and 10_000_000 < found.peak_memory_bytes < 2_000_000_000
    assert found.cpu_seconds_per_1000 is not None and 0 < found.cpu_seconds_per_1000 < 10


@pytest.mark.usefixtures("importable")
def test_what_goes_wrong_in_that_process_is_one_line(model: Path, holdout: Path) -> None:
    gone = Deployment(_artifact("ours"), str(model.with_name("gone.onnx")), ONE_THREAD, "fp32")
    with pytest.raises(RuntimeError, match=r"EngineError: .*gone\.onnx") as caught:
        weigh(holdout, gone)
    assert len(str(caught.value).splitlines()) == 1


def test_a_process_that_says_nothing_is_an_error_by_its_status(holdout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = SimpleNamespace(returncode=-9, stdout="", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(RuntimeError, match="status -9"):
        weigh(holdout, Deployment(_artifact("ours"), "model.onnx", ONE_THREAD, "fp32"))


def test_that_process_is_told_all_that_it_needs(holdout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def run(command: Sequence[str], input: str, **_: Any) -> Any:
        asked.append(input)
        return SimpleNamespace(returncode=0, stdout='{"peak_memory_bytes": 5, "cpu_seconds_per_1000": 0.5}', stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    deployment = Deployment(_artifact("ours"), "model.onnx", ROUTED, "fp32")
    found = weigh(holdout, deployment)
    assert (found.model_bytes, found.peak_memory_bytes, found.cpu_seconds_per_1000) == (4321, 5, 0.5)
    told = json.loads(asked[0])
    assert told["holdout"] == str(holdout)
    assert from_plain(Deployment, told["deployment"]) == deployment


@pytest.mark.parametrize("number", [0, 1])
def test_the_pace_of_a_visit_is_that_of_the_baseline(
    model: Path, holdout: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The baseline is the last side, whichever is opened first."""
    ours, theirs = (
        Deployment(_artifact(key), str(model), placement, "fp32")
        for key, placement in (("ours", Placement(InstanceGroup(threads=2))), ("theirs", ONE_THREAD))
    )
    given: list[Any] = []

    @contextmanager
    def pace_target(baseline: Deployment, requests: object, beside: LiveTarget) -> Iterator[str]:
        given.append(baseline)
        yield "pace"

    monkeypatch.setattr(timing, "open_pace_target", pace_target)
    monkeypatch.setattr(timing, "measure_visit", lambda targets, *asked: given.append(asked[0]) or ())
    timing._visit((ours, theirs), read_requests(holdout), LOAD, SMALL, 0, number, UNHEARD)
    assert given == [theirs, "pace"]


def test_a_timing_that_cannot_be_judged_leaves_the_former_recording(
    model: Path, holdout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def summarize(self: Recording, noise: object) -> None:
        raise NotFiniteError("a percentile is infinite")

    deployment, recording = Deployment(_artifact("ours"), str(model), ONE_THREAD, "fp32"), tmp_path / "3.npz"
    recording.write_bytes(b"the first look")
    monkeypatch.setattr(timing, "measure_visit", lambda *asked: (None,))
    monkeypatch.setattr(Recording, "summarize", summarize)
    with pytest.raises(NotFiniteError):
        _time(holdout, deployment, recording)
    assert recording.read_bytes() == b"the first look"
