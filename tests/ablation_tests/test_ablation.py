"""Techniques taken back and alone, by workers whose models obey a product: each technique has one factor, whoever asks.

The factor of a technique must come out beside the right partner, and beside no other.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from mlflow.tracking import MlflowClient

from objectives.records import Artifact, InputSpec, Prepared
from search.ablation.ablation import ablate, nothing_measured
from search.ablation.records import FACT, Kind, ablations
from search.choose.choose import Confirmed, choice
from search.cli.console import Console
from search.cli.parser import run_command
from search.config.study_file import load
from search.errors import ConfigError, JobError
from search.home import Home
from search.ledger.ledger import Ledger
from search.results import choice_json, front_json
from search.session import Session, open_session
from search.study import Study
from search.workers.processes import Worker
from spaces.candidate import Candidate
from spaces.model_structure import ModelStructure
from spaces.search_space import SearchSpace
from spaces.serialization import to_plain
from spaces.techniques.distillation import Distillation
from tests.ablation_tests.ablated import CHOSEN, PROFILE
from tests.search_tests.measurements import complete_outcome

ROOT = Path(__file__).resolve().parents[2]
PRUNED, INT8, DISTILLED, REPLICAS = 0.5, 0.8, 0.002, 0.9
# A model's folder tells its milliseconds and its metric; each job is a line of the log.
BUILDER = """
import sys
sys.path[:0] = {paths!r}
from objectives.jobs.protocol import serve
from objectives.jobs.requests import (
    EvaluateRequest, EvaluateResponse, ExportRequest, ExportResponse, FitRequest, FitResponse
)
from objectives.records import Artifact
from tests.search_tests.measurements import complete_outcome
def log(*words):
    with open({log!r}, "a") as file:
        print(*words, file=file)
def broken():
    with open({broken!r}) as file:
        return file.read()
def fit(request, progress):
    log("fit")
    if broken() == "fit":
        raise ValueError("nothing to prune")
    return FitResponse(False)
def export(request, progress):
    log("export")
    weights, widths = request.candidate.weights, dict(request.candidate.precision.widths)
    pruned, int8, learned = weights.pruning is not None, "int8" in widths.values(), weights.distillation
    taught = learned is not None and learned.teacher_weight > 0
    ms = 10 * ({pruned} if pruned else 1) * ({int8} if int8 else 1)
    if broken() == "dense" and not pruned and learned is None:
        raise ValueError("the dense model cannot be exported")
    value = 0.8 * (1 - 0.004 * pruned + {distilled} * taught)
    name = f"{{ms}}_{{value}}"
    size = 1000 // (2 if pruned else 1) // (4 if int8 else 1)
    return ExportResponse(Artifact(name, name + "/model.onnx", {{}}, size, 0.0), True)
def evaluate(request, progress):
    assert (request.scores.part, request.confidence) == ("validation", 0.95)
    pair = request.scores.candidate, request.scores.baseline
    ours, theirs = (float(deployment.model.split("/")[-2].split("_")[1]) for deployment in pair)
    return EvaluateResponse(complete_outcome(loss=(theirs - ours) / theirs).measurement.quality)
serve({{FitRequest: fit, ExportRequest: export, EvaluateRequest: evaluate}})
"""
METER = """
import sys
sys.path[:0] = {paths!r}
from dataclasses import replace
from tests.ablation_tests.ablated import CHOSEN, PROFILE
from tests.search_tests.measurements import complete_outcome
from objectives.jobs.protocol import serve
from objectives.jobs.requests import BenchmarkRequest, BenchmarkResponse
def of(deployment):
    ms, value = map(float, deployment.model.split("/")[-2].split("_"))
    return ms * ({replicas} if deployment.placement.instance_group.replicas == 2 else 1), value
def benchmark(request, progress):
    assert (request.window.blocks, request.window.visits) == (20, 3) and not request.weighed
    progress("timed")
    ours, theirs = of(request.candidate)[0], of(request.baseline)[0]
    found = complete_outcome(ours / theirs, theirs / ours).measurement
    return BenchmarkResponse(found.latency, found.throughput, found.footprint)
