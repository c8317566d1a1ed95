"""State of a fleet over time: every failure, slow episode, deployment and outage as an event, and the machines left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from itertools import groupby
from typing import NamedTuple

import numpy as np

from planning.demand import Counts, Floats
from planning.virtual_fleet.incidents import FleetSpec


class Cause(IntEnum):
    """Cause of a machine's state; its number is part of the seed of its random times."""

    FAILURE = 1
    SLOW = 2
    DEPLOYMENT = 3
    OUTAGE = 4


class MachineEvent(NamedTuple):
    """Begin or end of a cause on a machine, by the machine's number; kinds follow one another."""

    at_s: float
    machine: int
    cause: Cause
    begins: bool


@dataclass(frozen=True, eq=False)
class FleetTimeline:
    """Machines in rotation from each moment until the next.

    starts_s: (segments,), ascending from 0
    healthy, slow: (segments, kinds), machines at their own speed, and slow ones
    deploying: (segments,), machines that are away for a deployment
    failed_s: (failures,), moments at which a machine in rotation failed, ascending
    failed_kinds: (failures,), its kind
    """

    starts_s: Floats
    healthy: Counts
    slow: Counts
    deploying: Counts
    failed_s: Floats
    failed_kinds: Counts


def machine_events(spec: FleetSpec, end_s: float, seed: int) -> list[MachineEvent]:
    """Return all events until a time, in their order; what holds from the beginning begins at second 0.

    The times of a machine depend on the seed, its kind, its number in the kind and the cause alone: nothing else
    changes where a cause is left out or machines are added. Failures, slow episodes and outages are stationary.
    """
    return sorted(event for event in _events(spec, end_s, seed) if event.at_s < end_s)


def _events(spec: FleetSpec, end_s: float, seed: int) -> Iterator[MachineEvent]:
    incidents, machine = spec.incidents, 0
    outages = _outages(spec, end_s, seed)
    for kind, count in enumerate(spec.counts):
        for number in range(count):
            if (failures := incidents.failures) is not None:
                random = _random(seed, kind, number, Cause.FAILURE)
                spans = _alternating(failures.mtbf_s, failures.mttr_s, end_s, random)
                yield from _as_events(spans, machine, Cause.FAILURE)
            if (slow := incidents.slow) is not None:
                normal_s = slow.episode_s * (1 - slow.share) / slow.share
                random = _random(seed, kind, number, Cause.SLOW)
                spans = _alternating(normal_s, slow.episode_s, end_s, random)
                yield from _as_events(spans, machine, Cause.SLOW)
            if outages:
                yield from _as_events(outages[number % len(outages)], machine, Cause.OUTAGE)
            machine += 1
    yield from _deployment_events(spec, end_s)


def _outages(spec: FleetSpec, end_s: float, seed: int) -> list[list[tuple[float, float]]]:
    zones = spec.incidents.zones
    if zones is None:
        return []
    streams = [_random(seed, 0, zone, Cause.OUTAGE) for zone in range(zones.count)]
    return [_alternating(zones.mtbf_s, zones.mttr_s, end_s, random) for random in streams]


def _random(seed: int, kind: int, number: int, cause: Cause) -> np.random.Generator:
    """Return the random numbers of a cause on a machine of a kind, or on a zone.

    numpy pads seeds with zeros: keys have one length and end in a cause above 0, so that no two are the same and none
    is the seed alone.
    """
    return np.random.default_rng((seed, kind, number, cause))


def _alternating(off_s: float, on_s: float, end_s: float, random: np.random.Generator) -> list[tuple[float, float]]:
    """Return the spans in which an alternating process of exponential times is on, from its stationary state."""
    on = random.random() < on_s / (on_s + off_s)
    now, spans = 0.0, []
    while now < end_s:
        later = now + random.exponential(on_s if on else off_s)
        if on:
            spans.append((now, later))
        now, on = later, not on
    return spans


def _as_events(spans: list[tuple[float, float]], machine: int, cause: Cause) -> Iterator[MachineEvent]:
    for start, end in spans:
        yield MachineEvent(start, machine, cause, True)
        yield MachineEvent(end, machine, cause, False)


def _deployment_events(spec: FleetSpec, end_s: float) -> Iterator[MachineEvent]:
    rolling = spec.incidents.deployments
    if rolling is None:
        return
    for start in np.arange(rolling.start_s, end_s, rolling.every_s).tolist():
        for machine in range(spec.machines):
            away = start + machine // rolling.at_once * rolling.away_s
            yield from _as_events([(away, away + rolling.away_s)], machine, Cause.DEPLOYMENT)


def fleet_timeline(spec: FleetSpec, end_s: float, seed: int) -> FleetTimeline:
    """Return the machines in rotation until a time, by the events of the fleet."""
    kinds = np.repeat(np.arange(len(spec.counts)), spec.counts).tolist()
    away, slow, deploying = [0] * spec.machines, [False] * spec.machines, 0
    count = np.zeros((2, len(spec.counts)), np.int64)
    count[0] = spec.counts
    starts, states, deployed, failed = [0.0], [count.copy()], [0], []
    for at_s, events in groupby(machine_events(spec, end_s, seed), key=lambda event: event.at_s):
        for _, machine, cause, begins in events:
            kind, change = kinds[machine], 1 if begins else -1
            if not away[machine]:
                count[int(slow[machine]), kind] -= 1
                if begins and at_s > 0 and cause in (Cause.FAILURE, Cause.OUTAGE):
                    failed.append((at_s, kind))
            if cause is Cause.SLOW:
                slow[machine] = begins
            else:
                away[machine] += change
            deploying += change * (cause is Cause.DEPLOYMENT)
            if not away[machine]:
                count[int(slow[machine]), kind] += 1
        if at_s == 0:
            starts, states, deployed = [], [], []
        starts.append(at_s)
        states.append(count.copy())
        deployed.append(deploying)
    both = np.array(states)
    moments, of = (np.array([each[at] for each in failed]) for at in (0, 1))
    return FleetTimeline(
        np.array(starts), both[:, 0], both[:, 1], np.array(deployed), moments.astype(np.float64), of.astype(np.int64)
    )
