"""Fleets of a study: from the files and the command to the document and the page."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from planning.fleet import MachineKind
from planning.virtual_fleet import latency_table
from planning.virtual_fleet.incidents import Deployments, Failures, Incidents, SlowMachines, Zones
from search.cli import planning
from search.cli.console import Console
from search.cli.parser import run_command
from search.errors import ConfigError
from search.home import Home
from search.plan.deployments import Menu
from search.plan.fleet import run
from search.plan.fleet.fleet_file import read_fleet
from search.plan.fleet.page import fleet_figure, worst_hours
from search.plan.fleet.run import FleetRequest
from tests.planning_tests.fleets import deployment, exponential_quantiles

QUIET = Console(quiet=True, as_json=False)
KINDS = (MachineKind("small", 1, price_per_hour=0.5), MachineKind("large", 4, 1.5, 1.8))
MACHINES = """
machines:
  - {name: small, cores: 1, price_per_hour: 0.5}
  - {name: large, cores: 4, price_per_hour: 1.8, speed: 1.5}
"""
FLEET = """
machines: {large: 4, small: 6}
balancer: shortest-delay
speed_spread: 0.05
detection_seconds: 2
failures: {mtbf_hours: 3, mttr_hours: 0.5}
slow: {share: 0.1, speed: 0.5, hours: 0.5}
deployments: {every_hours: 24, at_once: 2, minutes: 3, start_hours: 1}
zones: {count: 2, mtbf_hours: 100, mttr_hours: 0.5}
"""


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A study whose trial 3 takes 50 ms in the mean, and whose trial 4 needs four cores."""
    for name, fewer in (("_FEWEST", 300), ("_LEAST", 20), ("_MOST", 60), ("GROUP", 12)):
        monkeypatch.setattr(latency_table, name, fewer)
    slow = dataclasses.replace(deployment(20.0, trial=4, replicas=4), cores=4)
    menu = Menu((deployment(50.0, 0.0, exponential_quantiles(), 3), slow), {}, np.array([100]), 500.0, 95)
    monkeypatch.setattr(run, "menu_of", lambda session, console: menu)
    monkeypatch.setattr(run, "subject", lambda front: SimpleNamespace(trial=3))
    config = SimpleNamespace(name="toy", traffic=SimpleNamespace(through="pool"))
    return SimpleNamespace(config=config, front=lambda: None, home=Home(tmp_path / "home"))


