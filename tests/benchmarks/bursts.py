"""Tail latency of the built-in baseline under a recorded trace's arrivals, and under Poisson at the same rate.

    python tests/benchmarks/bursts.py [--data DIR] [--seconds 35] [--load 0.6] [--out DIR]

The trace is the Azure LLM inference trace 2023, `code` (CC-BY): times between arrivals vary 13 times their mean. It is
played at a share of the pool's capacity, in turns with Poisson, by what `leanrec bench` uses.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


from objectives.records import InputSpec
from objectives.serving.bundle import Bundle, read_bundle, write_bundle
from search.bench.bench import Plan, bench
from search.cli.console import Console
from search.report.bench import doubts, headline
from spaces.candidate import Candidate
from spaces.serialization import to_plain
from tests.benchmarks.models import ITEM_FIELDS, USER_FIELDS, baseline_model, request

TRACE = Path("arrivals") / "azure_llm_2023_code.csv"
INPUTS = (
    *(InputSpec(name, "int64", (), size, "user") for name, size in USER_FIELDS.items()),
    *(InputSpec(name, "int64", (), size, "item") for name, size in ITEM_FIELDS.items()),
)
PERCENTS = ("p50", "p95", "p99")


def baseline_bundle(folder: Path) -> Bundle:
    """The baseline as a study places it; the rows of its requests are a study's by default."""
    model = baseline_model(folder / "model")
    example = request(5, np.random.default_rng(0))
    write_bundle(folder / "bundle", "dcn-v2", model, Candidate(), {}, INPUTS, "# The baseline, untrained\n", example)
    return read_bundle(folder / "bundle")


def table(document: Mapping[str, Any]) -> list[str]:
    """Return a line for each percentile of the trace, of Poisson, and their ratio."""
    beside = document["poisson"]
    lines = [f"{'ms':<4}{'trace':>32}{'Poisson':>32}{'ratio':>26}"]
    for name in PERCENTS:
        low, high = beside.get(f"{name}_ratio_interval") or (None, None)
        told = {"value": beside.get(f"{name}_ratio"), "interval": (low, high)}
        lines.append(
            f"{name:<4}{_told(document['latency_ms'][name]):>32}{_told(beside['latency_ms'][name]):>32}"
            f"{_told(told):>26}"
        )
    return lines


def _told(found: Mapping[str, Any] | None) -> str:
    if found is None or found["value"] is None:
        return "-"
    low, high = (">" if end is None else f"{end:.3g}" for end in found["interval"])
    return f"{found['value']:.3g} [{low}, {high}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("LEANREC_TEST_DATA"), help="where arrivals/ lies")
    parser.add_argument("--seconds", type=float, default=35.0, help="of the trace; Poisson takes as long again")
    parser.add_argument("--load", type=float, default=0.6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="keeps bench.html and bench.json")
    options = parser.parse_args()
    if options.data is None or not (log := options.data / TRACE).is_file():
        parser.error(f"--data, or else LEANREC_TEST_DATA, is a folder that holds {TRACE}, but got {options.data}.")
    plan = Plan("replay", load=options.load, seconds=options.seconds, log=log, seed=options.seed)
    with tempfile.TemporaryDirectory() as folder:
        bundle = baseline_bundle(Path(folder))
        out = options.out or Path(folder) / "bench"
        found = bench(bundle, plan, out, Console(quiet=False, as_json=False))
    document = to_plain(found)
    print(*table(document), sep="\n")
    print(
        f"{document['requests']} requests of each at {document['rate_rps']:.0f}/s, {document['load']:.0%} of "
        f"{document['capacity_rps']:.0f}/s; longest queue {document['queue']['max']}, generator late by "
        f"{document['lag_p95_ms']:.3f} ms (p95)"
    )
    for line in (headline(found), *doubts(found)):
        print(line)


if __name__ == "__main__":
    main()
