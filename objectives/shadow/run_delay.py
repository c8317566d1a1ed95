"""Time that the threads of a process were ready and did not run, since other processes had the cores."""

from __future__ import annotations

import contextlib
from pathlib import Path


def run_delay_ms(process: int | str = "self") -> float:
    """Return the sum of all threads since their start, in milliseconds; 0 where the kernel does not count it.

    The second field of /proc/PID/task/TID/schedstat (kernel docs, sched-stats).
    """
    total = 0
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{process}/task").iterdir():
            # A thread may end meanwhile.
            with contextlib.suppress(OSError, IndexError):
                total += int((task / "schedstat").read_text().split()[1])
    return total / 1e6
