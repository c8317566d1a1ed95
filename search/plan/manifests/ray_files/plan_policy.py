"""Autoscaling policy of Ray Serve that follows a plan of `leanrec plan`, whose plan.json lies beside this file.

`autoscale` is the function that `policy_function` of an `autoscaling_config` names; its deployment is called offer-N,
as the plan numbers its offers. It wants the processes of the plan, those that have to start by now among them, and more
where the requests need them. Only the standard library is used, since Ray's controller loads it too.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

# Monday 0:00 UTC: seconds from the epoch, and from one to the next.
_MONDAY_S, _WEEK_S = 345_600.0, 604_800.0
Plan = dict[str, Any]


def read_plan(path: Path) -> Plan:
    """Read a plan that `leanrec manifests` wrote."""
    plan: Plan = json.loads(path.read_text("utf-8"))
    return plan


# Read once: Ray sends the policy to its controller together with this value.
PLAN = read_plan(Path(__file__).with_name("plan.json"))


def phase_at(plan: Plan, now_s: float) -> dict[str, Any]:
    """Return the phase of a plan at a time since the epoch; outside of the plan's dates, its last one.

    A plan of a weekly profile, which has no forecast, repeats from Monday 0:00 UTC on.
    """
    phases: list[dict[str, Any]] = plan["phases"]
    since_s = (now_s - _MONDAY_S) % _WEEK_S if plan["forecast"] is None else now_s - plan["start_s"]
    number = math.floor(since_s / plan["phase_seconds"])
    return phases[number if 0 <= number < len(phases) else -1]


def planned_processes(plan: Plan, offer: int, now_s: float) -> int:
    """Return the most processes of an offer that a plan has now, or until those that start now serve."""
    (row,) = (row for row in plan["offers"] if row["offer"] == offer)
    # A phase lasts half of phase_seconds at least: the last one of a week may be cut.
    step_s = plan["phase_seconds"] / 2
    later = [look * step_s for look in range(math.ceil(row["start_seconds"] / step_s))]
    phases = [phase_at(plan, now_s + seconds) for seconds in (*later, row["start_seconds"])]
    machines = [phase["machines"] for phase in phases if phase["offer"] == offer]
    return int(max(machines, default=0) * row["copies"])


def offer_at(plan: Plan, now_s: float) -> int:
    """Return the offer that serves at a time since the epoch."""
    return int(phase_at(plan, now_s)["offer"])


def capacity_factor(plan: Plan, offer: int, now_s: float) -> float:
    """Return the capacity of a process now over the least of all phases: more machines serve more each.

    It is 1 while another offer serves.
    """
    own = [phase for phase in plan["phases"] if phase["offer"] == offer]
    least: float = min(phase["capacity_rps"] / phase["machines"] for phase in own)
    phase = phase_at(plan, now_s)
    return phase["capacity_rps"] / phase["machines"] / least if phase["offer"] == offer else 1.0


def autoscale(context: Any) -> tuple[int, dict[str, Any]]:
    """Return the replicas of a deployment, and no state.

    Args:
        context: Ray's AutoscalingContext; its configuration says how many requests a replica holds, running and
            waiting, at the rate of the load that wants one more, in the phase in which that is least
    """
    offer, now_s = int(context.deployment_name.removeprefix("offer-")), time.time()
    each = context.config.target_ongoing_requests * capacity_factor(PLAN, offer, now_s)
    return max(planned_processes(PLAN, offer, now_s), math.ceil(context.total_num_requests / each)), {}
