"""SIGTERM under load, again and again, each to a new server."""

from __future__ import annotations

import argparse
import re
import signal
import time
from pathlib import Path

from tests.benchmarks.robustness.load import OK, Load, Phase
from tests.benchmarks.robustness.served import Limits, Material
from tests.benchmarks.robustness.table import show, verdict
from tests.serve_tests.process import SOON, serving

# Share of the capacity, seconds of load before the signal, and after it.
_SHARE, _BEFORE, _AFTER = 0.8, 1.5, 1.5


def terminations(options: argparse.Namespace, load: Load, material: Material, limits: Limits, folder: Path) -> bool:
    """Print what becomes of the requests around each signal, and return whether no accepted one was lost.

    An accepted request is one that the server answered, by its own count, or left without an answer; a client to which
    nobody listens any more, or whose idle connection was closed, has to send elsewhere.
    """
    bundle, rows, kept = material.bundle(folder / "ending"), list[list[object]](), True
    for number in range(options.signals):
        log = folder / f"termination-{number}.log"
        with serving(bundle, log) as server:
            phase = Phase(_SHARE * limits.capacity_rps, _BEFORE + _AFTER)
            playing = load.play(server.url, [phase], 100 + number)
            time.sleep(_BEFORE)
            sent = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            status = server.process.wait(SOON)
            ended = time.monotonic() - sent
            played = playing.result()
        found = re.search(r"(\d+) requests were answered, (\d+) were not", log.read_text())
        told, left = map(int, found.groups()) if found else (-1, -1)
        here, others = played.counts[OK], {name: n for name, n in played.counts.items() if name != OK}
        lost = status != 0 or left != 0 or told != here
        kept = kept and not lost
        rows.append([number + 1, status, ended, told, left, here, others, "LOST" if lost else "none lost"])
    print(f"terminations: {options.signals} under {_SHARE:.0%} of the capacity")
    show(["signal", "exit", "end s", "answered", "left", "received", "not accepted", ""], rows)
    return verdict(
        "no accepted request is lost", kept, f"{sum('LOST' in row for row in rows)} of {len(rows)} lost some"
    )
