"""Manifests of a plan for Kubernetes, Ray Serve, Prometheus and Grafana, written into a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from objectives.store import written_whole
from search.errors import ConfigError
from search.plan.document import PlanDocument
from search.plan.manifests.files import json_text, yaml_text
from search.plan.manifests.grafana import dashboard
from search.plan.manifests.hpa import adapter_rules, horizontal_autoscaler
from search.plan.manifests.keda import keda
from search.plan.manifests.kubernetes import kubernetes
from search.plan.manifests.prometheus import rules, scrape
from search.plan.manifests.ray_serve import ray_serve
from search.plan.manifests.served import ServedPlan, served_plan
from search.plan.manifests.settings import Cluster
from search.plan.manifests.timetable import is_weekly
from search.plan.plan_file import read_plan
from spaces.serialization import to_plain

_COPIED = ("plan_policy.py", "application.py")


@dataclass(frozen=True)
class Manifests:
    """Files that were written, and what is to be known of them."""

    study: str
    offers: tuple[str, ...]
    files: tuple[str, ...]
    warnings: tuple[str, ...]


def write_manifests(path: Path, start_s: float | None, cluster: Cluster, out: Path) -> Manifests:
    """Write the manifests of a plan.json into `out`, each file whole.

    Args:
        start_s: when the plan starts, in seconds since the epoch; None for its own start

    Raises:
        ConfigError: the plan is wrong, has no start, or the folder cannot be written.
    """
    plan = started(read_plan(path), start_s)
    served = served_plan(plan)
    texts = _texts(plan, served, cluster)
    try:
        for name, text in texts.items():
            with written_whole(out / name) as partial:
                partial.write_text(text, "utf-8")
    except OSError as error:
        raise ConfigError(f"--out: must be a folder that can be written, but got {out}: {error}") from error
    names = tuple(offer.name for offer in served.offers)
    return Manifests(served.study, names, tuple(str(out / name) for name in texts), _warnings(plan, served))


def started(plan: PlanDocument, start_s: float | None) -> PlanDocument:
    """Return a plan with its start.

    Raises:
        ConfigError: a start is given for a weekly plan, or to none that has one.
    """
    if is_weekly(plan):
        if start_s is not None:
            raise ConfigError(
                "--start: must be left out of a weekly profile's plan, which starts on Monday at 0:00 UTC"
            )
        return plan
    if start_s is None and plan.start_s is None:
        raise ConfigError("--start: must be given, since the plan's trace has no dates")
    return plan if start_s is None else replace(plan, start_s=start_s)


def _texts(plan: PlanDocument, served: ServedPlan, cluster: Cluster) -> Mapping[str, str]:
    """Return the text of each file by its path."""
    copied = resources.files("search.plan.manifests") / "ray_files"
    return {
        "kubernetes/deployments.yaml": yaml_text(kubernetes(served, cluster)),
        "kubernetes/keda.yaml": yaml_text(keda(served, cluster)),
        "kubernetes/hpa.yaml": yaml_text([horizontal_autoscaler(served, cluster)]),
        "kubernetes/prometheus-adapter.yaml": yaml_text([adapter_rules()]),
        "prometheus/rules.yaml": yaml_text([rules(served)]),
        "prometheus/scrape.yaml": yaml_text([scrape(served, cluster)]),
        "grafana/dashboard.json": json_text(dashboard(served)),
        "ray/serve.yaml": yaml_text([ray_serve(served, cluster)]),
        "ray/plan.json": json_text(to_plain(plan)),
        **{f"ray/{name}": (copied / name).read_text("utf-8") for name in _COPIED},
    }


def _warnings(plan: PlanDocument, served: ServedPlan) -> tuple[str, ...]:
    found = []
    if not served.calendar.weekly:
        found.append("the plan is of given dates: after them, the machines of its last phase go on until a newer plan")
    if plan.phase_seconds % 60 or (not served.calendar.weekly and served.calendar.start_s % 60):
        found.append("KEDA's times are whole minutes: each phase is widened to those that it touches")
    if unknown := [offer.name for offer in served.offers if offer.row.memory_bytes is None]:
        found.append(f"memory was not measured, and is not asked for: {', '.join(unknown)}")
    return tuple(found)
