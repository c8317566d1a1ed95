"""Bundles are whole or refused."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from objectives.int8_weights import WEIGHT_BITS, Int8WeightBits
from objectives.records import InputSpec
from objectives.serving import bundle as bundles
from objectives.serving import devices, engines
from objectives.serving.bundle import read_bundle, verify, write_bundle
from objectives.serving.bundle_files import BundleError
from objectives.serving.pool import pool as pools
from spaces.candidate import Candidate
from spaces.techniques.placement import Admission, InstanceGroup, Placement, Route
from tests.serving_tests.dot import TABLE, WEIGHT, write_dot
from tests.serving_tests.test_tampering import sign

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dot(tmp_path_factory.mktemp("model") / "model.onnx")


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


def test_every_engine_of_a_bundle_is_verified(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of more than 50 rows go to an engine that the example of 5 rows does not reach, and that is wrong here.

    A deadline that no request keeps refuses neither the example nor the bundle.
    """
    placement = Placement(
        InstanceGroup(threads=1), route=Route(50, InstanceGroup(threads=2)), admission=Admission(deadline_ms=1e-6)
    )
    folder, inputs = tmp_path / "bundle", (InputSpec("item", "int64", (), 30),)
    example = {"item": np.arange(5, dtype=np.int64)}
    write_bundle(folder, "toy", model, Candidate(placement=placement), {}, inputs, "# toy\n", example)
    assert verify(folder)[1] == 0.0
    opened = pools.open_replica

    def wrong(path: Path, group: InstanceGroup, *rest: Any) -> Any:
        engine = opened(path, group, *rest)
        return engine if group.threads == 1 else SimpleNamespace(run=lambda inputs: engine.run(inputs) + 1)

    monkeypatch.setattr(pools, "open_replica", wrong)
    with pytest.raises(BundleError, match="bundle here"):
        verify(folder)


@pytest.mark.parametrize("file", ["model.onnx", "candidate.json", "measurement.json", "README.md"])
def test_a_changed_or_missing_file_is_refused(bundle: Path, file: str) -> None:
    data = (bundle / file).read_bytes()
    (bundle / file).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BundleError, match=file):
        read_bundle(bundle)
    (bundle / file).unlink()
    with pytest.raises(BundleError, match=file):
        read_bundle(bundle)


def test_a_manifest_of_an_earlier_version_is_read_and_one_without_its_files_refused(bundle: Path) -> None:
    def drop_what_is_new(manifest: dict[str, Any]) -> None:
        manifest["format"] = 1
        del manifest["int8_weight_bits"], manifest["output"]["columns"], manifest["inputs"][0]["unseen"]

    sign(bundle, drop_what_is_new)
    (bundle / "manifest.sha256").unlink()
    assert verify(bundle)[0].slower_here is None
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["files"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="must be a bundle's manifest"):
        read_bundle(bundle)


def test_a_cpu_that_lacks_features_is_warned_of(bundle: Path) -> None:
    assert read_bundle(bundle).warnings == ()
    sign(bundle, lambda manifest: manifest["verified_on"]["features"].append("avx9000"))
    (warning,) = read_bundle(bundle).warnings
    assert "avx9000, which this CPU lacks" in warning


