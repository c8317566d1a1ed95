"""Promotion: the alias moves where the policy holds, and nowhere else."""

from __future__ import annotations

import json
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from objectives.held_out_rows import HeldOut, write_held_out
from objectives.records import Artifact, Prepared, Quality
from objectives.serving.bundle import read_bundle
from objectives.shadow.batch_means import BATCHES, BatchMeans
from objectives.shadow.process import Setup, _Shadowing
from objectives.shadow.state import Counts, Lost, write_state
from search.checkpoints.held_out_loss import held_out_loss
from search.checkpoints.promotion import Evaluate, Promotion
from search.checkpoints.promotion_policy import PromotionPolicy
from search.cli.console import Console
from search.cli.parser import run_command
from search.config.study_file import parse
from search.errors import ConfigError, JobError, LostJobError
from search.home import Home
from search.ledger import aliases as ledger_aliases
from search.ledger import registry
from search.ledger.aliases import DECISION
from search.locking import StudyRunningError, locked
from search.session import open_session
from spaces.model_structure import ModelStructure
from spaces.serialization import to_plain
from tests.checkpoints_tests.registered import crowned, good_state, rivals, study_file, write_good_state
from tests.serve_tests.bundles import draw_request, write_toy

QUIET = Console(True, True)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def promote(home: Home, study: str, *words: str) -> int:
    return run_command(["promote", study, "--home", str(home.root), "--json", *words])


def aliased(found: Any) -> dict[str, str]:
    aliases = found.client.get_registered_model("toy").aliases
    return {name: str(version) for name, version in aliases.items()}


