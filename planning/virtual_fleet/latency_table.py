"""Latency of a fleet by its state and utilisation: groups of its machines, simulated request by request."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from planning.capacity import Objective, saturated_rps, service_of
from planning.demand import Counts, Floats
from planning.fleet import as_served
from planning.virtual_fleet.dispatch import BLIND, POLICIES, Instance, VirtualFleet, simulate_fleet
from planning.virtual_fleet.incidents import FleetSpec, apportioned, speeds
from planning.virtual_fleet.latency_shares import shares

# Utilisations that are simulated; between them distributions are mixed, and beyond them queues grow (see backlog.py).
LEVELS = np.array(
    [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.875, 0.9, 0.925, 0.95, 0.975, 0.99]
)
# Instances of a group of a large fleet, and most machines of a fleet that is simulated as a whole in each state.
GROUP, WHOLE = 64, 6
# Requests of each instance that are left out and that are counted, over (1 - utilisation)^2 below saturation and within
# bounds; fewest requests that are counted in all.
_RELAXATION, _LEAST, _MOST = 4.0, 100, 1200
_FEWEST = 20_000
# Requests of each replica with which a saturated rate is measured.
_SATURATING = 20_000


class Composition(NamedTuple):
    """Instances of a group: healthy and slow ones of each kind."""

    healthy: tuple[int, ...]
    slow: tuple[int, ...]


class Mixture(NamedTuple):
    """A group with its weight among the groups that stand for a state of the fleet."""

    weight: float
    composition: Composition


class LatencyTable:
    """Distributions of latency, each simulated when it is first asked for.

    The random numbers are the same at all utilisations.

    Args:
        rows: (n,) rows of requests, which are drawn from them
    """

    def __init__(self, spec: FleetSpec, rows: Counts, objective: Objective, seed: int) -> None:
        self._spec, self._rows, self._objective, self._seed = spec, rows, objective, seed
        self._deployment = spec.offers[0].deployment
        drawn = np.random.default_rng(seed).choice(rows, _SATURATING)
        # Requests per second of an instance on a machine of speed 1 that is never idle.
        service = service_of(self._deployment, 1.0, seed)
        self.saturated_rps = saturated_rps(self._deployment, service, drawn, _SATURATING)
        # Requests that may wait in an instance.
        self.queue = as_served(self._deployment.placement).admission.queue or 0
        self._known: dict[tuple[Composition, int], Floats] = {}

    @property
    def simulated(self) -> int:
        """Number of distributions that were simulated."""
        return len(self._known)

    def capacity_rps(self, healthy: Counts, slow: Counts) -> Floats:
        """Return the rate that saturates machines in rotation.

        Args:
            healthy, slow: (..., kinds)
        """
        speed = np.array(self._spec.instance_speeds)
        return np.asarray(self.saturated_rps * (healthy + self._spec.slow_speed * slow) @ speed, np.float64)

    def room(self, healthy: Counts, slow: Counts) -> Floats:
        """Return the requests that may wait in machines in rotation, (..., kinds) each."""
        copies = np.array([offer.copies for offer in self._spec.offers])
        return np.asarray(self.queue * (healthy + slow) @ copies, np.float64)

    def distribution(self, composition: Composition, level: int) -> Floats:
        """Return the distribution of a group at a level of utilisation, (ENTRIES,)."""
        key = composition, level
        if key not in self._known:
            latency = self._simulate(composition, float(LEVELS[level]))
            self._known[key] = shares(latency, self._objective.slo_ms)
        return self._known[key]

    def _simulate(self, composition: Composition, utilisation: float) -> Floats:
        """Return the milliseconds of the requests of a group, without a beginning in which queues settle.

        Under a policy that does not look at the instances, those that get more than they can do begin with full queues.
        """
        instances, slow = self._instances(composition)
        factor = np.array([self._spec.slow_speed if each.machine in slow else 1.0 for each in instances])
        speed = factor * [each.speed for each in instances]
        own = utilisation * self._shares_of_work(speed)
        each = _requests(own)
        count, warm_up = max(each * len(instances), _FEWEST), each * len(instances) // 2
        random = np.random.default_rng(self._seed)
        gaps = random.exponential(size=warm_up + count)
        seconds = np.cumsum(gaps) / (utilisation * self.saturated_rps * speed.sum())
        rows = random.choice(self._rows, warm_up + count)
        fleet = VirtualFleet(self._deployment, instances, POLICIES[self._spec.policy], self._seed)
        for machine in slow:
            fleet.change_speed(machine, self._spec.slow_speed, 0)
        for at in np.flatnonzero(own >= 1).tolist():
            fleet.preload(at, rows[: self.queue].tolist())
        return simulate_fleet(fleet, seconds, rows)[warm_up:]

    def _shares_of_work(self, speed: Floats) -> Floats:
        """Return the utilisation of instances of the given speeds over that of all, (instances,).

        Policies that look at the instances even it out.
        """
        return speed.mean() / speed if self._spec.policy in BLIND else np.ones(len(speed))

    def _instances(self, composition: Composition) -> tuple[list[Instance], set[int]]:
        """Return the instances of a group in a mixed order, each as a machine, and the numbers of the slow ones."""
        random, found, slow = np.random.default_rng(self._seed), list[Instance](), set[int]()
        for offer, healthy, slowed in zip(self._spec.offers, *composition, strict=True):
            own = offer.kind.speed * random.permutation(speeds(healthy + slowed, self._spec.spread))
            slow.update(range(len(found), len(found) + slowed))
            found += [Instance(len(found) + at, speed, offer.kind.speed) for at, speed in enumerate(own.tolist())]
        return [found[at] for at in random.permutation(len(found)).tolist()], slow


def _requests(utilisations: Floats) -> int:
    """Return the requests that are counted of each instance, by the utilisations of all."""
    stable = utilisations[utilisations < 1]
    slowest = 1 - float(stable.max()) if len(stable) else 0.0
    return round(min(max(_RELAXATION / max(slowest, 1e-3) ** 2, _LEAST), _MOST))


def levels_of(utilisations: Floats) -> tuple[Counts, Floats]:
    """Return the levels below and above utilisations and their weights, (2, n) each; those beyond are at the ends."""
    clipped = np.clip(utilisations, LEVELS[0], LEVELS[-1])
    above = np.clip(np.searchsorted(LEVELS, clipped), 1, len(LEVELS) - 1)
    share = (clipped - LEVELS[above - 1]) / (LEVELS[above] - LEVELS[above - 1])
    return np.stack([above - 1, above]), np.stack([1 - share, share])


def mixtures(spec: FleetSpec, healthy: Counts, slow: Counts) -> tuple[Mixture, ...]:
    """Return the groups that stand for a state of a fleet.

    A small fleet, of whatever is in rotation, is its own group. Of a larger one a group has a fixed number of instances
    in the proportions of their kinds, and the slow ones are rounded down and up, weighted so that their mean share is
    that of the state. Which instances share a machine does not matter in steady state.

    Args:
        healthy, slow: (kinds,), machines in rotation, 1 or more in all
    """
    copies = np.array([offer.copies for offer in spec.offers])
    healthy, slow, instances = healthy * copies, slow * copies, np.array(spec.counts) * copies
    if spec.machines <= WHOLE:
        return (Mixture(1.0, Composition(tuple(healthy.tolist()), tuple(slow.tolist()))),)
    size = min(int(instances.sum()), GROUP)
    expected = size * float(slow.sum()) / float((healthy + slow).sum())
    fewer, whole = min(math.floor(expected), size), apportioned(instances, size)
    found = []
    for number, weight in ((fewer, fewer + 1 - expected), (fewer + 1, expected - fewer)):
        if weight > 0:
            slow_part = apportioned(whole, number)
            composition = Composition(tuple((whole - slow_part).tolist()), tuple(slow_part.tolist()))
            found.append(Mixture(weight, composition))
    return tuple(found)
