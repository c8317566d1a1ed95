"""What else a machine did while a block was timed: read from the kernel before and after, judged by one rule."""

from __future__ import annotations

import glob
import os
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from objectives.measurement.statistics import Floats

T = TypeVar("T")

# Shares of the wall time. A block is disturbed when others ran, left less than a core idle, and this arm's threads
# waited longer for a core than they do by themselves: two replicas beside a generator wait for one another, and a
# neighbour on a free core does no harm.
_FOREIGN = 0.03
_WAITING = 0.03
_CALM_QUANTILE = 0.2
# So much of both is a disturbance even where an arm was never seen calm.
_MOST_FOREIGN = 0.25
_MOST_WAITING = 0.15
# The hypervisor's share that went elsewhere, above that of calm blocks; no thread of the guest sees itself wait for it.
_STOLEN = 0.1
_MOST_STOLEN = 0.3
# To read the time of each of so many threads takes tens of milliseconds.
_MOST_THREADS = 2000
# Blocks that are run in all, for one that is asked for: a neighbour may be busy for some seconds.
_MOST_TIMES = 20
_PROC = Path("/proc")
_JIFFY = 1 / os.sysconf("SC_CLK_TCK")


class DisturbedError(RuntimeError):
    """The machine was too busy with something else for a timing to mean anything."""


@dataclass(frozen=True)
class Strain:
    """Seconds of one block.

    cpu: CPU time of this process
    waiting: its threads were ready and did not run (the run delay of /proc/PID/schedstat)
    foreign: CPU time of others on the allowed cores
    idle: of the allowed cores
    stolen: by the hypervisor
    switches: involuntary context switches; told, but they decide nothing, since a busy pool's own threads cause as many
        (300 to 800 a second here) as a neighbour does, where waiting rises from 0.03 to 0.4 and more
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
        """CPU time over the wall time that threads wanted to run: 1 is undisturbed."""
        return self.cpu / (self.cpu + self.waiting) if self.cpu > 0 else 1.0

    @property
    def disturbed(self) -> bool:
        """By itself, with no calm block of the same arm to compare with."""
        return bool(disturbed(self.row()[None])[0])

    def row(self) -> Floats:
        """The fields in their order, for a table of them."""
        return np.array([getattr(self, f.name) for f in fields(self)])


def disturbed(rows: Floats) -> NDArray[np.bool_]:
    """Which blocks of one arm were disturbed: (blocks,). Calm is what the calmest fifth of its blocks do not exceed.

    Args:
        rows: (blocks, fields of Strain)
    """
    wall, _, waiting, foreign, idle, stolen, _ = rows.T
    crowded = (foreign > _FOREIGN * wall) & (idle < wall)
    waited, taken = waiting / wall, stolen / wall
    much = (foreign > _MOST_FOREIGN * wall) & (waited > _MOST_WAITING)
    result: NDArray[np.bool_] = (
        (crowded & (waited > np.quantile(waited, _CALM_QUANTILE) + _WAITING))
        | much
        | (taken > min(np.quantile(taken, _CALM_QUANTILE) + _STOLEN, _MOST_STOLEN))
    )
    return result


class Watch:
    """From its making to `strain()`: one block of this process. Numbers that the kernel does not give are 0."""

    def __init__(self, proc: Path = _PROC) -> None:
        self._proc = proc
        self._cores = len(os.sched_getaffinity(0))
        self._before = self._read()

    def strain(self) -> Strain:
        after = self._read()
        wall, cpu, waiting, busy, threads, stolen, switches = (after[k] - self._before[k] for k in after)
        # The kernel's count of the cores is in ticks of 10 ms; that of the threads is exact, but sees only what this
        # process may see, and not those that have ended.
        foreign = max(0.0, threads - cpu, busy - cpu - 2 * self._cores * _JIFFY)
        return Strain(wall, cpu, waiting, foreign, max(0.0, self._cores * wall - cpu - foreign), stolen, switches)

    def _files(self, pattern: str) -> list[Path]:
        """Unlike pathlib's, this search goes on where a process ends while it is looked at."""
        return [Path(name) for name in glob.iglob(str(self._proc / pattern))]  # noqa: PTH207

    def _read(self) -> Mapping[str, float]:
        busy, stolen = _cores(self._proc)
        delay = sum(_schedstat(file)[1] for file in self._files("self/task/*/schedstat"))
        threads = self._files("[0-9]*/task/*/schedstat")
        ran = sum(_schedstat(file)[0] for file in threads) if len(threads) <= _MOST_THREADS else 0.0
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "wall": time.perf_counter(),
            "cpu": time.process_time(),
            "waiting": delay,
            "busy": busy,
            "threads": ran,
            "stolen": stolen,
            "switches": float(usage.ru_nivcsw),
        }


def calm_blocks(run: Callable[[], T], blocks: int, watch: Callable[[], Watch] = Watch) -> list[T]:
    """So many results of `run`, of which none was disturbed; those that were are run again.

    Raises:
        DisturbedError: too few were calm of twenty times as many.
    """
    found: list[T] = []
    rows: list[Floats] = []
    calm: list[T] = []
    while len(calm) < blocks and len(found) < _MOST_TIMES * blocks:
        watched = watch()
        found.append(run())
        rows.append(watched.strain().row())
        calm = [one for one, bad in zip(found, disturbed(np.array(rows)), strict=True) if not bad]
    if len(calm) < blocks:
        raise DisturbedError(
            f"Only {len(calm)} of {len(found)} blocks were undisturbed, {blocks} are needed: the machine is busy with "
            "something else."
        )
    return calm[:blocks]


def _schedstat(file: Path) -> tuple[float, float]:
    """Seconds that a thread ran, and was ready and did not (kernel docs, scheduler/sched-stats)."""
    try:
        ran, waited, *_ = file.read_text().split()
    except (OSError, ValueError):  # a thread that has just ended, or a kernel that does not count
        return 0.0, 0.0
    return int(ran) / 1e9, int(waited) / 1e9


def _cores(proc: Path) -> tuple[float, float]:
    """Seconds that the allowed cores were busy, and that were stolen from them (man 5 proc: /proc/stat)."""
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
