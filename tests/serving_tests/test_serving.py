"""Every engine of this machine under one contract, the pool, and bundles that are whole or refused."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from objectives.record import InputSpec
from objectives.serving.bundle import BundleError, read_bundle, verify, write_bundle
from objectives.serving.devices import computes_bf16, cores_allowed, engines_here
from objectives.serving.engines import EngineError, open_engine
from objectives.serving.pool import Pool
from spaces.candidate import Candidate
from spaces.placement import Placement

ROOT = Path(__file__).resolve().parents[2]
TABLE = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
WEIGHT = np.random.default_rng(1).normal(size=(4,)).astype(np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scores = table[item] @ weight, in plain ONNX."""
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "item"], ["rows"]),
            helper.make_node("MatMul", ["rows", "w"], ["scores"]),
        ],
        "dot",
        [helper.make_tensor_value_info("item", TensorProto.INT64, ["rows"])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows"])],
        [numpy_helper.from_array(TABLE, "table"), numpy_helper.from_array(WEIGHT, "w")],
    )
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


@pytest.mark.parametrize("name", engines_here())
class TestEngineContract:
    """What every engine owes."""

    @pytest.mark.parametrize("rows", [1, 2, 7, 64, 257])
    def test_scores_any_number_of_rows(self, name: str, model: Path, rows: int) -> None:
        items = np.arange(rows, dtype=np.int64) % 30
        scores = open_engine(name, model, threads=1).run({"item": items})
        assert scores.shape == (rows,)
        assert scores.dtype == np.float32
        assert np.allclose(scores, TABLE[items] @ WEIGHT, atol=1e-5)

    def test_an_answer_is_not_overwritten_by_the_next(self, name: str, model: Path) -> None:
        engine = open_engine(name, model)
        first = engine.run({"item": np.array([1, 2], dtype=np.int64)})
        copy = first.copy()
        engine.run({"item": np.array([3, 4], dtype=np.int64)})
        assert np.array_equal(first, copy)

    def test_an_unknown_device_is_refused(self, name: str, model: Path) -> None:
        with pytest.raises(EngineError, match="npu"):
            open_engine(name, model, device="npu")


def test_unknown_engines_and_widths_are_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="tensorflow"):
        open_engine("tensorflow", model)
    with pytest.raises(EngineError, match="fp32"):
        open_engine("onnxruntime", model, compute="bf16")
    monkeypatch.setattr("objectives.serving.engines.engines_here", lambda: ("onnxruntime",))
    with pytest.raises(EngineError, match=r"pip install 'leanrec\[openvino\]'"):
        open_engine("openvino", model)


@pytest.mark.skipif("openvino" not in engines_here() or not computes_bf16(), reason="no OpenVINO on a bf16 CPU here")
def test_openvino_computes_in_the_width_it_is_asked_for(model: Path) -> None:
    items = {"item": np.arange(30, dtype=np.int64)}
    exact = TABLE @ WEIGHT
    assert np.allclose(open_engine("openvino", model).run(items), exact, atol=1e-5)
    assert np.allclose(open_engine("openvino", model, compute="bf16").run(items), exact, atol=0.1)


class Slow:
    """An engine that counts who runs it and can be held."""

    def __init__(self) -> None:
        self.gate, self.served, self.running, self.most = threading.Event(), 0, 0, 0

    def run(self, inputs: Mapping[str, Any]) -> Any:
        self.running += 1
        self.most = max(self.most, self.running)
        self.gate.wait(5)
        self.running -= 1
        self.served += 1
        return np.asarray(inputs["item"], dtype=np.float32)


def test_the_pool_gives_each_its_own_answer_from_several_threads(model: Path) -> None:
    with Pool.open(model, Placement(replicas=2, threads=1)) as pool:
        wrong: list[int] = []

        def ask(seed: int) -> None:
            for items in np.random.default_rng(seed).integers(0, 30, size=(50, 6)):
                scores = pool.submit({"item": items}).result(timeout=10)
                if not np.allclose(scores, TABLE[items] @ WEIGHT, atol=1e-5):
                    wrong.append(seed)

        askers = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
    assert not wrong


