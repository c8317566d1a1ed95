"""Balancing policies on the virtual clock of the pool: `python -m tests.benchmarks.balancing`.

Four replicas, whose service times are made up: 0.2 ms of a request and 2 us of each of its rows, and a log-normal
deviation that no policy knows. Arrivals are Poisson, at a share of what all replicas can do together.

A last table has exponential times of 1 ms, for which there are closed forms: each replica is E4/M/1 in turn, and a
policy that knew the work that is left would serve as the common queue of M/M/4 does.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

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


def common_queue_p99_ms(load: float) -> float:
    """Return the p99 of M/M/c with a mean service time of 1 ms (Kleinrock 1975, 3.5).

    P(T > t) = e^-t (1 + C (1 - e^-(c - 1 - a)t) / (c - 1 - a)), with the offered load a and Erlang's C.
    """
    offered = load * REPLICAS
    terms = [offered**k / math.factorial(k) for k in range(REPLICAS)]
    last = offered**REPLICAS / math.factorial(REPLICAS) / (1 - load)
    waits, rest = last / (sum(terms) + last), REPLICAS - 1 - offered

    def beyond(ms: float) -> float:
        share = ms if math.isclose(rest, 0, abs_tol=1e-9) else -math.expm1(-rest * ms) / rest
        return math.exp(-ms) * (1 + waits * share) - 0.01

    return float(brentq(beyond, 0, 1e3))


def in_turn_p99_ms(load: float) -> float:
    """Return the p99 of Ec/M/1 with a mean service time of 1 ms, exponential of mean 1 / (1 - s) (Kleinrock 1975, 6.4).

    s is the root below 1 of s = A(1 - s), A being the transform of a gap between every c-th arrival.
    """
    rate = load * REPLICAS
    root = float(brentq(lambda s: (rate / (rate + 1 - s)) ** REPLICAS - s, 0, 1 - 1e-9))
    return math.log(100) / (1 - root)


def exponential_p99_ms(policy: Balance, load: float, count: int, seed: int) -> float:
    """Return the simulated p99 in milliseconds of exponential times of 1 ms, without a first tenth."""
    random = np.random.default_rng(seed)
    due_ns = np.cumsum(random.exponential(1e6 / (load * REPLICAS), count)).astype(np.int64)
    times = iter(random.exponential(1e6, count).tolist())
    placement = Placement(InstanceGroup(replicas=REPLICAS, threads=1))
    found = simulate(
        placement, [1] * count, due_ns.tolist(), lambda group, rows, idle_ns, busy: float(next(times)), None, policy
    )
    return float(np.percentile((found.finished_ns - due_ns)[count // 10 :], 99)) / 1e6


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
    print(f"{'exponential times':<20}" + "".join(f"{f'load {load}':>12}" for load in LOADS))
    for policy, balance in policies(EQUAL).items():
        found = [
            np.median([exponential_p99_ms(balance, load, options.requests, seed) for seed in options.seeds])
            for load in LOADS
        ]
        print(f"  {policy:<18}" + "".join(f"{p99:>12.2f}" for p99 in found), flush=True)
    for form, closed in (("E4/M/1", in_turn_p99_ms), ("M/M/4", common_queue_p99_ms)):
        print(f"  {form:<18}" + "".join(f"{closed(load):>12.2f}" for load in LOADS))


if __name__ == "__main__":
    main()
