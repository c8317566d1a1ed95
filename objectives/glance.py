"""A glance: how an arm stands beside the baseline in a second or two, which tells whether it is worth timing."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from objectives.arms import Arm, open_arm, quiet, warm_up
from objectives.holdout import read_requests
from objectives.measurement.throughput import Pace
from objectives.measurement.traffic import Request, Submit, saturated, settle

_PACE_LOOKS = 5
_SATURATION_LOOKS = 3
_SATURATION_SECONDS = 0.1


@dataclass(frozen=True)
class Glance:
    """Candidate over baseline: time of a request, one by one; requests a second when saturated. No intervals: it is
    never told as a measurement."""

    service_ratio: float
    saturated_ratio: float


def glance(holdout: Path, candidate: Arm, baseline: Arm) -> Glance:
    """Both arms in a closed loop, turn by turn.

    Raises:
        DisturbedError: the machine is busy with something else.
    """
    requests = read_requests(holdout)
    with quiet(), open_arm(candidate) as ours, open_arm(baseline) as theirs:
        warm_up(ours.submit, requests, candidate.placement)
        warm_up(theirs.submit, requests, baseline.placement)
        arms = ((ours.submit, candidate.placement.replicas), (theirs.submit, baseline.placement.replicas))
        return look(arms[0], arms[1], requests)


def look(candidate: tuple[Submit, int], baseline: tuple[Submit, int], requests: list[Request]) -> Glance:
    """
    Args:
        candidate, baseline: how to ask each, and its replicas

    Raises:
        DisturbedError: the machine is busy with something else.
    """
    (ours, replicas), (theirs, their_replicas) = candidate, baseline
    settle()
    pace = Pace(ours, requests)
    settle()
    their_pace = Pace(theirs, requests)
    service, most = [], []
    for _ in range(_PACE_LOOKS):
        settle()
        mine = pace()
        settle()
        service.append(mine / their_pace())
    for _ in range(_SATURATION_LOOKS):
        settle()
        mine = saturated(ours, requests, 2 * replicas, _SATURATION_SECONDS)
        settle()
        most.append(mine / saturated(theirs, requests, 2 * their_replicas, _SATURATION_SECONDS))
    return Glance(statistics.median(service), statistics.median(most))
