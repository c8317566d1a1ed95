"""Plans of a given menu for a log on disk: the document, its files, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import kstest

from objectives.serving.bundle import read_bundle
from objectives.serving.control import plan_file as control_file
from objectives.serving.control.plan_file import machine_plan
from planning import schedule as solver
from planning.demand import Demand, Workload
from planning.fleet import MachineKind, layouts_of, offers_of
from planning.forecast import QUANTILES, Score
from planning.policies import Limits, schedule
from planning.seasonal_models import SeasonalNaive
from search.cli.console import Console
from search.cli.parser import run_command
from search.config.study_file import parse
from search.errors import ConfigError, JobError
from search.home import Home
from search.plan import run
from search.plan.columns import stretches
from search.plan.deployments import Menu
from search.plan.document import forecast_row, machine_warnings, offer_rows, phase_rows, warnings_of
from search.plan.figures import plan_figure, policies_figure
from search.plan.inputs import read_profile
from search.plan.observe.log import LogColumns, observe_log
from search.plan.plan_file import read_plan
from search.plan.run import Request
from tests.control_tests.plans import write_bundles
from tests.planning_tests.fleets import deployment, linear_table

QUIET = Console(quiet=True, as_json=False)


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A study that offers an exact variant of 60 ms and one of 20 ms that loses 1%."""
    monkeypatch.setattr("planning.capacity._REQUESTS", 1500)
    ones = (deployment(60.0, 0.0), deployment(20.0, 0.01, trial=1))
    menu = Menu(ones, {7: "its service curve was not measured"}, np.array([100, 200]), 100.0, 95)
    monkeypatch.setattr(run, "menu_of", lambda session, console: menu)
    config = parse({"name": "small", "data": {"source": "synthetic"}, "quality": {"max_loss": 0.005}})
    return SimpleNamespace(config=config, home=Home(tmp_path / "home"))


def log_file(folder: Path, days: int = 8, rows: int | None = None) -> Path:
    """Arrivals of days of 24 phases of 20 s, from 4 to 20 requests/s."""
    phases, random = np.arange(days * 24), np.random.default_rng(0)
    counts = random.poisson(20 * (12 + 8 * np.sin(2 * np.pi * phases / 24)))
    seconds = np.sort(20 * (np.repeat(phases, counts) + random.random(counts.sum())))
    file = folder / "log.csv"
    lines = [f"{1.7e9 + second:.6f}" + ("" if rows is None else f",{rows}") for second in seconds]
    file.write_text("\n".join(["timestamp" + ("" if rows is None else ",rows"), *lines]))
    return file


def asked(trace: Path | None, **given: Any) -> Request:
    of_trace = (None, None) if trace is None else (0.9, 0.25)
    plain = Request(trace, None, None, None, 20.0, 240.0, None, None, None, *of_trace, 5000, 0)
    return dataclasses.replace(plain, **given)