def test_a_challenger_that_keeps_the_policy_is_the_champion(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, champion, challenger = rivals(home, tmp_path)
    study = study_file(tmp_path)
    assert promote(home, study) == 1, "nothing was shadowed"
    refused = json.loads(capsys.readouterr().out)
    assert refused["outcome"] == "undecided" and not refused["promoted"]
    assert "requests shadowed: must be at least 1,000, but is 0" in refused["reason"]
    assert aliased(found) == {"champion": "1", "challenger": "2"}
    write_good_state(home, champion, challenger)
    assert promote(home, study, "--min-requests", "2001") == 1
    assert json.loads(capsys.readouterr().out)["reason"] == "requests shadowed: must be at least 2,001, but is 2,000"
    assert aliased(found) == {"champion": "1", "challenger": "2"}
    assert promote(home, study) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["promoted"] and done["outcome"] == "promoted" and (done["champion"], done["challenger"]) == ("1", "2")
    assert all(condition["holds"] for condition in done["conditions"]) and len(done["conditions"]) == 8
    assert aliased(found) == {"champion": "2"}
    assert found.numbered("2").tags[DECISION].startswith("promoted: requests shadowed 2,000")
    assert promote(home, study) == 2, "there is no challenger any more"
    assert "models:/toy@challenger must be registered" in capsys.readouterr().err


def test_the_table_has_a_line_for_each_condition(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, champion, challenger = rivals(home, tmp_path)
    write_good_state(home, champion, challenger)
    words = ["promote", study_file(tmp_path), "--home", str(home.root), "--max-difference", "0.01"]
    assert run_command(words) == 1
    out = capsys.readouterr().out
    for cell in ("condition", "limit", "value", "holds", "requests shadowed", "at least 1,000", "2,000", "yes", "no"):
        assert cell in out
    assert "refused: mean difference of scores: must be at most 0.01 of their spread, but is 0.1" in out


def test_what_was_shadowed_with_another_bundle_does_not_count(home: Home, tmp_path: Path) -> None:
    _, champion, challenger = rivals(home, tmp_path)
    other = write_toy(tmp_path / "other", seed=2)
    for pair in ((champion, other), (other, challenger), (challenger, champion)):
        write_good_state(home, *pair)
        assert promote(home, study_file(tmp_path)) == 1
    write_good_state(home, champion, challenger)
    assert promote(home, study_file(tmp_path)) == 0


def test_a_challenger_whose_files_changed_is_refused(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, champion, challenger = rivals(home, tmp_path)
    write_good_state(home, champion, challenger)
    version = found.version("challenger")
    assert version is not None
    model = found.folder(version) / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    assert promote(home, study_file(tmp_path)) == 1
    assert "model.onnx was changed" in json.loads(capsys.readouterr().out)["reason"]
    assert aliased(found) == {"champion": "1", "challenger": "2"}


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
def test_a_challenger_that_a_server_cannot_read_is_refused_and_the_next_one_is_not(
    name: str, home: Home, tmp_path: Path
) -> None:
    """The file is whole again when the promotion looks, as where the server's copy alone is broken."""
    found, champion, _ = rivals(home, tmp_path)
    version = found.version("challenger")
    assert version is not None
    folder, states = found.folder(version), home.shadow_states("toy")
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:-1] + b"x")
    ours, theirs = Pipe()
    with ours, theirs:
        _Shadowing(theirs, Setup(champion, folder, states / "a-0.json", Lost(Counts(dropped=1)), 5.0)).run()
    (folder / name).write_bytes(whole)
    refused = _promotion(found, states, unknown).promote()
    assert refused.outcome == "refused" and f"{name} was changed" in refused.reason
    assert refused.shadow is not None and refused.shadow.counts == Counts(dropped=1)
    found.challenge(write_toy(tmp_path / "next", seed=2), "another hash", {})
    undecided = _promotion(found, states, unknown).promote()
    assert undecided.outcome == "undecided" and "was changed" not in undecided.reason


@pytest.mark.parametrize("wrong", ["study", "state", "no state", "name"])
def test_bad_input_is_one_line_and_status_2(
    wrong: str, home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, _, _ = rivals(home, tmp_path)
    study, words = study_file(tmp_path), list[str]()
    if wrong == "study":
        study = str(tmp_path / "nothing.yaml")
    if wrong == "state":
        home.shadow_states("toy").mkdir(parents=True)
        (home.shadow_states("toy") / "a-0.json").write_text("{")
    if wrong == "no state":
        words = ["--state", str(tmp_path / "nothing")]
    if wrong == "name":
        words = ["--set", "name=other"]
    assert promote(home, study, *words) == 2
    streams = capsys.readouterr()
    assert streams.out == "" and len(streams.err.splitlines()) == 1
    assert aliased(found) == {"champion": "1", "challenger": "2"}


def test_a_promotion_that_was_cut_short_is_finished(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends after the champion's alias moved, and before the challenger's is taken away."""
    found, champion, challenger = rivals(home, tmp_path)
    file = write_good_state(home, champion, challenger)
    with monkeypatch.context() as patch:
        patch.setattr(
            ledger_aliases, "crown", lambda client, version: client.set_registered_model_alias("toy", "champion", "2")
        )
        assert _promotion(found, file, unknown).promote().promoted
    assert aliased(found) == {"champion": "2", "challenger": "2"}
    assert _promotion(found, file, unknown).promote().reason == "it is the champion already"
    assert aliased(found) == {"champion": "2"}


# -- quality


def unknown(*bundles: object) -> tuple[Quality | None, str | None]:
    return None, "no rows"


def _promotion(found: Any, file: Path, evaluate: Evaluate, required: bool = False) -> Promotion:
    return Promotion(found, file, PromotionPolicy(max_loss=0.01), required, evaluate)


@pytest.mark.parametrize(
    ("loss", "required", "promoted"),
    [(0.01, False, True), (0.02, False, False), (None, False, True), (None, True, False)],
)
def test_the_loss_counts_where_it_is_known(
    loss: float | None, required: bool, promoted: bool, home: Home, tmp_path: Path
) -> None:
    found, champion, challenger = rivals(home, tmp_path)
    file = write_good_state(home, champion, challenger)
    asked = []

    def evaluate(ours: Any, theirs: Any) -> tuple[Quality | None, str | None]:
        asked.append((ours.version, theirs.version))
        quality = None if loss is None else Quality("auc", 0.7, 0.7, loss, (loss - 0.1, loss + 0.1), 20, 10)
        return quality, "no rows"

    assert _promotion(found, file, evaluate, required).promote().promoted == promoted
    assert asked == [(read_bundle(challenger).version, read_bundle(champion).version)]


@pytest.mark.parametrize("error", [JobError("the meter was killed"), ConfigError("sizes was 8, now 16")])
@pytest.mark.parametrize("required", [False, True])
def test_an_evaluation_that_fails_refuses(error: Exception, required: bool, home: Home, tmp_path: Path) -> None:
    found, champion, challenger = rivals(home, tmp_path)

    def evaluate(*bundles: object) -> tuple[Quality | None, str | None]:
        raise error

    told = _promotion(found, write_good_state(home, champion, challenger), evaluate, required).promote()
    assert not told.promoted and str(error) in told.reason
    assert told.outcome == "refused", "a further look would be told the same"


@pytest.mark.parametrize("error", [LostJobError("it took too long"), StudyRunningError("it is being run")])
def test_an_evaluation_that_may_succeed_later_refuses_nothing(error: Exception, home: Home, tmp_path: Path) -> None:
    found, champion, challenger = rivals(home, tmp_path)

    def evaluate(*bundles: object) -> tuple[Quality | None, str | None]:
        raise error

    told = _promotion(found, write_good_state(home, champion, challenger), evaluate, True).promote()
    assert told.outcome == "undecided" and str(error) in told.reason


def test_a_loss_that_cannot_be_known_here_is_told(home: Home, tmp_path: Path) -> None:
    found, champion, challenger = rivals(home, tmp_path)
    told = _promotion(found, write_good_state(home, champion, challenger), unknown).promote()
    assert told.promoted and told.conditions[-1].left_out and "no rows" in told.reason


def test_the_loss_is_not_evaluated_where_something_else_is_broken(home: Home, tmp_path: Path) -> None:
    found, champion, challenger = rivals(home, tmp_path)
    folder = home.shadow_states("toy")
    write_state(replace(good_state(champion, challenger), counts=Counts(2000, failed=1)), folder / "a-0.json")

    def evaluate(*bundles: object) -> tuple[Quality | None, str | None]:
        raise AssertionError

    assert _promotion(found, folder, evaluate).promote().outcome == "refused"


def test_a_champion_that_came_during_the_evaluation_stays(home: Home, tmp_path: Path) -> None:
    """A choice registers a third version while the loss is evaluated, with which the challenger was not compared."""
    found, champion, challenger = rivals(home, tmp_path)
    folder, other = write_good_state(home, champion, challenger), write_toy(tmp_path / "third", seed=7)
    run = found.numbered("1").run_id
    assert run is not None

    def evaluate(*bundles: object) -> tuple[Quality | None, str | None]:
        registry.register(found.client, found.store, "toy", other, run, {})
        return None, "no rows"

    told = _promotion(found, folder, evaluate).promote()
    assert (told.promoted, told.outcome) == (False, "undecided") and "version 3 became the champion" in told.reason
    assert aliased(found)["champion"] == "3"


def test_the_states_of_all_servers_count_together(home: Home, tmp_path: Path) -> None:
    """Neither of two servers has enough by itself; a third one shadowed others."""
    found, champion, challenger = rivals(home, tmp_path)
    folder, half = home.shadow_states("toy"), good_state(champion, challenger)
    other = read_bundle(write_toy(tmp_path / "other", seed=2)).version
    write_state(replace(half, challenger=other, counts=Counts(9000, failed=9)), folder / "a-0.json")
    for server, seconds in (("a-1", 700.0), ("b-0", 20.0)):
        write_state(replace(half, counts=Counts(600), seconds=seconds), folder / f"{server}.json")
        told = _promotion(found, folder, unknown).promote()
    assert told.promoted and told.shadow is not None
    assert (told.shadow.counts, told.shadow.seconds, told.shadow.windows) == (Counts(1200), 700.0, 2 * BATCHES)
    assert told.shadow.timed_requests == 4000 and told.shadow.mean_difference == pytest.approx(0.1, rel=0.1)


def test_a_ratio_that_is_not_known_well_enough_is_undecided(home: Home, tmp_path: Path) -> None:
    found, champion, challenger = rivals(home, tmp_path)
    file, good = home.shadow_states("toy") / "a-0.json", good_state(champion, challenger)
    noise = np.random.default_rng(0).normal(0, 1, BATCHES)
    for ratios, outcome in (
        (noise, "undecided"), (noise[:-1], "undecided"), (1 + noise / 100, "refused"), (noise / 100, "promoted"),
    ):  # fmt: skip
        write_state(replace(good, log_p95_ratios=BatchMeans(tuple(ratios.tolist()))), file)
        assert _promotion(found, file.parent, unknown).promote().outcome == outcome
    assert aliased(found) == {"champion": "2"}


def _held_out(bundle: Path) -> tuple[HeldOut, dict[str, np.ndarray]]:
    """Rows whose labels are drawn by the bundle's own scores."""
    rng = np.random.default_rng(0)
    parts = [draw_request(20, seed) for seed in range(100)]
    inputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    with read_bundle(bundle).open() as pool:
        scores = pool.submit(inputs).result(20)
    labels = (rng.random(len(scores)) < 1 / (1 + np.exp(-scores))).astype(np.float32)
    return HeldOut((inputs,), labels, inputs["user"]), inputs


def test_the_loss_is_that_of_the_held_out_rows(home: Home, tmp_path: Path) -> None:
    """scikit-learn's AUC of the scores of both pools."""
    champion, challenger = write_toy(tmp_path / "champion"), write_toy(tmp_path / "challenger", seed=1)
    crowned(home, champion)
    config = parse({"name": "toy", "data": {"source": "synthetic"}})
    bundles = read_bundle(challenger), read_bundle(champion)
    quality, trouble = held_out_loss(config, home, *bundles, QUIET)
    assert quality is None and "was not run" in (trouble or "")
    session = open_session(config, home)
    quality, trouble = held_out_loss(config, home, *bundles, QUIET)
    assert quality is None and "was not prepared" in (trouble or "")
    held, inputs = _held_out(champion)
    holdout = home.mlruns / "cache" / "held"
    prepared = Prepared(
        "key", str(holdout), ModelStructure(()), {}, (), Artifact("a", "a/model.onnx", {}, 1, 0.0), "by user",
        {"test": 1}, 1, {}, {},
    )  # fmt: skip
    session.study.note(prepared=to_plain(prepared))
    quality, trouble = held_out_loss(config, home, *bundles, QUIET)
    assert quality is None and "is gone" in (trouble or "")
    holdout.mkdir(parents=True)
    write_held_out(held, holdout, "validation")
    with locked(home, "toy"), pytest.raises(StudyRunningError):
        held_out_loss(config, home, *bundles, QUIET)
    quality, _ = held_out_loss(config, home, *bundles, QUIET)
    auc = []
    for folder in (challenger, champion):
        with read_bundle(folder).open() as pool:
            auc.append(roc_auc_score(held.labels, pool.submit(inputs).result(20)))
    assert quality is not None
    assert (quality.value, quality.baseline) == pytest.approx(tuple(auc), abs=1e-9)
    assert quality.loss == pytest.approx(1 - auc[0] / auc[1]) and quality.loss > 0.01
    low, high = quality.loss_interval
    assert low < quality.loss < high
