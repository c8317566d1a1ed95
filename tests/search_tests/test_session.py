"""A study keeps the checkpoint that it was begun with."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.samplers import BaseSampler

from objectives.records import Artifact, Prepared
from objectives.serving.devices import describe
from search import locking
from search import session as launch
from search.cli.console import Console
from search.config.study_file import parse
from search.errors import ConfigError
from search.explore import run as explore_run
from search.home import Home
from search.locking import stoppable
from search.samplers.expected_gain import ExpectedGainSampler
from search.samplers.optuna_samplers import PerTrialSampler
from spaces.model_structure import ModelStructure
from spaces.serialization import to_plain
from spaces.techniques.quantization import PrecisionSpace
from tests.search_tests.measurements import complete_outcome, small_space
from tests.search_tests.test_databases import mode

ROOT = Path(__file__).resolve().parents[2]


def _prepared(key: str) -> Prepared:
    baseline = Artifact("a", "model.onnx", {}, 10, 0.0)
    return Prepared(
        key, "holdout", ModelStructure(()), {}, (), baseline, "by time", {"test": 9}, 3, {}, {"baseline": 0.8}
    )


class Begun:
    """A study with what was noted, and so many trials."""

    def __init__(self, trials: int) -> None:
        self.facts: dict[str, Any] = {"prepared": to_plain(replace(_prepared("old"), metric="auc"))}
        self.facts["machine"] = describe()
        self.trials = trials

    def finished(self) -> list[int]:
        return list(range(self.trials))

    def note(self, **facts: Any) -> None:
        self.facts |= facts


def test_a_study_does_not_go_on_on_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its trials' times are of the machine that it was begun on; one without trials has none."""
    monkeypatch.setattr(launch, "prepared_by", lambda *asked: replace(_prepared("old"), metric="auc"))
    study = Begun(3)
    study.facts["machine"] = "another processor, 64 cores"
    session: Any = SimpleNamespace(config=SimpleNamespace(name="shop", unused_rows=()), home=None, study=study)
    with pytest.raises(ConfigError, match=r"^STUDY: 'shop' was begun on another machine \(another processor, 64"):
        launch.prepare(session, None, Console(True, False))  # type: ignore[arg-type]
    study.trials = 0
    launch.prepare(session, None, Console(True, False))  # type: ignore[arg-type]
    assert study.facts["machine"] == describe()


@pytest.mark.parametrize(
    ("key", "metric", "trials", "refused"),
    [("old", "auc", 3, False), ("new", "gauc", 0, False), ("new", "auc", 3, True), ("old", "gauc", 3, True)],
)
def test_a_study_goes_on_with_the_checkpoint_it_was_begun_with(
    key: str, metric: str, trials: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "prepared_by", lambda *asked: replace(_prepared(key), metric=metric))
    study = Begun(trials)
    session: Any = SimpleNamespace(config=SimpleNamespace(name="shop", unused_rows=()), home=None, study=study)
    if not refused:
        assert launch.prepare(session, None, Console(True, False)).key == key  # type: ignore[arg-type]
        assert study.facts["prepared"]["key"] == key
        return
    with pytest.raises(ConfigError, match=r"^recommender: .*'shop'"):
        launch.prepare(session, None, Console(True, False))  # type: ignore[arg-type]
    assert study.facts["prepared"]["key"] == "old"


@pytest.mark.parametrize("own", [True, False])
def test_only_the_home_s_own_trials_are_written_ahead(own: bool, home: Home) -> None:
    """Others may read MLflow's store, or the user's database, from where they cannot write."""
    file = home.mlruns / ("optuna.db" if own else "theirs.db")
    settings = {"name": "shop", "data": {"source": "synthetic"}} | ({} if own else {"storage": f"sqlite:///{file}"})
    launch.open_session(parse(settings), home)
    assert [mode(file), mode(home.mlruns / "mlflow.db")] == ["wal" if own else "delete", "delete"]


def test_settings_of_a_study_without_trials_may_be_mended(home: Home) -> None:
    """Settings that the data refused may change, and what was found by them is forgotten; with trials they may not."""
    given = {"name": "shop", "data": {"source": "synthetic"}}
    session = launch.open_session(parse({**given, "quality": {"slices": {"nobody": 0.1}}}), home)
    session.study.note(profile={"of": "former settings"})
    session = launch.open_session(parse({**given, "quality": {"slices": {"rare items": 0.1}}}), home)
    assert "profile" not in session.study.facts
    assert session.study.facts["config"]["quality"]["slices"] == {"rare items": 0.1}
    trial, _ = session.study.ask(small_space())
    session.study.tell(trial.number, complete_outcome(), 0.1)
    with pytest.raises(ConfigError, match=r"quality\.slices"):
        launch.open_session(parse({**given, "quality": {"slices": {}}}), home)