def test_other_scores_are_refused(bundle: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["example"]["scores"][2] += 0.01

    sign(bundle, change)
    with pytest.raises(BundleError, match=r"0\.01 .*verified on"):
        verify(bundle)


@pytest.mark.parametrize(("unit", "share", "refused"), [
    (1e-3, 0.01, True), (1e-3, 1e-5, False), (5e3, 0.01, True), (5e3, 1e-5, False),
])  # fmt: skip
def test_scores_are_compared_in_their_own_unit(
    unit: float, share: float, refused: bool, model: Path, tmp_path: Path
) -> None:
    """An error of a hundredth of the scores' spread is another model, whether it is 1e-5 or 50.

    An error of a hundred-thousandth is a kernel that adds in another order.
    """
    graph = onnx.load(str(model))
    (weight,) = (tensor for tensor in graph.graph.initializer if tensor.name == "w")
    weight.CopyFrom(numpy_helper.from_array(WEIGHT * np.float32(unit), "w"))
    onnx.save(graph, str(tmp_path / "model.onnx"))
    inputs, example = (InputSpec("item", "int64", (), 30),), {"item": np.arange(30, dtype=np.int64)}
    write_bundle(tmp_path / "bundle", "toy", tmp_path / "model.onnx", Candidate(), {}, inputs, "# toy\n", example)
    manifest = json.loads((tmp_path / "bundle/manifest.json").read_text())
    scores = np.array(manifest["example"]["scores"])
    assert scores.std() == pytest.approx((TABLE @ WEIGHT).std() * unit, rel=1e-5)
    changed = [score + (row == 4) * share * float(scores.std()) for row, score in enumerate(scores)]
    sign(tmp_path / "bundle", lambda manifest: manifest["example"].update(scores=changed))
    if refused:
        with pytest.raises(BundleError, match=r"0\.001 .*0\.01 "):
            verify(tmp_path / "bundle")
    else:
        assert verify(tmp_path / "bundle")[1] == pytest.approx(share, rel=0.2)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused(wrong: float, bundle: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["example"]["scores"][2] = wrong

    sign(bundle, change)
    with pytest.raises(BundleError, match="1 of 5"):
        verify(bundle)


def _int8_model(folder: Path, bits: int) -> Path:
    """Write a model of scores = table[item] @ weights.

    The product is in static int8 with weights of so many bits, codes at their ends.
    """
    largest = 2 ** (bits - 1) - 1
    codes = np.where(np.arange(64).reshape(32, 2) % 3 == 0, -largest, largest).astype(np.int8)
    table = np.abs(np.random.default_rng(2).normal(3, 1, size=(30, 32))).astype(np.float32)
    scalars = {"step": np.float32(6 / 255), "zero": np.uint8(0), "nought": np.int8(0), "scale": np.float32(1 / largest)}
    arrays = {"table": table, "codes": codes, **scalars, "column": np.array([0])}
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "item"], ["rows"]),
            helper.make_node("QuantizeLinear", ["rows", "step", "zero"], ["narrow"]),
            helper.make_node("DequantizeLinear", ["narrow", "step", "zero"], ["x"]),
            helper.make_node("DequantizeLinear", ["codes", "scale", "nought"], ["w"]),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
            helper.make_node("Gather", ["y", "column"], ["first"], axis=1),
            helper.make_node("Squeeze", ["first", "one"], ["scores"]),
        ],
        "int8",
        [helper.make_tensor_value_info("item", TensorProto.INT64, ["rows"])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows"])],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in (arrays | {"one": np.array([1])}).items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(made, {WEIGHT_BITS: str(bits)})
    onnx.save(made, str(folder / "model.onnx"))
    return folder / "model.onnx"


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("here", [7, 8])
def test_a_bundle_made_for_another_cpu_is_exact_or_refused(
    engine: str, bits: Int8WeightBits, here: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime's scores are those of kernels that do not saturate, and what is slower is said."""
    pytest.importorskip(engine)
    if engine == "onnxruntime" and here == bits > devices.int8_weight_bits():
        pytest.skip("this CPU saturates, and imitates none that does not")
    model, folder = _int8_model(tmp_path, bits), tmp_path / "bundle"
    inputs, example = (InputSpec("item", "int64", (), 30),), {"item": np.arange(5, dtype=np.int64)}
    # In kernels that are exact on any CPU, where there are some.
    for module in (bundles, engines):
        monkeypatch.setattr(module, "int8_weight_bits", lambda: 7 if engine == "onnxruntime" else 8)
    instance_group = Candidate(placement=Placement(InstanceGroup(engine, "cpu")))
    write_bundle(folder, "toy", model, instance_group, {}, inputs, "", example, weight_bits=bits)
    for module in (bundles, engines):
        monkeypatch.setattr(module, "int8_weight_bits", lambda: here)
    assert read_bundle(folder).manifest.int8_weight_bits == bits
    if engine == "openvino" and bits > here:
        with pytest.raises(BundleError, match=r"7 bits .* 8; .*leanrec build"):
            verify(folder)
        return
    found, difference = verify(folder)
    assert difference < 1e-3
    assert (found.slower_here is None) == (bits <= here)


def test_a_bundle_that_cannot_be_replaced_stays(bundle: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new bundle cannot take the old one's place; nor is anything lost where a kill came between."""
    before, rename = read_bundle(bundle).manifest, Path.rename

    def refused(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise OSError("no space left on device")
        return rename(path, target)

    def again() -> None:
        inputs, example = (InputSpec("item", "int64", (), 30),), {"item": np.arange(3, dtype=np.int64)}
        write_bundle(bundle, "newer", model, Candidate(), {}, inputs, "# newer\n", example)

    with monkeypatch.context() as context, pytest.raises(OSError, match="no space"):
        context.setattr(Path, "rename", refused)
        again()
    assert read_bundle(bundle).manifest == before and [p.name for p in bundle.parent.iterdir()] == ["bundle"]
    bundle.rename(bundle.with_name(".bundle.old"))
    with monkeypatch.context() as context, pytest.raises(OSError, match="no space"):
        context.setattr(Path, "rename", refused)
        again()
    assert read_bundle(bundle).manifest == before
    again()
    assert read_bundle(bundle).name == "newer" and [p.name for p in bundle.parent.iterdir()] == ["bundle"]


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
allowed = {sorted(tops)!r} + ["leanrec", "search", "spaces", "objectives", "planning"]
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
