"""Kubernetes objects that serve a plan: a Deployment and a Service for each offer, and a Service over all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from objectives.serving.http.limits import Limits
from search.plan.manifests.names import dns_label
from search.plan.manifests.served import ServedOffer, ServedPlan
from search.plan.manifests.settings import PORT, Cluster

Document = dict[str, Any]

# Seconds in which every node learns that a pod ends, before its server is told to.
_NOTICE_SECONDS = 5
# Share of its cores that a process asks for: a node keeps the rest for itself, and would hold one process fewer.
_ASKED = 0.9
# A swap of the model holds the old one and the new one.
_MODELS = 2
# Seconds between probes, and how many may fail while a model loads, at least.
_PERIOD, _LOADING = 5, 60


def kubernetes(plan: ServedPlan, cluster: Cluster) -> list[Document]:
    """Return the Service of a plan, and the Deployment and the Service of each of its offers."""
    of_offers = [(_deployment(plan, offer, cluster), _service(plan, offer, cluster)) for offer in plan.offers]
    return [_entrance(plan, cluster), *(part for pair in of_offers for part in pair)]


def object_name(plan: ServedPlan, offer: ServedOffer) -> str:
    """Return the name of the objects of an offer."""
    return dns_label(plan.study, offer.name)


def metadata(name: str, cluster: Cluster, labels: Mapping[str, str]) -> Document:
    return {"name": name, "namespace": cluster.namespace, "labels": {**labels}}


def labels_of(plan: ServedPlan, offer: ServedOffer | None = None) -> dict[str, str]:
    """Return the labels of a plan's pods, or those of an offer; `study` and `offer` become labels of the metrics."""
    shared = {"app.kubernetes.io/name": "leanrec", "study": plan.study}
    return shared if offer is None else {**shared, "offer": offer.name}


def _deployment(plan: ServedPlan, offer: ServedOffer, cluster: Cluster) -> Document:
    labels = labels_of(plan, offer)
    annotations = {"prometheus.io/scrape": "true", "prometheus.io/port": f"{PORT}", "prometheus.io/path": "/metrics"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(object_name(plan, offer), cluster, labels),
        # No number of replicas: an autoscaler has it, and applying the file again leaves it.
        "spec": {
            "selector": {"matchLabels": labels},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": labels, "annotations": annotations},
                "spec": {
                    "nodeSelector": {"leanrec/machine": dns_label(offer.row.machine)},
                    "terminationGracePeriodSeconds": 2 * _NOTICE_SECONDS + Limits().drain_seconds,
                    "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
                    "containers": [_container(plan, offer, cluster)],
                },
            },
        },
    }


def _container(plan: ServedPlan, offer: ServedOffer, cluster: Cluster) -> Document:
    options = {"--host": "0.0.0.0", "--port": PORT, "--name": plan.study, "--drain-seconds": Limits().drain_seconds}
    starting = max(_LOADING, math.ceil(10 * offer.row.load_seconds))
    return {
        "name": "leanrec",
        "image": cluster.image,
        "command": ["leanrec", "serve", cluster.bundle(offer.row)],
        "args": [f"{part}" for option in options.items() for part in option],
        "ports": [{"name": "http", "containerPort": PORT}],
        "startupProbe": {**_probe("/v2/health/ready"), "periodSeconds": 1, "failureThreshold": starting},
        "readinessProbe": {**_probe("/v2/health/ready"), "periodSeconds": _PERIOD, "failureThreshold": 2},
        "livenessProbe": {**_probe("/v2/health/live"), "periodSeconds": 2 * _PERIOD, "failureThreshold": 6},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", f"{_NOTICE_SECONDS}"]}}},
        "resources": _resources(offer),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }


def _probe(path: str) -> Document:
    return {"httpGet": {"path": path, "port": "http"}, "timeoutSeconds": 2}


def _resources(offer: ServedOffer) -> Document:
    """Return requests and limits; the processor has no limit, which would stop a busy process for a while."""
    cpu = {"cpu": f"{math.floor(1000 * _ASKED * offer.row.cores)}m"}
    if offer.row.memory_bytes is None:
        return {"requests": cpu}
    peak = offer.row.memory_bytes
    return {"requests": {**cpu, "memory": f"{peak}"}, "limits": {"memory": f"{_MODELS * peak}"}}


def _service(plan: ServedPlan, offer: ServedOffer, cluster: Cluster) -> Document:
    labels = labels_of(plan, offer)
    return _service_of(metadata(object_name(plan, offer), cluster, labels), labels)


def _entrance(plan: ServedPlan, cluster: Cluster) -> Document:
    """Return the Service that clients use, whichever offer serves."""
    labels = labels_of(plan)
    return _service_of(metadata(plan.study, cluster, labels), labels)


def _service_of(described: Document, selector: Mapping[str, str]) -> Document:
    ports = [{"name": "http", "port": PORT, "targetPort": "http"}]
    spec = {"type": "ClusterIP", "selector": {**selector}, "ports": ports}
    return {"apiVersion": "v1", "kind": "Service", "metadata": described, "spec": spec}
