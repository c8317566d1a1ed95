"""Pages of MLflow as a person finds them: names, filters, descriptions with links, data sets, files and times."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.tracking import MlflowClient

from objectives.records import Artifact, InputSpec, Outcome, Prepared
from search.cli import commands
from search.cli.console import Console
from search.cli.parser import run_command
from search.config.study_file import parse
from search.home import Home
from search.ledger.notes import FILTERS, NOTE
from search.ledger.titles import candidate_title
from search.ledger.writer import Writer
from search.locking import locked
from search.results import choice_json, read_choice
from search.session import Session, open_session
from spaces.candidate import Candidate
from spaces.model_structure import ModelStructure
from spaces.serialization import to_plain
from spaces.techniques.architecture import Architecture
from spaces.techniques.distillation import Distillation
from spaces.techniques.placement import Batching, InstanceGroup, Placement, Route
from spaces.techniques.pruning import Pruning
from spaces.techniques.quantization import Precision
from spaces.weights import Weights
from tests.report_tests.browsers import opened_browser
from tests.search_tests.measurements import complete_outcome, small_space
from tests.serve_tests.bundles import write_toy

ROOT = Path(__file__).resolve().parents[2]
QUIET = Console(quiet=True, as_json=True)
# p95 ratio, throughput ratio, loss and bytes of each trial; the baseline first, and a stopped and a failed one last.
NUMBERS = ((1.0, 1.0, 0.0, 4e6), (0.2, 5.0, 0.002, 5e5), (0.6, 8.0, 0.001, 2e6), (0.1, 9.0, 0.3, 9e4))
LEARNING = Distillation(temperature=2.0, teacher_weight=0.5, epochs=1)


def prepared() -> Prepared:
    inputs = (InputSpec("item", "int64", (), 30), InputSpec("history", "int64", (None,), 30, "user"))
    return Prepared(
        "k" * 64, "holdout", ModelStructure(()), {}, inputs, Artifact("a", "a/model.onnx", {}, 1, 0.0), "by user",
        {"train": 80, "validation": 10, "test": 10}, 7, {}, {},
    )  # fmt: skip


def outcome(key: str, p95: float, throughput: float, loss: float, size: float) -> Outcome:
    found = complete_outcome(p95, throughput, loss, key)
    assert found.measurement is not None and found.artifact is not None
    footprint = replace(found.measurement.footprint, model_bytes=int(size))
    measured = replace(found.measurement, footprint=footprint)
    return replace(found, measurement=measured, artifact=replace(found.artifact, model_bytes=int(size)))


@pytest.fixture
def session(home: Home, monkeypatch: pytest.MonkeyPatch) -> Session:
    """A study of six trials: the baseline, two on the front, one that loses too much, a stopped and a failed one."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = parse({"name": "shop", "data": {"source": "synthetic"}, "quality": {"max_loss": 0.01}})
    session = open_session(config, home)
    session.study.note(prepared=to_plain(prepared()), machine="a machine", search_seconds=60.0)
    outcomes = [outcome(f"k{number}", *numbers) for number, numbers in enumerate(NUMBERS)]
    outcomes += [Outcome("stopped", "it was dominated by trial 1"), Outcome("failed", "it broke")]
    for number, found in enumerate(outcomes):
        if number == 0:
            session.study.enqueue_reference("baseline", Candidate())
        trial, _ = session.study.ask(small_space())
        session.study.tell(trial.number, found, number / 10)
        if found.artifact is not None:
            model = home.root / found.artifact.path
            model.parent.mkdir()
            model.write_bytes(found.artifact.key.encode())
    return session


@pytest.fixture
def client(home: Home) -> MlflowClient:
    return MlflowClient(f"sqlite:///{home.mlruns / 'mlflow.db'}")


def experiment(client: MlflowClient) -> Any:
    found = client.get_experiment_by_name("shop")
    assert found is not None
    return found


def found_by(client: MlflowClient, expression: str, order: str = "p95_ratio") -> list[int]:
    runs = client.search_runs([experiment(client).experiment_id], expression, order_by=[f"metrics.`{order}` ASC"])
    return [int(run.data.tags.get("leanrec.trial", -1)) for run in runs]


def parent(client: MlflowClient) -> Any:
    (run,) = client.search_runs([experiment(client).experiment_id], "tags.`leanrec.role` = 'study'")
    return run


