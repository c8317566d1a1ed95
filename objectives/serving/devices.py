"""Resources of this machine: usable cores and memory, relevant CPU features, engines, accelerators."""

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

# CPU features that determine the int8 and bf16 kernels of an engine. AMX needs its tiles in addition to its widths.
FEATURES = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16",
)  # fmt: skip
# Distributions of each engine, of which the first that is installed counts: a build for GPUs replaces the plain one.
_DISTRIBUTIONS: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
    "openvino": ("openvino",),
}
ENGINES = tuple(_DISTRIBUTIONS)
_GPU_BUILD = "pip uninstall onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]'"
# Installation of an engine, or of a device of ONNX Runtime.
HOW_TO_GET: Mapping[str, str] = {
    "onnxruntime": "pip install onnxruntime",
    "openvino": "pip install 'leanrec[openvino]'",
    "cuda": f"{_GPU_BUILD} (needs an NVIDIA GPU and its driver)",
    "tensorrt": f"{_GPU_BUILD} tensorrt (needs an NVIDIA GPU and its driver)",
}
_ROOT = Path("/")


def core_ids() -> tuple[int, ...]:
    """Return the numbers of the cores that this process may run on.

    A quota limits its time only: see `cores_allowed`.
    """
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def cores_allowed() -> int:
    """Return the number of cores that this process may use: the affinity mask, limited by the control groups' quota."""
    affinity, quota = len(core_ids()), cpu_quota()
    return max(1, affinity if quota is None else min(affinity, int(quota)))


def cpu_quota(root: Path = _ROOT) -> float | None:
    """Return the strictest quota of the control groups around this process, in cores; None without one.

    Args:
        root: the folder that contains `proc` and `sys`
    """
    found = [_cpu_limit(folder) for folder in _control_groups(root, "cpu")]
    return min((limit for limit in found if limit is not None), default=None)


def memory_available(root: Path = _ROOT) -> int | None:
    """Return the bytes available without swapping, at most the control groups' limit; None where that is unknown."""
    free = [int(line.split()[1]) * 1024 for line in _lines(root / "proc/meminfo") if line.startswith("MemAvailable:")]
    groups = list(_control_groups(root, "memory"))
    limits = [text for f in groups for name in ("memory.max", "memory.limit_in_bytes") for text in _lines(f / name)]
    return min([*free, *(int(text) for text in limits if text.isdecimal())], default=None)


def _cpu_limit(folder: Path) -> float | None:
    """Return a control group's quota in cores: version 2 keeps it in one file, version 1 in two."""
    texts = _lines(folder / "cpu.max") or [
        " ".join(_lines(folder / "cpu.cfs_quota_us") + _lines(folder / "cpu.cfs_period_us"))
    ]
    limit, _, period = texts[0].partition(" ")
    # No limit reads "max" in version 2 and -1 in version 1.
    return int(limit) / int(period) if limit.isdecimal() and period.isdecimal() else None


def _control_groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of the control groups that limit this process, innermost first.

    In a container some may be missing.
    """
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
    """Read the lines of a kernel file; none where it does not exist, as on systems other than Linux."""
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


@cache
def cpu_features(root: Path = _ROOT) -> tuple[str, ...]:
    """Return the features of FEATURES that this CPU has."""
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
    """Return the bits of weights up to which this CPU's int8 kernels are exact; every CPU with AMX has VNNI as well."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return 7 if x86 and not any(feature in cpu_features() for feature in ("avx512_vnni", "avx_vnni")) else 8


def kernel_unit() -> int:
    """Return the number of floats in a vector of this CPU.

    A dimension between two multiples of it costs as much as the higher one.
    """
    return 16 if "avx512f" in cpu_features() else 8


def distribution(engine: str) -> str:
    """Return the name under which an engine is installed here, or would be."""
    return next((name for name in _DISTRIBUTIONS[engine] if _version(name) is not None), engine)


def engine_version(engine: str) -> str | None:
    return next((found for name in _DISTRIBUTIONS[engine] if (found := _version(name)) is not None), None)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def engines_here() -> tuple[str, ...]:
    return tuple(engine for engine in ENGINES if engine_version(engine) is not None)


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU; memory is None where its driver does not report it."""

    name: str
    memory_bytes: int | None


@cache
def nvidia_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that NVIDIA's driver finds; none without a working driver."""
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
    """Parse GPUs from lines such as `NVIDIA L4, 23034 MiB`."""
    rows = [line.rpartition(", ") for line in text.splitlines() if line.strip()]
    return tuple(Gpu(name, _mebibytes(memory)) for name, _, memory in rows)


def _mebibytes(text: str) -> int | None:
    size, _, unit = text.strip().partition(" ")
    return int(size) * 2**20 if size.isdecimal() and unit == "MiB" else None


@cache
def held_by(engine: str) -> tuple[str, ...]:
    """Return what an engine can run on here, by its own names; none where it is not installed.

    For ONNX Runtime these are the providers of its build, whose libraries are checked only on opening. For OpenVINO
    they are the devices that it finds, such as CPU and GPU.0.
    """
    if engine not in ENGINES:
        raise ValueError(f"An engine is one of {', '.join(ENGINES)}, but got {engine!r}.")
    if engine_version(engine) is None:
        return ()
    if engine == "openvino":
        import openvino

        return tuple(openvino.Core().available_devices)
    import onnxruntime

    return tuple(onnxruntime.get_available_providers())


def devices_of(engine: str) -> tuple[str, ...]:
    """Return the devices on which an engine can run here, by the names that an instance group takes."""
    held = held_by(engine)
    if engine != "onnxruntime":
        return tuple(device.lower() for device in held)
    kinds = {"cpu": "CPUExecutionProvider"}
    if nvidia_gpus():
        kinds |= {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
    return tuple(kind for kind, provider in kinds.items() if provider in held)


def places_here() -> tuple[str, ...]:
    """Return every engine on each of its devices here, as a search space names them.

    The names omit the CPU.
    """
    return tuple(InstanceGroup(engine, device).place for engine in engines_here() for device in devices_of(engine))


def describe() -> str:
    """Describe the machine in one line."""
    return f"{cpu_model()}, {cores_allowed()} cores, {' '.join(cpu_features()) or 'no vector features known'}"
