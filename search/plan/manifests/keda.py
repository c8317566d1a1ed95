"""KEDA ScaledObjects: the processes of a plan at their times, more where the requests need them."""

from __future__ import annotations

import math

from objectives.serving.control.windows import KPA
from search.plan.manifests.cron import CronTrigger, cron_schedule
from search.plan.manifests.hpa import SYNC_SECONDS, behavior
from search.plan.manifests.kubernetes import Document, labels_of, metadata, object_name
from search.plan.manifests.promql import reactive_machines
from search.plan.manifests.served import ServedOffer, ServedPlan
from search.plan.manifests.settings import Cluster

# Seconds between two looks at the triggers, and failed ones before the plan alone holds.
_POLLING_SECONDS = 15
_FAILURES = 4


def keda(plan: ServedPlan, cluster: Cluster) -> list[Document]:
    """Return the ScaledObject of each offer."""
    return [_scaled_object(plan, offer, cluster) for offer in plan.offers]


def _scaled_object(plan: ServedPlan, offer: ServedOffer, cluster: Cluster) -> Document:
    name = object_name(plan, offer)
    schedule = cron_schedule(plan.calendar, offer.processes(), offer.row.start_seconds + _delay_s(offer.most_processes))
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": metadata(name, cluster, labels_of(plan, offer)),
        "spec": {
            "scaleTargetRef": {"name": name},
            "pollingInterval": _POLLING_SECONDS,
            "cooldownPeriod": round(KPA.stable_s),
            "minReplicaCount": schedule.least,
            "maxReplicaCount": offer.most_processes,
            "fallback": {"failureThreshold": _FAILURES, "replicas": schedule.least},
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": behavior()}},
            "triggers": [*map(_cron, schedule.triggers), _prometheus(plan, offer, cluster)],
        },
    }


def _delay_s(processes: int) -> float:
    """Return the seconds until KEDA and the autoscaler have asked for so many processes, tenfold at most each time."""
    return _POLLING_SECONDS + SYNC_SECONDS * (1 + math.ceil(math.log10(max(processes, 1))))


def _cron(trigger: CronTrigger) -> Document:
    times = {"timezone": "Etc/UTC", "start": trigger.start, "end": trigger.end}
    return {"type": "cron", "metadata": {**times, "desiredReplicas": f"{trigger.processes}"}}


def _prometheus(plan: ServedPlan, offer: ServedOffer, cluster: Cluster) -> Document:
    """Return the trigger of the load: processes for the rate of all requests, while the plan has this offer serve.

    More machines serve more each, so that a threshold in requests per second would be too low for most phases. At the
    expected load the processes have the plan's headroom.
    """
    described = {
        "serverAddress": cluster.prometheus,
        "query": reactive_machines(plan.study, offer.name),
        "threshold": f"{1 / (plan.headroom * offer.row.copies):.6g}",
        "ignoreNullValues": "false",
    }
    return {"type": "prometheus", "metricType": "AverageValue", "metadata": described}
