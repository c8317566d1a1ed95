"""What this machine offers: cores and memory that may be used, CPU features that matter, engines, accelerators."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from objectives.int8_weights import Int8WeightBits
from spaces.techniques.placement import InstanceGroup

# CPU features that change which int8 and bf16 kernels an engine picks. AMX needs its tiles besides its widths.
FEATURES = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16",
)  # fmt: skip
ENGINES = ("onnxruntime", "openvino")
# A build for GPUs is installed over the plain one and takes its place.
_DISTRIBUTIONS: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
    "openvino": ("openvino",),
}
_GPU_BUILD = "pip uninstall onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]'"
# How to get an engine, or a device of ONNX Runtime.
HOW_TO_GET: Mapping[str, str] = {
    "onnxruntime": "pip install onnxruntime",
    "openvino": "pip install 'leanrec[openvino]'",
    "cuda": f"{_GPU_BUILD} (needs an NVIDIA GPU and its driver)",
    "tensorrt": f"{_GPU_BUILD} tensorrt (needs an NVIDIA GPU and its driver)",
}
_ROOT = Path("/")


def core_ids() -> tuple[int, ...]:
    """Cores that this process may run on, by number. A quota limits its time, not its place: see `cores_allowed`."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def cores_allowed() -> int:
    """Cores that this process may use: the affinity mask, cut to the control groups' quota."""
    affinity, quota = len(core_ids()), cpu_quota()
    return max(1, affinity if quota is None else min(affinity, int(quota)))


def cpu_quota(root: Path = _ROOT) -> float | None:
    """The strictest quota of the control groups around this process, in cores; None without one.

    Args:
        root: where `proc` and `sys` lie
    """
    found = [_cpu_limit(folder) for folder in _control_groups(root, "cpu")]
    return min((limit for limit in found if limit is not None), default=None)


def memory_available(root: Path = _ROOT) -> int | None:
    """Bytes that could be had without swapping, at most the control groups' limit; None where that is not told."""
    free = [int(line.split()[1]) * 1024 for line in _lines(root / "proc/meminfo") if line.startswith("MemAvailable:")]
    groups = list(_control_groups(root, "memory"))
    limits = [text for f in groups for name in ("memory.max", "memory.limit_in_bytes") for text in _lines(f / name)]
    return min([*free, *(int(text) for text in limits if text.isdecimal())], default=None)


def _cpu_limit(folder: Path) -> float | None:
    """A control group's quota in cores: version 2 keeps it in one file, version 1 in two."""
    texts = _lines(folder / "cpu.max") or [
        " ".join(_lines(folder / "cpu.cfs_quota_us") + _lines(folder / "cpu.cfs_period_us"))
    ]
    limit, _, period = texts[0].partition(" ")
    # No limit reads "max" in version 2 and -1 in version 1.
    return int(limit) / int(period) if limit.isdecimal() and period.isdecimal() else None


def _control_groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the groups that bound this process, inmost first; in a container some may not be there."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for mount in (controllers, controller) if controllers else ("", "unified"):
            top = root / "sys/fs/cgroup" / mount
            inmost = top / path.strip("/")
            yield inmost
            yield from (folder for folder in inmost.parents if folder.is_relative_to(top))


def _lines(file: Path) -> list[str]:
    """The lines of a file of the kernel's; none where it is not there, as on other systems than Linux."""
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


@cache
def cpu_features(root: Path = _ROOT) -> tuple[str, ...]:
    """Those of FEATURES that this CPU has."""
    flags = next((line for line in _lines(root / "proc/cpuinfo") if line.startswith("flags")), ":")
    have = flags.split(":", 1)[1].split()
    return tuple(feature for feature in FEATURES if feature in have)


def cpu_model(root: Path = _ROOT) -> str:
    for line in _lines(root / "proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def computes_bf16() -> bool:
    return any(feature in cpu_features() for feature in ("avx512_bf16", "amx_bf16"))


def int8_weight_bits() -> Int8WeightBits:
    """Bits of weights up to which this CPU's int8 kernels are exact; every CPU with AMX has VNNI as well."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return 7 if x86 and not any(feature in cpu_features() for feature in ("avx512_vnni", "avx_vnni")) else 8


def kernel_unit() -> int:
    """Floats in a vector of this CPU: a width between two multiples of it costs as much as the higher one."""
    return 16 if "avx512f" in cpu_features() else 8


def engine_version(engine: str) -> str | None:
    for distribution in _DISTRIBUTIONS[engine]:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


def engines_here() -> tuple[str, ...]:
    return tuple(engine for engine in ENGINES if engine_version(engine) is not None)


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU; memory is None where its driver does not tell."""

    name: str
    memory_bytes: int | None


@cache
def nvidia_gpus() -> tuple[Gpu, ...]:
    """The GPUs that NVIDIA's driver sees; none without a driver that works."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return read_gpus(done.stdout) if done.returncode == 0 else ()


def read_gpus(text: str) -> tuple[Gpu, ...]:
    """GPUs from lines such as `NVIDIA L4, 23034 MiB`."""
    rows = [line.rpartition(", ") for line in text.splitlines() if line.strip()]
    return tuple(Gpu(name, _mebibytes(memory)) for name, _, memory in rows)


def _mebibytes(text: str) -> int | None:
    size, _, unit = text.strip().partition(" ")
    return int(size) * 2**20 if size.isdecimal() and unit == "MiB" else None


@cache
def onnxruntime_providers() -> tuple[str, ...]:
    """Providers that the installed build of ONNX Runtime holds; whether one's libraries are there shows on opening."""
    if engine_version("onnxruntime") is None:
        return ()
    import onnxruntime

    return tuple(onnxruntime.get_available_providers())


@cache
def openvino_devices() -> tuple[str, ...]:
    """Devices that OpenVINO finds, by its own names, such as CPU and GPU.0."""
    if engine_version("openvino") is None:
        return ()
    import openvino

    return tuple(openvino.Core().available_devices)


def devices_of(engine: str) -> tuple[str, ...]:
    """Devices on which an engine can be asked to run here, by the names that a seat takes."""
    if engine == "openvino":
        return tuple(device.lower() for device in openvino_devices())
    kinds = {"cpu": "CPUExecutionProvider"}
    if nvidia_gpus():
        kinds |= {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
    return tuple(kind for kind, provider in kinds.items() if provider in onnxruntime_providers())


def places_here() -> tuple[str, ...]:
    """Every engine on each of its devices here, as a space names them; CPUs go without saying."""
    return tuple(InstanceGroup(engine, device).place for engine in engines_here() for device in devices_of(engine))


def describe() -> str:
    """The machine in one line, for people."""
    return f"{cpu_model()}, {cores_allowed()} cores, {' '.join(cpu_features()) or 'no vector features known'}"
