"""Capacity of instances at an SLO, simulated on the virtual clock with the burstiness of a trace."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from objectives.measurement.service_curve import DrawnTimes
from objectives.measurement.statistics import percentile
from objectives.serving.pool.virtual_clock import simulate
from objectives.serving.pool.virtual_pool import ServiceTime
from planning.demand import Counts, Floats, Workload
from planning.fleet import SIMULATED_COUNTS, Deployment, Offer, as_served

# Requests that one instance gets in a simulation, and the first of them that are left out.
_REQUESTS, _WARM_UP = 5000, 300
# Halvings of the interval in which a rate is looked for, and the share of the saturated rate where it ends; requests of
# each replica that saturate it, and those of them that are in flight.
_HALVINGS = 7
_HIGHEST = 0.98
_SATURATING, _OUTSTANDING = 1000, 32


@dataclass(frozen=True)
class Objective:
    """Service level objective: `percent` per cent of the requests are answered within `slo_ms` milliseconds."""

    slo_ms: float
    percent: int = 95


def service_of(deployment: Deployment, speed: float, seed: int) -> ServiceTime:
    """Return the service time of an instance of a deployment on a machine so many times as fast as the study's."""
    return DrawnTimes([curve.scaled(1 / speed) for curve in deployment.curves], seed)


def latency_ms(deployment: Deployment, service: ServiceTime, seconds: Floats, rows: Counts) -> Floats:
    """Return the milliseconds of the requests of one instance, (n,), infinite where one is refused.

    Args:
        seconds: (n,) ascending arrival times
        rows: (n,) rows of each request

    Raises:
        OutsideRangeError: a run has a size for which no time was measured.
    """
    due_ns = np.rint(seconds * 1e9).astype(np.int64)
    found = simulate(as_served(deployment.placement), rows.tolist(), due_ns.tolist(), service)
    return np.where(found.refused, np.inf, (found.finished_ns - due_ns) / 1e6)


def saturated_rps(deployment: Deployment, service: ServiceTime, rows: Counts, each: int = _SATURATING) -> float:
    """Return the requests per second that an instance answers with all replicas busy, from so many of each replica."""
    count = each * deployment.placement.replicas
    sizes = np.resize(rows, count).tolist()
    found = simulate(
        deployment.placement, sizes, [0] * count, service, outstanding=_OUTSTANDING * deployment.placement.replicas
    )
    return float((~found.refused).sum() / (found.finished_ns.max() / 1e9))


def capacity_rps(
    deployment: Deployment, speed: float, instances: int, workload: Workload, objective: Objective, seed: int
) -> float:
    """Return the highest rate of all requests at which the SLO is kept, found by halving; 0 where none is.

    Requests are dealt to the instances in turn, so that all are alike, and the first is simulated.
    """
    rows = np.random.default_rng(seed).choice(workload.rows, _SATURATING)
    high = _HIGHEST * instances * saturated_rps(deployment, service_of(deployment, speed, seed), rows)

    def keeps(rate: float) -> bool:
        seconds, sizes = workload.draw(rate, _REQUESTS * instances, seed)
        service = service_of(deployment, speed, seed)
        found = latency_ms(deployment, service, seconds[::instances], sizes[::instances])
        return percentile(found[_WARM_UP:], objective.percent) <= objective.slo_ms

    low = 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return low


@dataclass
class CapacityTable:
    """Capacity of an offer by its number of machines.

    Each entry is simulated when it is first asked for. Between the numbers of instances that are simulated, the
    capacity of each instance is interpolated.

    known: requests per second by number of instances, which a caller may keep
    """

    offer: Offer
    simulated: Callable[[int], float]
    known: dict[int, float] = field(default_factory=dict)

    def rate(self, machines: int) -> float:
        """Return the requests per second that so many machines serve within the SLO."""
        wanted = machines * self.offer.copies
        above = bisect.bisect_left(SIMULATED_COUNTS, wanted)
        if above == len(SIMULATED_COUNTS):
            return wanted * self._each(SIMULATED_COUNTS[-1])
        high = SIMULATED_COUNTS[above]
        if high == wanted:
            return wanted * self._each(wanted)
        low = SIMULATED_COUNTS[above - 1]
        share = (wanted - low) / (high - low)
        return wanted * ((1 - share) * self._each(low) + share * self._each(high))

    def machines(self, rate_rps: float) -> int | None:
        """Return the fewest machines that serve a rate, None where even the most of the kind do not."""
        most = self.offer.kind.most
        first, last = 1, 1
        while not self._serves(last, rate_rps):
            if last == most:
                return None
            first, last = last + 1, min(2 * last, most)
        while first < last:
            middle = (first + last) // 2
            first, last = (first, middle) if self._serves(middle, rate_rps) else (middle + 1, last)
        return first

    def _serves(self, machines: int, rate_rps: float) -> bool:
        """Return whether so many machines serve a rate; machines that keep the SLO at no rate do not serve 0 either."""
        return self.rate(machines) >= max(rate_rps, 1e-300)

    def _each(self, instances: int) -> float:
        """Return the capacity of each of so many instances."""
        if instances not in self.known:
            self.known[instances] = self.simulated(instances)
        return self.known[instances] / instances


def capacity_table(
    offer: Offer, workload: Workload, objective: Objective, seed: int, known: dict[int, float] | None = None
) -> CapacityTable:
    """Return the table of an offer, with the capacities that are known already."""

    def simulated(instances: int) -> float:
        return capacity_rps(offer.deployment, offer.kind.speed, instances, workload, objective, seed)

    return CapacityTable(offer, simulated, {} if known is None else known)


def needed_machines(table: CapacityTable, rates_rps: Floats) -> Counts:
    """Return the fewest machines for each rate, (n,); 0 where the most of the kind do not suffice."""
    found = {rate: table.machines(rate) or 0 for rate in {_rounded(rate) for rate in rates_rps.tolist()}}
    return np.array([found[_rounded(rate)] for rate in rates_rps.tolist()], np.int64)


def _rounded(rate: float) -> float:
    """Round a rate up to three digits, so that few are looked up."""
    if rate <= 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(rate)) - 2)
    return math.ceil(rate / step - 1e-9) * step
