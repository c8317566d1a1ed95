"""The command: what it writes, and what it refuses with one line and without a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.cli.parser import run_command
from search.plan.document import PlanDocument
from search.plan.plan_file import read_plan
from spaces.serialization import to_plain
from tests.manifests_tests.plans import START_S, Kind, plan_of

FILES = {
    *("kubernetes/deployments.yaml", "kubernetes/keda.yaml", "kubernetes/hpa.yaml"),
    *("kubernetes/prometheus-adapter.yaml", "prometheus/rules.yaml", "prometheus/scrape.yaml"),
    *("grafana/dashboard.json", "ray/serve.yaml", "ray/plan.json", "ray/plan_policy.py", "ray/application.py"),
}


def small() -> PlanDocument:
    return plan_of([Kind(), Kind(30.0, 2), Kind()], [(0, 1), (1, 2), (1, 2), (0, 1)])


def saved(plan: PlanDocument, folder: Path, change: Callable[[dict[str, Any]], object] = lambda plain: None) -> Path:
    plain = json.loads(json.dumps(to_plain(plan)))
    change(plain)
    file = folder / "plan.json"
    file.write_text(json.dumps(plain))
    return file


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_plan(saved(small(), tmp_path)) == small()


def test_manifests_are_written_beside_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = saved(small(), tmp_path)
    assert run_command(["manifests", str(plan), "--json", "--image", "shop/leanrec:2", "--namespace", "on"]) == 0
    found, out = json.loads(capsys.readouterr().out), tmp_path / "manifests"
    assert found["study"] == "shop" and found["offers"] == ["trial-10-small", "trial-11-small"]
    assert {str(Path(file).relative_to(out)) for file in found["files"]} == FILES
    assert {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()} == FILES
    documents = list(yaml.safe_load_all((out / "kubernetes" / "deployments.yaml").read_text()))
    assert {document["metadata"]["namespace"] for document in documents} == {"on"}
    assert "shop/leanrec:2" in (out / "kubernetes" / "deployments.yaml").read_text()
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    assert run_command(["manifests", str(plan), "--image", "shop/leanrec:2", "--namespace", "on", "--quiet"]) == 0
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("start_s", "phase_s", "widened"), [(0.0, 900.0, False), (12.3, 900.0, True), (0.0, 90.0, True)]
)
def test_times_that_are_no_whole_minutes_are_told(
    start_s: float, phase_s: float, widened: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of([Kind()], [(0, 1), (0, 2)], phase_s, START_S + start_s)
    assert run_command(["manifests", str(saved(plan, tmp_path)), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["warnings"]
    assert any("whole minutes" in each for each in told) == widened


def test_a_plan_without_dates_needs_a_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = saved(plan_of([Kind()], [(0, 1), (0, 2)], start_s=None), tmp_path)
    assert run_command(["manifests", str(plan)]) == 2
    assert "--start: must be given" in capsys.readouterr().err and not (tmp_path / "manifests").exists()
    assert run_command(["manifests", str(plan), "--start", "2026-11-28T08:00"]) == 0
    assert read_plan(tmp_path / "manifests" / "ray" / "plan.json").start_s == START_S
    assert run_command(["manifests", str(plan), "--start", "2026-11-28T09:00+01:00"]) == 0
    assert read_plan(tmp_path / "manifests" / "ray" / "plan.json").start_s == START_S


def put(*path: str | int, value: Any) -> Callable[[dict[str, Any]], object]:
    def change(plain: dict[str, Any]) -> None:
        *where, last = path
        inner: Any = plain
        for key in where:
            inner = inner[key]
        inner[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda plain: plain.pop("phases"), "phases: missing"),
        (lambda plain: plain["offers"][0].pop("cores"), "offers.0.cores: missing"),
        (put("phases", value=[]), "number of phases: must be above 0"),
        (put("phases", 1, "offer", value=7), "phases.1.offer: must be one of [0, 1, 2], but got 7"),
        (put("phases", 1, "machines", value=0), "phases.1.machines: must be above 0"),
        (put("phases", 1, "machines", value="many"), "phases.1.machines: must be a valid integer"),
        (put("phases", 1, "start_s", value=5.0), "phases.1.start_s: must be 900, but got 5.0"),
        (put("phases", 1, "capacity_rps", value=float("nan")), "phases.1.capacity_rps: must be above 0"),
        (put("phases", 1, "expected_rps", value=float("inf")), "phases.1.expected_rps: must be at least 0"),
        (put("phase_seconds", value=-1), "phase_seconds: must be above 0"),
        (put("slo_ms", value=0), "slo_ms: must be above 0"),
        (put("percent", value=100), "percent: must be above 0 and at most 99"),
        (put("start_s", value=-5.0), "start_s: must be at least 0"),
        (put("offers", 1, "copies", value=0), "offers.1.copies: must be above 0"),
        (put("offers", 1, "offer", value=0), "offers: must have different numbers"),
        (put("offers", 1, "memory_bytes", value=0), "offers.1.memory_bytes: must be above 0"),
        (put("offers", value=None), "offers: must be"),
    ],
)
def test_a_wrong_plan_is_one_line(
    change: Callable[[dict[str, Any]], object], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["manifests", str(saved(small(), tmp_path, change))]) == 2
    out, err = capsys.readouterr()
    assert f"PLAN: {expected}" in err and len(err.strip().splitlines()) == 1 and out == ""
    assert not (tmp_path / "manifests").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--namespace", "My_Team"], "--namespace: must be"),
        (["--image", "a b"], "--image: must be"),
        (["--bundles", "bundles"], "--bundles: must be"),
        (["--prometheus", "prometheus:9090"], "--prometheus: must be"),
        (["--start", "tomorrow"], "--start: must be a time"),
        (["--out", "plan.json"], "--out: must be a folder"),
    ],
)
def test_wrong_options_are_one_line(
    options: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = saved(small(), tmp_path)
    assert run_command(["manifests", str(plan), *options]) == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1 and expected in err.replace("argument --start", "--start")
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize("text", [None, "", "[]", "{}", "{", '{"a": 1}', "[" * 100_000])
def test_a_file_that_is_no_plan_is_one_line(
    text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "plan.json").write_text(text)
    assert run_command(["manifests", str(tmp_path / "plan.json")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("leanrec: PLAN: ") and len(err.strip().splitlines()) == 1


def test_a_weekly_plan_starts_on_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = saved(plan_of([Kind()], [(0, 1), (0, 2)] * 7, 43_200.0, weekly=True), tmp_path)
    assert run_command(["manifests", str(plan), "--start", "2026-11-28T08:00"]) == 2
    assert "--start: must be left out" in capsys.readouterr().err
    assert run_command(["manifests", str(plan)]) == 0
    assert "the last phase go on" not in capsys.readouterr().err.replace("its last phase", "the last phase")
