"""The policy of Ray Serve against the plan, phase by phase, without Ray."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.plan.document import PlanDocument
from search.plan.manifests.ray_serve import ray_serve
from search.plan.manifests.run import write_manifests
from search.plan.manifests.served import served_plan
from spaces.serialization import to_plain
from tests.manifests_tests.plans import CLUSTER, START_S, WEEK_S, Kind, dated_plans, plan_of, weekly_plans

MONDAY_S = 1_795_996_800.0


def load_policy(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("plan_policy", folder / "plan_policy.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written(plan: PlanDocument, folder: Path) -> Path:
    file = folder / "plan.json"
    file.write_text(json.dumps(to_plain(plan)))
    write_manifests(file, None, CLUSTER, folder / "out")
    return folder / "out" / "ray"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return load_policy(written(plan_of([Kind(), Kind(30.0, 2)], [(0, 3), (1, 2)]), tmp_path_factory.mktemp("plan")))


def planned(plan: PlanDocument, offer: int, now_s: float) -> int:
    """The most processes of the phases that lie between now and the moment at which a new one would serve."""
    row = next(row for row in plan.offers if row.offer == offer)
    ends = [phase.start_s + plan.phase_seconds for phase in plan.phases]
    origins = [plan.start_s or 0.0]
    if plan.forecast is None:
        ends[-1] = WEEK_S
        origins = [MONDAY_S + shift * WEEK_S for shift in (-1, 0, 1)]
    until_s, found = now_s + row.start_seconds, [0]
    for origin_s, (phase, end_s) in itertools.product(origins, zip(plan.phases, ends, strict=True)):
        if phase.offer == offer and origin_s + phase.start_s <= until_s and now_s < origin_s + end_s:
            found.append(phase.machines * row.copies)
    last = plan.phases[-1]
    outside = plan.forecast is not None and (now_s < origins[0] or until_s >= origins[0] + ends[-1])
    return max([*found, last.machines * row.copies if outside and last.offer == offer else 0])


@given(dated_plans() | weekly_plans(), st.lists(st.floats(-0.2, 1.2), min_size=20, max_size=20))
def test_the_policy_wants_the_plan(policy: ModuleType, plan: PlanDocument, shares: list[float]) -> None:
    document = json.loads(json.dumps(to_plain(plan)))
    start_s = MONDAY_S if plan.start_s is None else plan.start_s
    for share in shares:
        now_s = math.floor(start_s + share * len(plan.phases) * plan.phase_seconds) + 0.37
        for row in plan.offers:
            assert policy.planned_processes(document, row.offer, now_s) == planned(plan, row.offer, now_s)


@given(weekly_plans())
def test_the_router_follows_the_phases(policy: ModuleType, plan: PlanDocument) -> None:
    document = to_plain(plan)
    for number, phase in enumerate(plan.phases):
        middle_s = MONDAY_S + min((number + 0.5) * plan.phase_seconds, WEEK_S - 1)
        assert policy.offer_at(document, middle_s) == phase.offer


def context(name: str, requests: float, target: float = 5.0) -> Any:
    return SimpleNamespace(
        deployment_name=name, total_num_requests=requests, config=SimpleNamespace(target_ongoing_requests=target)
    )


def test_the_load_raises_the_plan_and_never_lowers_it(policy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offer 1 has 2 machines of 2 processes from 8:15 on, which start 30 s before."""
    at = {"before": START_S + 869, "starting": START_S + 871, "serving": START_S + 901}
    wanted = {}
    for name, now_s in at.items():
        monkeypatch.setattr(policy, "time", SimpleNamespace(time=lambda now_s=now_s: now_s))
        wanted[name] = [policy.autoscale(context("offer-1", requests))[0] for requests in (0.0, 9.0, 31.0)]
    assert wanted == {"before": [0, 2, 7], "starting": [4, 4, 7], "serving": [4, 4, 7]}
    assert policy.autoscale(context("offer-0", 0.0)) == (0, {})


def test_processes_among_many_hold_more_requests(policy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three machines serve half as much again each as one alone: 7 requests in a process are no reason for more."""
    plan = to_plain(plan_of([Kind(), Kind()], [(0, 1), (0, 3), (1, 1)], gain=0.25))
    monkeypatch.setattr(policy, "PLAN", plan)
    wanted = []
    for number in range(3):
        monkeypatch.setattr(policy, "time", SimpleNamespace(time=lambda at=number: START_S + 900 * at + 1))
        wanted.append(policy.autoscale(context("offer-0", 22.0))[0])
    assert wanted == [5, 3, 5], "22 / 5, then 22 / 7.5"


def test_the_policy_needs_the_standard_library_alone(tmp_path: Path) -> None:
    source = (written(plan_of([Kind()], [(0, 1)]), tmp_path) / "plan_policy.py").read_text()
    imported = {line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert imported <= set(sys.stdlib_module_names)


def test_a_replica_holds_the_requests_of_a_queue_at_the_slo() -> None:
    """The latency of M/M/1 is exponential at rate mu - lambda: the highest rate whose p95 is 20 ms gives the mean."""
    rate = 450.0
    served = served_plan(plan_of([Kind(process_rps=rate)], [(0, 1)], utilisation=0.9))  # no headroom
    mu = rate - np.log(0.05) / 0.020
    in_system = (rate / mu) / (1 - rate / mu)
    (router, one) = ray_serve(served, CLUSTER)["applications"][0]["deployments"]
    assert served.headroom == 1.0 and router["name"] == "Router"
    assert one["autoscaling_config"]["target_ongoing_requests"] == pytest.approx(in_system, abs=1e-3)
