"""Backlog of a fleet that gets more than it can do, as a fluid: it grows and drains at the difference of the rates."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from planning.demand import Floats


class BacklogSpan(NamedTuple):
    """Requests that are accepted while others wait.

    piece: number of the span of time in which they arrive
    first_s, last_s: seconds that the first and the last of them wait, linear between them
    """

    piece: int
    requests: float
    first_s: float
    last_s: float


class Backlog(NamedTuple):
    """Backlog over spans of time, (n,) each.

    calm: requests that find none
    refused: requests for which there is no room
    """

    spans: list[BacklogSpan]
    calm: Floats
    refused: Floats


def backlog_of(rates_rps: Floats, seconds: Floats, capacity_rps: Floats, room: Floats) -> Backlog:
    """Follow the backlog through spans of time, from none.

    Args:
        rates_rps, seconds: (n,), arrivals and length of each span
        capacity_rps: (n,), requests that are answered while any wait; 0 refuses all, and forgets what waits
        room: (n,), requests that may wait; those for which there is no longer room are forgotten
    """
    found: list[BacklogSpan] = []
    calm, refused = np.zeros(len(rates_rps)), np.zeros(len(rates_rps))
    waiting = 0.0
    given = (each.tolist() for each in (rates_rps, seconds, capacity_rps, room))
    for piece, (rate, left, capacity, most) in enumerate(zip(*given, strict=True)):
        waiting, net = min(waiting, most), rate - capacity
        if capacity <= 0:
            refused[piece], left, waiting = rate * left, 0.0, 0.0
        while left > 0 and (waiting > 0 or net > 0):
            if net > 0 and waiting >= most:
                found.append(BacklogSpan(piece, capacity * left, most / capacity, most / capacity))
                refused[piece], left = net * left, 0.0
                break
            end = most if net > 0 else 0.0
            until = math.inf if net == 0 else (end - waiting) / net
            after = end if until <= left else waiting + net * left
            until = min(until, left)
            found.append(BacklogSpan(piece, rate * until, waiting / capacity, after / capacity))
            waiting, left = after, left - until
        calm[piece] = rate * left
    return Backlog(found, calm, refused)
