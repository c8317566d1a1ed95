"""The virtual clock against reality: replays of plans by simulation and on a real server.

    python tests/benchmarks/replays.py STUDY BUNDLE... [--home FOLDER] [--seconds 600] [--repeats 2] [--rates 100,250]
                                       [--shapes steady,sine,ramp,surges,azure] [--policy elastic] [--results FILE]
                                       [--rows 200]

For each shape of traffic and mean rate a trace of five times --seconds is drawn, Poisson within each second; `leanrec
plan` plans its last fifth from the first four, in phases of a tenth of it, of the bundles' points, and `leanrec replay`
serves that fifth on the virtual clock and on `leanrec serve`. Two further shapes are such as no plan foresees: in
`launch` the last fifth has ten times the rate for a twentieth of the time, from one second to the next, and in
`tripled` it has three times the rate of what was before. Printed: p50, p95, p99 and the share of late requests of
both, the error of the simulated value to the median of the served ones, and next to it how far the repeats of the
server lie apart (the largest over the smallest). In the end the medians over all plans. A file of results is added to,
and what it holds already counts as well, so that plans may be replayed a few at a time.

A machine in a cloud stands still while its hypervisor serves others, which no simulation of requests can know. So the
intervals of a replay (120 of equal length) are compared a second time without those in which the hypervisor took more
than 0.2% of the CPU time: by the median of the p95 of each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
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
# Share of an interval's CPU time that the hypervisor may take of a calm one.
_CALM = 0.002
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


# What the last period has, as a multiple of the steady rate before it.
UNFORESEEN: dict[str, Callable[[Floats], Floats]] = {
    "launch": lambda part: np.where((part > 0.5) & (part < 0.55), 10.0, 1.0),
    "tripled": lambda part: np.full_like(part, 3.0),
}


def rates(shape: str, mean_rps: float, seconds: int) -> Floats:
    """Return the rate of each second of all periods.

    Those of the real trace are the counts of its seconds. Of an unforeseen shape the mean rate is that before it.
    """
    if shape in UNFORESEEN:
        last = UNFORESEEN[shape]((np.arange(seconds) + 0.5) / seconds)
        return mean_rps * np.concatenate([np.ones((_PERIODS - 1) * seconds), last])
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


Found = dict[tuple[str, float], dict[str, list[Any]]]


class StolenTime(threading.Thread):
    """CPU time that the hypervisor took, read from the kernel each tenth of a second until the end of the context."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._over = threading.Event()
        self._times: list[float] = []
        self._stolen: list[float] = []

    def run(self) -> None:
        tick = os.sysconf("SC_CLK_TCK") * (os.cpu_count() or 1)
        while not self._over.wait(0.1):
            # "cpu user nice system idle iowait irq softirq steal", of all cores together.
            self._stolen.append(int(Path("/proc/stat").read_text().split(maxsplit=9)[8]) / tick)
            self._times.append(time.time())

    def __enter__(self) -> StolenTime:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self.join()

    def shares(self, edges: Floats) -> list[float]:
        """Return the share of the CPU time that was taken between neighbours of so many moments since the epoch."""
        taken_s = np.interp(edges, self._times, self._stolen)
        return [float(share) for share in np.diff(taken_s) / np.diff(edges)]


def replayed(options: argparse.Namespace, shape: str, rate: float, folder: Path) -> dict[str, Any]:
    """Return the rows of the virtual clock and of the server, and the stolen share of each interval of the server's.

    The shares are None where the policy follows no plan, since the begin of its replay is not told.
    """
    trace, history = folder / "trace.csv", folder / "history.csv"
    write_traces(history, trace, rates(shape, rate, options.seconds), options.rows, options.seed)
    bundles = [part for bundle in options.bundles for part in ("--with-bundle", bundle)]
    home = ["--home", options.home, "--out", str(folder)]
    plan = ["--phase-minutes", str(options.seconds / 600), "--horizon-hours", str(options.seconds / 3600)]
    plan += ["--held-out", "0.1"]  # of the history, which is short
    leanrec("plan", options.study, "--trace", str(history), *plan, *bundles, *home)
    again = ["--plan", str(folder / "plan.json"), "--policy", options.policy]
    with StolenTime() as stolen:
        found = leanrec("replay", options.study, "--trace", str(trace), *again, *bundles, *home)
    plan_file = next(file for file in (folder / "servers").glob("*.plan.json") if file.name != "sample.plan.json")
    served = json.loads(plan_file.read_text())
    if served["start_s"] <= 0:  # a policy that foresees nothing
        return {"rows": found["rows"], "stolen": None}
    start_s = served["start_s"] + served["begins_seconds"]
    intervals = found["rows"][0]["intervals"]
    edges = start_s + np.array([*(each["start_s"] for each in intervals), found["seconds"]])
    return {"rows": found["rows"], "stolen": stolen.shares(edges)}


def read_results(file: Path | None) -> Found:
    """Return the rows of earlier replays by plan and clock."""
    found: Found = {}
    for line in file.read_text().splitlines() if file is not None and file.exists() else ():
        add(found, json.loads(line))
    return found


