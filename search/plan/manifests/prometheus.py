"""Recording rules, alerts and a scrape configuration of Prometheus for a plan that is served."""

from __future__ import annotations

from typing import Any

from search.format import milliseconds, percent, significant
from search.plan.manifests import promql
from search.plan.manifests.promql import of
from search.plan.manifests.served import ServedOffer, ServedPlan
from search.plan.manifests.settings import Cluster

Document = dict[str, Any]
# Share of refused requests above which an alert tells.
_REFUSED = 0.01
# Difference by which losses count as different, below what is measured and above what printing a number loses.
_SAME_LOSS = "0.000001"


def rules(plan: ServedPlan) -> Document:
    """Return the groups of rules; the alerts stand on what the other groups record."""
    name = f"leanrec-{plan.study}"
    groups = {"load": _load(plan), "plan": _plan(plan), "alerts": _alerts(plan)}
    return {"groups": [{"name": f"{name}-{kind}", "interval": "15s", "rules": made} for kind, made in groups.items()]}


def quantiles(plan: ServedPlan) -> tuple[float, ...]:
    """Return the quantiles of the latency that are recorded, that of the SLO among them."""
    return tuple(sorted({0.5, 0.95, 0.99, plan.percent / 100}))


def _load(plan: ServedPlan) -> list[Document]:
    """Return the rules of what the servers see."""
    study = plan.study

    def each(name: str) -> str:
        return f"avg by (offer) ({of(name, study=study)})"

    return [
        _record(plan, promql.RATE, promql.request_rate(study)),
        _record(plan, promql.RATE_BY_STATUS, promql.request_rate(study, by="status")),
        *(_latency(plan, share) for share in quantiles(plan)),
        _record(plan, promql.REFUSED, promql.refused_share(study)),
        _record(plan, promql.QUEUE, each("leanrec_queue_length")),
        _record(plan, promql.IN_FLIGHT, each("leanrec_in_flight")),
    ]


def _latency(plan: ServedPlan, share: float) -> Document:
    seconds = promql.quantile(share, "leanrec_request_seconds", plan.study)
    return _record(plan, promql.LATENCY, seconds, quantile=f"{share:g}")


def _plan(plan: ServedPlan) -> list[Document]:
    """Return the rules of what the plan wants now, and of what there is."""
    calendar, study = plan.calendar, plan.study
    found = [
        _record(plan, promql.POSITION, promql.position(calendar)),
        _record(plan, promql.CAPACITY, promql.over_time(plan.capacity, calendar, study)),
        _record(plan, promql.PLANNED_LOSS, promql.over_time(plan.loss, calendar, study)),
    ]
    for offer in plan.offers:
        models = of("leanrec_model", study=study, offer=offer.name)
        controlled = of("leanrec_controller_replicas", study=study, offer=offer.name)
        processes = f"count({models} unless ignoring (name, version) {controlled}) or vector(0)"
        planned = promql.over_time(offer.machines, calendar, study)
        found += [
            _record(plan, promql.PLANNED, planned, offer=offer.name),
            _record(plan, promql.ACTUAL, f"({processes}) / {offer.row.copies}", offer=offer.name),
        ]
    return found


def _record(plan: ServedPlan, series: str, expression: str, **labels: str) -> Document:
    return {"record": series, "expr": expression, "labels": {"study": plan.study, **labels}}


def _alerts(plan: ServedPlan) -> list[Document]:
    found = [
        _slow(plan),
        _refusals(plan),
        *(_queue(plan, offer) for offer in plan.offers),
        _queue_of_controlled(plan),
        _machines(plan),
        _load_above(plan),
        _degraded(plan),
        _switch_failed(plan),
        _hangs(plan),
    ]
    return found if plan.calendar.weekly else [*found, _ended(plan)]


def _slow(plan: ServedPlan) -> Document:
    latency = of(promql.LATENCY, study=plan.study, quantile=f"{plan.percent / 100:g}")
    return _alert(
        plan,
        "LeanrecLatencyAboveSlo",
        f"{latency} > {plan.slo_seconds:.6g}",
        "5m",
        f"p{plan.percent} of {plan.study} is above {milliseconds(plan.slo_ms)}",
        f"p{plan.percent} over 5 minutes is {{{{ $value | humanizeDuration }}}}; the plan's SLO is "
        f"{milliseconds(plan.slo_ms)}. It is linear within the histogram's buckets.",
    )


def _refusals(plan: ServedPlan) -> Document:
    return _alert(
        plan,
        "LeanrecRefusals",
        f"{of(promql.REFUSED, study=plan.study)} > {_REFUSED:g}",
        "2m",
        f"{plan.study} refuses more than {percent(_REFUSED)} of its requests",
        "{{ $value | humanizePercentage }} of the requests of 5 minutes were refused, by a placement's queue or "
        "deadline, or because too many were in flight.",
    )


def _queue(plan: ServedPlan, offer: ServedOffer) -> Document:
    """Return the alert of a queue that takes longer than the SLO (Little 1961), in processes without a controller."""
    longest = offer.process_rps * plan.slo_seconds
    controlled = of("leanrec_controller_replicas", study=plan.study, offer=offer.name)
    return _alert(
        plan,
        "LeanrecQueue",
        f"{of(promql.QUEUE, study=plan.study, offer=offer.name)} > {longest:.6g} unless on (study, offer) {controlled}",
        "1m",
        f"requests of {plan.study} wait longer than the SLO in {offer.name}",
        f"{{{{ $value | humanize }}}} requests wait in a process in the mean; one that answers "
        f"{significant(offer.process_rps, 3)} a second needs longer than {milliseconds(plan.slo_ms)} for more than "
        f"{significant(longest, 3)}.",
        offer=offer.name,
    )


