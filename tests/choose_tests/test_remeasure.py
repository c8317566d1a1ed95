"""The front is timed again by a meter whose results are given: compared row by row, never written into the study."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console as Terminal

from objectives.records import Artifact, Prepared
from search.choose.remeasure import all_failed, conclusion, remeasure, remeasured_table
from search.cli.console import Console
from search.config.study_file import load
from search.errors import ConfigError
from search.home import Home
from search.ledger.ledger import Ledger
from search.session import Session
from search.study import Study
from search.workers.processes import Worker, Workers
from spaces.candidate import Candidate
from spaces.model_structure import ModelStructure
from spaces.search_space import SearchSpace
from spaces.serialization import to_plain
from tests.search_tests.measurements import complete_outcome

ROOT = Path(__file__).resolve().parents[2]
# The meter answers by the name of the model's folder; what it does not know fails.
METER = """
import json, sys
sys.path.insert(0, {root!r})
from objectives.jobs.protocol import serve
from objectives.jobs.requests import BenchmarkRequest, BenchmarkResponse
from spaces.serialization import from_plain
def time(request, progress):
    answers = json.load(open({answers!r}))
    way = "the pool" if request.load.served_inputs is None else "HTTP"
    progress("asked for " + str(request.window.blocks * request.window.visits) + " blocks through " + way)
    key = request.candidate.model.split("/")[-2]
    if key not in answers:
        raise RuntimeError("the machine is busy")
    return from_plain(BenchmarkResponse, answers[key])
