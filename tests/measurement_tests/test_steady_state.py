"""Requests until a queue is in steady state, against simulated queues that start empty."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from objectives.measurement.steady_state import variability, warm_up_requests

Floats = NDArray[np.float64]
BLOCKS = 20_000
COUNTED = 25


def p95_after(warm_up: int, utilisation: float, service: Callable[[np.random.Generator, int], Floats]) -> float:
    """The p95 of requests that follow so many in a queue that began empty: Lindley's recursion in many queues."""
    random = np.random.default_rng(7)
    waiting, found = np.zeros(BLOCKS), np.empty((COUNTED, BLOCKS))
    for i in range(warm_up + COUNTED):
        takes = service(random, BLOCKS)
        if i >= warm_up:
            found[i - warm_up] = waiting + takes
        waiting = np.maximum(waiting + takes - random.exponential(1 / utilisation, BLOCKS), 0)
    return float(np.percentile(found, 95))


@pytest.mark.parametrize("utilisation", [0.4, 0.6, 0.8])
def test_after_the_warm_up_an_mm1_queue_has_the_p95_of_its_law(utilisation: float) -> None:
    def service(random: np.random.Generator, count: int) -> Floats:
        return random.exponential(1.0, count)

    law = -math.log(0.05) / (1 - utilisation)
    assert p95_after(warm_up_requests(utilisation, 1.0), utilisation, service) == pytest.approx(law, rel=0.03)
    assert p95_after(0, utilisation, service) < 0.97 * law, "as it was without a warm-up"


def test_a_queue_that_varies_less_needs_less() -> None:
    assert warm_up_requests(0.8, 0.5) == pytest.approx(warm_up_requests(0.8, 1.0) / 2, abs=1)
    assert warm_up_requests(0.0, 1.0) == 0
    assert warm_up_requests(0.999, 50.0, most=300) == warm_up_requests(2.0, 50.0, most=300) == 300


def test_the_variability_is_one_for_exponential_arrivals_and_service() -> None:
    random = np.random.default_rng(0)
    arrivals = random.exponential(1e6, 100_000).astype(np.int64)
    assert variability(arrivals, random.exponential(1.0, 100_000)) == pytest.approx(1, abs=0.03)
    assert variability(arrivals, np.ones(10)) == pytest.approx(0.5, abs=0.02)
    refused = np.append(np.ones(10), np.inf)
    assert variability(arrivals, refused) == pytest.approx(0.5, abs=0.02)
