"""How much busy cores slow one another down, as those do that share a physical core."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence

import numpy as np

from objectives.measurement.statistics import Floats

# Numbers of a piece of work, which fit a core's own cache; NumPy computes them without the interpreter's lock.
_NUMBERS = 1 << 14
# Seconds of a core alone, and of a window in which all are busy.
_ALONE_SECONDS, _WINDOW_SECONDS = 0.2, 0.1
# More threads would wait for the interpreter's lock between pieces of work.
MOST_CORES = 8


def slowdown_together(cores: Sequence[int], windows: int = 20) -> Floats:
    """Measure how many times as long work takes a core while the others are busy, (windows,).

    In each window of a tenth of a second it is the mean over the cores, the first `MOST_CORES` of those given, of the
    median time of a piece of work, over that of the core alone. Virtual cores may have a physical core each now and
    share one later, as the hypervisor schedules them: the kernel does not tell, and counts no time as stolen. Threads
    are kept on cores by `os.sched_setaffinity`, which not every system has.
    """
    cores = cores[:MOST_CORES]
    alone = [float(np.median(_times(core, time.perf_counter(), _ALONE_SECONDS)[:, 1])) for core in cores]
    begin_s, seconds = time.perf_counter() + 0.01, windows * _WINDOW_SECONDS
    found: dict[int, Floats] = {}

    def work(core: int) -> None:
        found[core] = _times(core, begin_s, seconds)

    threads = [threading.Thread(target=work, args=(core,)) for core in cores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ratios = [_medians(found[core], windows) / one for core, one in zip(cores, alone, strict=True)]
    return np.asarray(np.nanmean(ratios, axis=0))


def _medians(times: Floats, windows: int) -> Floats:
    """Return the median seconds of the pieces of work of each window, (windows,); NaN of one that has none."""
    of = (times[:, 0] / _WINDOW_SECONDS).astype(int)
    rows = [times[of == window, 1] for window in range(windows)]
    return np.array([np.median(row) if len(row) else np.nan for row in rows])


def _times(core: int, begin_s: float, seconds: float) -> Floats:
    """Return begin and duration, in seconds, of each piece of work on a core, (n, 2); the thread stays as it was."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        numbers = np.linspace(-1, 1, _NUMBERS, dtype=np.float32)
        out, found, end_s = np.empty_like(numbers), list[tuple[float, float]](), begin_s + seconds
        np.exp(numbers, out=out)
        while (now := time.perf_counter()) < end_s:
            np.exp(numbers, out=out)
            if now >= begin_s:
                found.append((now - begin_s, time.perf_counter() - now))
    finally:
        os.sched_setaffinity(0, before)
    return np.array(found)