serve({{BenchmarkRequest: time}})
"""


class Only:
    """A space of one candidate; the knobs play no part here."""

    def suggest(self, trial: Any) -> Candidate:
        return Candidate()


def timed(p95_ratio: float, throughput: float) -> Mapping[str, Any]:
    measurement = complete_outcome(p95_ratio, throughput).measurement
    assert measurement is not None
    return {name: to_plain(getattr(measurement, name)) for name in ("latency", "throughput", "footprint")}


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """Trial 0 is the baseline; 1 and 2 are on the front, the second the faster; 3 is dominated, 4 loses too much."""
    home = Home(tmp_path)
    home.claim()
    config = load("synthetic-small", ["name=s"])
    study = Study("s", home.storage(None), config.objectives, config.quality.limits, 0)
    outcomes = [
        complete_outcome(1.0, 1.0, 0.0, "base"),
        complete_outcome(0.5, 4.0, 0.001, "one"),
        complete_outcome(0.2, 3.0, 0.002, "two"),
        complete_outcome(0.9, 1.5, 0.005, "three"),
        complete_outcome(0.1, 9.0, 0.5, "four"),
    ]
    for outcome in outcomes:
        trial, _ = study.ask(cast(SearchSpace, Only()))
        study.tell(trial.number, outcome, 0.1)
        assert outcome.artifact is not None
        _touch(tmp_path / outcome.artifact.path)
    _touch(tmp_path / "holdout" / "requests.npz")
    baseline = Artifact("base", "base/model.onnx", {}, 1000, 0.0)
    prepared = Prepared(
        "k", str(tmp_path / "holdout"), ModelStructure(()), {}, (), baseline, "by user", {"test": 10}, 2, {}, {}
    )
    study.note(prepared=to_plain(prepared), machine="the machine of then")
    return Session(config, home, study, cast(Ledger, None))


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("meter") / "answers.json"


@pytest.fixture(scope="module")
def workers(answers: Path) -> Iterator[Workers]:
    code = METER.format(root=str(ROOT), answers=str(answers))
    worker = Worker("meter", answers.with_name("log"), [sys.executable, "-c", code])
    yield Workers((worker,), worker)
    worker.kill()


QUIET = Console(quiet=True, as_json=True)


def test_old_and_new_stand_side_by_side(session: Session, workers: Workers, answers: Path) -> None:
    """Intervals are 5% to both sides: 0.5 and 0.52 overlap, 0.2 and 0.3 do not; 3.0 and 3.1 do."""
    answers.write_text(json.dumps({"one": timed(0.52, 8.0), "two": timed(0.3, 3.1)}))
    before = [(t.number, t.values, dict(t.user_attrs)) for t in session.study.finished()]
    found = remeasure(session, workers, QUIET)
    document = to_plain(found)
    first, second = document["rows"]
    assert (first["trial"], second["trial"]) == (2, 1), "the fastest first, no baseline, nothing off the front"
    assert (first["then"]["p95_ratio"], first["now"]["p95_ratio"]) == (0.2, 0.3)
    assert (first["agrees"], first["throughput_agrees"]) == (False, True)
    assert (second["agrees"], second["throughput_agrees"]) == (True, False)
    assert second["now"]["p95_ms"] == pytest.approx(5.2)
    assert document["machine_then"] == "the machine of then"
    assert document["machine_now"]
    written = session.home.reports("s") / "remeasure.json"
    assert json.loads(written.read_text()) == document
    assert conclusion(found).startswith("1 of 2 points")
    assert [(t.number, t.values, dict(t.user_attrs)) for t in session.study.finished()] == before


def test_a_row_that_fails_is_told_and_the_others_go_on(
    session: Session, workers: Workers, answers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers.write_text(json.dumps({"one": timed(0.5, 4.0)}))
    found = remeasure(session, workers, Console(quiet=False, as_json=True))
    document = to_plain(found)
    failed, passed = document["rows"]
    assert (failed["trial"], failed["now"], failed["agrees"]) == (2, None, None)
    assert failed["reason"] == "RuntimeError: the machine is busy"
    assert passed["agrees"] is True
    assert not all_failed(found)
    said = capsys.readouterr().err
    assert "trial 2 (1 of 2): " in said and failed["reason"] in said
    assert "asked for 120 blocks through the pool" in said


def test_trials_off_the_front_are_timed_too_where_they_are_named(
    session: Session, workers: Workers, answers: Path
) -> None:
    answers.write_text(json.dumps({"two": timed(0.2, 3.0), "three": timed(0.9, 1.5)}))
    found = remeasure(session, workers, QUIET, [3, 2, 3, 0])
    assert [row.trial for row in found.rows] == [2, 3] and not any(row.reason for row in found.rows)
    with pytest.raises(ConfigError, match="--trial: must be a measured trial of the study, one of 0, 1, 2, 3, 4"):
        remeasure(session, workers, QUIET, [7])


def test_the_other_way_needs_its_packages(session: Session, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.config.load.PACKAGES", ("no_such_package",))
    with pytest.raises(ConfigError, match=r"no_such_package: pip install 'leanrec\[serve\]'"):
        remeasure(session, workers, QUIET, [1], "http")


def test_requests_may_go_another_way_than_in_the_study(
    session: Session, workers: Workers, answers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served = timed(0.52, 8.0)
    answers.write_text(json.dumps({"one": {**served, "latency": {**served["latency"], "through": "http"}}}))
    found = remeasure(session, workers, Console(quiet=False, as_json=True), [1], "http")
    assert "through HTTP" in capsys.readouterr().err and session.config.traffic.through == "pool"
    (row,) = found.rows
    assert row.now is not None and (row.then.through, row.now.through) == ("pool", "http")
    assert row.agrees is None and row.throughput_agrees is None, "a difference is expected"
    assert conclusion(found) == "1 point timed through the HTTP server, which the search was not"
    Terminal(width=220).print(remeasured_table(found))
    table = capsys.readouterr().out
    assert "now, through the HTTP server" in table and "then, in the pool" in table
    assert "yes" not in table and "no " not in table.replace("now", "")
    assert (session.home.reports("s") / "remeasure-http.json").exists()
    assert not (session.home.reports("s") / "remeasure.json").exists(), "that of the pool stays as it is"


def test_all_rows_may_fail(session: Session, workers: Workers, answers: Path) -> None:
    answers.write_text("{}")
    found = remeasure(session, workers, QUIET)
    assert all_failed(found)
    assert re.match(r"0 of 0 points .* 2 ", conclusion(found))


def test_an_artifact_that_is_gone_is_one_line(session: Session, workers: Workers, answers: Path) -> None:
    answers.write_text(json.dumps({"one": timed(0.5, 4.0)}))
    (session.home.root / "two" / "model.onnx").unlink()
    gone = remeasure(session, workers, QUIET).rows[0]
    assert str(session.home.root / "two" / "model.onnx") in str(gone.reason) and "\n" not in str(gone.reason)


@pytest.mark.parametrize(
    ("path", "words"), [("base/model.onnx", "baseline's model"), ("holdout/requests.npz", "the requests")]
)
def test_what_every_row_needs_is_looked_for_first(session: Session, workers: Workers, path: str, words: str) -> None:
    (session.home.root / path).unlink()
    with pytest.raises(ConfigError, match=words):
        remeasure(session, workers, QUIET)


def test_a_study_without_a_baseline_is_refused(tmp_path: Path, workers: Workers) -> None:
    home, config = Home(tmp_path), load("synthetic-small", ["name=s"])
    home.claim()
    study = Study("s", home.storage(None), config.objectives, config.quality.limits, 0)
    with pytest.raises(ConfigError, match="baseline"):
        remeasure(Session(config, home, study, cast(Ledger, None)), workers, QUIET)


def test_the_table_shows_both(
    session: Session, workers: Workers, answers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers.write_text(json.dumps({"one": timed(0.52, 8.0)}))
    Terminal(width=200).print(remeasured_table(remeasure(session, workers, QUIET)))
    table = capsys.readouterr().out
    assert "0.500 [0.475, 0.525]" in table
    assert "0.520 [0.494, 0.546]" in table
    assert re.search(r"p95 ratio .* yes ", table) and re.search(r"throughput ratio .* no ", table)
    assert "not timed: RuntimeError" in table
    assert "the machine of then" in table


def test_a_front_of_the_baseline_alone_is_refused(session: Session, workers: Workers) -> None:
    session.study.restart()
    trial, _ = session.study.ask(cast(SearchSpace, Only()))
    session.study.tell(trial.number, complete_outcome(1.0, 1.0, 0.0, "base"), 0.1)
    with pytest.raises(ConfigError, match="to time but the baseline"):
        remeasure(session, workers, QUIET)
