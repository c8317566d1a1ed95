"""Policies of load balancing: pure functions from what is outstanding on each replica to the one that gets a request.

Loads count requests that run as well as those that wait. A policy draws by the number of the request's turn, so that
the same requests go the same way again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

_WORD = (1 << 64) - 1


class Load(Protocol):
    """Work that is outstanding on a replica."""

    @property
    def rows(self) -> int: ...

    @property
    def requests(self) -> int: ...


# From the number of the request, 0 or more, the loads of all replicas, and its rows, to the number of a replica.
Balance = Callable[[int, Sequence[Load], int], int]


@dataclass(frozen=True)
class Cost:
    """Expected service time of a replica, as a line: nanoseconds of each request, and of each of its rows."""

    request_ns: float
    row_ns: float

    def __post_init__(self) -> None:
        if min(self.request_ns, self.row_ns) < 0 or self.request_ns + self.row_ns <= 0:
            raise ValueError(f"A request takes time, and no part of it takes less than 0 ns, but got {self}.")

    def __call__(self, requests: int, rows: int) -> float:
        return self.request_ns * requests + self.row_ns * rows


def round_robin(turn: int, loads: Sequence[Load], rows: int) -> int:
    """Deal the requests to the replicas in turn."""
    return turn % len(loads)


def least_outstanding(turn: int, loads: Sequence[Load], rows: int) -> int:
    """Take the replica with the fewest outstanding requests, then the lowest number."""
    return min(range(len(loads)), key=lambda at: loads[at].requests)


def least_rows(turn: int, loads: Sequence[Load], rows: int) -> int:
    """Take the replica with the fewest outstanding rows, then requests, then the lowest number."""
    found, fewest = 0, loads[0].rows
    # A loop, since the key of `min` would make a tuple for each replica at each request.
    for at in range(1, len(loads)):
        outstanding = loads[at].rows
        if outstanding < fewest or (outstanding == fewest and loads[at].requests < loads[found].requests):
            found, fewest = at, outstanding
    return found


def two_choices(seed: int = 0) -> Balance:
    """Return the policy that draws two replicas and takes the one with fewer outstanding requests.

    The policy (Mitzenmacher 2001) is nearly as good as the least of all, without the herd that follows when several
    balancers see the same old loads.
    """

    def choose(turn: int, loads: Sequence[Load], rows: int) -> int:
        count = len(loads)
        if count == 1:
            return 0
        drawn = _mixed(seed * 0x9E3779B97F4A7C15 + turn)
        first = drawn % count
        second = (first + 1 + (drawn >> 32) % (count - 1)) % count
        return second if loads[second].requests < loads[first].requests else first

    return choose


def shortest_delay(costs: Sequence[Cost]) -> Balance:
    """Return the policy that takes the replica that is expected to have answered the request first.

    It compares the cost of each replica's outstanding requests and rows, the new request included. Where all costs are
    equal, that is the outstanding work; where not, it accounts for variants and speeds (shortest expected delay;
    Weinrib and Shenker 1987).
    """

    def choose(turn: int, loads: Sequence[Load], rows: int) -> int:
        return min(range(len(loads)), key=lambda at: costs[at](loads[at].requests + 1, loads[at].rows + rows))

    return choose


LEAST_ROWS = "least-rows"
# Policies by name, each made from the costs of the replicas.
POLICIES: Mapping[str, Callable[[Sequence[Cost]], Balance]] = {
    LEAST_ROWS: lambda costs: least_rows,
    "two-choices": lambda costs: two_choices(),
    "least-outstanding": lambda costs: least_outstanding,
    "round-robin": lambda costs: round_robin,
    "shortest-delay": shortest_delay,
}


def _mixed(number: int) -> int:
    """Mix the bits of a number into 64 that look random (SplitMix64; Steele et al. 2014)."""
    mixed = (number + 0x9E3779B97F4A7C15) & _WORD
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _WORD
    return mixed ^ (mixed >> 31)
