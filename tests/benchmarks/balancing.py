"""Balancing policies on the virtual clock of the pool: `python -m tests.benchmarks.balancing`.

Four replicas, whose service times are made up: 0.2 ms of a request and 2 us of each of its rows, and a log-normal
deviation that no policy knows. Arrivals are Poisson, at a share of what all replicas can do together.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from objectives.serving.pool.balancing import (
    Balance,
    Cost,
    least_outstanding,
    least_rows,
    round_robin,
    shortest_delay,
    two_choices,
)
from objectives.serving.pool.virtual_clock import simulate
from spaces.techniques.placement import InstanceGroup, Placement

REQUEST_NS, ROW_NS, DEVIATION = 200e3, 2e3, 0.3
REPLICAS = 4
LOADS = (0.5, 0.7, 0.9)
SLOW = (1.0, 1.0, 1.0, 0.5)
EQUAL = (1.0,) * REPLICAS


def few_sizes(random: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Draw log-normal rows: a median of 200, and a coefficient of variation of 0.3."""
    return np.asarray(np.maximum(np.rint(200 * np.exp(0.3 * random.normal(size=count))), 1), np.int64)


def heavy_tail(random: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Draw Pareto rows from 50 on, of infinite variance but for the largest request of 10,000."""
    return np.asarray(np.minimum(np.rint(50 * (1 + random.pareto(1.2, count))), 10_000), np.int64)


Sizes = Callable[[np.random.Generator, int], NDArray[np.int64]]
CASES: Mapping[str, tuple[Sizes, Sequence[float]]] = {
    "equal replicas": (few_sizes, EQUAL),
    "one at half speed": (few_sizes, SLOW),
    "heavy-tailed rows": (heavy_tail, EQUAL),
    "both": (heavy_tail, SLOW),
}


def policies(speeds: Sequence[float]) -> dict[str, Balance]:
    """Return all policies; the last two know the line of the service time, and the last one also each replica's."""
    costs = [Cost(REQUEST_NS / speed, ROW_NS / speed) for speed in speeds]
    return {
        "round robin": round_robin,
        "two choices": two_choices(),
        "least outstanding": least_outstanding,
        "least rows": least_rows,
        "least work": shortest_delay([Cost(REQUEST_NS, ROW_NS)] * len(speeds)),
        "shortest delay": shortest_delay(costs),
    }


def p99_ms(policy: Balance, case: tuple[Sizes, Sequence[float]], load: float, count: int, seed: int) -> float:
    """Return the p99 in milliseconds at a share of the capacity, without a first tenth."""
    sizes, speeds = case
    random = np.random.default_rng(seed)
    drawn = sizes(random, count)
    mean_ns = float((REQUEST_NS + ROW_NS * drawn).mean())
    due_ns = np.cumsum(random.exponential(mean_ns / (load * sum(speeds)), count)).astype(np.int64)
    deviations = iter(np.exp(DEVIATION * random.normal(size=count) - DEVIATION**2 / 2).tolist())

    def service(group: int, rows: int, idle_ns: int | None, busy: int) -> float:
        return (REQUEST_NS + ROW_NS * rows) * float(next(deviations))

    placement = Placement(InstanceGroup(replicas=len(speeds), threads=1))
    found = simulate(placement, drawn.tolist(), due_ns.tolist(), service, None, policy, speeds)
    return float(np.percentile((found.finished_ns - due_ns)[count // 10 :], 99)) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    print("p99 in ms, median of the seeds")
    for name, case in CASES.items():
        print(f"{name:<20}" + "".join(f"{f'load {load}':>12}" for load in LOADS))
        for policy, balance in policies(case[1]).items():
            found = [
                np.median([p99_ms(balance, case, load, options.requests, seed) for seed in options.seeds])
                for load in LOADS
            ]
            print(f"  {policy:<18}" + "".join(f"{p99:>12.2f}" for p99 in found), flush=True)


if __name__ == "__main__":
    main()
