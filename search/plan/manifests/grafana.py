"""Grafana dashboard of a plan that is served."""

from __future__ import annotations

from typing import Any, NamedTuple

from search.plan.manifests import promql
from search.plan.manifests.names import dns_label
from search.plan.manifests.prometheus import quantiles
from search.plan.manifests.promql import of
from search.plan.manifests.served import ServedPlan

Document = dict[str, Any]
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
# The grid is 24 units wide; two panels stand beside each other.
_WIDTH, _HEIGHT, _COLUMNS = 12, 8, 2
_SCHEMA = 39  # of Grafana 10 and later, which migrate it themselves


class _Query(NamedTuple):
    expression: str
    legend: str


class _Panel(NamedTuple):
    title: str
    unit: str
    queries: tuple[_Query, ...]
    description: str = ""


def dashboard(plan: ServedPlan) -> Document:
    """Return a dashboard that asks for its Prometheus when it is imported."""
    panels = [_document(number, panel) for number, panel in enumerate(_panels(plan))]
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    return {
        "title": f"leanrec: {plan.study}",
        "uid": dns_label("leanrec", plan.study),
        "tags": ["leanrec"],
        "schemaVersion": _SCHEMA,
        "editable": True,
        "timezone": "utc",
        "refresh": "15s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [source]},
        "panels": panels,
    }


def _panels(plan: ServedPlan) -> tuple[_Panel, ...]:
    return (
        _latency(plan),
        _load(plan),
        _Panel("Requests by status", "reqps", (_Query(of(promql.RATE_BY_STATUS, study=plan.study), "{{status}}"),)),
        _refusals(plan),
        _waiting(plan),
        _machines(plan),
        _rows(plan),
        _cpu(plan),
        _memory(plan),
        _models(plan),
        *_controllers(plan),
    )


def _latency(plan: ServedPlan) -> _Panel:
    queries = (
        _Query(of(promql.LATENCY, study=plan.study, quantile=f"{share:g}"), f"p{100 * share:g}")
        for share in quantiles(plan)
    )
    slo = _Query(f"vector({plan.slo_seconds:.6g})", f"SLO of p{plan.percent}")
    about = "Of answered requests, over 5 minutes; linear within the buckets of the histogram."
    return _Panel("Latency", "s", (*queries, slo), about)


def _load(plan: ServedPlan) -> _Panel:
    arriving = _Query(of(promql.RATE, study=plan.study), "arriving")
    capacity = _Query(of(promql.CAPACITY, study=plan.study), "planned machines serve within the SLO")
    return _Panel("Load and planned capacity", "reqps", (arriving, capacity))


def _refusals(plan: ServedPlan) -> _Panel:
    by_reason = f"sum by (reason) (rate({of('leanrec_refusals_total', study=plan.study)}[1m]))"
    return _Panel("Refusals by reason", "reqps", (_Query(by_reason, "{{reason}}"),))


def _waiting(plan: ServedPlan) -> _Panel:
    queries = (
        _Query(of(promql.QUEUE, study=plan.study), "waiting, {{offer}}"),
        _Query(of(promql.IN_FLIGHT, study=plan.study), "in flight, {{offer}}"),
    )
    return _Panel("Queue and requests in flight", "short", queries, "Of a process, in the mean.")


def _machines(plan: ServedPlan) -> _Panel:
    queries = (
        _Query(of(promql.PLANNED, study=plan.study), "planned, {{offer}}"),
        _Query(of(promql.ACTUAL, study=plan.study), "serving, {{offer}}"),
        _Query(f"count({of('leanrec_controller_replicas', study=plan.study)})", "serving with a controller"),
    )
    about = "Processes that serve, divided by those of a machine; a server with a controller is a machine of any offer."
    return _Panel("Machines", "short", queries, about)


def _rows(plan: ServedPlan) -> _Panel:
    rows = [(share, promql.quantile(share, "leanrec_request_rows", plan.study)) for share in (0.5, 0.95)]
    return _Panel("Rows of a request", "short", tuple(_Query(each, f"p{100 * share:g}") for share, each in rows))


def _cpu(plan: ServedPlan) -> _Panel:
    used = f"avg by (offer) (rate({of('process_cpu_seconds_total', study=plan.study)}[1m]))"
    return _Panel("Cores in use by a process", "short", (_Query(used, "{{offer}}"),))


def _memory(plan: ServedPlan) -> _Panel:
    held = f"max by (offer) ({of('process_resident_memory_bytes', study=plan.study)})"
    return _Panel("Memory of the largest process", "bytes", (_Query(held, "{{offer}}"),))


def _models(plan: ServedPlan) -> _Panel:
    served = f"count by (offer, version) ({of('leanrec_model', study=plan.study)})"
    swapped = f"sum by (result) (increase({of('leanrec_swaps_total', study=plan.study)}[5m]))"
    queries = (_Query(served, "{{offer}}, {{version}}"), _Query(swapped, "swaps {{result}}"))
    return _Panel("Processes by model, and swaps in 5 minutes", "short", queries)


def _controllers(plan: ServedPlan) -> tuple[_Panel, ...]:
    """Return the panels of servers that follow the plan by themselves, which are empty where none does."""

    def series(name: str) -> str:
        return of(f"leanrec_controller_{name}", study=plan.study)

    about = "Of servers with a controller (leanrec serve --plan)."
    loss = (
        _Query(f"avg by (offer) ({series('loss')})", "served, {{offer}}"),
        _Query(of(promql.PLANNED_LOSS, study=plan.study), "planned"),
    )
    rates = (
        _Query(f"sum by (of) ({series('rate_rps')})", "{{of}}"),
        _Query(f"sum({series('capacity_rps')})", "what serves keeps the SLO at"),
    )
    corrected = (
        _Query(f"max by (offer) ({series('correction')})", "correction, {{offer}}"),
        _Query(f"max by (offer) ({series('capacity_factor')})", "capacity factor, {{offer}}"),
        _Query(f"max by (offer) ({series('panicking')})", "panicking, {{offer}}"),
    )
    changes = (
        _Query(f"sum by (change, reason) ({series('changes_total')})", "{{change}}, {{reason}}"),
        _Query(f"sum({series('failures_total')})", "failed"),
    )
    seconds = f"rate({series('load_seconds_sum')}[15m]) / rate({series('load_seconds_count')}[15m])"
    return (
        _Panel("Quality loss", "percentunit", loss, f"{about} The mean of the processes."),
        _Panel("Replicas", "short", (_Query(f"sum by (offer) ({series('replicas')})", "{{offer}}"),), about),
        _Panel("Rates of the controller", "reqps", rates, f"{about} As of machines alone; planned is the quantile."),
        _Panel("Correction and panic", "short", corrected, f"{about} Times that a rate counts for; 1 in a panic."),
        _Panel("Changes so far by reason", "short", changes, f"{about} Counted from the start of each process."),
        _Panel("Time of a switch", "s", (_Query(seconds, "{{offer}}, {{pod}}"),), f"{about} The mean of 15 minutes."),
    )


def _document(number: int, panel: _Panel) -> Document:
    row, column = divmod(number, _COLUMNS)
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + at), "datasource": _SOURCE, "expr": query.expression, "legendFormat": query.legend}
            for at, query in enumerate(panel.queries)
        ],
    }
