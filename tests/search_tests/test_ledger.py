"""MLflow's runs match the trials one to one, whatever was killed in between; a dead server costs no trial."""

from __future__ import annotations

import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from objectives.records import Outcome, OverheadRatios
from search.ledger.ledger import Ledger
from search.trials import EndedTrial, FinalNumbers
from spaces.candidate import Candidate
from spaces.techniques.placement import InstanceGroup, Placement
from tests.ablation_tests.ablated import ablation
from tests.search_tests.measurements import complete_outcome


@pytest.fixture
def uri(migrated: Path, tmp_path: Path) -> str:
    shutil.copy(migrated, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def entries(count: int) -> list[EndedTrial]:
    many = [Candidate(placement=Placement(InstanceGroup(replicas=i + 1))) for i in range(count)]
    made = [EndedTrial(i, candidate, complete_outcome(loss=i / 1000), 0.1 * i) for i, candidate in enumerate(many)]
    broken = Candidate(placement=Placement(InstanceGroup(threads=9)))
    made.append(EndedTrial(count, broken, Outcome("failed", "it broke"), None))
    return made


def runs(uri: str) -> dict[str, Any]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("s")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], "tags.`leanrec.role` = 'trial'")
    numbers = [r.data.tags["leanrec.trial"] for r in found]
    assert len(set(numbers)) == len(numbers), "one run a trial"
    return {r.data.tags["leanrec.trial"]: r for r in found}


def opened(uri: str, tmp_path: Path) -> Ledger:
    ledger = Ledger(uri, tmp_path / "artifacts", "s", "1", tmp_path)
    ledger.open({"name": "s", "quality": {"max_loss": 0.01}})
    return ledger


def test_a_trial_is_a_child_run_with_every_knob_and_number(uri: str, tmp_path: Path) -> None:
    ledger = opened(uri, tmp_path)
    for entry in entries(2):
        ledger.record(entry)
    ledger.drain()
    found = runs(uri)
    run = found["1"]
    assert run.data.params == {k: str(v) for k, v in entries(2)[1].candidate.knobs().items()}
    assert run.data.metrics["quality/loss"] == pytest.approx(0.001)
    assert run.data.metrics["latency/p95_ratio_interval.low"] == pytest.approx(0.475)
    assert run.data.metrics["throughput/ratio"] == 2.0
    assert run.data.metrics["seconds/time"] == 2.0
    assert run.data.tags["state"] == "complete"
    assert run.data.tags["width.mlp"] == "fp32" and run.data.tags["units.mlp"] == "32-16"
    assert (run.info.status, found["2"].info.status) == ("FINISHED", "FAILED")
    assert found["2"].data.tags["reason"] == "it broke"
    parent = MlflowClient(uri).get_run(run.data.tags["mlflow.parentRunId"])
    assert parent.data.params["quality.max_loss"] == "0.01"


def test_a_run_tells_the_path_of_its_requests_and_both_ratios(uri: str, tmp_path: Path) -> None:
    """A trial measured through HTTP, with 5 ms spent elsewhere, is found by the tag and sorted by the ratio."""
    added = OverheadRatios(5.0, 0.7, (0.6, 0.8), 0.75, (0.7, 0.8), None, None)
    outcome = complete_outcome()
    assert outcome.measurement is not None
    latency = replace(outcome.measurement.latency, through="http", with_overhead=added)
    served = replace(outcome, measurement=replace(outcome.measurement, latency=latency))
    ledger = opened(uri, tmp_path)
    for number, each in enumerate((complete_outcome(), served)):
        ledger.record(EndedTrial(number, Candidate(placement=Placement(InstanceGroup(replicas=number + 1))), each, 0.1))
    ledger.drain()
    found = runs(uri)
    assert [found[number].data.tags["through"] for number in "01"] == ["pool", "http"]
    assert "p95_ratio_with_overhead" not in found["0"].data.metrics
    metrics = found["1"].data.metrics
    assert metrics["p95_ratio_with_overhead"] == metrics["latency/with_overhead.p95_ratio"] == 0.75
    assert metrics["latency/with_overhead.p95_ratio_interval.high"] == 0.8 and metrics["p95_ratio"] == 0.5
    note = found["1"].data.tags["mlflow.note.content"]
    assert "through the HTTP server" in note and "5 ms" in note and "0.750 [0.700, 0.800]" in note


