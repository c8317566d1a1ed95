"""Service curves that a plan measures again, and load times."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from objectives.records import Artifact
from objectives.serving.devices import describe
from search.cli.console import Console
from search.errors import ConfigError
from search.home import Home
from search.plan import deployments
from search.plan.deployments import PlanCurves, other_count
from spaces.candidate import Candidate
from spaces.techniques.placement import InstanceGroup, Placement, Route
from tests.measure_tests.test_measure import _artifact
from tests.planning_tests.fleets import deployment

CURVE = deployment(10.0).curves[0]


class Jobs:
    """Requests that tell the part and the blocks, on some held-out requests, and the curves of a study."""

    baseline_ms = 3.0
    transport_ms = 0.5

    def __init__(self, holdout: str = "a") -> None:
        self.holdout = holdout

    def service_curve(
        self,
        side: tuple[Artifact, Candidate],
        part: Any,
        baseline_ms: float,
        transport_ms: float,
        reference_pace_ms: float | None = None,
        *,
        blocks: int,
    ) -> Any:
        assert (baseline_ms, transport_ms, reference_pace_ms) == (3.0, 0.5, None), "the machine as it is"
        return {"artifact": side[0].key, "part": part, "blocks": blocks, "holdout": self.holdout}

    def curves(self, candidate: Candidate) -> Any:
        return CURVE, CURVE


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Requests that were measured."""
    found: list[Any] = []

    def call(meter: object, asked: Any, limit_s: float, say: object) -> Any:
        assert (meter, limit_s) == ("meter", 600.0)
        found.append(asked)
        return SimpleNamespace(curve=CURVE.scaled(len(found)))

    monkeypatch.setattr(deployments, "call", call)
    return found


def curves(home: Path, jobs: Jobs, said: list[str], machine: str | None = None) -> PlanCurves:
    session = SimpleNamespace(
        home=Home(home),
        config=SimpleNamespace(name="toy", workers=SimpleNamespace(job_seconds=600.0)),
        study=SimpleNamespace(facts={"machine": describe() if machine is None else machine}),
    )
    return PlanCurves(session, jobs, jobs, "meter", said.append)  # type: ignore[arg-type]


ROUTED = Placement(InstanceGroup(threads=1), route=Route(50, InstanceGroup(engine="openvino", replicas=2, threads=1)))
SIDE = _artifact("ours"), Candidate(placement=ROUTED)


def test_a_study_without_the_baseline_s_curve_is_not_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate of its requests is a share of what the baseline serves."""
    monkeypatch.setattr(deployments, "read_requests", lambda folder: [])
    jobs = SimpleNamespace(prepared=SimpleNamespace(holdout=str(tmp_path)))
    session: Any = SimpleNamespace(
        front=lambda: None, jobs=lambda front: jobs, home=Home(tmp_path), config=SimpleNamespace(name="toy")
    )
    monkeypatch.setattr(deployments, "CostModel", lambda *given: SimpleNamespace(baseline_ms=None))
    with pytest.raises(ConfigError, match="'toy' has no service curve of its baseline"):
        deployments.menu_of(session, Console(False, False))


def test_curves_are_measured_once_in_several_blocks(tmp_path: Path, measured: list[Any]) -> None:
    """A placement that routes has two instance groups; a study that began anew may have other requests."""
    said = list[str]()
    (tmp_path / "mlruns" / "timings" / "toy").mkdir(parents=True)
    first = curves(tmp_path, Jobs(), said).of(7, SIDE)
    assert [asked["part"].placement.instance_group.engine for asked in measured] == ["onnxruntime", "openvino"]
    assert all(asked["blocks"] > 1 for asked in measured)
    assert [curve.alone(100) for curve in first] == [CURVE.alone(100), 2 * CURVE.alone(100)]
    again = curves(tmp_path, Jobs(), said).of(7, SIDE)
    assert [curve.alone(100) for curve in again] == [curve.alone(100) for curve in first]
    assert len(measured) == len(said) == 2
    curves(tmp_path, Jobs("b"), said).of(7, SIDE)
    curves(tmp_path, Jobs(), said).of(7, (_artifact("another"), SIDE[1]))
    assert len(measured) == 6


def test_on_another_machine_the_curves_are_the_studys(tmp_path: Path, measured: list[Any]) -> None:
    found = curves(tmp_path, Jobs(), [], "another machine")
    assert found.of(7, SIDE) == (CURVE, CURVE) and not measured
    assert found.measured_on == "another machine" and curves(tmp_path, Jobs(), []).measured_on is None


def placed(replicas: int, pinned: bool = False, route: Route | None = None) -> Placement:
    return Placement(InstanceGroup(replicas=replicas, threads=1, pinned=pinned), route=route)


@pytest.mark.parametrize(
    ("placement", "other"),
    [
        (placed(2), 3),
        (placed(2, pinned=True), 3),
        (placed(4, pinned=True), 3),
        (placed(4), 5),
        (placed(1, route=Route(50, InstanceGroup())), None),
    ],
)
def test_the_load_time_of_a_replica_is_the_difference_to_another_layout(
    placement: Placement, other: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process takes 1 s and each replica a quarter of one; there are four cores, which pinned replicas do not share.

    Each layout is opened once, also for a plan that is made anew.
    """
    opened = list[int]()

    def opening_seconds(scratch: object, model: object, side: Any, *of: object) -> float:
        opened.append(side[1].placement.replicas)
        return 1.0 + 0.25 * opened[-1]

    monkeypatch.setattr(deployments, "opening_seconds", opening_seconds)
    monkeypatch.setattr(deployments, "cores_allowed", lambda: 4)
    session: Any = SimpleNamespace(home=Home(tmp_path), config=SimpleNamespace(name="toy"))
    side = _artifact("ours"), Candidate(placement=placement)
    for _ in range(2):
        found = deployments._LoadTimes(session, (), (), lambda line: None).of(side)
        assert found.seconds == 1.0 + 0.25 * placement.replicas
        assert found.replica_seconds == pytest.approx(0.0 if other is None else 0.25)
    assert other_count(placement) == other
    assert opened == [placement.replicas, *([] if other is None else [other])]
    several = Placement(InstanceGroup(replicas=9, threads=1, pinned=True))
    assert other_count(several) == 8, "of another machine"
    assert other_count(placed(1, pinned=True)) == 2


@pytest.mark.parametrize(
    ("seconds", "each"), [({2: 2.0, 3: None}, 0.0), ({2: 2.0, 3: 9.0}, 1.0), ({2: 2.0, 3: 1.9}, 0.0)]
)
def test_a_replica_that_cannot_be_opened_takes_no_time_and_no_more_than_its_share(
    seconds: dict[int, float | None], each: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole takes 2 s with two replicas, so that each takes one second at most, and not less than none."""

    def opening_seconds(scratch: object, model: object, side: Any, *of: object) -> float:
        found = seconds[side[1].placement.replicas]
        if found is None:
            raise RuntimeError("out of memory")
        return found

    monkeypatch.setattr(deployments, "opening_seconds", opening_seconds)
    session: Any = SimpleNamespace(home=Home(tmp_path), config=SimpleNamespace(name="toy"))
    side = _artifact("ours"), Candidate(placement=placed(2))
    found = deployments._LoadTimes(session, (), (), lambda line: None).of(side)
    assert (found.seconds, found.replica_seconds) == (2.0, each)
