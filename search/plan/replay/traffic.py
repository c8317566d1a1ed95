"""Requests of a replay: the share of a trace that one machine of a plan serves, in compressed time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from objectives.measurement.request_log import RequestLog
from objectives.serving.control.plan_file import repeats_after, starts_at
from planning.demand import Counts, Floats
from planning.machine_share import machine_share
from search.errors import ConfigError
from search.plan.deployments import Menu
from search.plan.replay.request import ReplayRequest
from spaces.serialization import Json

# A replay that begins with a phase begins so much later, lest rounding puts its begin into the phase before.
_ROUNDING_S = 1e-6


@dataclass(frozen=True, eq=False)
class Traffic:
    """Requests of the compressed time, (n,) each, and its end in seconds.

    begins_s: second of the plan, in compressed time, at which it begins
    """

    seconds: Floats
    rows: Counts
    end_s: float
    begins_s: float


def traffic_of(document: Json, offers: dict[int, Json], log: RequestLog, menu: Menu, request: ReplayRequest) -> Traffic:
    """Return the machine's share of the trace within the plan, in compressed time, from the first request on.

    Where the plan is weekly, the trace keeps its own time of the week. A trace of other days begins with the plan. The
    machine has no share in phases that machines of other kinds serve.

    Args:
        offers: on the machine's kind, by their number

    Raises:
        ConfigError: the machine serves no requests of the trace, or all at one moment.
    """
    machines = np.array([phase["machines"] * (phase["offer"] in offers) for phase in document["phases"]])
    phase_s = document["phase_seconds"]
    repeat_s = repeats_after(document)
    plan_s = len(machines) * phase_s if repeat_s is None else math.inf
    ahead = _ahead(document, log, plan_s)
    seconds = log.seconds + ahead  # of the plan
    rows = np.random.default_rng(request.seed).choice(menu.rows, len(seconds)) if log.rows is None else log.rows
    within = (seconds >= 0) & (seconds < plan_s)
    of_phases = seconds[within] if repeat_s is None else seconds[within] % repeat_s
    # The last phase of a week may end a little before it.
    numbers = np.minimum((of_phases / phase_s).astype(np.int64), len(machines) - 1)
    if not within.any():
        raise _no_requests(request.trace)
    begins_s = float(seconds[within][0])
    kept, sizes = machine_share(
        seconds[within] - begins_s, rows[within], machines[numbers], request.speed, request.seed
    )
    if not len(kept):
        raise _no_requests(request.trace)
    end_s = (min(plan_s, float(seconds[-1])) - begins_s) / request.speed
    if end_s <= 0:
        raise ConfigError(f"--trace: must have requests at two moments of the plan, but {request.trace} has one")
    return Traffic(kept, sizes, end_s, begins_s / request.speed + _ROUNDING_S * (begins_s > 0))


def _no_requests(trace: Path) -> ConfigError:
    return ConfigError(
        f"--trace: must have requests in the phases of the plan that the machine serves, but {trace} has none"
    )


def _ahead(document: Json, log: RequestLog, plan_s: float) -> float:
    """Return the second of a plan of so many seconds at which a trace begins; 0 where the trace is of other days."""
    begins, starts, repeat_s = log.start_s, starts_at(document), repeats_after(document)
    ahead = 0.0 if begins is None or starts is None else begins - starts
    if repeat_s is not None:
        ahead %= repeat_s
    return ahead if -float(log.seconds[-1]) < ahead < plan_s else 0.0