def test_runs_have_addresses_on_the_server_of_the_store_or_on_the_ui_of_this_machine(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runs are those of MLflow's own client; a password in the store's address is no part of a link."""
    ledger = opened(uri, tmp_path)
    assert ledger.level(entries(3), front=[1])
    local = ledger.pages([0, 1])
    assert local.while_shown and local.study is not None and local.study.startswith("http://127.0.0.1:5000/#/")
    monkeypatch.setattr(ledger, "_uri", "https://somebody:secret@mlflow.example:8443/base/")
    pages, found = ledger.pages([0, 1]), runs(uri)
    assert not pages.while_shown
    root = f"https://mlflow.example:8443/base/#/experiments/{found['1'].info.experiment_id}/runs/"
    assert pages.study is not None and pages.study.startswith(root)
    assert {trial: page.partition("?")[0] for trial, page in pages.trials.items()} == {
        trial: f"{root}{found[str(trial)].info.run_id}" for trial in (0, 1)
    }


def test_the_numbers_of_a_final_benchmark_are_a_second_step_of_the_same_run(uri: str, tmp_path: Path) -> None:
    ledger, wanted = opened(uri, tmp_path), entries(2)
    wanted[1] = replace(wanted[1], outcome=replace(wanted[1].outcome, timings="mlruns/timings/s/trial-1.npz"))
    assert ledger.level(wanted, front=[])
    before = runs(uri)
    measured = complete_outcome(0.25, 4.0).measurement
    assert measured is not None
    recording = tmp_path / "final-0" / "trial-1.npz"
    recording.parent.mkdir()
    recording.write_bytes(b"timings")
    numbers = FinalNumbers(measured.latency, measured.throughput, measured.footprint, "final-0/trial-1.npz")
    wanted[1] = wanted[1].with_final(numbers)
    for _ in range(2):
        assert ledger.level(wanted, front=[1])
    after = runs(uri)
    run = after["1"]
    assert run.info.run_id == before["1"].info.run_id and run.info.status == "FINISHED"
    assert run.data.metrics["throughput/ratio"] == 4.0 and run.data.tags["benchmark"] == "final"
    history = MlflowClient(uri).get_metric_history(run.info.run_id, "throughput/ratio")
    assert [(metric.step, metric.value) for metric in history] == [(0, 2.0), (1, 4.0)]
    assert [file.path for file in MlflowClient(uri).list_artifacts(run.info.run_id, "timings")] == [
        "timings/trial-1.npz"
    ]
    assert after["0"].data.metrics == before["0"].data.metrics
    assert after["0"].data.tags["benchmark"] == "search"
    # A final benchmark that goes on has other numbers in the same file; then the trial has those of the search again.
    for throughput, final, timings in (
        (5.0, True, "final-0/trial-1.npz"),
        (2.0, False, "mlruns/timings/s/trial-1.npz"),
    ):
        measured = complete_outcome(0.25, throughput).measurement
        outcome = replace(wanted[1].outcome, measurement=measured, timings=timings)
        assert ledger.level([wanted[0], replace(wanted[1], outcome=outcome, final=final)], front=[1])
        run = runs(uri)["1"]
        assert run.data.metrics["throughput/ratio"] == throughput
        assert run.data.tags["benchmark"] == ("final" if final else "search")


def test_studies_of_one_name_leave_each_others_runs_alone(uri: str, tmp_path: Path) -> None:
    """Two homes write to the same server: each has a parent run and the runs of its own trials."""
    ours, theirs = (Ledger(uri, tmp_path / "artifacts", "s", identity, tmp_path) for identity in ("1", "2"))
    for ledger, count in ((ours, 3), (theirs, 2)):
        ledger.open({"name": "s"})
        assert ledger.level(entries(count), front=[1])
    assert ours.level(entries(3), front=[1]) and theirs.level(entries(2), front=[])
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("s")
    assert experiment is not None
    found = [run.data.tags for run in client.search_runs([experiment.experiment_id])]
    trials = [(tags["leanrec.identity"], tags["leanrec.trial"]) for tags in found if "leanrec.trial" in tags]
    whole = len(entries(3)), len(entries(2))
    assert sorted(trials) == sorted([("1", str(n)) for n in range(whole[0])] + [("2", str(n)) for n in range(whole[1])])
    assert sorted(tags["leanrec.identity"] for tags in found if tags["leanrec.role"] == "study") == ["1", "2"]
    parents = {tags["leanrec.identity"]: tags["mlflow.parentRunId"] for tags in found if "leanrec.trial" in tags}
    assert len(set(parents.values())) == 2


def test_a_study_that_begins_anew_has_its_own_settings(uri: str, tmp_path: Path) -> None:
    """A name of a slice may have any characters, a parameter of MLflow may not."""
    first = opened(uri, tmp_path)
    assert first.level([], [])
    ledger = Ledger(uri, tmp_path / "artifacts", "s", "1", tmp_path)
    ledger.open({"name": "s", "quality": {"max_loss": 0.02, "slices": {"Home & Kitchen (<5)": 0.1}}}, anew=True)
    ledger.record(entries(1)[0])
    ledger.drain()
    assert ledger.trouble is None
    parent = MlflowClient(uri).get_run(runs(uri)["0"].data.tags["mlflow.parentRunId"])
    assert parent.data.params["quality.max_loss"] == "0.02"
    assert parent.data.params["quality.slices.Home _ Kitchen __5_"] == "0.1"


def test_an_experiment_that_was_deleted_is_restored(uri: str, tmp_path: Path) -> None:
    opened(uri, tmp_path)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("s")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    assert opened(uri, tmp_path).level(entries(2), []) and len(runs(uri)) == 3


def test_levelling_mends_what_a_kill_left(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run half written, one missing, one twice, one of a trial that was forgotten."""
    ledger = opened(uri, tmp_path)
    wanted = entries(3)
    ledger.record(wanted[0])
    ledger.record(wanted[0])
    ledger.record(replace(wanted[0], number=99))
    ledger.drain()
    with monkeypatch.context() as patch:
        patch.setattr(ledger._client, "log_batch", lambda *a, **k: (_ for _ in ()).throw(OSError("killed")))
        ledger.record(wanted[1])
        ledger.drain()
    again = opened(uri, tmp_path)
    assert again.level(wanted, front=[1])
    found = runs(uri)
    assert sorted(found) == ["0", "1", "2", "3"]
    assert all(r.info.status != "RUNNING" for r in found.values())
    assert {n for n, r in found.items() if r.data.tags.get("on_front") == "true"} == {"1"}
    assert again.level(wanted, front=[2])
    assert {n for n, r in runs(uri).items() if r.data.tags.get("on_front") == "true"} == {"2"}


def test_a_run_of_a_number_that_a_restarted_study_gave_another_choice_is_replaced(uri: str, tmp_path: Path) -> None:
    """Trials of a study whose dry run failed; it begins again with the same numbers, while the store is away."""
    ledger, before = opened(uri, tmp_path), entries(3)
    assert ledger.level([replace(before[0], outcome=Outcome("failed", "it broke")), *before[1:]], front=[])
    after = [before[0], replace(before[2], number=1), before[2]]
    assert opened(uri, tmp_path).level(after, front=[1])
    found = runs(uri)
    assert {number: run.info.status for number, run in found.items()} == dict.fromkeys("012", "FINISHED")
    assert found["1"].data.params == {k: str(v) for k, v in before[2].candidate.knobs().items()}
    assert "reason" not in found["0"].data.tags


@pytest.mark.parametrize("store", ["a server", "a database"])
def test_a_store_that_is_away_costs_no_trial_and_no_minutes(
    store: str, tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{probe.getsockname()[1]}"
    away = opened(nobody if store == "a server" else f"sqlite:///{tmp_path}", tmp_path)
    away.record(entries(1)[0])
    away.drain()
    assert away.trouble is not None
    assert not away.level(entries(1), [])
    assert sum(slept) < 5
    back = opened(uri, tmp_path)
    assert back.level(entries(1), [])
    assert sorted(runs(uri)) == ["0", "1"]


def effect_runs(uri: str) -> dict[tuple[str, str], Any]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("s")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], "tags.`leanrec.role` = 'ablation'")
    named = {(r.data.tags["technique"], r.data.tags["kind"]): r for r in found}
    assert len(named) == len(found), "one run for each technique and kind"
    return named


