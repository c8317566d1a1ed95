"""Service curves that a plan measures again."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from objectives.records import Artifact
from search.plan import deployments
from search.plan.deployments import PlanCurves
from spaces.candidate import Candidate
from spaces.techniques.placement import InstanceGroup, Placement, Route
from tests.measure_tests.test_measure import _artifact
from tests.planning_tests.fleets import deployment

CURVE = deployment(10.0).curves[0]


class Costs:
    """Requests that tell the part and the blocks, at a reference speed."""

    def __init__(self, reference_ms: float) -> None:
        self.reference_ms = reference_ms

    def request(self, artifact: Artifact, candidate: Candidate, part: Any, blocks: int) -> Any:
        return {"artifact": artifact.key, "part": part, "blocks": blocks, "reference_ms": self.reference_ms}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Requests that were measured."""
    found: list[Any] = []

    def service_curve(asked: Any) -> Any:
        found.append(asked)
        return SimpleNamespace(curve=CURVE.scaled(len(found)))

    monkeypatch.setattr(deployments, "service_curve", service_curve)
    return found


def test_curves_are_measured_once_in_several_blocks(tmp_path: Path, measured: list[Any]) -> None:
    """A placement that routes has two instance groups; a study that began anew has another reference speed."""
    file, said = tmp_path / "plan_curves.json", list[str]()
    routed = Placement(
        InstanceGroup(threads=1), route=Route(50, InstanceGroup(engine="openvino", replicas=2, threads=1))
    )
    side = _artifact("ours"), Candidate(placement=routed)
    curves = PlanCurves(file, Costs(2.0), said.append)  # type: ignore[arg-type]
    first = curves.curves(7, side)
    assert [asked["part"].placement.instance_group.engine for asked in measured] == ["onnxruntime", "openvino"]
    assert all(asked["blocks"] > 1 for asked in measured) and len(json.loads(file.read_text())) == 2
    assert [curve.alone(100) for curve in first] == [CURVE.alone(100), 2 * CURVE.alone(100)]
    again = PlanCurves(file, Costs(2.0), said.append).curves(7, side)  # type: ignore[arg-type]
    assert len(measured) == len(said) == 2 and [curve.alone(100) for curve in again] == [
        curve.alone(100) for curve in first
    ]
    PlanCurves(file, Costs(3.0), said.append).curves(7, side)  # type: ignore[arg-type]
    PlanCurves(file, Costs(2.0), said.append).curves(7, (_artifact("another"), side[1]))  # type: ignore[arg-type]
    assert len(measured) == 6