def test_a_study_that_was_measured_by_an_earlier_version_is_refused_in_one_line(home: Home) -> None:
    config = parse({"name": "shop", "data": {"source": "synthetic"}})
    session = launch.open_session(config, home)
    trial, _ = session.study.ask(small_space())
    session.study.tell(trial.number, complete_outcome(), 0.1)
    launch.open_session(config, home)
    session.study.note(measurement=1)
    with pytest.raises(ConfigError, match=r"'shop' .*version") as caught:
        launch.open_session(config, home)
    assert len(str(caught.value).splitlines()) == 1


def test_a_study_goes_on_with_the_choices_it_was_begun_with() -> None:
    """Optuna would end with an error of its own at the first choice that it does not know."""
    begun: Any = Begun(0)
    explore_run._same_choices(begun, small_space(), "shop")
    explore_run._same_choices(begun, replace(small_space(), precision=PrecisionSpace({})), "shop")
    begun.trials = 3
    with pytest.raises(ConfigError, match=r"^space: .*'shop'"):
        explore_run._same_choices(begun, small_space(), "shop")
    explore_run._same_choices(begun, replace(small_space(), precision=PrecisionSpace({})), "shop")


def test_settings_of_a_study_that_runs_are_not_forgotten(home: Home) -> None:
    """The study's baseline may train for minutes before there is a trial."""
    given = {"name": "shop", "data": {"source": "synthetic"}}
    session = launch.open_session(parse(given), home)
    with locking.locked(home, "shop"), pytest.raises(ConfigError, match="'shop'"):
        launch.open_session(parse({**given, "seed": 3}), home)
    assert session.study.facts["config"]["seed"] == 0


def test_a_home_on_a_read_only_disk_is_told_at_once(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The home is leanrec's own; no trial is begun."""
    home.claim()

    def touch(path: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "touch", touch)
    with pytest.raises(ConfigError, match=f"--home: {home.root} must be a folder that can be written.*Read-only"):
        home.claim()


def test_a_home_that_another_process_has_just_made_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The home is missing at the first look, and there, with what the other has put in, when it is listed."""
    other, exists = Home(tmp_path), Path.exists
    other.claim()
    monkeypatch.setattr(Path, "exists", lambda path: path.name != ".leanrec" and exists(path))
    Home(tmp_path).claim()
    (tmp_path / "mlruns" / ".leanrec").unlink()
    with pytest.raises(ConfigError, match=str(tmp_path / "mlruns")):
        Home(tmp_path).claim()


def test_studies_begun_at_once_share_a_new_home(tmp_path: Path) -> None:
    """Both databases are made by the first process, and by nobody else."""

    def begun(name: str) -> str | None:
        config = parse({"name": name, "data": {"source": "synthetic"}})
        return launch.open_session(config, Home.find(str(tmp_path))).ledger.trouble

    with ThreadPoolExecutor() as pool:
        assert list(pool.map(begun, ("one", "two", "three"))) == [None] * 3


SIGNALLED = """
import os, signal, sys, time
from search.locking import stoppable
number = int(sys.argv[1])
before = signal.getsignal(number)
try:
    with stoppable():
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error
except KeyboardInterrupt:
    print("interrupted", signal.getsignal(number) is before)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_an_interruption_whatever_a_library_makes_of_it(number: signal.Signals) -> None:
    command = [sys.executable, "-c", SIGNALLED, str(int(number))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["interrupted", "True"], done.stderr


def test_an_error_without_a_signal_stays_as_it_is() -> None:
    with pytest.raises(ImportError), stoppable():
        raise ImportError("initialization failed")


@pytest.mark.parametrize(("name", "kind"), [("auto", ExpectedGainSampler), ("tpe", PerTrialSampler)])
def test_a_study_goes_on_with_another_sampler(name: str, kind: type[BaseSampler], home: Home) -> None:
    """Measurements do not depend on the sampler that proposed the candidates."""
    given = {"name": "shop", "data": {"source": "synthetic"}}
    session = launch.open_session(parse({**given, "sampler": "random"}), home)
    trial, _ = session.study.ask(small_space())
    session.study.tell(trial.number, complete_outcome(), 0.1)
    session = launch.open_session(parse({**given, "sampler": name}), home)
    assert type(session.study._study.sampler) is kind
    assert len(session.study.ended()) == 1
