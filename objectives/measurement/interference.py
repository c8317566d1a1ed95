"""Interference by other processes while a block was measured, read from the kernel before and after."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import math
import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from objectives.measurement.statistics import Floats

# A block is disturbed when other processes and the hypervisor took this much more of its wall time than of the quietest
# fifth of the run's blocks (1 is one core). The deployment's own behaviour does not count: its waiting is part of its
# latency, and to drop blocks by it would select among outcomes.
_MARGIN = 0.05
_CALM_QUANTILE = 0.2
# A run is called busy from this share of one core.
BUSY = 0.1
_TRIES = 3
# Reading the CPU time of this many threads takes tens of milliseconds.
_MOST_THREADS = 2000
T = TypeVar("T")
_JIFFY = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Interference:
    """CPU time that other processes took from one block, in seconds, and the state of the block's own threads.

    cpu: CPU time of this process, and of its children under measurement
    waiting: its threads were ready and did not run (the run delay of /proc/PID/schedstat)
    foreign: CPU time of others on the allowed cores
    idle: of the allowed cores
    stolen: by the hypervisor
    switches: involuntary context switches

    Only `foreign` and `stolen` decide anything; the rest is recorded.
    """

    wall: float
    cpu: float
    waiting: float
    foreign: float
    idle: float
    stolen: float
    switches: float

    @property
    def cpu_share(self) -> float:
        """Share of CPU time in the wall time that threads were ready to run: 1 is undisturbed."""
        return self.cpu / (self.cpu + self.waiting) if self.cpu > 0 else 1.0

    @property
    def taken(self) -> float:
        """Share of the wall time that other processes and the hypervisor took: 1 is one core."""
        return float(taken_share(self.row()))

    @property
    def busy(self) -> bool:
        return self.taken > BUSY

    def row(self) -> Floats:
        """Return the fields in their order, for a table of them."""
        return np.array(astuple(self))


_COLUMN = {f.name: place for place, f in enumerate(fields(Interference))}


def taken_share(rows: Floats) -> Floats:
    """Return `Interference.taken` of each row: (..., fields of Interference) -> (...)."""
    taken: Floats = (rows[..., _COLUMN["foreign"]] + rows[..., _COLUMN["stolen"]]) / rows[..., _COLUMN["wall"]]
    return taken


def calm_share(taken: Floats) -> float:
    """Return the share not exceeded by the quietest fifth of blocks, (blocks,).

    What a neighbour always takes disturbs no block in particular.
    """
    return float(np.quantile(taken, _CALM_QUANTILE, method="inverted_cdf"))


def disturbance(taken: Floats) -> Floats:
    """Return the largest distance of a pair's blocks above the calm level of their sides: (pairs, sides) -> (pairs,).

    A pair is disturbed where the distance is above 1.
    """
    above: Floats = (taken - [calm_share(side) for side in taken.T]).max(axis=1) / _MARGIN
    return above


def undisturbed(above: Floats, wanted: int) -> NDArray[np.bool_]:
    """Select, (pairs,), the pairs of `disturbance` up to 1, or the least disturbed where those are under `wanted`."""
    kept: NDArray[np.bool_] = above <= 1
    if kept.sum() < wanted:
        kept[np.argsort(above, kind="stable")[:wanted]] = True
    return kept


def calm_blocks(taken: Sequence[float]) -> NDArray[np.bool_]:
    """Select, (blocks,), the undisturbed blocks by their `Interference.taken`; more than half are in any case."""
    return undisturbed(disturbance(np.array(taken)[:, None]), len(taken) // 2 + 1)


class InterferenceMonitor:
    """Measure the interference with one block from construction to `stop()`; what the kernel does not give is 0.

    Children are the ids of processes that are measured together with this one, such as servers that it started: their
    CPU time is not that of others.
    """

    def __init__(self, proc: Path = Path("/proc"), children: Sequence[int] = ()) -> None:
        self._proc, self._children = proc, children
        self._cores = len(os.sched_getaffinity(0))
        self._before = self._read()

    def stop(self) -> Interference:
        wall, cpu, waiting, busy, threads, stolen, switches = (self._read() - self._before).tolist()
        # The kernel's count of the cores is in ticks of 10 ms. That of the threads is exact, but is of those that this
        # process may read and that have not ended, on all cores: on the allowed ones they ran no longer than these did.
        ticks = 2 * self._cores * _JIFFY
        of_threads = 0.0 if math.isnan(threads) else threads - cpu
        if busy > 0:
            of_threads = min(of_threads, busy - cpu + ticks)
        foreign = max(0.0, of_threads, busy - cpu - ticks)
        return Interference(wall, cpu, waiting, foreign, max(0.0, self._cores * wall - cpu - foreign), stolen, switches)

    def _read(self) -> Floats:
        """Read the seconds of wall, own CPU, waiting, busy cores, all threads and stolen, and the context switches."""
        busy, stolen = _cores(self._proc)
        processes = ["self", *map(str, self._children)]
        ours = [thread for process in processes for thread in _threads(self._proc, process)]
        cpu = time.process_time() + cpu_seconds_of(self._children)
        delay = sum(_schedstat(thread)[1] for thread in ours)
        threads = _threads(self._proc, "[0-9]*")
        ran = sum(_schedstat(thread)[0] for thread in threads) if len(threads) <= _MOST_THREADS else math.nan
        switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        return np.array([time.perf_counter(), cpu, delay, busy, ran, stolen, switches])


def least_disturbed(
    run: Callable[[], T],
    calm: float,
    monitor: Callable[[], InterferenceMonitor],
    tries: int = _TRIES,
    end: float = math.inf,
) -> T:
    """Return the first undisturbed result, by the run's `calm_share`, of so many tries, or the least disturbed one.

    Args:
        end: time of `time.monotonic` after which none is repeated
    """
    tried: list[tuple[float, T]] = []
    while not tried or (len(tried) < tries and tried[-1][0] > calm + _MARGIN and time.monotonic() < end):
        watching = monitor()
        result = run()
        tried.append((watching.stop().taken, result))
    return min(tried, key=lambda one: one[0])[1]


def cpu_seconds_of(processes: Sequence[int]) -> float:
    """Return the sum of the CPU seconds of other processes; one that has ended has none.

    The seconds are as exact as those of `time.process_time` for this process (Linux).
    """
    found, clock = 0.0, ctypes.c_int()
    for process in processes:
        if ctypes.CDLL(None).clock_getcpuclockid(process, ctypes.byref(clock)) == 0:
            with contextlib.suppress(OSError):  # it ended in between
                found += time.clock_gettime(clock.value)
    return found


def _threads(proc: Path, process: str) -> list[Path]:
    """Find the files of a process's threads; unlike pathlib's, this search continues where a process ends meanwhile."""
    return [Path(name) for name in glob.iglob(str(proc / f"{process}/task/*/schedstat"))]  # noqa: PTH207


def _schedstat(file: Path) -> tuple[float, float]:
    """Read the seconds that a thread ran, and that it was ready and did not run (kernel docs, sched-stats)."""
    try:
        ran, waited, *_ = file.read_text().split()
    except (OSError, ValueError):  # a thread that has just ended, or a kernel that does not count
        return 0.0, 0.0
    return int(ran) / 1e9, int(waited) / 1e9


def _cores(proc: Path) -> tuple[float, float]:
    """Read the seconds that the allowed cores were busy, and that were stolen from them (man 5 proc: /proc/stat)."""
    allowed = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    busy = stolen = 0
    try:
        lines = (proc / "stat").read_text().splitlines()
    except OSError:
        return 0.0, 0.0
    for line in lines:
        name, *ticks = line.split()
        if name in allowed:
            user, nice, system, _, _, interrupts, soft, steal = (int(t) for t in ticks[:8])
            busy += user + nice + system + interrupts + soft
            stolen += steal
    return busy * _JIFFY, stolen * _JIFFY
