"""Cost of shadowing for the champion's clients: two servers of one bundle, one of them with a challenger.

    python tests/benchmarks/shadow.py [--requests 2000] [--slow-ms 0]

Each request is sent to both, one after the other, in alternating order, so that both see the same machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from objectives.measurement.statistics import percentile, ratio_of_percentiles
from tests.serve_tests import oracle
from tests.serve_tests.bundles import draw_request, waiting, write_toy
from tests.serve_tests.process import ServerProcess, serving, wait_until

_BLOCK = 25
_ROWS, _KINDS, _WARM_UP = 50, 50, 100
# Seconds between two requests, so that a core is sometimes idle.
_GAP = 0.002


def measured(plain: ServerProcess, shadowed: ServerProcess, requests: int) -> np.ndarray:
    """Return the milliseconds of each request at both servers, (2, requests)."""
    bodies = [oracle.binary_request(draw_request(_ROWS, seed)) for seed in range(_KINDS)]
    times = np.zeros((2, requests))
    with httpx.Client(timeout=30) as client:
        for number in range(-_WARM_UP, requests):
            body, headers = bodies[number % _KINDS]
            servers = list(enumerate((plain, shadowed)))
            time.sleep(_GAP)
            for side, server in servers if number % 2 else servers[::-1]:
                start = time.perf_counter_ns()
                client.post(f"{server.url}/infer", content=body, headers=headers).raise_for_status()
                if number >= 0:
                    times[side, number] = (time.perf_counter_ns() - start) / 1e6
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--slow-ms", type=float, default=0.0, help="that the challenger waits before each answer")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        champion = write_toy(folder / "champion")
        placement = waiting(options.slow_ms / 1000) if options.slow_ms else None
        challenger = write_toy(folder / "challenger", placement, seed=1)
        words = ("--challenger", str(challenger), "--shadow-share", "1", "--shadow-state", str(folder / "states"))
        with serving(champion, folder / "a") as plain, serving(champion, folder / "b", *words) as shadowed:
            wait_until(lambda: shadowed.metric("leanrec_shadow_active") == 1)
            times = measured(plain, shadowed, options.requests)
            counts = {
                result: int(shadowed.metric("leanrec_shadow_requests_total", result=result))
                for result in ("shadowed", "dropped", "refused", "starved", "failed")
            }
    alone, beside = (side[: options.requests // _BLOCK * _BLOCK].reshape(-1, _BLOCK) for side in times)
    print(f"{options.requests} requests of {_ROWS} rows; shadowing: {counts}")
    for percent in (50, 95, 99):
        ratio, (low, high) = ratio_of_percentiles(beside, alone, percent, seed=0)
        print(
            f"p{percent}: {percentile(alone, percent):.3f} ms without, {percentile(beside, percent):.3f} ms with, "
            f"ratio {ratio:.3f} [{low:.3f}, {high:.3f}]"
        )


if __name__ == "__main__":
    main()