def test_an_effect_is_a_child_run_of_its_own(uri: str, tmp_path: Path) -> None:
    ledger = opened(uri, tmp_path)
    known = ablation(trial=1)
    assert ledger.level([], [], [known])
    found = effect_runs(uri)
    assert len(found) == 8
    run = found["pruning", "without"]
    assert run.data.metrics["latency/p95_ratio"] == 0.5
    assert run.data.metrics["latency/p95_ratio_interval.high"] == 0.54
    assert run.data.metrics["bytes_ratio"] == 0.5
    assert run.data.metrics["quality/slice.users with little history.loss_interval.low"] == 0.001
    assert run.data.tags["leanrec.trial"] == "1"
    assert run.data.params["precision.tables"] == "int8", "the knobs of the other candidate"
    assert run.data.params["weights.origin"] == "baseline"
    parent = MlflowClient(uri).get_run(run.data.tags["mlflow.parentRunId"])
    assert parent.data.tags["leanrec.role"] == "study"
    failed = found["engine and threads", "alone"]
    assert (failed.info.status, failed.data.tags["reason"], failed.data.metrics) == ("FAILED", "it broke", {})
    assert found["narrower weights", "alone"].data.tags["group"] == "tables"


def test_effects_are_levelled_as_trials_are(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are half written, measured anew, gone with a study that was begun anew; the trials' own runs are let be."""
    ledger, known = opened(uri, tmp_path), ablation()
    ledger.level(entries(1), [])
    with monkeypatch.context() as patch:
        patch.setattr(ledger._client, "log_batch", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ledger.level(entries(1), [], [known])
    again, trials = opened(uri, tmp_path), {name: run.info.run_id for name, run in runs(uri).items()}
    assert again.level(entries(1), [], [known])
    before = {name: run.info.run_id for name, run in effect_runs(uri).items()}
    assert all(run.info.status != "RUNNING" for run in effect_runs(uri).values())
    assert again.level(entries(1), [], [known])
    assert {name: run.info.run_id for name, run in effect_runs(uri).items()} == before
    failed = known.effects[-1]
    mended = known.joined(replace(failed, difference=known.effects[0].difference, reason=None))
    assert again.level(entries(1), [], [mended])
    after = effect_runs(uri)
    assert after["engine and threads", "alone"].info.status == "FINISHED"
    assert {n for n, run in after.items() if run.info.run_id != before[n]} == {("engine and threads", "alone")}
    assert again.level(entries(1), [], [])
    assert effect_runs(uri) == {}
    assert {name: run.info.run_id for name, run in runs(uri).items()} == trials
