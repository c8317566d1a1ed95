"""The doctor names what is missing, its cost and its remedy; a bare installation is a finding, not a crash."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from objectives.measurement.profile import shared_cores
from objectives.measurement.statistics import Floats
from objectives.serving import devices
from objectives.serving.devices import Gpu
from search.cli import doctor
from search.cli.doctor import PACKAGES, BusyCores, Diagnosis, diagnose, lines, measure_cores, tables, why_fewer
from spaces.serialization import to_plain

ROOT = Path(__file__).resolve().parents[2]
EVERY_FEATURE = devices.FEATURES


def lost(diagnosis: Diagnosis, what: str) -> str:
    (lack,) = [lack for lack in diagnosis.lacks if lack.what == what]
    assert lack.remedy
    return lack.lost


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cores that do not slow one another down, which is measured in a test of its own."""
    monkeypatch.setattr(doctor, "measure_cores", lambda: BusyCores(2, 1.02, 1.05))


def whats(diagnosis: Diagnosis) -> set[str]:
    return {lack.what for lack in diagnosis.lacks}


def test_the_packages_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {"": project["dependencies"], **project["optional-dependencies"]}
    names = {extra: tuple(re.split(r"[<>=\[;! ]", r)[0] for r in required) for extra, required in asked.items()}
    del names["docs"], names["test"], names["foreign"]
    assert {extra: set(found) for extra, found in PACKAGES.items()} == {e: set(n) for e, n in names.items()}


def test_this_machine_is_told_as_it_is(tmp_path: Path) -> None:
    found = diagnose(tmp_path / "not" / "yet")
    assert found.python == ".".join(map(str, sys.version_info[:3]))
    assert found.versions["numpy"] == version("numpy")
    assert found.cores_machine == os.cpu_count()
    assert 1 <= found.cores_allowed <= found.cores_machine
    assert set(found.features) | set(found.features_missing) == set(devices.FEATURES)
    assert not set(found.features) & set(found.features_missing)
    assert "cpu" in found.engines[0].offers
    assert found.disk_free_bytes > 0
    assert not (tmp_path / "not").exists()


def test_cores_that_share_a_physical_core_are_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    what = "a physical core for each core"
    found = diagnose(tmp_path)
    assert what not in whats(found) and "1.02 times as long" in "\n".join(lines(found))
    monkeypatch.setattr(doctor, "measure_cores", lambda: BusyCores(2, 1.1, 1.9))
    found = diagnose(tmp_path)
    assert "intervals are wide" in lost(found, what) and "1.90 times or more in a tenth" in "\n".join(lines(found))


def test_where_cores_cannot_be_measured_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """One core, a system that keeps no thread on a core, one that forbids it, and a machine that stood still."""
    with monkeypatch.context() as patch:
        patch.setattr(devices, "core_ids", lambda: (0,))
        assert measure_cores() is None
    monkeypatch.setattr(devices, "core_ids", lambda: (0, 1))
    monkeypatch.setattr(devices, "cores_allowed", lambda: 2)
    with monkeypatch.context() as patch:
        patch.delattr(os, "sched_setaffinity", raising=False)
        assert measure_cores() is None

    def forbidden(cores: tuple[int, ...]) -> Floats:
        raise PermissionError("not here")

    def still(cores: tuple[int, ...]) -> Floats:
        raise ValueError("no time")

    for found in (forbidden, still, lambda cores: np.array([])):
        monkeypatch.setattr(shared_cores, "slowdown_together", found)
        assert measure_cores() is None
    monkeypatch.setattr(shared_cores, "slowdown_together", lambda cores: np.array([1.0] * 8 + [2.0] * 3))
    assert measure_cores() == BusyCores(2, 1.0, 2.0)


@pytest.mark.parametrize(
    ("machine", "affinity", "quota", "words"),
    [
        (8, 8, None, None),
        (8, 8, 8.0, None),
        (8, 3, None, ["affinity", "3"]),
        (8, 8, 1.5, ["quota", "1.5"]),
        (8, 3, 2.0, ["affinity", "3", "quota", "2"]),
    ],
)
def test_why_fewer_cores(machine: int, affinity: int, quota: float | None, words: list[str] | None) -> None:
    said = why_fewer(machine, affinity, quota)
    assert (said is None) == (words is None)
    assert all(word in (said or "") for word in words or [])


@pytest.mark.parametrize(
    ("features", "missing", "there"),
    [
        (EVERY_FEATURE, set(), {"AVX-512", "VNNI", "AVX-512 BF16 or AMX", "AMX"}),
        (("avx2",), {"AVX-512", "VNNI", "AVX-512 BF16 or AMX", "AMX"}, set()),
        (("avx2", "avx_vnni"), {"AVX-512", "AVX-512 BF16 or AMX", "AMX"}, {"VNNI"}),
        (("avx512f", "avx512_vnni", "avx512_bf16"), {"AMX"}, {"AVX-512", "VNNI", "AVX-512 BF16 or AMX"}),
    ],
)
def test_features_are_missed_only_where_no_other_does_their_work(
    features: tuple[str, ...], missing: set[str], there: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "cpu_features", lambda: features)
    found = whats(diagnose(tmp_path))
    assert missing <= found
    assert not there & found


