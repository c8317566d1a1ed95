"""Footprint of a process that holds one model: peak memory, and CPU time by request."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from objectives.measurement.load_generator import STRATA, Request, in_strata
from objectives.measurement.load_target import LoadTarget
from objectives.records import rows_of

_SECONDS = 0.3


def peak_memory_bytes(proc: Path = Path("/proc/self")) -> int:
    """Return the largest resident memory, in bytes, that this process ever had.

    It is the kernel's VmHWM, since ru_maxrss survives an exec and may be another program's.

    Raises:
        RuntimeError: the kernel does not report it.
    """
    for line in (proc / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{proc / 'status'} must hold VmHWM, but does not.")


def cpu_seconds_per_1000(target: LoadTarget, requests: Sequence[Request]) -> float:
    """Measure the CPU seconds of the whole process, pool included, for 1000 requests in a saturated closed loop.

    Raises:
        RuntimeError: every request was refused.
    """
    before, start = time.process_time(), time.perf_counter()
    chosen = in_strata(requests, [rows_of(request) for request in requests], STRATA)
    rate = target.saturated(chosen, _SECONDS, min(STRATA, len(chosen)))
    if rate == 0:
        raise RuntimeError("CPU time is counted by requests served, but got none: all were refused.")
    share = (time.process_time() - before) / (time.perf_counter() - start)
    return 1000 * share / rate


def money_per_million(rps: float, price_per_hour: float) -> float:
    """Return the price of a million requests on a machine with a price per hour and a rate in requests per second."""
    return price_per_hour / 3600 / rps * 1e6
