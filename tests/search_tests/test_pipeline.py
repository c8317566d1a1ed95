"""Whole studies of a small synthetic log: interrupted, killed, resumed, chosen, verified; by the real commands."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from mlflow.tracking import MlflowClient

from objectives.measurement.recording import read_recording

# The fixture runs three searches within the first test.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
ROOT = Path(__file__).resolve().parents[2]
STUDY = """
name: road
data: {source: synthetic, rows: 4000, users: 120, items: 100, fields: 5}
quality: {max_loss: 0.4}
traffic: {rows: {median: 200, sigma: 0.3, max: 400}}
space: {distillation: {epochs: 1}}
price_per_hour: 0.36
timing: {final_blocks: 20, confirm_blocks: 20, patience_seconds: 3}
budget: {minutes: 15, trials: 4}
"""


class Road:
    """A home, and the commands run in it."""

    def __init__(self, home: Path) -> None:
        self.home, self.study = home, home / "road.yaml"
        self.study.write_text(STUDY)
        self.environment = {**os.environ, "LEANREC_HOME": str(home), "PYTHONPATH": str(ROOT)}
        self.environment.pop("MLFLOW_TRACKING_URI", None)
        self.told: dict[int, list[float]] = {}
        self.printed = ""

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "leanrec", *arguments], env=self.environment, cwd=self.home,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def command(self, *arguments: str, status: int = 0) -> str:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=580)
        assert process.returncode == status, err
        return out

    def run_until(self, complete: int, sent: signal.Signals, status: int) -> None:
        """Run until so many trials or more are complete, then send a signal."""
        process = self.start("run", str(self.study))
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            counted = re.search(r"^trial.*, (\d+) benchmarked", line)
            if counted and int(counted.group(1)) >= complete:
                process.send_signal(sent)
                break
        said.append(process.communicate(timeout=580)[1])
        assert process.returncode == status, "".join(said)
        self.told |= {t.number: t.values for t in self.trials() if t.state.is_finished()}

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return optuna.load_study(study_name="road", storage=f"sqlite:///{self.home}/mlruns/optuna.db").trials


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Road:
    """A study that was stopped by Ctrl-C, then killed, then run to its end."""
    road = Road(tmp_path_factory.mktemp("road"))
    road.run_until(2, signal.SIGINT, status=130)  # some of the first group have ended
    assert sum(t.state == optuna.trial.TrialState.COMPLETE for t in road.trials()) >= 2
    assert not [t for t in road.trials() if t.state == optuna.trial.TrialState.RUNNING]
    road.run_until(3, signal.SIGKILL, status=-signal.SIGKILL)
    road.printed = road.command("run", str(road.study))
    return road


@pytest.fixture(scope="module")
def front(road: Road) -> dict[str, Any]:
    return json.loads(road.command("front", str(road.study), "--json"))  # type: ignore[no-any-return]


def test_no_finished_trial_is_lost_by_a_kill(road: Road) -> None:
    after = {t.number: t.values for t in road.trials()}
    for number, told in road.told.items():
        assert after[number] == told
    states = [t.state.name for t in road.trials()]
    assert states.count("COMPLETE") >= 3, "as many as were measured before the kill"
    assert len(states) > 3, "and the last call went on from there"
    assert "RUNNING" not in states


def test_mlflow_has_one_finished_run_for_each_trial(road: Road, front: dict[str, Any]) -> None:
    client = MlflowClient(f"sqlite:///{road.home}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("road")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`leanrec.role` = 'trial'")
    assert sorted(int(r.data.tags["leanrec.trial"]) for r in runs) == sorted(r["trial"] for r in front["rows"])
    by_trial = {int(r.data.tags["leanrec.trial"]): r for r in runs}
    for row in front["rows"]:
        run = by_trial[row["trial"]]
        assert run.data.tags["state"] == row["state"]
        assert run.info.status != "RUNNING"
        if row["state"] == "complete":
            assert run.data.metrics["latency/p95_ratio"] == pytest.approx(row["latency_ms"]["p95_ratio"])
            assert (run.data.tags.get("on_front") == "true") == row["on_front"]


def test_the_fronts_document_has_designs_keys(front: dict[str, Any]) -> None:
    assert {"study", "hypervolume", "minutes", "resolution", "baseline", "rows"} <= set(front)
    row = front["rows"][0]
    assert {
        "trial", "candidate", "weights", "variant", "state", "reason", "on_front", "feasible", "quality", "latency_ms",
        "throughput_rps", "throughput_ratio", "throughput_ratio_interval", "model_bytes", "peak_memory_bytes",
        "seconds", "reused", "knobs",
    } <= set(row)  # fmt: skip
    assert row["knobs"]["weights.origin"] == "baseline"
    assert front["baseline"]["trial"] == 0
    assert set(row["latency_ms"]) >= {"p50", "p95", "p99", "service_p50", "p95_ratio", "p95_ratio_interval"}
    assert any(r["on_front"] for r in front["rows"])


def test_the_reference_points_are_measured_and_told(road: Road, front: dict[str, Any]) -> None:
    """Each point ended; what was measured stands beside the tuned baseline, which is no slower than the baseline."""
    asked = [t.user_attrs["reference"] for t in road.trials() if "reference" in t.user_attrs]
    assert {"post-training quantization", "popularity", "logistic regression"} <= set(asked)
    by_trial = {row["trial"]: row for row in front["rows"]}
    ended = [by_trial[t.number] for t in road.trials() if "reference" in t.user_attrs]
    assert any(row["state"] == "complete" for row in ended)
    tuned = front["tuned_baseline"]
    assert tuned["knobs"]["weights.origin"] == "baseline"
    assert {w for knob, w in tuned["knobs"].items() if knob.startswith("precision.")} <= {"fp32", "minmax"}
    for row in front["rows"]:
        if row["state"] == "complete":
            beside = 1.0 if tuned["trial"] == 0 else tuned["latency_ms"]["p95_ratio"]
            itself = row["trial"] == tuned["trial"]
            expected = 1.0 if itself else row["latency_ms"]["p95_ratio"] / beside
            assert row["tuned"]["p95_ratio"] == pytest.approx(expected)


def test_what_was_asked_is_what_the_graph_holds(front: dict[str, Any]) -> None:
    for row in front["rows"]:
        for group, width in row["widths"].items():
            assert row["knobs"][f"precision.{group}"] == width


def test_the_units_that_are_left_are_told(front: dict[str, Any]) -> None:
    whole = front["rows"][0]["units"]["mlp"]
    assert whole == [400, 400, 400]
    for row in front["rows"]:
        pruned = row["knobs"].get("pruning.mlp", 0) > 0
        if row["state"] == "complete" and row["knobs"]["weights.origin"] in ("baseline", "pruned"):
            assert pruned == (row["units"]["mlp"] != whole)
            assert all(left <= units for left, units in zip(row["units"]["mlp"], whole, strict=True))


def test_the_run_prints_a_front_and_what_to_type_next(road: Road) -> None:
    assert "Front of road" in road.printed
    assert "next: leanrec choose" in road.printed


def test_a_spent_budget_is_said_and_nothing_runs(road: Road) -> None:
    before = len(road.trials())
    road.command("run", str(road.study), "--trials", "4")
    assert len(road.trials()) == before


def test_other_settings_under_the_same_name_are_refused(road: Road) -> None:
    process = road.start("run", str(road.study), "--set", "quality.max_loss=0.2")
    _, err = process.communicate(timeout=580)
    assert process.returncode == 2
    assert "quality.max_loss was 0.4, now 0.2" in err


def test_status_counts_what_there_is(road: Road, front: dict[str, Any]) -> None:
    status = json.loads(road.command("status", str(road.study), "--json"))
    assert status["trials"] == front["counts"]
    assert status["front_size"] == sum(r["on_front"] for r in front["rows"])


def test_a_point_is_chosen_registered_and_verified(road: Road) -> None:
    chosen = json.loads(road.command("choose", str(road.study), "--json", "--prefer", "latency"))
    confirmed = chosen["confirmed"]
    assert confirmed["looks"] >= 1
    assert confirmed["loss_interval"][1] <= 0.4
    assert chosen["registered"]["alias"] == "champion"
    verified = json.loads(road.command("verify", chosen["bundle"], "--json"))
    assert verified["verified"]
    measured = json.loads((Path(chosen["bundle"]) / "measurement.json").read_text())
    rows = measured["row_quantiles"]
    assert rows == sorted(rows) and 150 < rows[len(rows) // 2] < 260 and rows[-1] <= 400  # median 200, at most 400
    for cost in measured["costs"]:  # none where the curve was not measured in time
        assert 0 < cost["request_ns"] + 200 * cost["row_ns"] < 1e9
    import mlflow
    import numpy as np

    client = MlflowClient(f"sqlite:///{road.home}/mlruns/mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{road.home}/mlruns/mlflow.db")
    version = client.get_model_version_by_alias("road", "champion")
    assert str(version.version) == chosen["registered"]["version"]
    told = client.get_run(version.run_id).data.metrics
    assert told.get("test.distillation_gain") == (chosen["control"]["gain"] if chosen["control"] else None)
    model = mlflow.pyfunc.load_model("models:/road@champion")
    manifest = json.loads((Path(chosen["bundle"]) / "manifest.json").read_text())
    dtypes = {spec["name"]: spec["dtype"] for spec in manifest["inputs"]}
    inputs = {k: np.asarray(v, dtypes[k]) for k, v in manifest["example"]["inputs"].items()}
    assert np.allclose(model.predict(inputs), manifest["example"]["scores"], atol=1e-5)
    registered = json.loads(road.command("verify", "models:/road@champion", "--json"))
    assert registered["verified"] and registered["name"] == "road"
    again = json.loads(road.command("choose", str(road.study), "--json", "--prefer", "latency"))
    if again["row"]["trial"] == chosen["row"]["trial"]:  # a disturbed timing may have passed it over
        assert again["confirmed"]["looks"] == confirmed["looks"], "the same model looked at again is no new look"


def test_raw_timings_are_kept_and_summarised_again(road: Road, front: dict[str, Any]) -> None:
    """The file of raw timings alone, read in this process, gives the front's ratios again.

    The interval of one visit holds that of its blocks: it includes how visits differ elsewhere.
    """
    for row in front["rows"]:
        if row["state"] == "complete":
            latency, throughput = read_recording(road.home / row["timings"]).summarize()
            assert latency.p95_ratio == pytest.approx(row["latency_ms"]["p95_ratio"], rel=1e-12)
            assert throughput.ratio == pytest.approx(row["throughput_ratio"], rel=1e-12)
            assert throughput.capacity_ratio == pytest.approx(row["capacity_ratio"], rel=1e-12)
            (least, most), (low, high) = latency.p95_ratio_interval, row["latency_ms"]["p95_ratio_interval"]
            if row["visits"] == 1:
                assert low <= least < most <= high


def test_the_footprint_is_that_of_a_process_of_its_own(front: dict[str, Any]) -> None:
    for row in front["rows"]:
        if row["on_front"] or row["trial"] == 0:
            assert 20e6 < row["peak_memory_bytes"] < 2e9
            assert row["cpu_seconds_per_1000"] > 0
            assert row["money_per_million"] == pytest.approx(0.36 / 3600 / row["throughput_rps"] * 1e6)


def test_the_profile_is_the_one_that_the_space_was_narrowed_by(road: Road) -> None:
    profile = json.loads(road.command("profile", str(road.study), "--json"))
    assert sum(group["time_share"] for group in profile["groups"]) == pytest.approx(1)
    assert {"name", "kind", "time_share", "flops", "bytes", "in_focus"} <= set(profile["groups"][0])
    again = json.loads(road.command("profile", str(road.study), "--json"))
    assert again == profile, "measured once"
    assert "Plotly.newPlot" in (road.home / "reports" / "road" / "profile.html").read_text()


def test_a_trial_is_profiled_beside_the_baseline(road: Road, front: dict[str, Any]) -> None:
    """One that was measured has the time of its requests through the pool, too."""
    point = next(row for row in front["rows"] if row["on_front"] and row["trial"] != 0)
    found = json.loads(road.command("profile", str(road.study), "--trial", str(point["trial"]), "--json"))
    profile = json.loads(road.command("profile", str(road.study), "--json"))
    assert found["trial"] == point["trial"] and found["rows"] == profile["rows"]
    threads = point["knobs"]["placement.threads"]
    assert found["threads"] == (None if threads == "auto" else threads)
    assert {group["name"]: group["kind"] for group in found["groups"]} == {
        group["name"]: group["kind"] for group in profile["groups"]
    }
    assert sum(group["time_share"] for group in found["groups"]) == pytest.approx(1)
    assert found["service_p50_ms"] == pytest.approx(point["latency_ms"]["service_p50"])
    assert found["floor"] is None
    process = road.start("profile", str(road.study), "--trial", "99999")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2 and "--trial: must be a trial whose model was built" in err and "99999" in err


def test_the_floor_of_a_trial_is_that_of_an_empty_graph(road: Road, front: dict[str, Any]) -> None:
    """Both are in the same visits, whose recordings hold the numbers that are told."""
    point = next(row for row in front["rows"] if row["on_front"] and row["trial"] != 0)
    arguments = "profile", str(road.study), "--trial", str(point["trial"]), "--floor", "--json"
    floor = json.loads(road.command(*arguments))["floor"]
    folder = road.home / "mlruns" / "timings" / "road" / f"floor-{point['trial']}"
    for name in ("trial", "empty"):
        latency, throughput = read_recording(folder / f"{name}.npz").summarize()
        keys = ("rate_rps", "baseline_p95_ms", "p95_ms", "p95_ratio", "throughput_ratio", "capacity_ratio")
        assert {key: floor[name][key] for key in keys} == {
            "rate_rps": latency.rate_rps,
            "baseline_p95_ms": latency.baseline.p95_ms,
            "p95_ms": latency.candidate.p95_ms,
            "p95_ratio": latency.p95_ratio,
            "throughput_ratio": throughput.ratio,
            "capacity_ratio": throughput.capacity_ratio,
        }


@pytest.mark.nightly
def test_the_front_is_measured_again_beside_what_it_was(road: Road, front: dict[str, Any]) -> None:
    before, p95 = len(road.trials()), {row["trial"]: row["latency_ms"]["p95_ratio"] for row in front["rows"]}
    found = json.loads(road.command("remeasure", str(road.study), "--json"))
    assert [row["trial"] for row in found["rows"]] == sorted(
        (row["trial"] for row in front["rows"] if row["on_front"] and row["trial"] != 0),
        key=lambda trial: p95[trial],
    )
    assert any(row["now"] is not None for row in found["rows"])
    assert len(road.trials()) == before


def test_a_bundle_is_played_under_traffic(road: Road) -> None:
    bundle = road.home / "reports" / "road" / "bundle"
    if not bundle.exists():
        road.command("choose", str(road.study), "--json", "--prefer", "latency")
    out = road.home / "played"
    process = road.start("bench", str(bundle), "--load", "0.3", "--seconds", "3", "--json", "--out", str(out))
    printed, err = process.communicate(timeout=580)
    found = json.loads(printed)
    # On a busy machine the generator may be late for a model as fast as this: the command has to say so, and does.
    assert process.returncode == (0 if found["valid"] else 1), err
    assert found["valid"] or f"Not valid. {found['reason']}" in err
    assert found["latency_ms"]["p50"] is not None
    assert sum(found["timeline"]["refused"]) == found["refused"] == 0
    assert "Plotly.newPlot" in (out / "bench.html").read_text()


def test_a_front_is_planned_with_its_own_curves(road: Road) -> None:
    """Poisson arrivals of 40 phases of 6 s; each point of the front and both baselines are offered, or left out."""
    random = np.random.default_rng(0)
    log = road.home / "requests.csv"
    seconds = np.cumsum(random.exponential(1 / 40, 40 * 240))
    log.write_text("\n".join(["timestamp", *(f"{1.7e9 + second:.6f}" for second in seconds)]))
    short = ("--phase-minutes", "0.1", "--horizon-hours", "0.005", "--requests", "3000")
    found = json.loads(road.command("plan", str(road.study), "--trace", str(log), *short, "--json"))
    front = json.loads(road.command("front", str(road.study), "--json"))
    asked = {row["trial"] for row in front["rows"] if row["on_front"]} | {0, front["tuned_baseline"]["trial"]}
    offered = {offer["trial"] for offer in found["offers"]}
    assert offered | {int(trial) for trial in found["left_out"]} == asked and 0 in offered
    for offer in found["offers"]:
        (row,) = (row for row in front["rows"] if row["trial"] == offer["trial"])
        assert offer["loss"] == row["quality"]["loss"] and offer["load_seconds"] > 0
    assert all(phase["short"] or phase["capacity_rps"] >= phase["demand_rps"] for phase in found["phases"])
    assert found["loss"] <= 0.4 and len(found["policies"]) == 6
    observed = json.loads(road.command("observe", str(log), "--study", str(road.study), "--json"))
    assert {row["trial"] for row in observed["sizing"]} == offered
    assert observed["observation"]["mean_rps"] == pytest.approx(40, rel=0.05)


def test_points_that_are_named_are_bundled_and_the_choice_stays(road: Road, front: dict[str, Any]) -> None:
    """The baseline loses nothing; points of the front may lose more on test than is tolerated."""
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{road.home}/mlruns/mlflow.db")  # logged models are looked up there
    client = MlflowClient(f"sqlite:///{road.home}/mlruns/mlflow.db")
    champion = client.get_model_version_by_alias("road", "champion").version
    before = json.loads(road.command("front", str(road.study), "--json"))["chosen"]
    members = {row["trial"] for row in front["rows"] if row["on_front"]}
    process = road.start("bundle", str(road.study), "--trial", "0", "--front", "--json")
    out, err = process.communicate(timeout=1400)
    found = json.loads(out)["bundles"]
    assert [one["trial"] for one in found] == sorted({0} | members)
    assert process.returncode == (0 if all(one["bundle"] for one in found) else 1), err
    for one in found:
        if one["bundle"] is None:  # a busy machine may not time a point, and test may not show its loss
            assert one["confirmed"] is None and one["reason"].startswith(("not timed", "loss on test"))
            continue
        assert one["bundle"] == str(road.home / f"reports/road/bundles/trial-{one['trial']}")
        assert json.loads(road.command("verify", one["bundle"], "--json"))["verified"]
        (experiment,) = (each for each in client.search_experiments() if each.name == "road")
        role = f"tags.`leanrec.trial` = '{one['trial']}' and tags.`leanrec.role` = 'trial'"
        (run,) = client.search_runs([experiment.experiment_id], role)
        if one["trial"] in members:
            assert f"leanrec bundle road --trial {one['trial']}" in run.data.tags["mlflow.note.content"]
            assert client.list_artifacts(run.info.run_id, "onnx")
        assert "bundle/manifest.json" in {file.path for file in client.list_artifacts(run.info.run_id, "bundle")}
    assert any(one["bundle"] for one in found)
    if found[0]["bundle"]:
        assert found[0]["confirmed"]["loss"] == pytest.approx(0, abs=1e-6)
    assert client.get_model_version_by_alias("road", "champion").version == champion
    assert json.loads(road.command("front", str(road.study), "--json"))["chosen"] == before


def test_what_cannot_be_bundled_is_said_in_one_line(road: Road) -> None:
    plan = road.home / "other.json"
    plan.write_text(json.dumps({"study": "other", "offers": [1], "phases": [{"trial": 0}]}))
    broken = road.home / "broken.json"
    broken.write_text(json.dumps({"study": "road", "offers": [1], "phases": [{}]}))
    for arguments, words in (
        (["--trial", "99999"], "--trial: must be a measured trial of the study"),
        (["--plan", str(plan)], "--plan: must be of the study 'road', but is of 'other'"),
        (["--plan", str(broken)], "--plan: must be a plan.json of leanrec plan"),
        ([], "--trial: must be given where there is no --front and no --plan"),
    ):
        process = road.start("bundle", str(road.study), *arguments)
        _, err = process.communicate(timeout=580)
        assert process.returncode == 2 and len(err.splitlines()) == 1, err
        assert words in err


def test_the_report_needs_no_network(road: Road) -> None:
    road.command("report", str(road.study))
    page = (road.home / "reports" / "road" / "report.html").read_text()
    assert "<script src=" not in page
    assert "Plotly.newPlot" in page