def _queue_of_controlled(plan: ServedPlan) -> Document:
    """Return the same alert of servers with a controller, whose capacity is that of what serves now."""
    waiting, capacity = (
        of(name, study=plan.study) for name in ("leanrec_queue_length", "leanrec_controller_capacity_rps")
    )
    return _alert(
        plan,
        "LeanrecQueue",
        f"{waiting} / {capacity} > {plan.slo_seconds:.6g}",
        "1m",
        f"requests of {plan.study} wait longer than the SLO in a server with a controller",
        "What serves needs {{ $value | humanizeDuration }} for the requests that wait; the SLO is "
        f"{milliseconds(plan.slo_ms)}.",
    )


def _machines(plan: ServedPlan) -> Document:
    """Return the alert of machines that do not serve.

    A server with a controller is a machine of whatever offer the plan has, so that with them only sums are compared.
    """
    planned, actual = (of(series, study=plan.study) for series in (promql.PLANNED, promql.ACTUAL))
    controlled = f"count by (study) ({of('leanrec_controller_replicas', study=plan.study)})"
    of_offer = f"{planned} - {actual} > 0 unless on (study) {controlled}"
    of_all = f"sum by (study) ({planned}) - sum by (study) ({actual}) - {controlled} > 0"
    return _alert(
        plan,
        "LeanrecFewerMachinesThanPlanned",
        f"({of_offer})\nor ({of_all})",
        "5m",
        f"fewer machines serve {plan.study} than planned",
        "{{ $value | humanize }} machines{{ with $labels.offer }} of {{ . }}{{ end }} that the plan has now do not "
        "serve.",
    )


def _load_above(plan: ServedPlan) -> Document:
    rate, capacity = (of(series, study=plan.study) for series in (promql.RATE, promql.CAPACITY))
    return _alert(
        plan,
        "LeanrecLoadAbovePlan",
        f"{rate} > on (study) {capacity}",
        "5m",
        f"more requests of {plan.study} arrive than the plan suffices for",
        "{{ $value | humanize }} requests per second arrive, more than the planned machines serve within the SLO. "
        "Plan again with a newer trace.",
    )


def _degraded(plan: ServedPlan) -> Document:
    """Return the alert of servers with a controller that need a faster variant than the plan has, and keep it."""
    served = f"max by (study) ({of('leanrec_controller_loss', study=plan.study)})"
    return _alert(
        plan,
        "LeanrecDegradedLongerThanPlanned",
        f"{served} - on (study) {of(promql.PLANNED_LOSS, study=plan.study)} > {_SAME_LOSS}",
        "10m",
        f"a server of {plan.study} serves a worse variant than planned",
        "The loss of a variant that serves is {{ $value | humanizePercentage }} above that of the planned one: more "
        "requests arrive than planned, or they take longer. Plan again with a newer trace.",
    )


def _switch_failed(plan: ServedPlan) -> Document:
    failures = of("leanrec_controller_failures_total", study=plan.study)
    return _alert(
        plan,
        "LeanrecSwitchFailed",
        f"sum by (study, offer) (increase({failures}[15m])) > 0",
        "0m",
        f"a server of {plan.study} cannot serve a variant or a plan that it was to switch to",
        "In 15 minutes {{ $value | humanize }} switches failed at {{ $labels.offer }}; what served before goes on. The "
        "server's log and its timeline have the reason.",
    )


def _hangs(plan: ServedPlan) -> Document:
    return _alert(
        plan,
        "LeanrecReplicaHangs",
        f"sum by (study, offer) ({of('leanrec_hanging_replicas', study=plan.study)}) > 0",
        "30s",
        f"replicas of {plan.study} hang",
        "Replicas of {{ $labels.offer }} whose runs do not end, of models that were replaced too: "
        "{{ $value | humanize }}. Others of the same instance group answer in their place; where all hang, the server "
        "is not ready.",
    )


def _ended(plan: ServedPlan) -> Document:
    return _alert(
        plan,
        "LeanrecPlanEnded",
        f"{of(promql.POSITION, study=plan.study)} > {plan.calendar.seconds:.15g}",
        "0m",
        f"the plan of {plan.study} has ended",
        "It started {{ $value | humanizeDuration }} ago and is over; the machines of its last phase go on.",
    )


def _alert(
    plan: ServedPlan, name: str, expression: str, lasting: str, summary: str, description: str, **labels: str
) -> Document:
    return {
        "alert": name,
        "expr": expression,
        "for": lasting,
        "labels": {"study": plan.study, "severity": "warning", **labels},
        "annotations": {"summary": summary, "description": description},
    }


def scrape(plan: ServedPlan, cluster: Cluster) -> Document:
    """Return the configuration that reads the metrics of all pods of the plan, and of those that end too."""

    def label(name: str) -> str:
        return f"__meta_kubernetes_pod_label_{name}"

    address = ["__meta_kubernetes_pod_ip", "__meta_kubernetes_pod_annotation_prometheus_io_port"]
    relabelled = [
        {"action": "keep", "source_labels": [label("study")], "regex": plan.study},
        {"action": "replace", "source_labels": address, "separator": ":", "target_label": "__address__"},
        *({"action": "replace", "source_labels": [label(name)], "target_label": name} for name in ("study", "offer")),
        *(
            {"action": "replace", "source_labels": [f"__meta_kubernetes_{source}"], "target_label": name}
            for name, source in (("namespace", "namespace"), ("pod", "pod_name"))
        ),
    ]
    discovery = {"role": "pod", "namespaces": {"names": [cluster.namespace]}}
    job = {
        "job_name": f"leanrec-{plan.study}",
        "scrape_interval": "15s",
        "kubernetes_sd_configs": [discovery],
        "relabel_configs": relabelled,
    }
    return {"scrape_configs": [job]}