serve({{BenchmarkRequest: benchmark}})
"""
QUIET = Console(quiet=True, as_json=True)


class Given:
    """A space that gives these candidates in their order."""

    def __init__(self, *candidates: Candidate) -> None:
        self._candidates = candidates

    def suggest(self, trial: Any) -> Candidate:
        return self._candidates[int(trial.number)]


class Stopped(Console):
    """Ctrl-C as soon as a line has this word."""

    def __init__(self, word: str) -> None:
        super().__init__(quiet=True, as_json=True)
        self._word = word

    def say(self, line: str) -> None:
        if self._word in line:
            raise KeyboardInterrupt


def begun(home: Home, *settings: str) -> Study:
    """Begin a preset's study, with one of Optuna's samplers: leanrec's own draws candidates and is given none."""
    config = load("synthetic-small", list(settings))
    open_session(config, home)
    return Study(config.name, home.storage(None), config.objectives, config.quality.limits, config.seed)


def filled(home: Home, study: Study) -> None:
    """Trial 0 is the baseline, 1 has four techniques, 2 the same but loses too much, 3 is the baseline once more."""
    space = cast(SearchSpace, Given(Candidate(), CHOSEN, CHOSEN, Candidate()))
    for outcome in (
        complete_outcome(1.0, 1.0, 0.0, "base"),
        complete_outcome(0.36, 3.0, 0.002, "one"),
        complete_outcome(0.1, 9.0, 0.5, "two"),
        complete_outcome(0.9, 1.5, 0.005, "three"),
    ):
        trial, _ = study.ask(space)
        study.tell(trial.number, outcome, 0.1)
    holdout = home.root / "holdout"
    for path in (home.root / "10_0.8" / "model.onnx", holdout / "requests.npz"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    baseline = Artifact("10_0.8", "10_0.8/model.onnx", {}, 1000, 0.0)
    inputs = (InputSpec("item", "int64", (), 5),)
    prepared = Prepared("k", str(holdout), ModelStructure(()), {}, inputs, baseline, "by user", {"test": 10}, 2, {}, {})
    study.note(prepared=to_plain(prepared), profile=to_plain(PROFILE), machine="a machine")


def session_in(folder: Path) -> Session:
    home = Home(folder)
    home.claim()
    config = load("synthetic-small", ["name=s"])
    study = Study("s", home.storage(None), config.objectives, config.quality.limits, 0)
    filled(home, study)
    return Session(config, home, study, cast(Ledger, None))


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return session_in(tmp_path)


class Workers:
    """A scripted builder, which breaks where `broken` says, and a scripted meter."""

    def __init__(self, folder: Path) -> None:
        self.log, self.broken = folder / "jobs", folder / "broken"
        self.fresh()
        given = {
            "paths": [str(ROOT), str(Path(__file__).parent)], "log": str(self.log), "broken": str(self.broken),
            "pruned": PRUNED, "int8": INT8, "distilled": DISTILLED, "replicas": REPLICAS,
        }  # fmt: skip
        self.builder = Worker("builder", folder / "log", [sys.executable, "-c", BUILDER.format(**given)])
        self.meter = Worker("meter", folder / "log", [sys.executable, "-c", METER.format(**given)])

    def fresh(self) -> None:
        self.log.write_text("")
        self.broken.write_text("")

    def jobs(self) -> list[str]:
        return self.log.read_text().split()

    def kill(self) -> None:
        self.builder.kill()
        self.meter.kill()


@pytest.fixture(scope="module")
def _workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    found = Workers(tmp_path_factory.mktemp("workers"))
    yield found
    found.kill()


@pytest.fixture
def workers(_workers: Workers) -> Workers:
    _workers.fresh()
    return _workers


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, _workers: Workers) -> tuple[Session, Mapping[str, Any]]:
    """A session whose best trial was ablated, and the document."""
    _workers.fresh()
    session = session_in(tmp_path_factory.mktemp("whole"))
    return session, to_plain(ablate(session, None, _workers, QUIET))


