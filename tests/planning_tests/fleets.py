"""Deployments, workloads and tables that are given, for tests of plans."""

from __future__ import annotations

import numpy as np

from objectives.measurement.service_curve import Line, ServiceCurve
from planning.capacity import CapacityTable
from planning.demand import Workload
from planning.fleet import Deployment, MachineKind, Offer
from spaces.techniques.placement import InstanceGroup, Placement


def deployment(
    ms: float = 10.0, loss: float = 0.0, deviations: tuple[float, ...] = (1.0,), trial: int = 0, replicas: int = 1
) -> Deployment:
    """A deployment whose runs take so many milliseconds for any rows."""
    line = Line((1.0, 1000.0), (ms * 1e6, ms * 1e6), deviations)
    curve = ServiceCurve(line, line, line, line, 0.0, 0.0, 0, 1, 1000)
    placement = Placement(InstanceGroup(replicas=replicas, threads=1))
    return Deployment(trial, f"trial {trial}", placement, (curve,), replicas, loss, 2.0)


def offer(price: float = 1.0, most: int = 64, copies: int = 1, start_s: float = 0.0, **given: float) -> Offer:
    kind = MachineKind("small", 1, price_per_hour=price, start_seconds=start_s, most=most)
    return Offer(deployment(**given), kind, copies)  # type: ignore[arg-type]


def linear_table(one: Offer, rate_rps: float) -> CapacityTable:
    """A table of instances that serve so many requests per second each."""
    return CapacityTable(one, lambda instances: rate_rps * instances)


def exponential_quantiles(count: int = 4000) -> tuple[float, ...]:
    """Quantiles of an exponential distribution of mean 1."""
    found = -np.log(1 - (np.arange(count) + 0.5) / count)
    return tuple((found / found.mean()).tolist())


def poisson(count: int = 200_000, seed: int = 0) -> Workload:
    return Workload(np.random.default_rng(seed).exponential(size=count), np.array([100]))