def file_of(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def trace_file(folder: Path) -> Path:
    """Four hours of Poisson arrivals at 2, 4, 8 and 3 requests/s."""
    random = np.random.default_rng(0)
    parts = [3600 * at + np.sort(random.uniform(0, 3600, 3600 * rate)) for at, rate in enumerate((2, 4, 8, 3))]
    lines = ["timestamp", *(f"{1.7e9 + second:.6f}" for second in [*np.concatenate(parts), 4 * 3600 + 1])]
    return file_of(folder, "trace.csv", "\n".join(lines))


def asked(folder: Path, **given: Any) -> FleetRequest:
    fleet, machines = file_of(folder, "fleet.yaml", FLEET), file_of(folder, "machines.yaml", MACHINES)
    plain = FleetRequest(fleet, trace_file(folder), None, machines, None, 900.0, None, None, None, None, False, 0)
    return dataclasses.replace(plain, **given)


def test_a_fleet_file_is_read(tmp_path: Path) -> None:
    found = read_fleet(file_of(tmp_path, "fleet.yaml", FLEET), deployment(), KINDS)
    assert found.counts == (4, 6) and [offer.kind.name for offer in found.offers] == ["large", "small"]
    assert found.instance_speeds == (6.0, 1.0) and (found.policy, found.spread) == ("shortest-delay", 0.05)
    assert found.incidents == Incidents(
        Failures(10800.0, 1800.0), SlowMachines(0.1, 0.5, 1800.0), Deployments(86400.0, 2, 180.0, 3600.0),
        Zones(2, 360_000.0, 1800.0), 2.0,
    )  # fmt: skip
    plain = read_fleet(file_of(tmp_path, "plain.yaml", "machines: {small: 7}"), deployment(), KINDS)
    assert plain.incidents == Incidents(detection_s=0.5) and plain.policy == "two-choices"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("machines: {", "not valid YAML"),
        ("machines: {}", "machines: must be a mapping from names"),
        ("machines: {small: 0}", "machines.small: must be"),
        ("machines: {tiny: 3}", "machines: must be of the kinds small, large, but got 'tiny'"),
        ("machines: {small: 6000, large: 5000}", "must be at most 10000 in all, but got 11000"),
        ("machines: {small: 1}\nbalancer: best", "balancer: must be two-choices, least-outstanding"),
        (
            "machines: {small: 1}\nfailures: {mtbf_hours: 0, mttr_hours: 1}",
            "failures.mtbf_hours: must be a number of",
        ),
        ("machines: {small: 1}\nfailures: {mtbf_hours: 9}", "failures.mttr_hours: missing; must be a number of hours"),
        ("machines: {small: 1}\nslow: {share: 1.5, speed: 0.5}", "slow.share: must be a number between 0 and 1"),
        ("machines: {small: 1}\nslow: {share: 0.1, sped: 0.5}", "slow.speed: missing"),
        ("machines: {small: 1}\nfailure: {}", "failure: unknown key; the keys here are machines, balancer"),
        (
            "machines: {small: 1}\nzones: {count: 1, mtbf_hours: 9, mttr_hours: 1}",
            "zones.count: must be a whole",
        ),
        (
            "machines: {small: 99}\ndeployments: {every_hours: 1, at_once: 1, minutes: 1}",
            "deployments: must end",
        ),
    ],
)
def test_wrong_fleets_are_explained(text: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        read_fleet(file_of(tmp_path, "fleet.yaml", text), deployment(), KINDS)
    assert expected in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith("--fleet: ") or "fleet.yaml" in str(error.value)


def test_a_machine_that_is_too_small_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must have the 2 cores and the memory of trial 0, but 'small' has not"):
        read_fleet(file_of(tmp_path, "fleet.yaml", FLEET), deployment(replicas=2), KINDS)
    with pytest.raises(ConfigError, match="--fleet: must be a YAML file"):
        read_fleet(tmp_path / "none.yaml", deployment(), KINDS)


def test_a_fleet_is_written_with_what_incidents_cost(session: Any, tmp_path: Path) -> None:
    found = run.simulate(session, asked(tmp_path, rate_rps=170.0), tmp_path / "out", QUIET)
    names = [row.scenario for row in found.scenarios]
    assert names[0] == "as given" and names[-1] == "without incidents" and len(names) == 6
    given, calm = found.scenarios[0], found.scenarios[-1]
    assert found.trial == 3 and found.machines == {"large": 4, "small": 6} and found.distributions > 4
    assert found.rate_rps == pytest.approx(170) and found.peak_rps == pytest.approx(170 * 8 / 4.25, rel=0.05)
    # 4 machines of 4 x 1.5 and 6 of 1, of 20 requests/s each.
    assert found.capacity_rps == pytest.approx(30 * 20, rel=0.03)
    assert given.money == pytest.approx(4 * (4 * 1.8 + 6 * 0.5)) and given.machine_hours == 40
    assert calm.late <= given.late and calm.in_rotation == 1 > given.in_rotation
    assert given.requests == pytest.approx(170 * 4 * 3600)
    assert len(given.hours) == 4 and found.start_s == pytest.approx(1.7e9, abs=10)
    document = json.loads((tmp_path / "out" / "fleet.json").read_text())
    assert document["scenarios"][0]["late"] == given.late and document["tolerated"] is None
    drawn = {trace["name"]: trace for trace in fleet_figure(found)["data"]}  # type: ignore[attr-defined]
    assert drawn["as given"]["y"] == [100 * hour.late for hour in given.hours]
    assert drawn["p95"]["y"] == [hour.p95_ms for hour in given.hours]
    assert drawn["requests"]["x"][0].startswith("2023-11-14T")
    assert [hour.start_s for hour in worst_hours(found)] == [0, 3600, 7200, 10800]
    page = (tmp_path / "out" / "fleet.html").read_text()
    assert "without slow machines" in page and '<script src="http' not in page


def test_every_request_of_a_small_fleet(session: Any, tmp_path: Path) -> None:
    fleet = file_of(tmp_path, "plain.yaml", "machines: {small: 2}\nfailures: {mtbf_hours: 1, mttr_hours: 0.2}")
    found = run.simulate(session, asked(tmp_path, fleet=fleet, exact=True), tmp_path / "out", QUIET)
    given, calm = found.scenarios
    assert found.exact and found.distributions == 0
    assert given.requests == pytest.approx(61_200, abs=4 * 250) and given.failures > 0
    assert given.refused > calm.refused == 0 and given.mean_ms > calm.mean_ms > 50


def test_a_profile_is_a_week(session: Any, tmp_path: Path) -> None:
    days = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
    lines = [f"{day},{hour},{hour + 1},{hour + 2}" for day in days for hour in range(24)]
    profile = file_of(tmp_path, "profile.csv", "\n".join(["weekday,hour,mean_rps,p95_rps", *lines]))
    fleet = file_of(tmp_path, "plain.yaml", "machines: {small: 20}\nfailures: {mtbf_hours: 90, mttr_hours: 1}")
    request = asked(tmp_path, trace=None, profile=profile, fleet=fleet, phase_s=3600.0)
    found = run.simulate(session, request, tmp_path / "out", QUIET)
    assert len(found.scenarios[0].hours) == 168 and found.start_s is None and found.warnings == ()
    assert [hour.rate_rps for hour in found.scenarios[0].hours[:24]] == pytest.approx(range(1, 25))


def test_a_rate_below_a_request_in_a_phase_is_simulated(session: Any, tmp_path: Path) -> None:
    """A request in 10,000 s: the service alone, exponential around 50 ms, with deviations of few requests."""
    fleet = file_of(tmp_path, "plain.yaml", "machines: {small: 4}")
    found = run.simulate(session, asked(tmp_path, fleet=fleet, rate_rps=1e-4), tmp_path / "out", QUIET)
    given = found.scenarios[0]
    assert found.rate_rps == pytest.approx(1e-4) and given.requests == pytest.approx(1e-4 * 4 * 3600)
    assert given.mean_ms == pytest.approx(50, rel=5 / np.sqrt(300)) and given.refused == 0


def test_what_weakens_the_numbers_is_said(session: Any, tmp_path: Path) -> None:
    bursts = np.repeat(np.arange(0, 7200, 60.0), 10) + np.tile(np.arange(10) / 100, 120)
    trace = file_of(tmp_path, "bursts.csv", "\n".join(["timestamp", *(f"{1.7e9 + at:.3f}" for at in bursts)]))
    fleet = file_of(tmp_path, "plain.yaml", "machines: {small: 4}")
    request = asked(tmp_path, trace=trace, fleet=fleet, rate_rps=79.0, phase_s=300.0, slo_ms=1.0, tolerated=0.1)
    found = run.simulate(session, request, tmp_path / "out", QUIET)
    said = " ".join(found.warnings)
    for part in (
        "utilisation of 0.9 or more",
        "arrivals cluster",
        "fewer than 100 requests",
        "not found with 32 times",
    ):
        assert part in said


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"trace": Path("none.csv")}, "--trace: none.csv"),
        ({"phase_s": 90_000.0}, "--phase-minutes: must be at most a day, but got 1500"),
        ({"phase_s": 20_000.0}, "--trace: must be long enough for its phases"),
        ({"trial": 9}, "--trial: must be one of 3, 4, but got 9"),
        ({"trial": 4}, "--fleet: machines: must have the 4 cores"),
        ({"exact": True, "rate_rps": 1e6}, "--exact: must be of at most 2,000,000 requests, but the traffic has 14,4"),
        ({"exact": True, "rate_rps": 1e-9}, "--exact: must be of a request or more, but drew none where 0.000014 are"),
    ],
)
def test_wrong_requests_are_explained_and_write_nothing(
    given: dict[str, Any], expected: str, session: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        run.simulate(session, asked(tmp_path, **given), tmp_path / "out", QUIET)
    assert expected in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_chosen_point_that_is_left_out_is_not_replaced(
    session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    menu = dataclasses.replace(run.menu_of(session, QUIET), left_out={7: "its model cannot be opened here"})
    monkeypatch.setattr(run, "menu_of", lambda session, console: menu)
    monkeypatch.setattr(run, "subject", lambda front: SimpleNamespace(trial=7))
    with pytest.raises(ConfigError) as error:
        run.simulate(session, asked(tmp_path), tmp_path / "out", QUIET)
    expected = "--trial: must be given, one of 3, 4, since trial 7 is left out: its model cannot be opened here"
    assert str(error.value) == expected
    monkeypatch.setattr(run, "subject", lambda front: None)
    with pytest.raises(ConfigError, match="since trial 0 is left out: it is not on the front"):
        run.simulate(session, asked(tmp_path), tmp_path / "out", QUIET)
    menu = dataclasses.replace(menu, deployments=(deployment(50.0, 0.0, exponential_quantiles(), 0),))
    fleet = file_of(tmp_path, "plain.yaml", "machines: {small: 4}")
    request = asked(tmp_path, fleet=fleet, rate_rps=1e-4)
    assert run.simulate(session, request, tmp_path / "out", QUIET).trial == 0, "the baseline"


def test_sizes_that_were_not_measured_are_refused(session: Any, tmp_path: Path) -> None:
    lines = ["timestamp,rows", *(f"{1.7e9 + at},9000" for at in range(2000))]
    trace = file_of(tmp_path, "large.csv", "\n".join(lines))
    with pytest.raises(ConfigError, match="--trace: must have requests of sizes"):
        run.simulate(session, asked(tmp_path, trace=trace), tmp_path / "out", QUIET)


def test_the_command_prints_one_document(
    session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(planning, "_existing", lambda options: session)
    monkeypatch.setattr(planning, "_config", lambda options: SimpleNamespace(seed=3))
    request = asked(tmp_path)
    plain = file_of(tmp_path, "plain.yaml", "machines: {small: 5}")
    command = [
        "fleet",
        "toy",
        "--trace",
        str(request.trace),
        "--fleet",
        str(plain),
        "--machines",
        str(request.machines),
    ]
    assert run_command([*command, "--rate", "12.75", "--find", "0.05", "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["seed"], found["trial"], found["rate_rps"]) == (3, 3, pytest.approx(12.75))
    assert (session.home.reports("toy") / "fleet.html").exists()
    # Of 24 requests/s in the busiest hour, which has 8 of 17 requests, one machine of 20 is soon 500 ms behind: those
    # are late. Two in common are at 0.6, and later than 500 ms with a probability of 0.0007 (M/M/2).
    assert found["scenarios"][0]["needed"] == 2 and found["scenarios"][0]["late"] <= 0.05
    assert run_command([*command, "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "5 machines with trial 3" in shown and "The worst hours" in shown
    for wrong in (["--rate", "0"], ["--find", "1"], ["--profile", "week.csv"], ["--exact", "--find", "0.1"]):
        assert run_command([*command, *wrong]) == 2
        told = capsys.readouterr()
        assert told.out == "" and wrong[0] in told.err and len(told.err.splitlines()) == 1