def ratios(document: Mapping[str, Any], kind: Kind) -> dict[str, float]:
    found = {part["label"]: part[kind]["difference"] for part in document["techniques"] if part[kind]["difference"]}
    return {label: difference["latency"]["p95_ratio"] for label, difference in found.items()}


@pytest.mark.parametrize("kind", ["without", "alone"])
def test_each_technique_has_its_own_factor_at_the_trial_and_alone(
    whole: tuple[Session, Mapping[str, Any]], kind: Any
) -> None:
    _, document = whole
    assert document["trial"] == 1, "the best compromise of the front"
    assert ratios(document, kind) == pytest.approx(
        {"pruning: mlp": PRUNED, "distillation": 1.0, "narrower weights: tables": INT8, "engine and threads": REPLICAS}
    )
    found = {part["name"]: part[kind]["difference"] for part in document["techniques"]}
    assert found["pruning"]["bytes_ratio"] == 0.5 and found["narrower weights"]["bytes_ratio"] == 0.25
    assert found["engine and threads"]["bytes_ratio"] == 1.0
    assert found["narrower weights"]["quality"]["loss"] == pytest.approx(0.0)


def test_distilling_is_told_beside_labels_alone_for_as_long(whole: tuple[Session, Mapping[str, Any]]) -> None:
    _, document = whole
    control = next(part for part in document["techniques"] if part["name"] == "distillation")["without"]["other"]
    assert control["weights"]["distillation"] == to_plain(Distillation(1.0, 0.0, 1))
    # 0.8 (1 - 0.004 + 0.002) against 0.8 (1 - 0.004), each interval 0.002 to both sides.
    gain = DISTILLED / (1 - 0.004)
    assert document["control"]["gain"] == pytest.approx(gain)
    assert document["control"]["gain_interval"] == pytest.approx([gain - 0.002, gain + 0.002])
    assert "0.20% of AUC [0.00%, 0.40%]" in document["control"]["sentence"]


def test_it_is_kept_and_written_and_not_measured_twice(
    whole: tuple[Session, Mapping[str, Any]], workers: Workers
) -> None:
    session, document = whole
    (known,) = ablations(session.study.facts)
    assert (known.trial, known.candidate, len(known.effects)) == (1, CHOSEN, 8)
    assert json.loads((session.home.reports("s") / "ablation.json").read_text()) == document
    assert to_plain(ablate(session, 1, workers, QUIET)) == document
    assert workers.jobs() == []
    assert front_json(session.front())["ablation"] == document


def test_an_interrupt_keeps_what_was_measured_and_the_next_call_goes_on(session: Session, workers: Workers) -> None:
    with pytest.raises(KeyboardInterrupt):
        ablate(session, 1, workers, Stopped("(4 of 8)"))
    assert len(ablations(session.study.facts)[0].effects) == 3
    half = front_json(session.front())["ablation"]
    assert [part["without"] is not None for part in half["techniques"]] == [True, True, True, False]
    assert half["techniques"][3]["without"] is None
    document = to_plain(ablate(session, 1, workers, Stopped("(6 of")))
    assert len(ratios(document, "alone")) == 4, "five were left"


