"""Faults of servers behind the balancer of `leanrec balance`: `python -m tests.benchmarks.server_faults`.

Three `leanrec serve` of one small bundle, HAProxy with the configuration that leanrec writes, and an open loop of
Poisson arrivals. In the middle one server hangs for seconds (SIGSTOP), dies (SIGKILL), or runs half of the time
(SIGSTOP and SIGCONT in turn); or the traffic is several times the usual one. Besides, a run of one of two replicas
hangs within a single server, without HAProxy. Per fault: what was refused, what failed, what was late, and the seconds
from the fault's begin to the arrival of the last such request.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from objectives.measure.remote_model import OverloadedError, RemoteModel
from objectives.measurement.statistics import percentile
from search.plan.haproxy import HAPROXY_BALANCE
from spaces.techniques.placement import InstanceGroup, Placement
from tests.plan_tests.balanced import balanced
from tests.serve_tests.bundles import draw_request, write_toy
from tests.serve_tests.process import ROOT, ServerProcess, serving

CONNECTIONS = 256
_SLICE = 0.005
# Requests that are drawn; each is sent many times.
_KINDS, _ROWS = 50, 50

Fault = Callable[[ServerProcess, float], None]


@dataclass(frozen=True, eq=False)
class Answers:
    """Answers to requests, (n,) each.

    due_s: arrival from the first one on
    latency_ms: infinite where the request was refused or failed
    """

    due_s: np.ndarray
    latency_ms: np.ndarray
    refused: np.ndarray
    failed: np.ndarray


def hang(server: ServerProcess, seconds: float) -> None:
    server.process.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    server.process.send_signal(signal.SIGCONT)


def die(server: ServerProcess, seconds: float) -> None:
    server.process.kill()


def half(server: ServerProcess, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for sent in (signal.SIGSTOP, signal.SIGCONT):
            server.process.send_signal(sent)
            time.sleep(_SLICE)


def hang_replica(server: ServerProcess, seconds: float) -> None:
    server.process.send_signal(signal.SIGUSR1)


FAULTS: dict[str, Fault | None] = {
    "none": None,
    "surge": None,
    "hang": hang,
    "replica hangs": hang_replica,
    "die": die,
    "half speed": half,
}


@contextmanager
def alone(folder: Path, policy: str, hangs_s: float) -> Iterator[tuple[str, Sequence[ServerProcess]]]:
    """Run one server of two replicas, a run of which hangs for seconds when it is told to."""
    bundle = write_toy(folder / "bundle", Placement(InstanceGroup(replicas=2)))
    program = (str(ROOT / "tests" / "benchmarks" / "hanging_server.py"), f"{hangs_s:g}")
    with serving(bundle, folder / "log", "--balance", policy, program=program) as server:
        yield server.url, [server]


def play(model: RemoteModel, due_s: np.ndarray) -> Answers:
    """Send a request at each moment, whatever has become of the others."""
    requests = [draw_request(_ROWS, seed) for seed in range(_KINDS)]
    start_ns, pending = time.perf_counter_ns(), []
    for number, due in enumerate(due_s.tolist()):
        time.sleep(max(due - (time.perf_counter_ns() - start_ns) / 1e9, 0))
        pending.append(model.submit(requests[number % _KINDS]))
    errors: list[Exception | None] = []
    for result in pending:
        try:
            result.result()
            errors.append(None)
        except Exception as error:  # what failed is counted, whatever it is
            errors.append(error)
    refused = np.array([isinstance(error, OverloadedError) for error in errors])
    failed = np.array([error is not None for error in errors]) & ~refused
    if failed.any():
        print(next(error for error, bad in zip(errors, failed, strict=True) if bad), file=sys.stderr)
    finished_ns = np.array([result.finished_ns for result in pending])
    latency = (finished_ns - start_ns) / 1e6 - 1e3 * due_s
    return Answers(due_s, np.where(refused | failed, np.inf, latency), refused, failed)


def arrivals(rate_rps: float, surge: float, begin_s: float, end_s: float, seconds: float, seed: int) -> np.ndarray:
    """Draw Poisson arrivals, of `surge` times the rate between two moments, by thinning."""
    random = np.random.default_rng(seed)
    due = np.cumsum(random.exponential(1 / (rate_rps * surge), int(1.2 * seconds * rate_rps * surge) + 100))
    due = due[due < seconds]
    kept = (due >= begin_s) & (due < end_s) | (random.random(len(due)) * surge < 1)
    return due[kept]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", default=list(FAULTS), metavar="|".join(FAULTS))
    parser.add_argument("--policy", choices=tuple(HAPROXY_BALANCE), default="two-choices")
    parser.add_argument("--timeout", type=float, default=5.0, help="of `leanrec balance` (default 5)")
    parser.add_argument("--rate", type=float, default=100.0, help="usual requests/s (default 100)")
    parser.add_argument("--surge", type=float, default=10.0, help="times the usual rate (default 10)")
    parser.add_argument("--slo-ms", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each fault's run; it lasts a quarter of them")
    given = parser.parse_args()
    begin, lasts = given.seconds / 4, given.seconds / 4
    print(f"{given.rate:g} requests/s, SLO {given.slo_ms:g} ms; the fault from {begin:g} s to {begin + lasts:g} s")
    print(
        f"{'fault':<14}{'requests':>9}{'refused':>9}{'failed':>8}{'late':>7}{'p99 before':>12}{'during':>10}"
        f"{'after':>10}{'normal':>9}"
    )
    for name in given.faults:
        surge = given.surge if name == "surge" else 1.0
        due_s = arrivals(given.rate, surge, begin, begin + lasts, given.seconds, seed=0)
        with (
            tempfile.TemporaryDirectory() as made,
            (
                alone(Path(made), given.policy, lasts)
                if FAULTS[name] is hang_replica
                else balanced(Path(made), given.policy, given.timeout)
            ) as (url, servers),
            RemoteModel(url, CONNECTIONS) as model,
        ):
            play(model, np.arange(200) / given.rate)  # warm-up
            timer = threading.Timer(begin, FAULTS[name] or (lambda *_: None), (servers[0], lasts))
            timer.start()
            found = play(model, due_s)
            timer.join()
        print(row(name, found, begin, begin + lasts, given.slo_ms), flush=True)


def row(name: str, found: Answers, begin_s: float, end_s: float, slo_ms: float) -> str:
    """Return a row of the table; percentiles are of the accepted requests, in milliseconds."""
    bad = found.latency_ms > slo_ms
    after = found.due_s[bad & (found.due_s >= begin_s)]
    normal = f"{after.max() - begin_s:.1f} s" if len(after) else "0 s"
    parts = [found.due_s < begin_s, (found.due_s >= begin_s) & (found.due_s < end_s), found.due_s >= end_s]
    p99 = [percentile(found.latency_ms[part & np.isfinite(found.latency_ms)], 99) for part in parts]
    late = int((bad & np.isfinite(found.latency_ms)).sum())
    return (
        f"{name:<14}{len(bad):>9}{found.refused.sum():>9}{found.failed.sum():>8}{late:>7}"
        f"{p99[0]:>12.1f}{p99[1]:>10.1f}{p99[2]:>10.1f}{normal:>9}"
    )


if __name__ == "__main__":
    main()
