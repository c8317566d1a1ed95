"""Robustness of the HTTP server under overload, swaps of the model, SIGTERM and a long load.

    python -m tests.benchmarks.robustness overload [--seconds 60] [--times 3]
    python -m tests.benchmarks.robustness swaps [--swaps 50] [--every 1]
    python -m tests.benchmarks.robustness terminations [--signals 20]
    python -m tests.benchmarks.robustness soak [--minutes 30]

A DCN-V2 of the size of the built-in baseline is served by `leanrec serve`, on one replica of one thread; with --student
a small one, on an inline replica, whose runs the event loop does itself while it is idle. The load comes
from a process of its own, in an open loop of Poisson arrivals, through the client of `leanrec bench --url`; its own
delay is printed as lag, and the cores that it used. Capacity and SLO, which is twice the p95 at half of the capacity,
are measured first, on the same machine. Each measurement ends with what is asked of it and whether it is met; the exit
status is 1 where something is not.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.robustness.load import loading
from tests.benchmarks.robustness.overload import overload
from tests.benchmarks.robustness.served import Material, find_limits
from tests.benchmarks.robustness.soak import soak
from tests.benchmarks.robustness.swaps import swaps
from tests.benchmarks.robustness.terminations import terminations
from tests.serve_tests.process import serving


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capacity-seconds", type=float, default=5.0, help="in which the capacity is measured")
    parser.add_argument("--rows", type=int, default=1000, help="of a request")
    parser.add_argument("--student", action="store_true", help="a small model, inline")
    kinds = parser.add_subparsers(required=True)
    for name, run in (("overload", overload), ("swaps", swaps), ("terminations", terminations), ("soak", soak)):
        kind = kinds.add_parser(name)
        kind.set_defaults(run=run)
        if name == "overload":
            kind.add_argument("--seconds", type=float, default=60.0, help="of overload")
            kind.add_argument("--times", type=float, default=3.0, help="the capacity")
        if name == "swaps":
            kind.add_argument("--swaps", type=int, default=50)
            kind.add_argument("--every", type=float, default=1.0, help="seconds, or as long as a swap takes")
        if name == "terminations":
            kind.add_argument("--signals", type=int, default=20)
        if name == "soak":
            kind.add_argument("--minutes", type=int, default=30)
            kind.add_argument("--minute", type=float, default=60.0, help="seconds of a minute, to try it out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        material = Material.make(folder, options.rows, options.student)
        with loading(material.requests) as load:
            with serving(material.bundle(folder / "plain"), folder / "plain.log") as server:
                limits = find_limits(load, server.url, options.capacity_seconds)
            print(
                f"{os.cpu_count()} cores; capacity {limits.capacity_rps:.0f} requests/s; SLO {limits.slo_ms:.1f} ms",
                flush=True,
            )
            return 0 if options.run(options, load, material, limits, folder) else 1


if __name__ == "__main__":
    sys.exit(main())
