"""Soak: a steady load for long, with the memory and the open files of the server by the minute."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from tests.benchmarks.robustness.load import OK, Load, Phase
from tests.benchmarks.robustness.served import Limits, Material, read_process, readings
from tests.benchmarks.robustness.table import counted, show, verdict
from tests.serve_tests.process import serving

# Share of the capacity, and growth of the resident memory, of the last third over the second one, that counts as none.
_SHARE, _FLAT = 0.6, 0.02
# Within which the server has closed the connections that its clients have.
_CLOSING_SECONDS = 0.5


def soak(options: argparse.Namespace, load: Load, material: Material, limits: Limits, folder: Path) -> bool:
    """Print a line for each minute, and return whether all requests were answered and nothing grew."""
    bundle, rows = material.bundle(folder / "soaked"), list[list[object]]()
    memory, files, outcomes = list[float](), list[int](), set[str]()
    with serving(bundle, folder / "soak.log") as server:
        print(f"soak: {options.minutes} stretches of {options.minute:g} s at {_SHARE:.0%} of the capacity")
        for minute in range(options.minutes):
            with readings(server.process.pid, options.minute / 20) as read:
                played = load.play(server.url, [Phase(_SHARE * limits.capacity_rps, options.minute)], minute).result()
            memory.append(float(np.mean([one.resident_mib for one in read])))
            time.sleep(_CLOSING_SECONDS)
            files.append(read_process(server.process.pid).files)
            outcomes |= set(played.outcomes)
            threads, times = max(one.threads for one in read), [played.accepted_ms(p) for p in (50, 95, 99)]
            rows.append([minute + 1, counted(played), *times, played.lag(99), memory[-1], files[-1], threads])
    show(["minute", "outcomes", "p50 ms", "p95 ms", "p99 ms", "lag p99", "MiB", "idle files", "threads"], rows)
    third = max(1, options.minutes // 3)
    growth = float(np.mean(memory[-third:]) / np.mean(memory[-2 * third : -third] or memory[:1])) - 1
    return all(
        [
            verdict("every request is answered with 200", outcomes == {OK}, ", ".join(sorted(outcomes))),
            verdict(f"resident memory grows by at most {_FLAT:.0%}", growth <= _FLAT, f"{growth:+.1%}"),
            verdict(
                "no open files are left by the clients", max(files) == min(files),
                f"{min(files)} to {max(files)} between two stretches",
            ),
        ]
    )  # fmt: skip
