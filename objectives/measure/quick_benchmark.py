"""A glance: how an arm stands beside the baseline in a second or two, which tells whether it is worth timing."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from objectives.held_out_rows import read_requests
from objectives.measure.deployment import Arm, load_target, open_arm, quiet, warm_up
from objectives.measurement.load_generator import Request
from objectives.measurement.load_target import LoadTarget
from objectives.measurement.throughput import Pace

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
    """Both arms in a closed loop, turn by turn."""
    requests = read_requests(holdout)
    with quiet(), open_arm(candidate) as ours, open_arm(baseline) as theirs:
        warm_up(ours.submit, requests, candidate.placement)
        warm_up(theirs.submit, requests, baseline.placement)
        targets = (load_target(ours, candidate.placement, requests), load_target(theirs, baseline.placement, requests))
        return look(*targets, requests)


def look(candidate: LoadTarget, baseline: LoadTarget, requests: list[Request]) -> Glance:
    """Medians of a few paired looks."""
    candidate.settle()
    pace = Pace(candidate, requests)
    candidate.settle()
    their_pace = Pace(baseline, requests)
    service, most = [], []
    for _ in range(_PACE_LOOKS):
        baseline.settle()
        mine = pace()
        candidate.settle()
        service.append(mine / their_pace())
    for _ in range(_SATURATION_LOOKS):
        baseline.settle()
        mine = candidate.saturated(requests, _SATURATION_SECONDS)
        candidate.settle()
        most.append(mine / baseline.saturated(requests, _SATURATION_SECONDS))
    return Glance(statistics.median(service), statistics.median(most))
