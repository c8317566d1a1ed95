"""Report of what this machine has and lacks for a study; works in a light install, where packages are missing."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from objectives.serving import devices
from objectives.serving.devices import ENGINES, HOW_TO_GET, Gpu

if TYPE_CHECKING:
    from rich.table import Table

BROWSERS = ("google-chrome", "google-chrome-stable", "chrome", "chromium", "chromium-browser")


@dataclass(frozen=True)
class Lack:
    """Something that is not here."""

    what: str
    lost: str
    remedy: str


@dataclass(frozen=True)
class EngineFound:
    """An engine found on this machine.

    holds: providers or devices of its build, by its own names
    offers: devices on which it can run here, by the names that an instance group takes
    error: the reason why an installed engine cannot be loaded
    """

    name: str
    version: str | None
    holds: tuple[str, ...]
    offers: tuple[str, ...]
    error: str | None = None


@dataclass(frozen=True)
class BusyCores:
    """Slowdown of cores that are busy together.

    cores: how many were measured
    median: how many times as long work took the slowest of them as it takes one alone
    slowest_tenth: the same, or more, in a tenth of the time
    """

    cores: int
    median: float
    slowest_tenth: float


@dataclass(frozen=True)
class Diagnosis:
    """The machine as a study would find it."""

    python: str
    system: str
    versions: Mapping[str, str | None]
    cpu: str
    cores_machine: int
    cores_allowed: int
    cores_why: str | None  # why fewer are allowed than the machine has
    features: tuple[str, ...]
    features_missing: tuple[str, ...]
    engines: tuple[EngineFound, ...]
    gpus: tuple[Gpu, ...]
    memory_available_bytes: int | None
    home: str
    disk_free_bytes: int
    browser: str | None
    busy_cores: BusyCores | None = None  # None where it cannot be measured
    lacks: tuple[Lack, ...] = ()


# Packages by the extra of leanrec that brings them, as pyproject.toml has them, and what is lost without them.
PACKAGES: Mapping[str, tuple[str, ...]] = {
    "": ("numpy", "onnxruntime"),
    "study": (
        "torch", "torchao", "onnx", "onnx-ir", "onnxscript", "polars", "scipy", "scikit-learn", "threadpoolctl",
        "optuna", "mlflow", "sqlalchemy", "plotly", "jinja2", "pandas", "pydantic", "ruamel.yaml", "pyyaml", "rich",
    ),
    "serve": ("uvicorn", "httptools", "uvloop", "prometheus-client"),
    "dashboard": ("optuna-dashboard",),
    "plan": ("statsmodels",),
    "openvino": ("openvino",),
    "png": ("kaleido",),
}  # fmt: skip
_LOST_PACKAGES: Mapping[str, str] = {
    "": "no bundle can be verified or served, and nothing measured",
    "study": "no study can be run; bundles can be verified and served",
    "serve": "leanrec serve answers no requests over HTTP, and nothing is measured through it",
    "dashboard": "leanrec ui --optuna shows no dashboard",
    "plan": "leanrec plan makes no forecast",
    "openvino": "the engine openvino, often the faster for large fp32 requests, and bf16 are not offered",
    "png": "report --png draws no picture",
}
# From this factor on, cores that are busy together are likely to share a physical core.
_SHARED = 1.4
# Most cores that are kept busy at once.
_MOST_CORES = 8
# CPU features of which one is enough, what they are called, and what is lost without any.
_FEATURES: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("avx512f",), "AVX-512", "kernels compute 8 numbers at a time, not 16"),
    (
        ("avx512_vnni", "avx_vnni", "amx_int8"),
        "VNNI",
        "int8 saves less time, and its weights have 7 bits instead of 8, with which sums do not saturate",
    ),
    (("avx512_bf16", "amx_bf16"), "AVX-512 BF16 or AMX", "bf16 is not offered"),
    (("amx_tile",), "AMX", "int8 and bf16 are multiplied by vectors, not by tiles: large requests gain less"),
)


def diagnose(home: Path) -> Diagnosis:
    """Diagnose the machine for a home that need not exist yet.

    Loads the engines, and no other heavy package, and keeps cores busy for some seconds.
    """
    features, machine = devices.cpu_features(), os.cpu_count() or 1
    found = Diagnosis(
        python=platform.python_version(),
        system=platform.platform(),
        versions={name: _version(name) for names in PACKAGES.values() for name in names},
        cpu=devices.cpu_model(),
        cores_machine=machine,
        cores_allowed=devices.cores_allowed(),
        cores_why=why_fewer(machine, len(devices.core_ids()), devices.cpu_quota()),
        features=features,
        features_missing=tuple(feature for feature in devices.FEATURES if feature not in features),
        engines=tuple(_engine(name) for name in ENGINES),
        gpus=devices.nvidia_gpus(),
        memory_available_bytes=devices.memory_available(),
        home=str(home),
        disk_free_bytes=_disk_free(home),
        browser=_browser(),
        busy_cores=measure_cores(),
    )
    return replace(found, lacks=tuple(_lacks(found)))


def measure_cores() -> BusyCores | None:
    """Measure how much busy cores slow one another down, for some seconds.

    Returns None where there is one core, the system keeps no thread on a core, or NumPy is missing.
    """
    try:
        import numpy as np

        from objectives.measurement.profile.shared_cores import slowdown_together, some_of
    except ImportError:
        return None
    cores = some_of(devices.core_ids(), min(_MOST_CORES, devices.cores_allowed()))
    if len(cores) < 2 or not hasattr(os, "sched_setaffinity"):
        return None
    try:
        found = slowdown_together(cores)
    except (OSError, ValueError):  # a sandbox that forbids it, or a machine that stands still
        return None
    if not len(found):
        return None
    median, slowest_tenth = np.quantile(found, (0.5, 0.9)).tolist()
    return BusyCores(len(cores), median, slowest_tenth)


def why_fewer(machine: int, affinity: int, quota: float | None) -> str | None:
    """Return the reason why fewer cores are allowed than the machine has; None if all are."""
    reasons = []
    if affinity < machine:
        reasons.append(f"the affinity mask (cpuset, taskset) holds {affinity}")
    if quota is not None and quota < affinity:
        reasons.append(f"the control group's quota is {quota:g}")
    return " and ".join(reasons) or None


def _version(package: str) -> str | None:
    if package in ENGINES:
        return devices.engine_version(package)
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _engine(name: str) -> EngineFound:
    try:
        return EngineFound(name, devices.engine_version(name), devices.held_by(name), devices.devices_of(name))
    except (ImportError, OSError, RuntimeError) as error:
        return EngineFound(name, devices.engine_version(name), (), (), " ".join(str(error).split()))


def _browser() -> str | None:
    """Return the path of Chrome or Chromium, as kaleido searches for it."""
    return os.environ.get("BROWSER_PATH") or next((path for name in BROWSERS if (path := shutil.which(name))), None)


def _disk_free(home: Path) -> int:
    """Bytes free where the home lies, or will."""
    folder = next(folder for folder in (home.absolute(), *home.absolute().parents) if folder.is_dir())
    return shutil.disk_usage(folder).free


def _lacks(found: Diagnosis) -> Iterator[Lack]:
    for extra, names in PACKAGES.items():
        missing = [name for name in names if found.versions[name] is None]
        if missing:
            wanted = f"'leanrec[{extra}]'" if extra else " ".join(missing)
            yield Lack(", ".join(missing), _LOST_PACKAGES[extra], f"pip install {wanted}")
    for engine in found.engines:
        if engine.error is not None:
            lost = f"nothing runs on {engine.name}, though it is installed: {engine.error}"
            yield Lack(f"{engine.name} that loads", lost, f"reinstall it: {HOW_TO_GET[engine.name]}")
    offers = {one.name: one.offers for one in found.engines if one.version is not None and one.error is None}
    for device, word in (("cuda", "CUDA"), ("tensorrt", "TensorRT")):
        if device not in offers.get("onnxruntime", (device,)):
            what = f"{word} in onnxruntime" if found.gpus else f"an NVIDIA GPU, for {word}"
            yield Lack(what, f"the device {device} is not offered", HOW_TO_GET[device])
    if not any(device.startswith("gpu") for device in offers.get("openvino", ("gpu",))):
        remedy = "an Intel GPU and its driver (package intel-opencl-icd)"
        yield Lack("a GPU that openvino knows", "its device gpu is not offered", remedy)
    for enough, what, lost in _FEATURES:
        if not any(feature in found.features for feature in enough):
            yield Lack(what, lost, f"a CPU with {' or '.join(enough)}")
    if found.cores_allowed < 2:
        remedy = "a wider affinity mask or quota, or a larger machine"
        yield Lack("a second core", "one replica of one thread is the only layout", remedy)
    if found.busy_cores is not None and found.busy_cores.slowest_tenth > _SHARED:
        lost = (
            "busy cores slow one another down, for some of the time or always: two threads may be hardly faster than "
            "one, and where that changes, latencies vary and intervals are wide"
        )
        yield Lack(
            "a physical core for each core", lost, "a machine without other tenants, or one thread a physical core"
        )
    if found.browser is None:
        yield Lack("Chrome or Chromium", _LOST_PACKAGES["png"], "install chromium, or set BROWSER_PATH to one")


def facts(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    """List the resources found: names and descriptions."""
    d = diagnosis
    cores = f"{d.cores_allowed} of {d.cores_machine}"
    there = ", ".join(f"{name} {found}" for name, found in d.versions.items() if found is not None)
    return [
        ("python", f"{d.python} on {d.system}"),
        ("packages", there),
        ("cpu", d.cpu),
        ("cores", f"{cores}: {d.cores_why}" if d.cores_why else cores),
        *_busy_cores(d.busy_cores),
        ("features", f"{' '.join(d.features) or 'none known'}; without {' '.join(d.features_missing) or 'none'}"),
        *((engine.name, _said(engine)) for engine in d.engines),
        ("NVIDIA GPUs", ", ".join(f"{gpu.name} ({_gigabytes(gpu.memory_bytes)})" for gpu in d.gpus) or "none"),
        ("memory", f"{_gigabytes(d.memory_available_bytes)} available"),
        ("disk", f"{_gigabytes(d.disk_free_bytes)} free at {d.home}"),
        ("browser", d.browser or "none"),
    ]


def _busy_cores(found: BusyCores | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    usual = f"{found.cores} together: the slowest takes {found.median:.2f} times as long as alone"
    return [("busy cores", f"{usual}, {found.slowest_tenth:.2f} times or more in a tenth of the time")]


def _said(engine: EngineFound) -> str:
    if engine.version is None:
        return "not installed"
    if engine.error is not None:
        return f"{engine.version}, which does not load: {engine.error}"
    return f"{engine.version}, devices {', '.join(engine.offers)} (holds {', '.join(engine.holds)})"


def _gigabytes(size: int | None) -> str:
    return "an unknown size" if size is None else f"{size / 1e9:.1f} GB"


def lines(diagnosis: Diagnosis) -> list[str]:
    """List what the tables show as lines of text, since a light install has no rich."""
    found = [f"{name:<12} {said}" for name, said in facts(diagnosis)]
    return found + [f"missing: {lack.what}: {lack.lost}. To get it: {lack.remedy}" for lack in diagnosis.lacks]


def tables(diagnosis: Diagnosis) -> list[Table]:
    """Make a table of the resources, and one of the gaps if there are any."""
    from rich.markup import escape
    from rich.table import Table

    found = Table(title="This machine", title_justify="left", show_header=False)
    for row in facts(diagnosis):
        found.add_row(*map(escape, row))
    missing = Table("missing", "what is lost", "how to get it", title="What a study does without", title_justify="left")
    for lack in diagnosis.lacks:
        missing.add_row(escape(lack.what), escape(lack.lost), escape(lack.remedy))
    return [found, missing] if diagnosis.lacks else [found]