def test_requests_go_to_the_least_loaded_replica() -> None:
    engines = [Slow(), Slow(), Slow()]
    with Pool(engines) as pool:
        answers = [pool.submit({"item": np.array([i])}) for i in range(6)]
        engines[0].gate.set()
        for answer in (answers[0], answers[3]):
            answer.result(timeout=5)
        answers += [pool.submit({"item": np.array([9])}) for _ in range(2)]
        for answer in answers[6:]:
            answer.result(timeout=5)
        for engine in engines:
            engine.gate.set()
    assert [e.served for e in engines] == [4, 2, 2]
    assert all(e.most == 1 for e in engines), "one replica runs one request at a time"


def test_an_error_reaches_its_caller_and_the_replica_lives_on(model: Path) -> None:
    with Pool.open(model, Placement()) as pool:
        with pytest.raises(Exception, match="item"):
            pool.submit({"nothing": np.array([1])}).result(timeout=5)
        before = time.perf_counter_ns()
        answer = pool.submit({"item": np.array([1])})
        assert answer.result(timeout=5).shape == (1,)
        assert before < answer.finished_ns < time.perf_counter_ns()
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit({"item": np.array([1])})


def test_cores_are_those_of_the_affinity_mask() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from objectives.serving.devices import cores_allowed; print(cores_allowed())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
    assert cores_allowed() >= 1


@pytest.fixture
def bundle(model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    inputs = (InputSpec("item", "int64", (), 30),)
    example = {"item": np.arange(5, dtype=np.int64)}
    write_bundle(folder, "toy", model, Candidate(), {"p95_ratio": 0.2}, inputs, "# toy\n", example)
    return folder


def test_a_bundle_serves_what_it_was_verified_with(bundle: Path) -> None:
    found, difference = verify(bundle)
    assert (found.name, found.inputs[0].vocabulary, difference) == ("toy", 30, 0.0)
    with found.open() as pool:
        assert pool.submit({"item": np.array([7])}).result(timeout=5) == pytest.approx(TABLE[7] @ WEIGHT, abs=1e-5)


@pytest.mark.parametrize("file", ["model.onnx", "candidate.json", "measurement.json", "README.md"])
def test_a_changed_or_missing_file_is_refused(bundle: Path, file: str) -> None:
    data = (bundle / file).read_bytes()
    (bundle / file).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BundleError, match=file):
        read_bundle(bundle)
    (bundle / file).unlink()
    with pytest.raises(BundleError, match=file):
        read_bundle(bundle)


def test_other_scores_are_refused(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["example"]["scores"][2] += 0.01
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"differ by 0\.01"):
        verify(bundle)


def test_somebody_elses_folder_is_left_alone(model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(BundleError, match="no bundle"):
        write_bundle(tmp_path, "toy", model, Candidate(), {}, (), "", {"item": np.arange(2)})
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_a_light_install_verifies_and_serves(bundle: Path) -> None:
    """Only what pyproject's plain dependencies bring can be imported, as after `pip install leanrec`."""
    needed: set[str] = set()
    waiting = ["numpy", "onnxruntime"]
    while waiting:
        name = waiting.pop()
        if name.lower() not in needed:
            needed.add(name.lower())
            for requirement in distribution(name).requires or []:
                if "extra ==" not in requirement:
                    waiting.append(
                        requirement.split(";")[0]
                        .split("[")[0]
                        .split("=")[0]
                        .strip("<>!~ ")
                        .split(">")[0]
                        .split("<")[0]
                        .strip()
                    )
    tops = {t for n in needed for t in (distribution(n).read_text("top_level.txt") or n).split()}
    tops |= {"google", "coloredlogs", "humanfriendly", "flatbuffers", "packaging", "sympy", "mpmath"}
    code = f"""
import sys
allowed = {sorted(tops)!r} + ["leanrec", "search", "spaces", "objectives"]
class Light:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top not in sys.stdlib_module_names and top not in allowed and not top.startswith("_"):
            raise ModuleNotFoundError(f"No module named {{top!r}}", name=top)
sys.meta_path.insert(0, Light())
sys.argv = ["leanrec", "verify", {str(bundle)!r}]
import leanrec
status = leanrec.main()
heavy = [m for m in ("torch", "optuna", "mlflow", "plotly", "pydantic", "rich") if m in sys.modules]
print("status", status, heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "status 0 []", done.stdout + done.stderr
