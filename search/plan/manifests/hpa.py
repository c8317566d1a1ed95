"""Horizontal autoscaler of one offer for clusters without KEDA: it follows the requests alone."""

from __future__ import annotations

import math

from objectives.serving.control.windows import KPA
from search.plan.manifests.kubernetes import Document, labels_of, metadata, object_name
from search.plan.manifests.promql import LOAD
from search.plan.manifests.served import ServedOffer, ServedPlan
from search.plan.manifests.settings import Cluster

# What the adapter calls the rate of leanrec_requests_total.
METRIC = "leanrec_requests_per_second"
# Seconds between two decisions of the autoscaler, in which the processes may become ten times as many.
SYNC_SECONDS = 15
_TENFOLD_PERCENT = 900


def horizontal_autoscaler(plan: ServedPlan, cluster: Cluster) -> Document:
    """Return the autoscaler of the offer that serves alone.

    It scales from the fewest processes that are planned while the offer serves to the most that there are.
    """
    offer = alone(plan)
    name = object_name(plan, offer)
    fewest = min(each.value for each in offer.processes() if each.value > 0)
    target = {"type": "AverageValue", "averageValue": quantity(plan.reactive_rps(offer))}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": metadata(name, cluster, labels_of(plan, offer)),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": round(fewest),
            "maxReplicas": offer.most_processes,
            "metrics": [{"type": "Pods", "pods": {"metric": {"name": METRIC}, "target": target}}],
            "behavior": behavior(),
        },
    }


def alone(plan: ServedPlan) -> ServedOffer:
    """Return the offer that serves where one serves all the time.

    This is the main offer of the plan among those within its loss, else the most exact one.
    """
    within = [offer for offer in plan.offers if offer.row.loss <= plan.max_loss]
    if within:
        return max(within, key=lambda offer: offer.expected)
    return min(plan.offers, key=lambda offer: offer.row.loss)


def behavior() -> Document:
    """Return the speed of scaling: up at once, as in a panic window, and down after a stable window."""
    up = {"type": "Percent", "value": _TENFOLD_PERCENT, "periodSeconds": SYNC_SECONDS}
    down = {"type": "Percent", "value": 100, "periodSeconds": SYNC_SECONDS}
    return {
        "scaleUp": {"stabilizationWindowSeconds": 0, "policies": [up]},
        "scaleDown": {"stabilizationWindowSeconds": round(KPA.stable_s), "policies": [down]},
    }


def adapter_rules() -> Document:
    """Return the rule by which prometheus-adapter gives the metric of the autoscaler."""
    rule = {
        "seriesQuery": 'leanrec_requests_total{namespace!="",pod!=""}',
        "resources": {"overrides": {"namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}}},
        "name": {"matches": "^leanrec_requests_total$", "as": METRIC},
        "metricsQuery": f"sum(rate(<<.Series>>{{<<.LabelMatchers>>,{LOAD}}}[1m])) by (<<.GroupBy>>)",
    }
    return {"rules": [rule]}


def quantity(value: float) -> str:
    """Return a number as Kubernetes writes quantities, down to a thousandth, and never 0."""
    return f"{max(1, math.floor(1000 * value))}m"
