"""A fleet on the virtual clock, request by request: a balancer in front of the pools of all instances."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from objectives.measurement.service_curve import ServiceCurve
from objectives.serving.pool import balancing
from objectives.serving.pool.balancing import Balance, Cost
from objectives.serving.pool.virtual_pool import ServiceTime, VirtualPool
from planning.capacity import service_of
from planning.demand import Counts, Floats
from planning.fleet import Deployment, as_served
from planning.virtual_fleet.timeline import Cause, MachineEvent
from spaces.techniques.placement import Placement

# Policy of a balancer from the cost of a request on each instance in rotation.
Policy = Callable[[Sequence[Cost]], Balance]
POLICIES: Mapping[str, Policy] = {
    name: policy for name, policy in balancing.POLICIES.items() if name != balancing.LEAST_ROWS
}
# Policies that look at no instance before they send a request to it.
BLIND = frozenset({"round-robin"})
# Number of the requests whose latencies are not asked for.
_UNCOUNTED = -1


class Instance(NamedTuple):
    """An instance of a deployment on a machine, by the machine's number.

    speed: of the machine
    known_speed: that the balancer takes it for
    """

    machine: int
    speed: float
    known_speed: float


class _Clock:
    now_ns = 0


class _Service:
    """Service time of an instance whose speed changes; a run keeps the speed of its start."""

    def __init__(self, service: ServiceTime, speed: float) -> None:
        self._service, self.speed = service, speed

    def __call__(self, group: int, rows: int, idle_ns: int | None, busy: int) -> float:
        return self._service(group, rows, idle_ns, busy) / self.speed


class _Running:
    """Process of a machine, whose pool is made anew when the machine comes back.

    until_ns: when it stopped answering; infinite while it does
    sent: numbers of the requests of its pool
    """

    def __init__(self, placement: Placement, service: ServiceTime, cost: Cost, clock: _Clock) -> None:
        self._placement, self._clock, self._full_speed, self.cost = placement, clock, service, cost
        self._former: list[tuple[VirtualPool, list[int], float]] = []
        self._begin(1.0)

    def _begin(self, speed: float) -> None:
        self._service = _Service(self._full_speed, speed)
        self._pool, self._sent, self.until_ns = VirtualPool(self._placement, self._service), list[int](), math.inf

    @property
    def requests(self) -> int:
        self._advance()
        return self._pool.requests

    @property
    def rows(self) -> int:
        self._advance()
        return self._pool.rows

    def send(self, request: int, rows: int) -> None:
        self._advance()
        self._sent.append(request)
        self._pool.submit(rows, self._clock.now_ns)

    def change_speed(self, speed: float) -> None:
        """Set the speed of the runs that start from now on, as a share of its own."""
        self._advance()
        self._service.speed = speed

    def renew(self) -> None:
        """Begin with an empty pool; requests of the one before are answered as far as it answered."""
        self._former.append((self._pool, self._sent, self.until_ns))
        self._begin(self._service.speed)

    def latencies(self) -> list[tuple[list[int], Floats]]:
        """Return numbers of requests and their milliseconds, infinite where refused or lost."""
        self.renew()
        found = []
        for pool, sent, until_ns in self._former:
            times = pool.finish()
            lost = times.refused | (times.finished_ns > until_ns)
            found.append((sent, np.where(lost, np.inf, (times.finished_ns - times.submitted_ns) / 1e6)))
        return found

    def _advance(self) -> None:
        self._pool.advance(min(self._clock.now_ns, self.until_ns))


class VirtualFleet:
    """Instances behind one balancer that sees what is outstanding on each of those in rotation."""

    def __init__(self, deployment: Deployment, instances: Sequence[Instance], policy: Policy, seed: int) -> None:
        placement = as_served(deployment.placement)
        self._clock, self._policy, self._turn = _Clock(), policy, 0
        self._instances = []
        self._of_machine: dict[int, list[_Running]] = {}
        for at, (machine, speed, known_speed) in enumerate(instances):
            service, cost = service_of(deployment, speed, seed + at), cost_of(deployment, known_speed)
            self._instances.append(_Running(placement, service, cost, self._clock))
            self._of_machine.setdefault(machine, []).append(self._instances[-1])
        self._away: dict[int, int] = dict.fromkeys(self._of_machine, 0)
        self._out: set[int] = set()  # machines that the balancer leaves out
        self._rotate()

    def send(self, request: int, rows: int, now_ns: int) -> bool:
        """Send a request to an instance; return whether there was one."""
        self._clock.now_ns = now_ns
        if not self._rotation:
            return False
        at = self._balance(self._turn, self._rotation, rows)
        self._turn += 1
        self._rotation[at].send(request, rows)
        return True

    def preload(self, instance: int, rows: Sequence[int]) -> None:
        """Queue requests of so many rows on an instance, by its number, whose latencies are not asked for."""
        for size in rows:
            self._instances[instance].send(_UNCOUNTED, size)

    def change_speed(self, machine: int, speed: float, now_ns: int) -> None:
        """Set the speed of a machine as a share of its own."""
        self._clock.now_ns = now_ns
        for instance in self._of_machine[machine]:
            instance.change_speed(speed)

    def leave(self, machine: int, now_ns: int, fails: bool) -> None:
        """Take one more cause for a machine to be away.

        One that fails answers nothing from now on, and stays in rotation until it is ejected; another one leaves it at
        once, and answers what it has.
        """
        self._away[machine] += 1
        if fails:
            for instance in self._of_machine[machine]:
                instance.until_ns = min(instance.until_ns, now_ns)
        else:
            self.eject(machine)

    def eject(self, machine: int) -> None:
        """Leave a machine that is away out of the rotation."""
        if self._away[machine] and machine not in self._out:
            self._out.add(machine)
            self._rotate()

    def come_back(self, machine: int) -> None:
        """Take away one cause; a machine without any is in rotation."""
        self._away[machine] -= 1
        if self._away[machine] == 0:
            for instance in self._of_machine[machine]:
                instance.renew()
            self._out.discard(machine)
            self._rotate()

    def latency_ms(self, requests: int) -> Floats:
        """Let all be answered, and return the milliseconds of so many requests, infinite where refused or lost."""
        found = np.full(requests, np.inf)
        for instance in self._instances:
            for sent, latency in instance.latencies():
                counted = np.array(sent, np.int64)
                found[counted[counted != _UNCOUNTED]] = latency[counted != _UNCOUNTED]
        return found

    def _rotate(self) -> None:
        self._rotation = [
            one for machine, instances in self._of_machine.items() if machine not in self._out for one in instances
        ]
        self._balance = self._policy([instance.cost for instance in self._rotation])


def cost_of(deployment: Deployment, speed: float) -> Cost:
    """Return the cost of a request on an instance, over its replicas."""
    cost, times = replica_cost(deployment.curves[0]), speed * deployment.placement.instance_group.replicas
    return Cost(cost.request_ns / times, cost.row_ns / times)


def replica_cost(curve: ServiceCurve) -> Cost:
    """Return the cost of a request on a replica, from the ends of its curve."""
    least, most = curve.least_rows, curve.most_rows
    row_ns = (curve.alone(most) - curve.alone(least)) / (most - least) if most > least else 0.0
    return Cost(max(curve.alone(least) - row_ns * least, 0.0), row_ns)


def simulate_fleet(
    fleet: VirtualFleet,
    seconds: Floats,
    rows: Counts,
    events: Sequence[MachineEvent] = (),
    slow_speed: float = 1.0,
    detection_s: float = 0.0,
) -> Floats:
    """Send requests to a fleet whose machines change, and return their latency in milliseconds, (n,).

    It is infinite where a request was refused, found no machine in rotation, or was lost with a machine.

    Args:
        seconds: (n,) ascending arrival times
        rows: (n,) rows of each request
        events: of the machines, in their order
        slow_speed: speed of a slow machine, as a share of its own
        detection_s: seconds until a failed machine leaves the rotation

    Raises:
        OutsideRangeError: a run has a size for which no time was measured.
    """
    moments = [_ns(event.at_s) for event in events]
    pending: list[tuple[int, int, MachineEvent | int]] = list(zip(moments, range(len(events)), events, strict=True))
    due = np.rint(seconds * 1e9).astype(np.int64).tolist()
    for request, (due_ns, size) in enumerate(zip(due, rows.tolist(), strict=True)):
        while pending and pending[0][0] <= due_ns:
            now_ns, order, event = heapq.heappop(pending)
            if isinstance(event, int):
                fleet.eject(event)
            elif _apply(fleet, event, now_ns, slow_speed):
                # What is away from the beginning was noticed before.
                noticed_ns = now_ns + (_ns(detection_s) if event.at_s > 0 else 0)
                heapq.heappush(pending, (noticed_ns, order + len(events), event.machine))
        fleet.send(request, size, due_ns)
    return fleet.latency_ms(len(seconds))


def _apply(fleet: VirtualFleet, event: MachineEvent, now_ns: int, slow_speed: float) -> bool:
    """Change the fleet by an event; return whether a machine failed."""
    if event.cause is Cause.SLOW:
        fleet.change_speed(event.machine, slow_speed if event.begins else 1.0, now_ns)
        return False
    if not event.begins:
        fleet.come_back(event.machine)
        return False
    fails = event.cause is not Cause.DEPLOYMENT
    fleet.leave(event.machine, now_ns, fails)
    return fails


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