def choose(session: Session, home: Home, tmp_path: Path, trial: int = 1) -> None:
    """Register a bundle as the choice of a trial, as `leanrec choose` does."""
    bundle = write_toy(tmp_path / "bundle")
    version = session.ledger.register("shop", bundle, trial, {"candidate": "c"}, {"test.gain": 0.25})
    assert version is not None and version.refused is None, session.ledger.trouble
    point = next(point for point in session.front().points if point.trial == trial)
    timing = {
        "p95_ms": 2.0, "p95_ratio": 0.2, "p95_ratio_interval": (0.19, 0.21), "throughput_rps": 500.0,
        "throughput_ratio": 5.0, "throughput_ratio_interval": (4.0, 6.0), "capacity_ratio": 5.0,
        "capacity_ratio_interval": (4.0, 6.0), "baseline_p95_ms": 10.0, "service_p50_ms": 1.0, "slo_ms": 20.0,
        "service_p50_ratio": 0.2, "service_p50_ratio_interval": (0.19, 0.21),
    }  # fmt: skip
    confirmed = {"loss": 0.002, "loss_interval": (0.0, 0.004), "value": 0.8, "baseline": 0.8, "rows": 9, "users": 3}
    registered = {"name": version.name, "version": version.version, "alias": version.alias}
    plain = {
        "bundle": str(bundle), "row": to_plain(point), "confirmed": {**timing, **confirmed}, "control": None,
        "reason": "Trial 1 is the knee.", "registered": registered,
    }  # fmt: skip
    session.study.note(chosen=choice_json(read_choice(plain)))
    session.level(QUIET)


def test_the_filters_find_what_people_want(session: Session, client: MlflowClient, home: Home, tmp_path: Path) -> None:
    session.level(QUIET)
    choose(session, home, tmp_path)
    front = [point.trial for point in sorted(session.front().members, key=lambda p: p.p95_ratio)]
    numbers = {
        "the front": front,
        "the chosen point": [1],
        "fast with little loss": [1],
        "small models": [1],
        "what was stopped or failed": [4, 5],
    }
    found = {name: found_by(client, *query) for name, query in FILTERS.items()}
    every = found.pop("every trial")
    assert every[:4] == [3, 1, 2, 0] and sorted(every[4:]) == [4, 5], "what was not measured comes last"
    assert found == numbers and len(front) > 1


def test_runs_have_names_times_sources_data_and_metrics_to_compare(session: Session, client: MlflowClient) -> None:
    session.level(QUIET)
    for trial in session.study.ended():
        (run,) = client.search_runs([experiment(client).experiment_id], f"tags.`leanrec.trial` = '{trial.number}'")
        assert run.info.run_name.startswith(f"trial {trial.number}")
        assert trial.times_ms == (run.info.start_time, run.info.end_time)
        assert run.data.tags["mlflow.source.name"] == "leanrec run shop" and run.data.tags["mlflow.user"]
        (data,) = run.inputs.dataset_inputs
        assert (data.dataset.name, data.dataset.digest) == ("synthetic", "k" * 12)
        assert "history" in data.dataset.schema and '"train_rows": 80' in data.dataset.profile
        plain = {name: value for name, value in run.data.metrics.items() if "/" not in name}
        if trial.measurement is not None:
            p95, throughput, loss, size = NUMBERS[trial.number]
            compared = {"p95_ratio": p95, "throughput_ratio": throughput, "loss": loss, "model_bytes": size}
            assert {name: plain[name] for name in compared} == pytest.approx(compared)
            assert "of the baseline's" in run.data.tags["mlflow.note.content"]
        else:
            assert run.data.tags["reason"] in run.data.tags["mlflow.note.content"]
        assert len(plain) <= 12, "few enough to be columns"