def test_a_failure_is_a_row_with_a_reason_and_is_tried_again(
    session: Session, workers: Workers, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pruning taken back leaves the baseline's own weights, and this builder cannot export those."""
    workers.broken.write_text("dense")
    summary = ablate(session, 1, workers, Console(quiet=False, as_json=True))
    workers.broken.write_text("")
    document = to_plain(summary)
    pruning = document["techniques"][0]
    assert pruning["without"]["reason"].startswith("ValueError: ")
    assert pruning["without"]["difference"] is None and pruning["alone"]["difference"] is not None
    assert pruning["without"]["reason"] in pruning["verdict"]
    assert not nothing_measured(summary)
    said = capsys.readouterr().err
    assert "(1 of 8)" in said and pruning["without"]["reason"] in said
    assert "pruning: mlp, alone: p95 ratio 0.500 [0.475, 0.525]" in said
    again = to_plain(ablate(session, 1, workers, QUIET))
    assert ratios(again, "without")["pruning: mlp"] == PRUNED
    assert len(ablations(session.study.facts)[0].effects) == 8


def test_timings_of_another_machine_are_not_gone_on_with(session: Session, workers: Workers) -> None:
    ablate(session, 1, workers, QUIET)
    plain = session.study.facts[FACT]
    plain["1"]["machine"] = "another"
    session.study.note(**{FACT: plain})
    with pytest.raises(KeyboardInterrupt):
        ablate(session, 1, workers, Stopped("(2 of 8)"))
    (known,) = ablations(session.study.facts)
    assert len(known.effects) == 1 and known.machine != "another"


def test_the_chosen_trial_comes_first(session: Session, workers: Workers) -> None:
    point = session.front().points[2]
    found = complete_outcome().measurement
    assert point.trial == 2 and found is not None
    confirmed = Confirmed(found, 1)
    session.study.note(chosen=choice_json(choice(point, confirmed, Path("bundle"), "why", None)))
    assert ablate(session, None, workers, QUIET).trial == 2
    ablate(session, 1, workers, QUIET)
    assert front_json(session.front())["ablation"]["trial"] == 2
    session.study.note(chosen=None)
    assert front_json(session.front())["ablation"]["trial"] == 1, "the last that was looked at"


@pytest.mark.parametrize(
    ("trial", "words"), [(0, r"--trial: .*\[1, 2, 3\], but got 0"), (9, "but got 9"), (3, "trial 3 has none")]
)
def test_a_trial_that_cannot_be_looked_at_is_refused(
    session: Session, workers: Workers, trial: int, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        ablate(session, trial, workers, QUIET)
    assert workers.jobs() == []


def test_a_trial_that_cannot_be_built_again_fails_the_work(session: Session, workers: Workers) -> None:
    workers.broken.write_text("fit")
    with pytest.raises(JobError, match="prune"):
        ablate(session, 1, workers, QUIET)


@pytest.mark.slow
def test_the_command_tells_keeps_and_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command runs in this process, so that the scripted workers stand in; MLflow is a real database."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home = Home(tmp_path)
    filled(home, begun(home))
    workers = Workers(tmp_path)
    monkeypatch.setattr("search.workers.processes.Worker", lambda kind, log: getattr(workers, kind))
    arguments = ["ablate", "synthetic-small", "--home", str(tmp_path), "--json", "--quiet", "--trial", "1"]
    assert run_command(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(ratios(document, "without")) == 4
    assert run_command(arguments) == 0
    client = MlflowClient(f"sqlite:///{home.mlruns / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("synthetic-small")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`leanrec.role` = 'ablation'")
    assert len(runs) == 8
    (parent,) = client.search_runs([experiment.experiment_id], "tags.`leanrec.role` = 'study'")
    kept = {file.path for file in client.list_artifacts(parent.info.run_id, "report")}
    assert kept == {"report/report.html", "report/ablation.json"}
    assert "What helped" in (home.reports("synthetic-small") / "report.html").read_text()


@pytest.mark.slow
def test_nothing_measured_is_status_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home, settings = Home(tmp_path), (f"tracking_uri=sqlite:///{tmp_path}/m.db",)
    filled(home, begun(home, *settings))
    workers = Workers(tmp_path)
    failing = Worker("meter", tmp_path / "log", [sys.executable, "-c", "raise SystemExit(3)"])
    monkeypatch.setattr(
        "search.workers.processes.Worker", lambda kind, log: workers.builder if kind == "builder" else failing
    )
    arguments = [
        "ablate",
        "synthetic-small",
        "--home",
        str(tmp_path),
        "--set",
        f"tracking_uri=sqlite:///{tmp_path}/m.db",
    ]
    assert run_command([*arguments, "--quiet"]) == 1
    assert re.search(r"pruning: mlp: .*status 3", capsys.readouterr().out)
    workers.kill()
