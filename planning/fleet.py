"""Fleets: kinds of machines, what a machine of a kind serves, and how many of them serve over time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from objectives.measurement.service_curve import ServiceCurve
from objectives.serving.http.limits import Limits
from spaces.techniques.placement import Admission, InstanceGroup, Placement

Floats = NDArray[np.float64]
# Requests in flight that a server accepts, `leanrec serve --max-in-flight`, and so lets wait where its placement sets
# no limit of its own.
MAX_IN_FLIGHT = Limits.in_flight
# Numbers of instances, and of replicas, whose capacity is simulated.
SIMULATED_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


@dataclass(frozen=True)
class MachineKind:
    """A kind of machine that can be rented.

    speed: how many times as fast as the study's machine it serves the same request
    price_per_hour: in any currency, the same for all kinds
    start_seconds: from the order of a machine to its first process
    most: machines of this kind that may serve at once
    memory_bytes: None where it is not limited
    """

    name: str
    cores: int
    speed: float = 1.0
    price_per_hour: float = 1.0
    start_seconds: float = 0.0
    most: int = 64
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("cores", "speed", "price_per_hour", "most"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} of a machine is above 0, but got {value}.")
        if not (math.isfinite(self.start_seconds) and self.start_seconds >= 0):
            raise ValueError(f"start_seconds of a machine is 0 or more, but got {self.start_seconds}.")


@dataclass(frozen=True, eq=False)
class Deployment:
    """A measured point of a study: a variant with its placement.

    curves: service curve of each instance group, on the study's machine
    cores: that the placement uses; where its engine chooses the threads, on the machine at hand
    loss: quality loss to the baseline; a gain is negative
    load_seconds: from the start of a process to its first answer at full speed
    replica_seconds: by which each further replica prolongs that, since replicas are opened one after another
    memory_bytes: peak of a process, None where it was not measured
    variant: identifier of its weights and precision
    """

    trial: int
    name: str
    placement: Placement
    curves: tuple[ServiceCurve, ...]
    cores: int
    loss: float
    load_seconds: float
    memory_bytes: int | None = None
    variant: str = ""
    replica_seconds: float = 0.0

    def with_replicas(self, count: int) -> Deployment:
        """Return the deployment with so many replicas of its first instance group, where it has no other group."""
        more = count - self.placement.replicas
        return replace(
            self,
            placement=self.placement.with_replicas(count),
            cores=self.cores // self.placement.replicas * count,
            load_seconds=max(self.load_seconds + more * self.replica_seconds, 0.0),
        )


@dataclass(frozen=True, eq=False)
class Offer:
    """A deployment on machines of a kind.

    copies: instances of the placement on a machine; each is a process with a queue of its own
    """

    deployment: Deployment
    kind: MachineKind
    copies: int

    @property
    def name(self) -> str:
        return f"{self.deployment.name} on {self.kind.name}"

    @property
    def loss(self) -> float:
        """Loss that counts: a gain in quality is not traded for a loss elsewhere."""
        return max(self.deployment.loss, 0.0)

    @property
    def replicas(self) -> int:
        """Replicas of a machine."""
        return self.copies * self.deployment.placement.replicas

    @property
    def start_seconds(self) -> float:
        """Seconds from the order of a machine until it serves."""
        return self.kind.start_seconds + self.deployment.load_seconds / self.kind.speed

    @property
    def start_price(self) -> float:
        """Price of the time in which a machine starts and serves nothing."""
        return self.start_seconds / 3600 * self.kind.price_per_hour


def cores_of(placement: Placement, automatic: int) -> int:
    """Return the cores that a placement uses; `automatic` are those of replicas whose engine chooses the threads."""

    def cores(group: InstanceGroup) -> int:
        return group.replicas * (group.threads or automatic)

    return sum(cores(group) for group in placement.instance_groups)


def offers_of(deployments: Sequence[Deployment], kinds: Sequence[MachineKind]) -> tuple[Offer, ...]:
    """Return every deployment on every kind of machine that has the cores and the memory for it.

    An engine that chooses the threads of a replica takes all cores of the machine. Copies that are pinned would all
    take the machine's first cores, so that there is one at most.
    """
    offers = []
    for deployment, kind in itertools.product(deployments, kinds):
        placement = deployment.placement
        automatic = any(group.threads is None for group in placement.instance_groups)
        cores = cores_of(placement, kind.cores)
        one = replace(deployment, cores=min(cores, kind.cores) if automatic else cores)
        if (copies := _copies(one, kind)) > 0:
            offers.append(Offer(one, kind, 1 if _pinned(placement) else copies))
    return tuple(offers)


def _pinned(placement: Placement) -> bool:
    return any(group.pinned for group in placement.instance_groups)


def layouts_of(offer: Offer) -> tuple[Offer, ...]:
    """Return the layouts of an offer as one process on a machine.

    They have from one replica up to as many as all copies together, in half of the memory: a switch opens the replicas
    of one layout beside those of another. A placement that routes keeps the replicas that it has. Within a process,
    replicas that are pinned have cores of their own.
    """
    one, placement = offer.deployment, offer.deployment.placement
    if placement.route is not None:
        return (replace(offer, copies=1),)
    copies = _copies(one, offer.kind) if _pinned(placement) else offer.copies
    most = min(copies, _in_memory(one, offer.kind) // 2) * placement.replicas
    counts = (*(count for count in SIMULATED_COUNTS if count < most), most)
    return tuple(replace(offer, deployment=one.with_replicas(count), copies=1) for count in counts)


def _copies(deployment: Deployment, kind: MachineKind) -> int:
    """Return the processes that a machine runs: one fewer than it has the memory for, since a swap needs another."""
    return max(min(kind.cores // deployment.cores, _in_memory(deployment, kind) - 1), 0)


def _in_memory(deployment: Deployment, kind: MachineKind) -> int:
    """Return how many processes a machine has the memory for; more than matter where that is not known."""
    if kind.memory_bytes is None or deployment.memory_bytes is None:
        return 2 * kind.cores
    return kind.memory_bytes // deployment.memory_bytes


def as_served(placement: Placement) -> Placement:
    """Return the placement that stands for one behind a server.

    At most as many requests wait as the server accepts. They also wait for an inline replica: whoever sends a request
    to a server does not wait until the run of another one is over.
    """
    queue = placement.admission.queue
    limit = MAX_IN_FLIGHT if queue is None else min(queue, MAX_IN_FLIGHT)
    return replace(placement, admission=Admission(limit, placement.admission.deadline_ms), inline=False)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Machines over time: from each moment until the next, a number of machines of one offer.

    starts_s: (segments,), ascending from 0
    offers: (segments,), numbers of offers
    machines: (segments,), machines that serve, 1 or more
    """

    starts_s: Floats
    offers: NDArray[np.int64]
    machines: NDArray[np.int64]

    def __post_init__(self) -> None:
        count = len(self.starts_s)
        if not count == len(self.offers) == len(self.machines) >= 1 or self.starts_s[0] != 0:
            raise ValueError("A trajectory has one segment or more from second 0, but got others.")
        if np.any(np.diff(self.starts_s) <= 0) or self.machines.min() < 1:
            raise ValueError("Segments ascend and have one machine or more, but got others.")

    def merged(self) -> Trajectory:
        """Return the same with equal neighbours joined."""
        same = (np.diff(self.offers) == 0) & (np.diff(self.machines) == 0)
        kept = np.concatenate([[True], ~same])
        return Trajectory(self.starts_s[kept], self.offers[kept], self.machines[kept])

    def started(self) -> NDArray[np.int64]:
        """Machines that start for each segment, (segments,); those of the first serve from the beginning."""
        before = np.concatenate([[self.offers[0]], self.offers[:-1]])
        kept = np.where(before == self.offers, np.concatenate([[self.machines[0]], self.machines[:-1]]), 0)
        return np.maximum(self.machines - kept, 0)