def test_a_long_trace_keeps_the_burstiness_of_its_last_requests(
    session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last gaps of a long trace are played; all are of Poisson arrivals, and no cut phase makes one shorter."""
    played: list[Workload] = []

    def capacities(session: Any, workload: Workload, terms: Any) -> Any:
        played.append(workload)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_capacities", capacities)
    monkeypatch.setattr(run, "_GAPS", 2500)
    with pytest.raises(KeyboardInterrupt):
        run.plan(session, asked(log_file(tmp_path)), tmp_path / "out", QUIET)
    gaps = played[0].unit_gaps
    assert len(gaps) == 2500 and gaps.mean() == pytest.approx(1, abs=0.06)
    assert kstest(gaps[:150], "expon").pvalue > 0.01 and kstest(gaps, "expon").pvalue > 0.01


def test_a_plan_is_written_with_its_evidence(session: Any, tmp_path: Path) -> None:
    machines = tmp_path / "machines.yaml"
    machines.write_text("machines: [{name: small, cores: 1, price_per_hour: 0.5, start_seconds: 3, most: 12}]")
    out = tmp_path / "out"
    found = run.plan(session, asked(log_file(tmp_path), machines=machines), out, QUIET)
    assert read_plan(out / "plan.json") == found
    document = json.loads((out / "plan.json").read_text())
    assert [phase["start_s"] for phase in document["phases"]] == [20.0 * number for number in range(12)]
    for phase in document["phases"]:
        one = document["offers"][phase["offer"]]
        assert phase["capacity_rps"] >= phase["demand_rps"] or phase["short"]
        assert (phase["trial"], phase["machine"]) == (one["trial"], one["machine"])
        assert one["start_seconds"] == 5.0
        assert (one["most"], one["copies"], one["cores"]) == (12, 1, 1)
    assert document["left_out"] == {"7": "its service curve was not measured"}
    # The money of the phases, counted from the document.
    price = 0.5 / 3600
    paid = sum(20 * price * phase["machines"] + 5 * price * phase["machines_started"] for phase in document["phases"])
    assert document["money"] == pytest.approx(paid)
    weights = [phase["expected_rps"] for phase in document["phases"]]
    losses = [document["offers"][phase["offer"]]["loss"] for phase in document["phases"]]
    assert document["loss"] == pytest.approx(np.average(losses, weights=weights)) and document["loss"] <= 0.005 + 1e-9
    assert [row["policy"] for row in document["policies"]][:2] == ["static, mean", "static, peak"]
    drawn = {trace["name"]: trace for trace in plan_figure(found)["data"]}  # type: ignore[attr-defined]
    assert drawn["planned for"]["y"] == [phase["demand_rps"] for phase in document["phases"]]
    assert drawn["loss served"]["y"] == [100 * loss for loss in losses]
    assert drawn["machines"]["x"][0].startswith("2023-11-14T")
    late = [trace for trace in policies_figure(found)["data"] if trace["name"] == "oracle"][1]  # type: ignore[attr-defined]
    shown = [phase["late"] for phase in document["policies"][-1]["phases"]]
    assert late["y"] == [None if share is None else 100 * share for share in shown]
    rows = stretches(found.phases, found.phase_seconds)
    assert sum(row.end_s - row.start_s for row in rows) == 240 and rows[0].start_s == 0
    page = (out / "plan.html").read_text()
    assert "planned + reactive" in page and '<script src="http' not in page
    assert found.forecast is not None and found.forecast.scores[0].model == found.forecast.model
    assert f"the MAPE of {found.forecast.held_out_model}, the best on what lies before" in page


def test_errors_on_held_out_phases_are_those_of_the_model_that_made_them() -> None:
    score = Score("week", 0.1, 0.2, {}, 4)
    chosen = SimpleNamespace(model=SeasonalNaive("week", 168), reason=None, scores=(score,))
    tested = SimpleNamespace(model=SeasonalNaive("day", 24))
    backtested = SimpleNamespace(selected=tested, mape=0.3, coverage=dict.fromkeys(QUANTILES, 0.9))
    row = forecast_row(SimpleNamespace(selected=chosen, backtested=backtested))  # type: ignore[arg-type]
    assert (row.model, row.held_out_model, row.mape) == (chosen.model.name, tested.model.name, 0.3)
    assert row.model != row.held_out_model


def test_what_weakens_a_plan_is_said(session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The horizon that was not asked for is a tenth of the log's 192 phases of 20 s; the curves are of elsewhere."""
    menu = dataclasses.replace(run.menu_of(session, QUIET), measured_on="a larger machine")
    monkeypatch.setattr(run, "menu_of", lambda session, console: menu)
    found = run.plan(session, asked(log_file(tmp_path), horizon_s=None), tmp_path / "out", QUIET)
    assert len(found.phases) == 19
    first, second = found.warnings[:2]
    assert first.startswith("service curves are those of the study's machine (a larger machine)")
    assert second.startswith("the plan covers the next 0.106 h, a tenth of the trace's length")
    again = run.plan(session, asked(log_file(tmp_path), horizon_s=380.0), tmp_path / "out", QUIET)
    assert again.warnings == (first, *found.warnings[2:])


def test_a_solver_that_runs_out_of_time_is_no_wrong_limit(
    session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solver, "milp", lambda *given, **options: SimpleNamespace(x=None, status=1))
    with pytest.raises(JobError, match=r"was found in 20 s: fewer phases at a time take less \(--phase-minutes"):
        run.plan(session, asked(log_file(tmp_path)), tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists()


def test_policies_that_took_more_money_on_the_held_out_phases_are_named() -> None:
    """24 of a day are 2 in two hours."""
    terms: Any = SimpleNamespace(limits=Limits(0.01, max_money=24.0))
    plans: Any = SimpleNamespace(short=np.zeros(2, np.bool_), gap=0.0)
    taken = {
        name: SimpleNamespace(loss=0.0, money=money, phases=(None, None), simulated=1, requests=1)
        for name, money in (("planned", 2.0), ("oracle", 2.1))
    }
    said = warnings_of(terms, plans, taken, Demand(np.full(9, 1e4), 3600.0))  # type: ignore[arg-type]
    assert said == ("on the held-out phases, the money of a day is above max_money with: oracle",)


def test_capacities_are_simulated_once(session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = log_file(tmp_path)
    first = run.plan(session, asked(trace), tmp_path / "out", QUIET)

    def fail(*given: object) -> float:
        raise AssertionError("a capacity is simulated again")

    monkeypatch.setattr("planning.capacity.capacity_rps", fail)
    assert run.plan(session, asked(trace), tmp_path / "out", QUIET) == first


def test_a_profile_is_planned_for_a_week(session: Any, tmp_path: Path) -> None:
    days = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
    lines = [f"{day},{hour},{5 + hour},{8 + hour}" for day in days for hour in range(24)]
    profile = tmp_path / "profile.csv"
    profile.write_text("\n".join(["weekday,hour,mean_rps,p95_rps", *lines]))
    found = run.plan(session, asked(None, profile=profile, phase_s=3600.0, horizon_s=None), tmp_path / "out", QUIET)
    assert len(found.phases) == 168 and found.forecast is None and found.headroom == 0.95
    assert read_plan(tmp_path / "out" / "plan.json") == found
    assert [phase.demand_rps for phase in found.phases[:24]] == [8.0 + hour for hour in range(24)]
    assert len(found.policies) == 6 and any("begin with empty queues" in each for each in found.warnings)
    for given in ({"headroom": 0.9}, {"held_out": 0.3}, {"rows_column": "rows"}):
        with pytest.raises(ConfigError, match=f"--{next(iter(given)).replace('_', '-')}: must be left out"):
            run.plan(session, asked(None, profile=profile, **given), tmp_path / "other", QUIET)
    with pytest.raises(ConfigError, match="--phase-minutes: must divide a week with --profile, but got 300"):
        run.plan(session, asked(None, profile=profile, phase_s=18_000.0), tmp_path / "other", QUIET)
    assert not (tmp_path / "other").exists()


def test_a_plan_warns_of_phases_that_one_process_on_a_machine_cannot_serve() -> None:
    """Two machines of four processes each; a process that switches has the memory for half of its replicas."""
    kind = MachineKind("large", 4, speed=2.0, most=2, memory_bytes=5)
    one = dataclasses.replace(deployment(60.0), memory_bytes=1, replica_seconds=0.5)
    table = linear_table(*offers_of([one], [kind]), 10.0)
    layouts = [linear_table(layout, 10.0 * number) for number, layout in enumerate(layouts_of(table.offer), 1)]
    (offer,) = offer_rows([table], [layouts])
    assert (offer.copies, offer.load_seconds) == (4, 1.0), "loads take half as long on a machine of twice the speed"
    assert [layout.capacity_rps for layout in offer.layouts] == [10.0, 20.0]
    assert [layout.load_seconds for layout in offer.layouts] == [1.0, 1.25], (
        "a further replica is opened after the first"
    )
    rates = np.array([15.0, 30.0, 41.0, 35.0])
    phases = phase_rows([table], schedule([table], rates, rates, 60.0, Limits(0.0)), 60.0)
    (said,) = machine_warnings([offer], phases)
    assert said.startswith("3 phases ask more of a machine") and machine_warnings([offer], phases[:1]) == ()
    # With 1.6 times the capacity alone, 30 requests/s ask for less than 20 of a machine, and 35 for more.
    together = [dataclasses.replace(phase, alone_rps=phase.capacity_rps / phase.machines / 1.6) for phase in phases]
    (said,) = machine_warnings([offer], together)
    assert said.startswith("1 phases ask more of a machine")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"trace": None}, "--trace: must be given"),
        ({"phase_s": 1e6}, "--phase-minutes: must be at most a day"),
        ({"phase_s": 4000.0}, "--trace: must be long enough"),
        ({"horizon_s": 3000.0}, "--trace: must be long enough"),
        ({"slo_ms": 1.0, "max_loss": 0.0, "max_money": 1e-9}, "--max-loss, --max-money, --slo-ms: must leave a choice"),
        ({"trace": Path("none.csv")}, "--trace: none.csv"),
    ],
)
def test_wrong_requests_are_explained_and_write_nothing(
    given: dict[str, Any], expected: str, session: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        run.plan(session, dataclasses.replace(asked(log_file(tmp_path)), **given), tmp_path / "out", QUIET)
    assert expected in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_sizes_that_were_not_measured_are_refused(session: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--trace: must have requests of sizes"):
        run.plan(session, asked(log_file(tmp_path, rows=5000)), tmp_path / "out", QUIET)


def test_a_log_is_observed(tmp_path: Path) -> None:
    found = observe_log(log_file(tmp_path, rows=120), LogColumns(), None, None, tmp_path / "out", 0, QUIET)
    assert found.observation.rows is not None and found.observation.rows.median == 120
    assert found.traffic["rows"] == {"median": 120, "sigma": 0.0, "max": 120}
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"observe.json", "observe.html", "profile.csv"}
    assert json.loads((tmp_path / "out" / "observe.json").read_text())["observation"]["requests"] > 40_000
    with pytest.raises(ConfigError, match="LOG: "):
        observe_log(tmp_path / "none.csv", LogColumns(), None, None, tmp_path / "other", 0, QUIET)
    assert not (tmp_path / "other").exists()


def test_a_log_of_less_than_a_week_tells_the_hours_that_its_profile_lacks(tmp_path: Path) -> None:
    file, monday = tmp_path / "log.csv", 1_704_067_200
    # Every half hour, but for a gap within the log, which is of hours without requests.
    halves = [half for half in range(2 * 150 + 1) if not 60 <= half < 66]
    file.write_text("\n".join(["timestamp", *(f"{monday + 1800 * half}" for half in halves)]))
    found = observe_log(file, LogColumns(), None, None, tmp_path / "out", 0, QUIET)
    (said,) = [each for each in found.suggestions if "profile.csv" in each]
    assert "lacks 18 hours of the week (Sunday 6:00 to 24:00)" in said
    assert len((tmp_path / "out" / "profile.csv").read_text().splitlines()) == 1 + 150
    with pytest.raises(ConfigError, match="--profile: must have all 168 hours of the week, but lacks 18: Sunday 6:00"):
        read_profile(tmp_path / "out" / "profile.csv")
    file.write_text("\n".join(["timestamp", *(f"{monday + 3600 * hour}" for hour in range(169))]))
    found = observe_log(file, LogColumns(), None, None, tmp_path / "out", 0, QUIET)
    assert not any("profile.csv" in each for each in found.suggestions)
    assert read_profile(tmp_path / "out" / "profile.csv").mean_rps == pytest.approx(1 / 3600, rel=0.1)


def test_the_latency_of_a_log_is_observed_by_hour(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A week whose evenings, from 18:00 to 20:00, take ten times as long."""
    random, monday = np.random.default_rng(0), 1_704_067_200
    seconds = np.sort(random.uniform(0, 7 * 86_400, 20_000))
    evening = (seconds // 3600 % 24 >= 18) & (seconds // 3600 % 24 < 20)
    took = random.lognormal(np.log(np.where(evening, 50.0, 5.0)), 0.3)
    lines = [f"{monday + at:.6f},{ms!r},{3 * ms!r}" for at, ms in zip(seconds.tolist(), took.tolist(), strict=True)]
    file, out = tmp_path / "log.csv", tmp_path / "out"
    file.write_text("\n".join(["timestamp,took,cpu_ms", *lines]))
    command = ["observe", str(file), "--latency-column", "took", "--slo-ms", "30", "--out", str(out), "--json"]
    assert run_command(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((out / "observe.json").read_text())
    assert found["mean_ms"] == pytest.approx(took.mean()) and found["p95_ms"] == pytest.approx(np.percentile(took, 95))
    for row in found["service"]:
        own = took[seconds // 3600 == 24 * row["weekday"] + row["hour"]]
        assert row["mean_ms"] == pytest.approx(own.mean()) and row["p95_ms"] == pytest.approx(np.percentile(own, 95))
        assert row["cpu_cores"] == pytest.approx(3 * own.sum() / 3.6e6, rel=0.02) and row["queue_mean"] is None
    (said,) = [each for each in found["suggestions"] if "SLO" in each]
    assert "in 14 of 168 hours of the week (Monday 18:00 to 20:00, Tuesday 18:00 to 20:00" in said
    page = (out / "observe.html").read_text()
    assert all(f'id="{name}-plot"' in page for name in ("week", "week-mean", "week-p95", "week-cpu", "hours"))
    assert 'id="week-queue-plot"' not in page
    assert run_command(["observe", str(file), "--queue-column", "none", "--out", str(tmp_path / "other")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "LOG: " in line and "The queue_length is in the column 'none'" in line and not (tmp_path / "other").exists()


def test_a_plan_of_bundles_offers_their_points_alone(
    session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trial 2 has the files of trial 0 in another placement; the fast bundle is of no point of this study."""
    exact, fast = write_bundles(tmp_path)
    variant = read_bundle(exact).candidate.variant_id
    ones = (
        dataclasses.replace(deployment(60.0, 0.0), variant=variant),
        dataclasses.replace(deployment(20.0, 0.01, trial=1), variant="other"),
        dataclasses.replace(deployment(50.0, 0.0, trial=2, replicas=2), variant=variant),
    )
    menu = Menu(ones, {}, np.array([100, 200]), 100.0, 95)
    monkeypatch.setattr(run, "menu_of", lambda session, console: menu)
    monkeypatch.setattr(run, "own_machine", lambda session: (MachineKind("small", 2, most=40),))
    found = run.plan(session, asked(log_file(tmp_path), bundles=(exact,)), tmp_path / "out", QUIET)
    assert {offer.trial for offer in found.offers} == {0, 2}
    assert found.left_out == {1: "no bundle of it is given"}
    # What is written is what a server reads: one and two replicas of each point.
    plan = machine_plan(control_file.read_plan(tmp_path / "out" / "plan.json"), None, (exact,))
    names = [option.name for option in plan.control.options]
    assert names == ["trial 0 1x1", "trial 0 2x1", "trial 2 1x1", "trial 2 2x1"]
    assert len(plan.control.phases) == len(found.phases) and plan.start_s == found.start_s
    rates = [option.capacity_rps for option in plan.control.options]
    assert 1000 / 60 > rates[0] > 0 and 2 * rates[0] < rates[1] < 2000 / 60, "a common queue is shorter than two"
    with pytest.raises(ConfigError, match="--with-bundle: must be of a measured point"):
        run.plan(session, asked(log_file(tmp_path), bundles=(fast,)), tmp_path / "out", QUIET)
