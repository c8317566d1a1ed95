"""The virtual clock against reality: replays of plans by simulation and on a real server.

    python tests/benchmarks/replays.py STUDY BUNDLE... [--home FOLDER] [--seconds 600] [--repeats 2] [--rates 100,250]
                                       [--shapes steady,sine,ramp,surges,azure] [--policy elastic]

For each shape of traffic and mean rate a trace of five times --seconds is drawn, Poisson within each second; `leanrec
plan` plans its last fifth from the first four, in phases of a tenth of it, of the bundles' points, and `leanrec replay`
serves that fifth on the virtual clock and on `leanrec serve`. Printed: p50, p95, p99 and the share of late requests of
both, the error of the simulated value to the median of the served ones, and next to it how far the repeats of the
server lie apart (the largest over the smallest). In the end the medians over all plans.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from objectives.measurement.request_log import read_request_log

ROOT = Path(__file__).resolve().parents[2]
AZURE = Path(os.environ.get("LEANREC_TEST_DATA", "../shared/data"), "arrivals", "azure_llm_2023_conv.csv")
# The trace begins on a Monday, whatever day it is.
_START_S = 1_700_438_400.0
_PERIODS = 5
_PERCENTS = (50, 95, 99)
Floats = NDArray[np.float64]


def surges(part: Floats) -> Floats:
    """Four times the rate for a tenth of the time, twice."""
    return np.where(((part > 0.2) & (part < 0.3)) | ((part > 0.6) & (part < 0.7)), 4.0, 1.0)


# Rates at a part of the period, 0 to 1, up to a factor.
SHAPES: dict[str, Callable[[Floats], Floats]] = {
    "steady": np.ones_like,
    "sine": lambda part: 1 + 0.6 * np.sin(4 * np.pi * part),
    "ramp": lambda part: 0.3 + 1.4 * part,
    "surges": surges,
}


def rates(shape: str, mean_rps: float, seconds: int) -> Floats:
    """Return the rate of each second of all periods; those of the real trace are the counts of its seconds."""
    if shape == "azure":
        log = read_request_log(AZURE)
        counts = np.bincount(log.seconds.astype(int), minlength=_PERIODS * seconds)[: _PERIODS * seconds]
        found = counts.astype(np.float64)
    else:
        found = np.tile(SHAPES[shape]((np.arange(seconds) + 0.5) / seconds), _PERIODS)
    return np.asarray(found * mean_rps / found.mean())


def write_traces(history: Path, trace: Path, rate: Floats, rows: int, seed: int) -> None:
    """Write all periods but the last, and the last, which begins where they end."""
    random = np.random.default_rng(seed)
    parts = [second + np.sort(random.uniform(0, 1, random.poisson(one))) for second, one in enumerate(rate)]
    seconds = np.concatenate(parts)
    cut = len(rate) * (_PERIODS - 1) // _PERIODS
    for file, kept in ((history, seconds < cut), (trace, seconds >= cut)):
        times = _START_S + seconds[kept]
        pl.DataFrame({"timestamp": times, "rows": np.full(len(times), rows)}).write_csv(file)


def leanrec(*arguments: str) -> Any:
    """Run a command and return its JSON."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "leanrec.py"), *arguments, "--json"], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"leanrec {' '.join(arguments)} ended with status {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def replayed(options: argparse.Namespace, shape: str, rate: float, folder: Path) -> tuple[list[Any], list[Any]]:
    """Return the rows of the virtual clock, and those of the server, one for each repeat."""
    trace, history = folder / "trace.csv", folder / "history.csv"
    write_traces(history, trace, rates(shape, rate, options.seconds), options.rows, options.seed)
    bundles = [part for bundle in options.bundles for part in ("--with-bundle", bundle)]
    home = ["--home", options.home, "--out", str(folder)]
    plan = ["--phase-minutes", str(options.seconds / 600), "--horizon-hours", str(options.seconds / 3600)]
    plan += ["--held-out", "0.1"]  # of the history, which is short
    leanrec("plan", options.study, "--trace", str(history), *plan, *bundles, *home)
    again = ["--plan", str(folder / "plan.json"), "--policy", options.policy]
    virtual: list[Any] = []
    server: list[Any] = []
    for _ in range(options.repeats):
        rows = leanrec("replay", options.study, "--trace", str(trace), *again, *bundles, *home)["rows"]
        virtual += [row for row in rows if row["clock"] == "virtual"]
        server += [row for row in rows if row["clock"] == "server"]
    return virtual, server


def compared(virtual: Sequence[float], server: Sequence[float]) -> tuple[float, float]:
    """Return the error of the simulated value, and the spread of the served ones."""
    return median(virtual) / median(server) - 1, max(server) / min(server) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--home", default=".")
    parser.add_argument("--seconds", type=int, default=600, help="of each replay")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--rates", default="100,250", help="mean requests a second")
    parser.add_argument("--shapes", default=",".join([*SHAPES, "azure"]))
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--policy", default="elastic")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found: dict[int, list[tuple[float, float]]] = {percent: [] for percent in _PERCENTS}
    late: list[tuple[float, float]] = []
    print(
        f"{'plan':<14}{'':>10}{'requests':>10}"
        + "".join(f"{f'p{p} ms: virtual, server, error (spread)':>44}" for p in _PERCENTS)
    )
    for shape in options.shapes.split(","):
        for rate in map(float, options.rates.split(",")):
            start = time.monotonic()
            with tempfile.TemporaryDirectory() as scratch:
                virtual, server = replayed(options, shape, rate, Path(scratch))
            cells = []
            for percent in _PERCENTS:
                simulated = [row[f"p{percent}_ms"] for row in virtual]
                served = [row[f"p{percent}_ms"] for row in server]
                if None in (*simulated, *served):
                    cells.append("refused")
                    continue
                error, spread = compared(simulated, served)
                found[percent].append((error, spread))
                cells.append(f"{median(simulated):.2f}, {median(served):.2f}, {error:+.0%} ({spread:.0%})")
            late.append((median(row["late"] for row in virtual), median(row["late"] for row in server)))
            print(
                f"{shape:<14}{rate:>10g}{virtual[0]['requests']:>10}" + "".join(f"{cell:>44}" for cell in cells)
                + f"  late {late[-1][0]:.3%}, {late[-1][1]:.3%}; switches {virtual[0]['switches']}, "
                f"{server[0]['switches']}; {time.monotonic() - start:.0f} s",
                flush=True,
            )  # fmt: skip
    for percent, pairs in found.items():
        if pairs:
            errors, spreads = [abs(error) for error, _ in pairs], [spread for _, spread in pairs]
            print(
                f"p{percent}: error {median(errors):.1%} in the median, {max(errors):.1%} at most; repeats of the "
                f"server {median(spreads):.1%} apart, {max(spreads):.1%} at most"
            )
    differences = [abs(simulated - served) for simulated, served in late]
    print(f"late: {median(differences):.3%} of the requests apart in the median, {max(differences):.3%} at most")


if __name__ == "__main__":
    main()
