"""Cost of the pool beside a call of the engine: microseconds a request, and throughput once it is saturated.

    python tests/benchmarks/pool_cost.py [--blocks 30] [--calls 60] [--rows 200] [--seconds 0.5]

All arms take turns in short blocks, in a random order; each figure is the median over blocks of a difference or ratio
within one block, with its 95% interval by order statistics. An engine has one thread, so none of its own spins.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from objectives.measurement.load_generator import precise_sleep, saturated, settle
from objectives.measurement.statistics import fewest_samples, percentile_interval
from objectives.serving.devices import cores_allowed
from objectives.serving.pool import Pool
from spaces.techniques.placement import Admission, Batching, InstanceGroup, Placement, Route
from tests.benchmarks.models import Requests, baseline_model, request

HAND_OFFS, INLINE_US, SHARE = 2.0, 20.0, 0.9
ONE = InstanceGroup(threads=1)
POOLS = {
    "queued": Placement(ONE),
    "queued, batching": Placement(ONE, batching=Batching(400)),
    "queued, a route": Placement(ONE, route=Route(500, ONE)),
    "queued, admission": Placement(ONE, admission=Admission(queue=1000, deadline_ms=10_000)),
    "inline": Placement(ONE, inline=True),
}
VERDICTS = ("MISSED", "unclear: the interval holds the goal", "kept")
Deployment = Callable[[], NDArray[np.float64]]


class Nothing:
    """An engine that is done at once: what is left is the pool's own."""

    once: frozenset[str] = frozenset()

    def __init__(self, rows: int) -> None:
        self._scores = np.zeros(rows, np.float32)

    def run(self, inputs: Mapping[str, Any]) -> NDArray[np.float32]:
        return self._scores


@dataclass(frozen=True)
class Line:
    """One figure of (blocks,) values, and its goal where it has one."""

    name: str
    values: NDArray[np.float64]
    unit: str
    goal: str = ""
    kept: Callable[[float], bool] | None = None

    def __str__(self) -> str:
        value, (low, high) = percentile_interval(self.values, 50)
        kept = "" if self.kept is None else VERDICTS[self.kept(low) + self.kept(high)]
        return f"{self.name:<46}{value:>9.2f} [{low:.2f}, {high:.2f}] {self.unit:<4} {self.goal:<24}{kept}"


def raw_session(model: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def raw_arm(session: onnxruntime.InferenceSession, requests: Requests) -> NDArray[np.float64]:
    """Measure calls in microseconds, (calls, 2): until scores are there and, as long, until the caller has them."""
    clock, taken = time.perf_counter_ns, []
    for each in requests:
        start = clock()
        session.run(None, each)
        taken.append(clock() - start)
    return np.array([taken, taken]).T / 1e3


def pool_arm(pool: Pool, requests: Requests) -> NDArray[np.float64]:
    """Measure calls of the pool in microseconds, (calls, 2): until scores are there, and until the caller has them."""
    clock, there, had = time.perf_counter_ns, [], []
    for each in requests:
        start = clock()
        answer = pool.submit(each)
        answer.result()
        end = clock()
        there.append(answer.finished_ns - start)
        had.append(end - start)
    return np.array([there, had]).T / 1e3


def hand_off_arm(there: SimpleQueue[int], back: SimpleQueue[int], calls: int) -> NDArray[np.float64]:
    """Microseconds, (calls, 2), from a put to another thread's get, and until that thread's own put has come back."""
    clock, one_way, both = time.perf_counter_ns, [], []
    for _ in range(calls):
        start = clock()
        there.put(start)
        got = back.get()
        both.append(clock() - start)
        one_way.append(got - start)
    return np.array([one_way, both]).T / 1e3


def echo(there: SimpleQueue[int], back: SimpleQueue[int]) -> None:
    while there.get():
        back.put(time.perf_counter_ns())


def in_turns(deployments: Mapping[str, Deployment], blocks: int) -> dict[str, NDArray[np.float64]]:
    """Medians of each arm's calls, (blocks, 2)."""
    random = np.random.default_rng(0)
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in deployments}
    for _ in range(blocks):
        for name in random.permutation(list(deployments)):
            settle()
            found[str(name)].append(np.median(deployments[str(name)](), axis=0))
    return {name: np.array(medians) for name, medians in found.items()}