def add(found: Found, record: Any) -> None:
    by_clock = found.setdefault((record["shape"], record["rate"]), {"virtual": [], "server": [], "stolen": []})
    by_clock["stolen"].append(record.get("stolen"))
    for row in record["rows"]:
        by_clock[row["clock"]].append(row)


def compared(virtual: Sequence[float], server: Sequence[float]) -> tuple[float, float | None]:
    """Return the error of the simulated value, and the spread of the served ones where there are several."""
    spread = max(server) / min(server) - 1 if len(server) > 1 else None
    return median(virtual) / median(server) - 1, spread


def summarize(found: Found) -> None:
    """Print a line of each plan, and the medians over all."""
    errors: dict[int, list[float]] = {percent: [] for percent in _PERCENTS}
    spreads: dict[int, list[float]] = {percent: [] for percent in _PERCENTS}
    late: list[float] = []
    heads = "".join(f"{f'p{p} ms: virtual, server, error (spread)':>44}" for p in _PERCENTS)
    print(f"{'plan':<14}{'':>10}{'requests':>10}{heads}")
    for (shape, rate), rows in found.items():
        cells = []
        for percent in _PERCENTS:
            simulated, served = ([row[f"p{percent}_ms"] for row in rows[clock]] for clock in ("virtual", "server"))
            if None in (*simulated, *served):
                cells.append("refused")
                continue
            error, spread = compared(simulated, served)
            errors[percent].append(abs(error))
            spreads[percent].extend([] if spread is None else [spread])
            known = "once" if spread is None else f"{spread:.0%}"
            cells.append(f"{median(simulated):.2f}, {median(served):.2f}, {error:+.0%} ({known})")
        shares, refused = (
            [median(row[name] for row in rows[clock]) for clock in ("virtual", "server")]
            for name in ("late", "refused")
        )
        late.append(abs(shares[0] - shares[1]))
        print(
            f"{shape:<14}{rate:>10g}{rows['virtual'][0]['requests']:>10}" + "".join(f"{cell:>44}" for cell in cells)
            + f"  late {shares[0]:.3%}, {shares[1]:.3%}; refused {refused[0]:.3%}, {refused[1]:.3%}; "
            f"switches {rows['virtual'][0]['switches']}, {rows['server'][0]['switches']}; {len(rows['server'])} served"
        )  # fmt: skip
    for percent in _PERCENTS:
        if errors[percent]:
            repeats = "not repeated"
            if spreads[percent]:
                repeats = f"repeats {median(spreads[percent]):.1%} apart, {max(spreads[percent]):.1%} at most"
            print(
                f"p{percent}: error {median(errors[percent]):.1%} in the median of {len(errors[percent])} plans, "
                f"{max(errors[percent]):.1%} at most; {repeats}"
            )
    print(f"late: {median(late):.3%} of the requests apart in the median, {max(late):.3%} at most")
    summarize_calm(found)


def summarize_calm(found: Found) -> None:
    """Print the median p95 of the calm intervals, a line of each replay, and the median error."""
    errors: list[float] = []
    for (shape, rate), rows in found.items():
        for simulated, served, stolen in zip(rows["virtual"], rows["server"], rows["stolen"], strict=True):
            calm = [share <= _CALM for share in stolen or ()]
            if not any(calm):
                print(f"{shape:<14}{rate:>10g}  no interval is known to be calm")
                continue
            intervals = zip(simulated["intervals"], served["intervals"], calm, strict=True)
            # None where nothing arrived, or where the p95 lies among the refused.
            p95 = [
                pair
                for one, other, kept in intervals
                if kept and None not in (pair := (one["p95_ms"], other["p95_ms"]))
            ]
            if len(p95) < sum(calm):
                print(f"{shape:<14}{rate:>10g}  {sum(calm) - len(p95)} calm intervals have no p95 on one side")
            if not p95:
                continue
            virtual, server = (median(side) for side in zip(*p95, strict=True))
            errors.append(abs(virtual / server - 1))
            print(
                f"{shape:<14}{rate:>10g}  {sum(calm)} of {len(calm)} intervals are calm, {np.mean(stolen):.2%} was "
                f"stolen in all; p95 ms of the calm ones: {virtual:.2f}, {server:.2f}, {virtual / server - 1:+.0%}"
            )
    if errors:
        print(f"p95 of calm intervals: error {median(errors):.1%} in the median of {len(errors)} replays")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--home", default=".")
    parser.add_argument("--seconds", type=int, default=600, help="of each replay")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--rates", default="100,250", help="mean requests a second")
    parser.add_argument("--shapes", default=",".join([*SHAPES, "azure"]), help="launch and tripled besides")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--policy", default="elastic")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="a file of JSON lines that is added to")
    options = parser.parse_args()
    found = read_results(options.results)
    for shape in options.shapes.split(","):
        for rate in map(float, options.rates.split(",")):
            for _ in range(options.repeats):
                start = time.monotonic()
                with tempfile.TemporaryDirectory() as scratch:
                    record = {"shape": shape, "rate": rate, **replayed(options, shape, rate, Path(scratch))}
                add(found, record)
                if options.results is not None:
                    with options.results.open("a") as file:
                        file.write(json.dumps(record) + "\n")
                print(f"{shape} {rate:g}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    summarize(found)


if __name__ == "__main__":
    main()
