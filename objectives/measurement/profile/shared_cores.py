"""Measurement of how much busy cores slow one another down, as those do that share a physical core."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from objectives.measurement.statistics import Floats

# Numbers of a piece of work, which takes NumPy some 0.15 ms without the interpreter's lock: threads wait for that lock
# between pieces, and would wait for one another if these were short.
_NUMBERS = 1 << 16
# Seconds of a core alone, and of a window in which all are busy.
_ALONE_SECONDS, _WINDOW_SECONDS = 0.2, 0.1


def some_of(cores: Sequence[int], most: int) -> tuple[int, ...]:
    """Return at most so many cores, half of them from the second half of the list.

    Those that share a physical core are neighbours on most virtual machines, and half of the list apart on others.
    """
    if len(cores) <= most:
        return tuple(cores)
    half = len(cores) // 2
    return (*cores[: most - most // 2], *cores[half : half + most // 2])


def slowdown_together(cores: Sequence[int], windows: int = 40) -> Floats:
    """Measure how many times as long work takes the slowest core while the others are busy, (windows,).

    In each window of a tenth of a second it is the largest, over the cores, of the median time of a piece of work over
    that of the core alone; windows in which no piece ended are left out. Virtual cores may have a physical core each
    now and share one later, as the hypervisor schedules them, which the kernel does not tell.

    Raises:
        OSError: the system refuses to keep a thread on a core.
        ValueError: a core was not given any time.
    """
    alone = [float(np.median(_times(core, time.perf_counter(), _ALONE_SECONDS)[:, 1])) for core in cores]
    begin_s, seconds = time.perf_counter() + 0.01, windows * _WINDOW_SECONDS
    with ThreadPoolExecutor(len(cores)) as threads:
        found = list(threads.map(lambda core: _times(core, begin_s, seconds), cores))
    ratios = np.array([_medians(times, windows) / one for times, one in zip(found, alone, strict=True)])
    known: Floats = ratios[:, np.isfinite(ratios).all(axis=0)].max(axis=0)
    return known


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
        numbers = np.linspace(0.5, 1.5, _NUMBERS)
        out, found, end_s = np.empty_like(numbers), list[tuple[float, float]](), begin_s + seconds
        np.power(numbers, numbers, out=out)
        while (now := time.perf_counter()) < end_s:
            np.power(numbers, numbers, out=out)
            if now >= begin_s:
                found.append((now - begin_s, time.perf_counter() - now))
    finally:
        os.sched_setaffinity(0, before)
    if not found:
        raise ValueError(f"A core was given no time for {seconds:g} s: {core}.")
    return np.array(found)
