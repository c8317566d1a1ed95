"""Kubernetes documents against the official schemas, and against the server whose command they run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from prometheus_client.parser import text_string_to_metric_families

from search.cli.parser import _parser
from search.plan.document import PlanDocument
from search.plan.manifests.hpa import METRIC, adapter_rules, alone, horizontal_autoscaler
from search.plan.manifests.keda import keda
from search.plan.manifests.kubernetes import kubernetes
from search.plan.manifests.served import served_plan
from tests.manifests_tests.plans import CLUSTER, Kind, dated_plans, plan_of, weekly_plans
from tests.serve_tests.bundles import write_toy
from tests.serve_tests.process import serving

KINDS = [Kind(30.0, 2, loss=0.004), Kind(5.0, 1, machine="c7i.large", memory_bytes=None), Kind()]
SERVED = served_plan(plan_of(KINDS, [(0, 3), (1, 1), (0, 4)]))
# Fields of a ScaledObject of keda.sh/v1alpha1 that are used, with their types.
SCALED_OBJECT = {
    "scaleTargetRef": dict,
    "pollingInterval": int,
    "cooldownPeriod": int,
    "minReplicaCount": int,
    "maxReplicaCount": int,
    "fallback": dict,
    "advanced": dict,
    "triggers": list,
}


def parts(kind: str) -> list[dict[str, Any]]:
    return [each for each in kubernetes(SERVED, CLUSTER) if each["kind"] == kind]


@settings(max_examples=12)  # a document takes 20 ms
@given(dated_plans() | weekly_plans())
def test_documents_follow_the_schemas(plan: PlanDocument) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="has the schemas of Kubernetes")
    served = served_plan(plan)
    documents = [*kubernetes(served, CLUSTER), horizontal_autoscaler(served, CLUSTER)]
    for document in documents:
        validate.validate(document, validate.latest_version(), strict=True)
    names = [(document["kind"], document["metadata"]["name"]) for document in documents]
    assert len(set(names)) == len(names)


def test_a_wrong_document_is_refused() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="has the schemas of Kubernetes")
    (deployment, _) = parts("Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"] = "http"
    with pytest.raises(validate.ValidationError):
        validate.validate(deployment, validate.latest_version(), strict=True)


def test_services_select_the_pods_of_their_offer_and_one_selects_all() -> None:
    pods = {each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"] for each in parts("Deployment")}
    selected = {
        service["metadata"]["name"]: {
            name for name, labels in pods.items() if service["spec"]["selector"].items() <= labels.items()
        }
        for service in parts("Service")
    }
    assert selected == {"shop": set(pods), **{name: {name} for name in pods}} and len(pods) == 2
    for deployment in parts("Deployment"):
        assert deployment["spec"]["selector"]["matchLabels"] == pods[deployment["metadata"]["name"]]


def test_a_process_asks_for_its_cores_and_its_memory() -> None:
    first, second = (each["spec"]["template"]["spec"] for each in parts("Deployment"))
    asked = {"requests": {"cpu": "900m", "memory": "150000000"}, "limits": {"memory": "300000000"}}
    assert first["containers"][0]["resources"] == asked
    assert second["containers"][0]["resources"] == {"requests": {"cpu": "900m"}}
    assert first["nodeSelector"] == {"leanrec/machine": "small"}


def test_the_server_answers_the_probes_and_ends_within_the_grace(tmp_path: Path) -> None:
    (deployment, _) = parts("Deployment")
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert container["command"][:3] == ["leanrec", "serve", "/bundles/trial-10"]
    options = _parser().parse_args([*container["command"][1:], *container["args"]])
    assert (options.host, options.port, options.name) == ("0.0.0.0", container["ports"][0]["containerPort"], "shop")
    notice = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["spec"]["terminationGracePeriodSeconds"] > notice + options.drain_seconds
    with serving(write_toy(tmp_path / "bundle"), tmp_path / "log", "--name", options.name) as server:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert httpx.get(server.root + container[probe]["httpGet"]["path"]).status_code == 200
        text = httpx.get(server.root + pod["metadata"]["annotations"]["prometheus.io/path"]).text
    assert "leanrec_request_seconds" in {family.name for family in text_string_to_metric_families(text)}


def test_scaled_objects_have_the_fields_of_keda() -> None:
    objects = keda(SERVED, CLUSTER)
    deployments = [each["metadata"]["name"] for each in parts("Deployment")]
    assert [each["spec"]["scaleTargetRef"]["name"] for each in objects] == deployments
    for each in objects:
        assert (each["apiVersion"], each["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
        assert {name: type(value) for name, value in each["spec"].items()} == SCALED_OBJECT
        for trigger in each["spec"]["triggers"]:
            assert all(isinstance(value, str) for value in trigger["metadata"].values())
        kinds = [trigger["type"] for trigger in each["spec"]["triggers"]]
        assert kinds[-1] == "prometheus" and set(kinds[:-1]) == {"cron"}
        assert each["spec"]["fallback"]["replicas"] == each["spec"]["minReplicaCount"] == 0
        cron = each["spec"]["triggers"][0]["metadata"]
        assert set(cron) == {"timezone", "start", "end", "desiredReplicas"} and cron["timezone"] == "Etc/UTC"
    assert [each["spec"]["maxReplicaCount"] for each in objects] == [40, 20]


@given(dated_plans() | weekly_plans())
def test_at_the_expected_load_the_reactive_trigger_adds_nothing(plan: PlanDocument) -> None:
    """The trigger's processes, as the autoscaler rounds them, are no more than the plan's in any phase.

    Machines serve the more each the more there are. The query gives the machines that a rate takes.
    """
    served = served_plan(plan)
    thresholds = {
        offer.row.offer: float(each["spec"]["triggers"][-1]["metadata"]["threshold"])
        for offer, each in zip(served.offers, keda(served, CLUSTER), strict=True)
    }
    for phase in plan.phases:
        value = phase.expected_rps * phase.machines / phase.capacity_rps
        wanted = math.ceil(value / thresholds[phase.offer] - 1e-4)
        assert wanted <= phase.machines * plan.offers[phase.offer].copies


def test_where_one_offer_serves_alone_it_keeps_the_loss() -> None:
    lossy, exact = Kind(loss=0.01), Kind(loss=0.002)
    assert alone(served_plan(plan_of([exact, lossy], [(1, 3), (1, 3), (0, 1)]))).row.offer == 0
    assert alone(served_plan(plan_of([exact, Kind(loss=0.001)], [(0, 1), (1, 3)]))).row.offer == 1
    assert alone(served_plan(plan_of([lossy, Kind(loss=0.02)], [(0, 1), (1, 3)]))).row.offer == 0


def test_the_horizontal_autoscaler_follows_the_rate_of_a_pod() -> None:
    found = horizontal_autoscaler(SERVED, CLUSTER)
    spec = found["spec"]
    assert spec["scaleTargetRef"]["name"] == found["metadata"]["name"] == "shop-trial-10-small"
    # Expected is half of the capacity, and the machines suffice for 0.9 of it: 50 requests/s of a process over 1.8.
    assert spec["metrics"][0]["pods"]["target"] == {"type": "AverageValue", "averageValue": "27777m"}
    assert (spec["minReplicas"], spec["maxReplicas"]) == (6, 40)
    assert spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 60
    assert spec["behavior"]["scaleUp"]["stabilizationWindowSeconds"] == 0
    (rule,) = adapter_rules()["rules"]
    assert rule["name"]["as"] == spec["metrics"][0]["pods"]["metric"]["name"] == METRIC
