"""What this machine offers: cores that may be used, CPU features that matter, engines that are installed."""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# CPU features that change which int8 and bf16 kernels an engine picks.
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
ENGINES = ("onnxruntime", "openvino")


def cores_allowed() -> int:
    """Cores that this process may use: the affinity mask, cut to the control group's quota."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return max(1, affinity if quota is None else min(affinity, int(quota)))


def _quota() -> float | None:
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) / int(period)


@cache
def cpu_features() -> tuple[str, ...]:
    flags: set[str] = set()
    for line in _cpuinfo():
        if line.startswith("flags"):
            flags = set(line.split(":", 1)[1].split())
            break
    return tuple(f for f in FEATURES if f in flags)


def cpu_model() -> str:
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def computes_bf16() -> bool:
    return any(feature in cpu_features() for feature in ("avx512_bf16", "amx_bf16"))


def engine_version(engine: str) -> str | None:
    try:
        return version(engine)
    except PackageNotFoundError:
        return None


def engines_here() -> tuple[str, ...]:
    return tuple(engine for engine in ENGINES if engine_version(engine) is not None)


def describe() -> str:
    """The machine in one line, for people."""
    return f"{cpu_model()}, {cores_allowed()} cores, {' '.join(cpu_features()) or 'no vector features known'}"