def test_a_report_of_a_study_that_runs_leaves_its_runs_alone(
    session: Session,
    client: MlflowClient,
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A run that is not whole is being written by the process that runs the study; it is a remainder once none does."""
    session.level(QUIET)
    tags = {"leanrec.role": "trial", "leanrec.trial": "99"}
    half = client.create_run(experiment(client).experiment_id, tags=tags).info.run_id
    monkeypatch.setattr(commands, "_existing", lambda options: session)
    page = home.reports("shop") / "report.html"
    for running in (True, False):
        page.unlink(missing_ok=True)
        with locked(home, "shop") if running else contextlib.nullcontext():
            assert run_command(["report", "shop"]) == 0
        assert page.is_file() and str(page) in capsys.readouterr().out
        assert (client.get_run(half).info.lifecycle_stage == "active") == running


def test_the_study_has_a_description_with_links_that_lead_somewhere(
    session: Session, client: MlflowClient, home: Home, tmp_path: Path
) -> None:
    session.level(QUIET)
    choose(session, home, tmp_path)
    run, runs = parent(client), {found_by_id.info.run_id for found_by_id in all_runs(client)}
    note = run.data.tags["mlflow.note.content"]
    assert experiment(client).tags["mlflow.note.content"] == note
    assert experiment(client).tags["mlflow.experimentKind"] == "custom_model_development"
    linked = {re.split("[/?]", part)[0] for part in note.split("/runs/")[1:]}
    assert linked <= runs and len(linked) >= 3, "the parent, and trials of the front"
    assert "#/models/shop/versions/1" in note and "a machine" in note
    views = {part.split("&")[0] for part in note.split("viewStateShareKey=")[1:]}
    states = [json.loads(experiment(client).tags[f"mlflow.sharedViewState.{key}"]) for key in views]
    assert {state["searchFilter"] for state in states} == {expression for expression, _ in FILTERS.values()}
    model, version = client.get_registered_model("shop"), client.get_model_version("shop", "1")
    assert session.front().study in model.description and run.info.run_id in model.description
    assert "Trial 1 is the knee." in version.description and version.run_id in version.description
    (chosen,) = client.search_runs([run.info.experiment_id], "tags.chosen = 'true'")
    assert "#/models/shop/versions/1" in chosen.data.tags["mlflow.note.content"]
    assert chosen.data.metrics["test.gain"] == 0.25
    assert run.data.metrics["front_size"] == len(session.front().members)


def all_runs(client: MlflowClient) -> list[Any]:
    return list(client.search_runs([experiment(client).experiment_id], run_view_type=ViewType.ACTIVE_ONLY))


def test_files_are_reached_from_the_runs(session: Session, client: MlflowClient, tmp_path: Path) -> None:
    session.level(QUIET)
    identity = parent(client).info.run_id
    assert {file.path for file in client.list_artifacts(identity)} == {"front.html", "report"}
    page = Path(client.download_artifacts(identity, "front.html", str(tmp_path))).read_text()
    assert "Plotly.newPlot" in page and "<script src=" not in page and "cdn" not in page.split("Plotly.newPlot")[-1]
    members = {point.trial for point in session.front().members}
    for run in all_runs(client):
        if (trial := run.data.tags.get("leanrec.trial")) is not None:
            files = [file.path for file in client.list_artifacts(run.info.run_id, "onnx")]
            assert files == (["onnx/model.onnx"] if int(trial) in members else [])


def test_the_parent_lasts_from_the_first_trial_to_the_last(session: Session, client: MlflowClient) -> None:
    assert parent(client).info.status == "RUNNING", "a study that was begun"
    session.level(QUIET)
    run, ended = parent(client), session.study.ended()
    assert run.info.status == "FINISHED"
    assert run.info.end_time == max(trial.times_ms[1] for trial in ended if trial.times_ms)
    assert run.info.start_time <= min(trial.times_ms[0] for trial in ended if trial.times_ms)
    session.level(QUIET)
    assert parent(client).info.end_time == run.info.end_time, "a report changes no time"
    trial, _ = session.study.ask(small_space())
    session.study.tell(trial.number, complete_outcome(key="more"), 1.0)
    session.ledger.record(session.study.ended()[-1])
    session.ledger.drain()
    assert parent(client).info.status == "RUNNING"


def test_levelling_twice_writes_nothing_more(
    session: Session, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.level(QUIET)
    written: list[str] = []
    ours = session.ledger._client
    for name in ("log_batch", "set_tag", "log_inputs", "create_run", "update_run", "set_terminated"):
        monkeypatch.setattr(ours, name, lambda *a, name=name, **k: written.append(name))
    session.level(QUIET)
    assert written == []


def test_runs_of_an_earlier_version_get_the_names_of_this_one(session: Session, client: MlflowClient) -> None:
    """The runs are as version 1 wrote them: plain names, dotted metrics, no description."""
    ours = session.study.ended()[1]
    tags = {"mlflow.parentRunId": parent(client).info.run_id, "leanrec.role": "trial", "leanrec.trial": "1"}
    run = client.create_run(experiment(client).experiment_id, run_name="trial 1", tags=tags).info.run_id
    client.log_batch(run, [Metric("latency.p95_ratio", 0.2, 0, 0)], [Param("a", "b")], [RunTag("state", "complete")])
    client.set_terminated(run)
    session.level(QUIET)
    found = client.get_run(run)
    assert found.data.metrics["p95_ratio"] == 0.2 == found.data.metrics["latency.p95_ratio"]
    assert found.info.run_name == f"trial 1: {candidate_title(ours.candidate)}"
    assert "of the baseline's" in found.data.tags["mlflow.note.content"]


@pytest.mark.parametrize(
    ("candidate", "title"),
    [
        (Candidate(), "baseline"),
        (
            Candidate(
                Weights(architecture=Architecture((("mlp", "64-32"), ("dim", 16))), distillation=LEARNING),
                Precision((("tables", "int4"), ("mlp", "int8-static"), ("cross", "fp32"))),
                Placement(InstanceGroup(threads=1), inline=True),
            ),
            "student 16-64-32, int8-static mlp, int4 tables, 1x1, inline",
        ),
        (
            Candidate(
                Weights(pruning=Pruning((("mlp", 0.5),)), distillation=LEARNING),
                placement=Placement(
                    InstanceGroup(replicas=2, threads=1),
                    batching=Batching(256, 100),
                    route=Route(400, InstanceGroup("openvino")),
                ),
            ),
            "pruned, pruning mlp, 2x1, batches of 256, openvino above 400 rows",
        ),
    ],
)
def test_a_title_tells_what_differs_from_the_baseline(candidate: Candidate, title: str) -> None:
    assert candidate_title(candidate) == title


def test_a_slow_store_does_not_hold_up_the_search() -> None:
    """Work is done in order, by another thread, and `drain` waits for all of it."""
    writer, done, go = Writer(), list[int](), threading.Event()

    def slow(number: int) -> Callable[[], None]:
        def work() -> None:
            assert go.wait(30)
            done.append(number)

        return work

    writer.drain()
    for number in range(3):
        writer.put(slow(number))
    assert done == []
    go.set()
    writer.drain()
    assert done == [0, 1, 2]


# -- as a person sees it


@contextmanager
def shown(home: Home, path: str, *options: str) -> Iterator[tuple[Any, str]]:
    """A tab of headless Chromium beside a server of `leanrec ui`, and its address, once `path` answers there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "leanrec.py"), "ui", *options, "--port", str(port), "--home", str(home.root)]
    with (
        opened_browser() as browser,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process,
    ):
        try:
            address, end = f"http://127.0.0.1:{port}", time.monotonic() + 90
            while not answers(address + path):
                assert time.monotonic() < end and process.poll() is None
                time.sleep(0.2)
            tab = browser.new_page(viewport={"width": 1600, "height": 1000})
            tab.set_default_timeout(60_000)
            yield tab, address
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_mlflows_pages_show_the_study(session: Session, client: MlflowClient, home: Home, tmp_path: Path) -> None:
    session.level(QUIET)
    choose(session, home, tmp_path)
    number, study = experiment(client).experiment_id, parent(client)
    runs = client.search_runs([number], "tags.`leanrec.role` = 'trial'")
    names = {run.info.run_name: run.data.tags for run in runs if run.info.run_name}
    views = dict(re.findall(r"\[([^]]+)\]\((#/[^)]+viewStateShareKey[^)]*)\)", experiment(client).tags[NOTE]))
    assert set(views) == set(FILTERS) and len(names) == 6
    with shown(home, "/health") as (tab, address):
        front = [name for name, tags in names.items() if tags.get("on_front") == "true"]
        for view, expected in (("every trial", list(names)), ("the front", front)):
            tab.goto(f"{address}/{views[view]}")
            tab.wait_for_function(
                "([all, shown]) => all.every((one) => document.body.innerText.includes(one) === shown.includes(one))",
                arg=[list(names), expected],
            )
            headings = tab.eval_on_selector_all("[role=columnheader]", "all => all.map((one) => one.innerText.trim())")
            assert any("p95_ratio" in one for one in headings), headings
        tab.goto(f"{address}/#/experiments/{number}/runs/{study.info.run_id}/artifacts")
        tab.get_by_text("front.html").first.click()
        tab.frame_locator("iframe").locator(".js-plotly-plot .main-svg").first.wait_for()
        tab.goto(f"{address}/#/models/shop/versions/1")
        tab.get_by_text("champion").first.wait_for()
        assert "Trial 1" in tab.inner_text("body") or "trial 1" in tab.inner_text("body")


@pytest.mark.slow
def test_optunas_dashboard_shows_the_front(session: Session, home: Home) -> None:
    pytest.importorskip("optuna_dashboard")
    with shown(home, "/api/studies", "--optuna") as (tab, address):
        tab.goto(f"{address}/dashboard")
        tab.get_by_text("shop").first.wait_for()
        tab.get_by_text("shop").first.click()
        tab.get_by_text("Pareto", exact=False).first.wait_for()


def test_what_cannot_be_written_holds_nothing_up(caplog: pytest.LogCaptureFixture) -> None:
    writer, done = Writer(), list[int]()
    writer.put(lambda: 1 // 0)
    writer.put(lambda: done.append(1))
    writer.drain()
    assert done == [1] and "a write to the ledger failed" in caplog.text and "ZeroDivisionError" in caplog.text