def latency(model: Path, requests: Requests, blocks: int) -> list[Line]:
    there: SimpleQueue[int] = SimpleQueue()
    back: SimpleQueue[int] = SimpleQueue()
    other = threading.Thread(target=echo, args=(there, back), daemon=True)
    other.start()
    session = raw_session(model)
    with ExitStack() as stack:
        pools = {name: stack.enter_context(Pool.open(model, placement)) for name, placement in POOLS.items()}
        rows = len(requests[0]["item"])
        idle = {
            f"{name}, an engine that does nothing": stack.enter_context(
                Pool(POOLS[name], lambda instance_group: Nothing(rows))
            )
            for name in ("queued", "inline")
        }
        deployments: dict[str, Deployment] = {
            name: partial(pool_arm, pool, requests) for name, pool in (pools | idle).items()
        }
        deployments["raw"] = partial(raw_arm, session, requests)
        deployments["hand-off"] = partial(hand_off_arm, there, back, len(requests))
        for deployment in deployments.values():
            deployment()
        found = in_turns(deployments, blocks)
    there.put(0)
    other.join()
    hand_off, raw = found["hand-off"], found["raw"]
    lines = [
        Line("a raw session call", raw[:, 0], "us"),
        Line("a bare hand-off, one way", hand_off[:, 0], "us"),
        Line("a bare hand-off, there and back", hand_off[:, 1], "us"),
    ]
    for name in pools | idle:
        added = found[name] if name in idle else found[name] - raw
        times = added[:, 0] / hand_off[:, 0]
        if name.startswith("inline"):
            lines.append(Line(name, added[:, 0], "us", f"at most {INLINE_US:g} us", lambda v: v <= INLINE_US))
        else:
            lines.append(Line(name, added[:, 0], "us"))
            goal = f"at most {HAND_OFFS:g} hand-offs"
            lines.append(Line("  in hand-offs", times, "x", goal, lambda v: v <= HAND_OFFS))
        lines.append(Line("  until the caller has the scores", added[:, 1], "us"))
    return lines


def saturated_raw(sessions: list[onnxruntime.InferenceSession], requests: Requests, seconds: float) -> float:
    """Requests a second of as many plain threads as sessions."""
    served = [0] * len(sessions)

    def call(number: int) -> None:
        while time.perf_counter() < end:
            sessions[number].run(None, requests[served[number] % len(requests)])
            served[number] += 1

    threads = [threading.Thread(target=call, args=(number,)) for number in range(len(sessions))]
    start = time.perf_counter()
    end = start + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(served) / (time.perf_counter() - start)


def throughput(model: Path, requests: Requests, blocks: int, seconds: float, replicas: int) -> Line:
    sessions = [raw_session(model) for _ in range(replicas)]
    with Pool.open(model, Placement(InstanceGroup(replicas=replicas, threads=1))) as pool:
        deployments: dict[str, Callable[[], float]] = {
            "raw": lambda: saturated_raw(sessions, requests, seconds),
            "pool": lambda: saturated(pool.submit, requests, 2 * replicas, seconds),
        }
        for deployment in deployments.values():
            deployment()
        # The arm that goes first changes from block to block.
        pairs = []
        for block in range(blocks):
            order = ["raw", "pool"] if block % 2 else ["pool", "raw"]
            rates = {name: deployments[name]() for name in order}
            pairs.append(rates["pool"] / rates["raw"])
    name = f"saturated, {replicas} replica(s), of plain threads"
    return Line(name, np.array(pairs), "x", f"at least {SHARE:g}", lambda v: v >= SHARE)


def main(arguments: Any = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=0.5)
    options = parser.parse_args(arguments)
    if options.blocks < (fewest := fewest_samples(50)):
        parser.error(f"An interval needs {fewest} blocks or more, but got {options.blocks}.")
    precise_sleep()
    sys.setswitchinterval(5e-5)
    with tempfile.TemporaryDirectory() as folder:
        model = baseline_model(Path(folder))
        random = np.random.default_rng(0)
        requests = [request(options.rows, random) for _ in range(options.calls)]
        gc.collect()
        gc.disable()
        print(f"{options.rows} rows, {options.blocks} blocks of {options.calls} calls, {cores_allowed()} cores")
        for line in latency(model, requests, options.blocks):
            print(line, flush=True)
        for replicas in sorted({1, cores_allowed()}):
            print(throughput(model, requests, options.blocks, options.seconds, replicas), flush=True)


if __name__ == "__main__":
    main()
