"""Number of requests until a queue that starts empty reaches its steady state."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from objectives.measurement.statistics import Floats

# Relaxation times after which the p95 of the next 25 requests is within 2% of that of the steady state (M/M/1, M/D/1
# and log-normal service at utilisations of 0.4, 0.6 and 0.8).
_RELAXATIONS = 3
# Closer to 1, the relaxation takes longer than any measurement.
_MOST_UTILISATION = 0.97
_MOST_REQUESTS = 1000


def warm_up_requests(utilisation: float, variability: float, most: int = _MOST_REQUESTS) -> int:
    """Return the number of requests to drop from the start of a block.

    The relaxation time of an M/M/1 queue is rho / (1 - sqrt(rho))^2 requests (Cohen, The Single Server Queue, 1982,
    section II.2.1); for other queues it is scaled like their waiting time in heavy traffic, by the mean of the squared
    coefficients of variation of arrivals and service (Kingman 1961).

    Args:
        utilisation: requests per second times the seconds of one, over the replicas
        variability: mean of the squared coefficients of variation; 1 for M/M/1, 0.5 for M/D/1
        most: the largest result
    """
    rho = min(max(utilisation, 0.0), _MOST_UTILISATION)
    relaxation = variability * rho / (1 - math.sqrt(rho)) ** 2
    return min(math.ceil(_RELAXATIONS * relaxation), most)


def variability(gaps_ns: NDArray[np.int64], service_ms: Floats) -> float:
    """Return the mean of the squared coefficients of variation of arrivals and of service, from samples of both."""
    arrivals, service = _squared_variation(gaps_ns), _squared_variation(service_ms)
    return (arrivals + service) / 2


def _squared_variation(samples: NDArray[np.int64] | Floats) -> float:
    finite = samples[np.isfinite(samples)]
    return float(np.var(finite) / np.mean(finite) ** 2) if finite.size else 1.0
