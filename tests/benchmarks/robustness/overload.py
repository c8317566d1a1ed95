"""Overload: several times the capacity in an open loop, between two stretches of half of it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from objectives.measurement.statistics import percentile
from tests.benchmarks.robustness.load import OK, Load, Phase, Played
from tests.benchmarks.robustness.served import Limits, Material, Reading, readings
from tests.benchmarks.robustness.table import counted, show, verdict
from tests.serve_tests.process import serving

ALLOWED = {OK, "429", "503"}
REASONS = ("in flight", "event loop", "queue full", "deadline")
# Seconds at half of the capacity before and after the overload, and in which all has to be as usual again; of the
# stretch that shows it, and between two stretches.
_BEFORE, _AFTER, _NORMAL_IN = 5.0, 8.0, 2.0
_STRETCH, _STEP = 1.0, 0.25
# Growth of the resident memory, of the last third of the overload over the first, that counts as none.
_FLAT = 0.03


def overload(options: argparse.Namespace, load: Load, material: Material, limits: Limits, folder: Path) -> bool:
    """Print how a server behaves under overload, and return whether it keeps all that is asked of it.

    The server's deadline is the SLO.
    """
    over = options.times * limits.capacity_rps
    phases = [Phase(limits.capacity_rps / 2, _BEFORE), Phase(over, options.seconds)]
    phases.append(Phase(limits.capacity_rps / 2, _AFTER))
    bundle, deadline = material.bundle(folder / "overloaded"), ("--deadline-ms", str(limits.slo_ms))
    with serving(bundle, folder / "overload.log", *deadline) as server:
        with readings(server.process.pid, 0.5) as read:
            cpu, start = server.metric("process_cpu_seconds_total"), time.monotonic()
            played = load.play(server.url, phases, 2).result()
        told = server.metric("leanrec_requests_total", status=OK)
        cpu = (server.metric("process_cpu_seconds_total") - cpu) / (time.monotonic() - start)
        refused = {why: server.metric("leanrec_refusals_total", reason=why) for why in REASONS}
    parts = [played.part(played.phase == number) for number in range(len(phases))]
    print(f"overload: {over:.0f} requests/s, {options.times:g} times the capacity, for {options.seconds:g} s")
    rows = [
        [name, counted(part), *(part.accepted_ms(p) for p in (50, 95, 99)), part.lag(50), part.lag(99)]
        for name, part in zip(("before", "overload", "after"), parts, strict=True)
    ]
    show(["phase", "outcomes", "p50 ms", "p95 ms", "p99 ms", "lag p50", "lag p99"], rows)
    print(f"offered {played.offered_share:.1%} of the planned rate")
    print(f"cores used in the mean: {cpu:.2f} by the server, {played.cores:.2f} by the load")
    print("refused by " + ", ".join(f"{why}: {count:,.0f}" for why, count in refused.items() if count))
    print(f"afterwards {read[-1].threads} threads, {read[-1].files} open files")
    return _kept(played, parts, told, limits, read)


def _kept(played: Played, parts: Sequence[Played], told: float, limits: Limits, read: Sequence[Reading]) -> bool:
    before, over, after = parts
    p99, normal = over.accepted_ms(99), normal_after(after, limits.slo_ms)
    start, end = (read[0].at_s + one.due_s[-1] for one in (before, over))
    during = [one for one in read if start <= one.at_s <= end]
    resident, third = [one.resident_mib for one in during], max(1, len(during) // 3)
    growth = float(np.mean(resident[-third:]) / np.mean(resident[:third])) - 1
    files = [max(one.files for one in part) for part in (during[:third], during)]
    return all(
        [
            verdict("only 200, 429, 503", set(played.outcomes) <= ALLOWED, counted(played)),
            verdict(
                "every accepted request is answered", told == played.counts[OK],
                f"{played.counts[OK]:,} here, {told:,.0f} by the server",
            ),
            verdict("some are refused under overload", len(set(over.outcomes)) > 1, counted(over)),
            verdict(
                f"accepted p99 at most twice the SLO of {limits.slo_ms:.1f} ms", p99 <= 2 * limits.slo_ms,
                f"{p99:.1f} ms",
            ),
            verdict(f"back to normal within {_NORMAL_IN:g} s", normal <= _NORMAL_IN, f"{normal:.2f} s"),
            verdict(
                f"resident memory grows by at most {_FLAT:.0%}", growth <= _FLAT,
                f"{growth:+.1%}, from {resident[0]:.0f} to {resident[-1]:.0f} MiB, {max(resident):.0f} at most; open "
                f"files: {files[0]} at most in the first third, {files[1]} in all",
            ),
        ]
    )  # fmt: skip


def normal_after(after: Played, slo_ms: float) -> float:
    """Return the seconds until the server is back to normal, infinity where it never is.

    It is back at the first second in which no request is refused and the p95 keeps the SLO.
    """
    moments = after.due_s - after.due_s[0]
    for start in np.arange(0.0, moments[-1] - _STRETCH, _STEP):
        inside = (moments >= start) & (moments < start + _STRETCH)
        if (
            inside.any()
            and percentile(after.latency_ms[inside], 95) <= slo_ms
            and set(after.part(inside).outcomes) == {OK}
        ):
            return float(start)
    return float("inf")
