"""Configuration of Ray Serve for a plan: an application whose deployments follow it."""

from __future__ import annotations

import math
from typing import Any

from objectives.serving.control.windows import KPA
from objectives.serving.http.limits import Limits
from search.plan.manifests.names import dns_label
from search.plan.manifests.served import ServedOffer, ServedPlan
from search.plan.manifests.settings import Cluster

Document = dict[str, Any]
# Seconds over which the requests are averaged, more than the 10 s after which Ray reports them.
_LOOK_BACK_SECONDS = 15.0
# Requests that a router holds, most of which wait for an answer, and routers at most.
_ROUTED, _ROUTERS = 64, 8


def ray_serve(plan: ServedPlan, cluster: Cluster) -> Document:
    """Return the configuration, which belongs beside plan.json, plan_policy.py and application.py."""
    application = {
        "name": plan.study,
        "route_prefix": "/",
        "import_path": "application:build",
        "args": {"bundles": {_name(offer): cluster.bundle(offer.row) for offer in plan.offers}},
        "deployments": [_router(), *(_deployment(plan, offer) for offer in plan.offers)],
    }
    return {"applications": [application]}


def _name(offer: ServedOffer) -> str:
    return f"offer-{offer.row.offer}"


def _deployment(plan: ServedPlan, offer: ServedOffer) -> Document:
    policy = {"policy_function": "plan_policy:autoscale"}
    # Machines are nodes with a resource of their kind: 1, which their processes share.
    machine = {f"machine-{dns_label(offer.row.machine)}": math.floor(10_000 / offer.row.copies) / 10_000}
    memory = {} if offer.row.memory_bytes is None else {"memory": offer.row.memory_bytes}
    return {
        "name": _name(offer),
        "max_ongoing_requests": Limits().in_flight,
        "ray_actor_options": {"num_cpus": offer.row.cores, **memory, "resources": machine},
        "autoscaling_config": {
            "min_replicas": 0,
            "max_replicas": offer.most_processes,
            "target_ongoing_requests": round(ongoing_requests(plan, offer), 3),
            "upscale_delay_s": 0,
            "downscale_delay_s": KPA.stable_s,
            "look_back_period_s": _LOOK_BACK_SECONDS,
            "policy": policy,
        },
    }


def ongoing_requests(plan: ServedPlan, offer: ServedOffer) -> float:
    """Return the mean requests in a process, running and waiting, at the rate of the load that wants one more.

    By Little's law they are the rate times the mean latency. Where the SLO is just kept, the mean is taken as that of
    an exponential distribution, the latency's in an M/M/1 queue, whose percentile is the SLO.
    """
    mean_s = plan.slo_seconds / -math.log(1 - plan.percent / 100)
    return max(1.0, plan.reactive_rps(offer) * mean_s)


def _router() -> Document:
    return {
        "name": "Router",
        "max_ongoing_requests": Limits().in_flight,
        "ray_actor_options": {"num_cpus": 0},
        "autoscaling_config": {
            "min_replicas": 1,
            "max_replicas": _ROUTERS,
            "target_ongoing_requests": _ROUTED,
        },
    }
