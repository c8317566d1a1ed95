"""Rules, dashboard and triggers in PromQL: read by promtool, of metrics that the server has, and true of samples."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from objectives.serving.http.metrics import Metrics
from search.plan.document import PlanDocument
from search.plan.manifests.files import yaml_text
from search.plan.manifests.grafana import dashboard
from search.plan.manifests.keda import keda
from search.plan.manifests.prometheus import rules, scrape
from search.plan.manifests.promql import ACTUAL, CAPACITY, LATENCY, PLANNED, PLANNED_LOSS, REFUSED, reactive_machines
from search.plan.manifests.served import ServedPlan, served_plan
from tests.manifests_tests.plans import CLUSTER, Kind, plan_of

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: promtool)")
FUNCTIONS = {
    *("avg", "by", "count", "histogram_quantile", "increase", "max", "on", "or", "and", "rate", "sum", "time"),
    *("vector", "bool", "ignoring", "unless"),
}
# Labels that the scrape configuration sets.
SCRAPED = {"study", "offer", "namespace", "pod"}


def dated() -> PlanDocument:
    """Ten minutes each: 1 machine of 2 processes, then 2 machines of another offer, then 3 of the first."""
    return plan_of([Kind(copies=2), Kind()], [(0, 1), (1, 2), (0, 3)], 600.0, start_s=600.0)


def weekly() -> PlanDocument:
    return plan_of([Kind(), Kind()], [(0, 1), (1, 2), (1, 3), (0, 1)] * 42, 3600.0, weekly=True)


PLANS = [pytest.param(served_plan(dated()), id="dated"), pytest.param(served_plan(weekly()), id="weekly")]


def promtool(*arguments: str | Path) -> None:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def expressions(plan: ServedPlan) -> Iterator[str]:
    for group in rules(plan)["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    for panel in dashboard(plan)["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    for document in keda(plan, CLUSTER):
        yield document["spec"]["triggers"][-1]["metadata"]["query"]


@needs_promtool
@pytest.mark.parametrize("plan", PLANS)
def test_promtool_takes_every_expression(plan: ServedPlan, tmp_path: Path) -> None:
    file, every, config = (tmp_path / name for name in ("rules.yaml", "every.yaml", "prometheus.yaml"))
    file.write_text(yaml_text([rules(plan)]))
    made = [{"record": f"made:{number}", "expr": each} for number, each in enumerate(expressions(plan))]
    every.write_text(yaml_text([{"groups": [{"name": "every", "rules": made}]}]))
    config.write_text(yaml_text([{"rule_files": [str(file)], **scrape(plan, CLUSTER)}]))
    promtool("check", "rules", "--lint=all", "--lint-fatal", file, every)
    promtool("check", "config", config)


@needs_promtool
def test_promtool_refuses_a_wrong_expression(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(yaml_text([{"groups": [{"name": "wrong", "rules": [{"record": "a:b", "expr": "sum(rate(x))"}]}]}]))
    with pytest.raises(AssertionError, match="range vector"):
        promtool("check", "rules", file)


@pytest.fixture(scope="module")
def served_metrics() -> dict[str, set[str]]:
    """Labels of each series of a server that has answered, refused and swapped."""
    metrics = Metrics(lambda: 1.0, lambda: 2.0, lambda: 0.0)
    metrics.answered(0.01, 20)
    metrics.ended(200)
    metrics.refused("queue")
    metrics.swapped("done")
    metrics.serving("shop", "4f0c81b2a3d9")
    controller = metrics.controlled()
    controller.changed("degrade", "panic window")
    controller.ticked({"planned": 1.0}, False, 1.0, 1.0, 1.0)
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.mark.parametrize("plan", PLANS)
def test_expressions_name_metrics_and_labels_of_the_server(
    plan: ServedPlan, served_metrics: dict[str, set[str]]
) -> None:
    recorded = {
        rule["record"]: set(rule["labels"])
        for group in rules(plan)["groups"]
        for rule in group["rules"]
        if "record" in rule
    }
    recorded["study_status:leanrec_requests:rate1m"].add("status")
    for series in ("study_offer:leanrec_queue_length:avg", "study_offer:leanrec_in_flight:avg"):
        recorded[series].add("offer")
    known = {**served_metrics, **recorded}
    for expression in expressions(plan):
        text = re.sub(r"\[[^]]*\]|\"[^\"]*\"", "", expression)
        listed = set(re.findall(r"\w+", " ".join(re.findall(r"(?:by|on|ignoring) \(([^)]*)\)", text))))
        text = re.sub(r"(by|on|ignoring) \([^)]*\)", r"\1", text)
        matched = [
            (name, set(re.findall(r"(\w+)=", labels))) for name, labels in re.findall(r"([\w:]+)\{([^}]*)\}", text)
        ]
        names = set(re.findall(r"[a-zA-Z_:][\w:]*", re.sub(r"\{[^}]*\}", "", text))) - FUNCTIONS
        assert names <= set(known), expression
        for name, labels in matched:
            assert labels <= known[name] | SCRAPED, expression
        assert listed <= set().union(SCRAPED, *(known[name] for name in names)), expression


def test_a_panel_stands_in_its_own_place() -> None:
    panels = dashboard(served_plan(dated()))["panels"]
    taken = {
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    }
    assert len(taken) == sum(panel["gridPos"]["w"] * panel["gridPos"]["h"] for panel in panels)
    assert max(x for x, _ in taken) < 24 and len({panel["id"] for panel in panels}) == len(panels)
    sources = [target["datasource"] for panel in panels for target in panel["targets"]]
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)


# -- what rules say of samples


def evaluate_rules(plan: ServedPlan, folder: Path, **test: Any) -> None:
    """Let promtool evaluate the rules every 15 s over samples, and compare."""
    written = rules(plan)
    (folder / "rules.yaml").write_text(yaml_text([written]))
    document = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "15s",
        # Otherwise an alert may see what was recorded at the evaluation before.
        "group_eval_order": [group["name"] for group in written["groups"]],
        "tests": [{"interval": "15s", **test}],
    }
    (folder / "tests.yaml").write_text(yaml_text([document]))
    assert yaml.safe_load((folder / "tests.yaml").read_text()) == document
    promtool("test", "rules", folder / "tests.yaml")


def value_at(minute: float, series: str, value: float, **labels: str) -> dict[str, Any]:
    text = ",".join(f'{name}="{given}"' for name, given in sorted(labels.items()))
    samples = [{"labels": f"{{{text}}}", "value": round(1000 * value)}]
    expression = f"round(1000 * {series}{{{text}}})"  # promtool compares all digits
    return {"expr": expression, "eval_time": f"{round(60 * minute)}s", "exp_samples": samples}


A, B = "trial-10-small", "trial-11-small"


@needs_promtool
def test_planned_machines_and_capacity_follow_the_phases(tmp_path: Path) -> None:
    """A dated plan from minute 10 to 40; before and after it the last phase applies."""
    expected = {9.5: (3, 0, 300), 10: (1, 0, 100), 19.5: (1, 0, 100), 20: (0, 2, 100), 30: (3, 0, 300), 55: (3, 0, 300)}
    checks = [
        check
        for minute, (first, second, capacity) in expected.items()
        for check in (
            value_at(minute, PLANNED, first, study="shop", offer=A),
            value_at(minute, PLANNED, second, study="shop", offer=B),
            value_at(minute, CAPACITY, capacity, study="shop"),
        )
    ]
    ended = {
        "exp_labels": {"study": "shop", "severity": "warning"},
        "exp_annotations": {
            "summary": "the plan of shop has ended",
            "description": "It started 31m 0s ago and is over; the machines of its last phase go on.",
        },
    }
    alerts = [
        {"eval_time": "40m", "alertname": "LeanrecPlanEnded", "exp_alerts": []},
        {"eval_time": "41m", "alertname": "LeanrecPlanEnded", "exp_alerts": [ended]},
    ]
    plan = served_plan(dated())
    evaluate_rules(plan, tmp_path, input_series=[], promql_expr_test=checks, alert_rule_test=alerts)


@needs_promtool
def test_fewer_machines_than_planned_raise_an_alert(tmp_path: Path) -> None:
    """Two processes are a machine of the first offer; of the second one of two machines serves."""
    series = [
        *(
            {
                "series": f'leanrec_model{{study="shop",offer="{A}",pod="a{pod}",name="shop",version="1"}}',
                "values": "1x240",
            }
            for pod in (1, 2)
        ),
        {"series": f'leanrec_model{{study="shop",offer="{B}",pod="b",name="shop",version="2"}}', "values": "1x240"},
    ]
    name = "LeanrecFewerMachinesThanPlanned"

    def alert(offer: str, missing: int) -> dict[str, Any]:
        return {
            "exp_labels": {"study": "shop", "offer": offer, "severity": "warning"},
            "exp_annotations": {
                "summary": "fewer machines serve shop than planned",
                "description": f"{missing} machines of {offer} that the plan has now do not serve.",
            },
        }

    evaluate_rules(
        served_plan(dated()),
        tmp_path,
        input_series=series,
        promql_expr_test=[value_at(15, ACTUAL, 1, study="shop", offer=A)],
        alert_rule_test=[
            {"eval_time": "19m45s", "alertname": name, "exp_alerts": []},
            {"eval_time": "24m", "alertname": name, "exp_alerts": []},
            {"eval_time": "26m", "alertname": name, "exp_alerts": [alert(B, 1)]},
            {"eval_time": "36m", "alertname": name, "exp_alerts": [alert(A, 2)]},
        ],
    )


@needs_promtool
def test_servers_with_a_controller_are_machines_of_whatever_the_plan_has(tmp_path: Path) -> None:
    """One of the servers is labelled as the first offer, of which two processes make a machine.

    In the third phase three machines are planned. What serves answers 50 requests a second, so that 2 that wait are too
    many for an SLO of 20 ms, where processes of the offer may have 20 times that.
    """
    target = f'study="shop",offer="{A}",pod="e"'
    series = [
        {"series": f'leanrec_model{{{target},name="shop",version="1"}}', "values": "1x240"},
        {"series": f"leanrec_controller_replicas{{{target}}}", "values": "4x240"},
        {"series": f"leanrec_controller_capacity_rps{{{target}}}", "values": "50x240"},
        {"series": f"leanrec_queue_length{{{target}}}", "values": "0x39 2x200"},
    ]
    labels = {"study": "shop", "severity": "warning"}
    missing = {
        "exp_labels": labels,
        "exp_annotations": {
            "summary": "fewer machines serve shop than planned",
            "description": "2 machines that the plan has now do not serve.",
        },
    }
    waiting = {
        "exp_labels": {**labels, "offer": A, "pod": "e"},
        "exp_annotations": {
            "summary": "requests of shop wait longer than the SLO in a server with a controller",
            "description": "What serves needs 40ms for the requests that wait; the SLO is 20 ms.",
        },
    }
    machines, queue = "LeanrecFewerMachinesThanPlanned", "LeanrecQueue"
    evaluate_rules(
        served_plan(dated()),
        tmp_path,
        input_series=series,
        promql_expr_test=[value_at(15, ACTUAL, 0, study="shop", offer=A)],
        alert_rule_test=[
            {"eval_time": "19m45s", "alertname": machines, "exp_alerts": []},
            {"eval_time": "9m", "alertname": queue, "exp_alerts": []},
            {"eval_time": "12m", "alertname": queue, "exp_alerts": [waiting]},
            {"eval_time": "36m", "alertname": machines, "exp_alerts": [missing]},
        ],
    )


@needs_promtool
def test_latency_and_refusals_are_those_of_the_samples(tmp_path: Path) -> None:
    """The p95 is interpolated within its bucket, and one request in five is refused.

    In 15 s, 90 requests take up to 10 ms and 10 up to 50 ms, so the p95 is at half of the bucket, 30 ms. Beside these
    100 requests, 25 are refused.
    """

    def counter(name: str, labels: str, each: int) -> dict[str, str]:
        text = f'study="shop",offer="{A}",pod="a"' + (f",{labels}" if labels else "")
        return {"series": f"{name}{{{text}}}", "values": f"0+{each}x80"}

    buckets = {"0.01": 90, "0.05": 100, "+Inf": 100}
    series = [
        *(counter("leanrec_request_seconds_bucket", f'le="{limit}"', each) for limit, each in buckets.items()),
        counter("leanrec_requests_total", 'status="200"', 100),
        counter("leanrec_requests_total", 'status="503"', 25),
        counter("leanrec_refusals_total", 'reason="queue"', 25),
    ]
    slow = {
        "exp_labels": {"study": "shop", "quantile": "0.95", "severity": "warning"},
        "exp_annotations": {
            "summary": "p95 of shop is above 20 ms",
            "description": "p95 over 5 minutes is 30ms; the plan's SLO is 20 ms. It is linear within the histogram's "
            "buckets.",
        },
    }
    refusing = {
        "exp_labels": {"study": "shop", "severity": "warning"},
        "exp_annotations": {
            "summary": "shop refuses more than 1% of its requests",
            "description": "20% of the requests of 5 minutes were refused, by a placement's queue or deadline, or "
            "because too many were in flight.",
        },
    }
    plan = served_plan(dated())
    of_offer = plan.offers[0]
    each_rps = plan.capacity[0].value / of_offer.machines[0].value
    taken = {"labels": "{}", "value": 125 / 15 / each_rps}
    query = {"expr": reactive_machines("shop", A), "exp_samples": [taken]}
    evaluate_rules(
        plan,
        tmp_path,
        input_series=series,
        promql_expr_test=[
            value_at(10, LATENCY, 0.03, study="shop", quantile="0.95"),
            value_at(10, REFUSED, 0.2, study="shop"),
            {**query, "eval_time": "15m"},
            {**query, "eval_time": "20m", "exp_samples": [{"labels": "{}", "value": 0}]},
        ],
        alert_rule_test=[
            {"eval_time": "10m", "alertname": "LeanrecLatencyAboveSlo", "exp_alerts": [slow]},
            {"eval_time": "10m", "alertname": "LeanrecRefusals", "exp_alerts": [refusing]},
            {"eval_time": "10m", "alertname": "LeanrecQueue", "exp_alerts": []},
            {"eval_time": "10m", "alertname": "LeanrecLoadAbovePlan", "exp_alerts": []},
        ],
    )


def controlled(name: str, values: str, pod: str = "a") -> dict[str, str]:
    """Samples of a controller, each of 15 s."""
    return {"series": f'leanrec_controller_{name}{{study="shop",offer="{A}",pod="{pod}"}}', "values": values}


@needs_promtool
def test_a_replica_that_hangs_for_half_a_minute_raises_an_alert(tmp_path: Path) -> None:
    """In one of two servers of an offer a replica hangs from minute 1 to 3, in the other for 15 s of minute 6."""

    def hanging(values: str, pod: str) -> dict[str, str]:
        return {"series": f'leanrec_hanging_replicas{{study="shop",offer="{A}",pod="{pod}"}}', "values": values}

    alert = {
        "exp_labels": {"study": "shop", "offer": A, "severity": "warning"},
        "exp_annotations": {
            "summary": "replicas of shop hang",
            "description": f"Replicas of {A} whose runs do not end, of models that were replaced too: 1. Others of "
            "the same instance group answer in their place; where all hang, the server is not ready.",
        },
    }
    name = "LeanrecReplicaHangs"
    evaluate_rules(
        served_plan(dated()),
        tmp_path,
        input_series=[hanging("0x3 1x7 0x20", "a"), hanging("0x23 1x0 0x7", "b")],
        alert_rule_test=[
            {"eval_time": "1m15s", "alertname": name, "exp_alerts": []},
            {"eval_time": "2m", "alertname": name, "exp_alerts": [alert]},
            {"eval_time": "4m", "alertname": name, "exp_alerts": []},
            {"eval_time": "6m", "alertname": name, "exp_alerts": []},
            {"eval_time": "6m30s", "alertname": name, "exp_alerts": []},
        ],
    )


@needs_promtool
def test_a_worse_variant_than_planned_raises_an_alert_after_ten_minutes(tmp_path: Path) -> None:
    """The plan has losses of 0, a third of a per cent, and 0 again, for ten minutes each from minute 10 on.

    One server keeps to the plan; another one serves the worse variant from minute 5 to 22.
    """
    third = 0.01 / 3
    planned = served_plan(plan_of([Kind(loss=-0.2), Kind(loss=third)], [(0, 1), (1, 2), (0, 3)], 600.0, start_s=600.0))
    kept, worse = f"0x79 {third!r}x39 0x120", f"0x19 {third!r}x67 0x151"
    alert = {
        "exp_labels": {"study": "shop", "severity": "warning"},
        "exp_annotations": {
            "summary": "a server of shop serves a worse variant than planned",
            "description": "The loss of a variant that serves is 0.3333% above that of the planned one: more requests "
            "arrive than planned, or they take longer. Plan again with a newer trace.",
        },
    }
    name = "LeanrecDegradedLongerThanPlanned"
    evaluate_rules(
        planned,
        tmp_path,
        input_series=[controlled("loss", kept), controlled("loss", worse, "b")],
        promql_expr_test=[
            value_at(minute, PLANNED_LOSS, loss, study="shop") for minute, loss in ((15, 0), (25, third), (35, 0))
        ],
        alert_rule_test=[
            {"eval_time": "14m", "alertname": name, "exp_alerts": []},
            {"eval_time": "16m", "alertname": name, "exp_alerts": [alert]},
            {"eval_time": "21m", "alertname": name, "exp_alerts": []},
            {"eval_time": "28m", "alertname": name, "exp_alerts": []},
            {"eval_time": "41m", "alertname": name, "exp_alerts": []},
        ],
    )


@needs_promtool
def test_a_switch_that_failed_raises_an_alert(tmp_path: Path) -> None:
    """A server's third sample has one failure, and 15 minutes later the alert is over."""
    alert = {
        "exp_labels": {"study": "shop", "offer": A, "severity": "warning"},
        "exp_annotations": {
            "summary": "a server of shop cannot serve a variant or a plan that it was to switch to",
            "description": f"In 15 minutes 1 switches failed at {A}; what served before goes on. The server's log and "
            "its timeline have the reason.",
        },
    }
    name = "LeanrecSwitchFailed"
    evaluate_rules(
        served_plan(dated()),
        tmp_path,
        input_series=[controlled("failures_total", "0x79 1x200"), controlled("failures_total", "0x200", "b")],
        alert_rule_test=[
            {"eval_time": "19m", "alertname": name, "exp_alerts": []},
            {"eval_time": "30m", "alertname": name, "exp_alerts": [alert]},
            {"eval_time": "36m", "alertname": name, "exp_alerts": []},
        ],
    )


def test_panels_show_all_that_a_controller_tells(served_metrics: dict[str, set[str]]) -> None:
    told = {name for name in served_metrics if name.startswith("leanrec_controller_")}
    text = " ".join(expressions(served_plan(dated())))
    shown = {name for name in told if name in text}
    # The integral of the replicas, and when each counter began.
    assert {name.removesuffix("_created") for name in told - shown} == {
        f"leanrec_controller_{name}"
        for name in ("changes", "failures", "load_seconds", "replica_seconds", "replica_seconds_total")
    }
