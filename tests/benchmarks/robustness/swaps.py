"""Swaps of the model under load: each replaces the bundle's folder and sends SIGHUP."""

from __future__ import annotations

import argparse
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np

from tests.benchmarks.robustness.load import OK, Load, Phase
from tests.benchmarks.robustness.served import Limits, Material, readings
from tests.benchmarks.robustness.table import counted, show, verdict
from tests.serve_tests.process import ServerProcess, serving, wait_until

# Share of the capacity, seconds before the first swap, and after a swap in which requests count as near it.
_SHARE, _BEFORE, _NEAR = 0.4, 2.0, 0.5


def swaps(options: argparse.Namespace, load: Load, material: Material, limits: Limits, folder: Path) -> bool:
    """Print what requests see of the swaps, and return whether none was lost."""
    bundle = material.bundle(folder / "live")
    seconds = _BEFORE + options.swaps * options.every + 1.0
    swapped, took = list[float](), list[float]()
    with serving(bundle, folder / "swaps.log") as server, readings(server.process.pid, 0.5) as read:
        playing = load.play(server.url, [Phase(_SHARE * limits.capacity_rps, seconds)], 3)
        start = time.monotonic()
        time.sleep(_BEFORE)
        for number in range(1, options.swaps + 1):
            material.bundle(bundle, f"number {number}")
            swapped.append(time.monotonic())
            server.process.send_signal(signal.SIGHUP)
            wait_until(partial(_has_swapped, server, number))
            took.append(time.monotonic() - swapped[-1])
            time.sleep(max(0.0, start + _BEFORE + number * options.every - time.monotonic()))
        played = playing.result()
        told = {status: server.metric("leanrec_requests_total", status=status) for status in played.counts}
        total = server.metric("leanrec_requests_total")
    moments = np.array(swapped) - start
    after = played.due_s[:, None] - moments
    near = np.array(((after >= 0) & (after < _NEAR)).any(axis=1), np.bool_)
    print(f"swaps: {options.swaps} under {_SHARE:.0%} of the capacity")
    print(f"{np.mean(took):.2f} s each in the mean, {max(took):.2f} s at most")
    rows = [
        [name, counted(part), *(part.accepted_ms(p) for p in (50, 95, 99)), part.lag(99)]
        for name, part in (("near a swap", played.part(near)), ("else", played.part(~near)))
    ]
    show(["requests", "outcomes", "p50 ms", "p95 ms", "p99 ms", "lag p99"], rows)
    first, last = read[0], read[-1]
    print(f"resident MiB {first.resident_mib:.0f} to {last.resident_mib:.0f}, files {first.files} to {last.files}")
    answered = all(told[status] == count for status, count in played.counts.items())
    return all(
        [
            verdict("every request is answered with 200", set(played.outcomes) == {OK}, counted(played)),
            verdict("none was sent twice", answered and total == len(played.outcomes), f"{total:,.0f} by the server"),
        ]
    )


def _has_swapped(server: ServerProcess, times: int) -> bool:
    return server.metric("leanrec_swaps_total", result="done") == times