def test_the_search_says_what_it_loses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cpu_features", tuple)
    monkeypatch.setattr(devices, "cores_allowed", lambda: 1)
    monkeypatch.setattr(doctor, "_browser", lambda: None)
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in ("torch", "kaleido") else "1")
    found = diagnose(tmp_path)
    assert lost(found, "AVX-512 BF16 or AMX").startswith("bf16 ")
    assert "layout" in lost(found, "a second core")
    assert "--png" in lost(found, "Chrome or Chromium")
    assert "--png" in lost(found, "kaleido")
    assert "no study" in lost(found, "torch")


class TestAccelerators:
    """GPUs and builds, imitated."""

    @pytest.fixture(autouse=True)
    def machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(devices, "engine_version", lambda _: "1.0")
        self.found(monkeypatch, (), ("CPUExecutionProvider",), ("CPU",))

    def found(
        self, patch: pytest.MonkeyPatch, gpus: tuple[Gpu, ...], providers: tuple[str, ...], openvino: tuple[str, ...]
    ) -> None:
        patch.setattr(devices, "nvidia_gpus", lambda: gpus)
        patch.setattr(devices, "held_by", {"onnxruntime": providers, "openvino": openvino}.__getitem__)

    def test_no_gpu_at_all(self, tmp_path: Path) -> None:
        found = diagnose(tmp_path)
        assert lost(found, "an NVIDIA GPU, for CUDA").startswith("the device cuda ")
        assert "gpu" in lost(found, "a GPU that openvino knows")

    def test_a_gpu_without_the_build_for_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found(monkeypatch, (Gpu("NVIDIA L4", 23034 * 2**20),), ("CPUExecutionProvider",), ("CPU",))
        found = diagnose(tmp_path)
        (lack,) = [lack for lack in found.lacks if lack.what == "CUDA in onnxruntime"]
        assert "onnxruntime-gpu" in lack.remedy
        assert any("NVIDIA L4 (24.2 GB)" in line for line in lines(found))

    def test_everything(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        providers = tuple(f"{kind}ExecutionProvider" for kind in ("Tensorrt", "CUDA", "CPU"))
        self.found(monkeypatch, (Gpu("NVIDIA L4", None),), providers, ("CPU", "GPU.0", "GPU.1"))
        found = diagnose(tmp_path)
        offers = {engine.name: engine.offers for engine in found.engines}
        assert offers["onnxruntime"] == ("cpu", "cuda", "tensorrt") and offers["openvino"] == ("cpu", "gpu.0", "gpu.1")
        assert not {what for what in whats(found) if "GPU" in what or "CUDA" in what or "TensorRT" in what}

    def test_an_engine_that_does_not_load_is_a_finding(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(engine: str) -> tuple[str, ...]:
            if engine == "openvino":
                raise ImportError("libtbb.so.12:\n cannot open")
            return ("CPUExecutionProvider",)

        monkeypatch.setattr(devices, "held_by", broken)
        found = diagnose(tmp_path)
        assert {engine.name: engine.error for engine in found.engines}["openvino"] == "libtbb.so.12: cannot open"
        assert "libtbb" in lost(found, "openvino that loads")
        assert "a GPU that openvino knows" not in whats(found)


def test_each_rendering_holds_every_finding(tmp_path: Path) -> None:
    found = diagnose(tmp_path)
    plain = json.loads(json.dumps(to_plain(found), allow_nan=False))
    assert plain["cores_allowed"] == found.cores_allowed
    assert [lack["what"] for lack in plain["lacks"]] == [lack.what for lack in found.lacks]
    console = Console(width=400, record=True, file=io.StringIO())
    for table in tables(found):
        console.print(table)
    drawn, said = console.export_text(), "\n".join(lines(found))
    for text in (drawn, said):
        assert found.cpu in text
        for lack in found.lacks:
            assert lack.what in text
            assert lack.lost in text
            assert lack.remedy in text


def test_a_bare_installation_is_a_finding(tmp_path: Path) -> None:
    """Nothing but the standard library can be imported, and no distribution is found."""
    code = f"""
import importlib.metadata, sys
from pathlib import Path
class Bare:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top not in sys.stdlib_module_names and top not in ("search", "spaces", "objectives"):
            raise ModuleNotFoundError(f"No module named {{top!r}}", name=top)
def nothing(name):
    raise importlib.metadata.PackageNotFoundError(name)
importlib.metadata.version = nothing
sys.meta_path.insert(0, Bare())
from search.cli.doctor import diagnose, lines
print("\\n".join(lines(diagnose(Path({str(tmp_path)!r})))))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words in ("missing: numpy, onnxruntime", "leanrec[study]", "leanrec[openvino]", "not installed"):
        assert words in done.stdout


def test_torch_is_not_loaded(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from search.cli import doctor; doctor.measure_cores = lambda: None\n"
    code += "doctor.diagnose(Path(sys.argv[1]))\n"
    code += "print([m for m in ('torch', 'optuna', 'mlflow', 'plotly') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
