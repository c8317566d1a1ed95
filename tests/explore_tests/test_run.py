"""The end of a run, whenever Ctrl-C comes, and its progress before."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState

from search.config.study_file import load
from search.explore import run as module
from search.front import unit_objectives
from search.home import Home
from search.study import Study
from tests.samplers_tests.problem import LIMITS, OBJECTIVES, SPACE
from tests.search_tests.measurements import complete_outcome, in_memory


def test_trials_wait_when_ctrl_c_comes_while_the_search_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The search is interrupted before it has swept what was under way, which the next run asks for."""
    storage = in_memory()
    study = Study("s", storage, OBJECTIVES, LIMITS, 0, "auto")
    levelled = list[TrialState]()
    session: Any = SimpleNamespace(
        study=study, level=lambda console: levelled.extend(trial.state for trial in study._study.get_trials())
    )

    def interrupted(session: Any, console: Any) -> None:
        session.study.ask(SPACE)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "open_session", lambda config, home: session)
    monkeypatch.setattr(module, "search", interrupted)
    (tmp_path / "mlruns").mkdir()
    with pytest.raises(KeyboardInterrupt):
        module.run(load("ml-100k", []), Home(tmp_path), SimpleNamespace())  # type: ignore[arg-type]
    assert levelled == [TrialState.WAITING]


def test_the_gain_of_the_time_left_follows_from_what_the_first_half_found() -> None:
    """Each point dominates the one before, so that the hypervolume is the box of the last one.

    After four of eight minutes, the trial of the dry run and that of minute 1.5 are the first half's; after two and a
    half, that of the dry run alone, whatever its own clock said.
    """
    study = Study("s", in_memory(), OBJECTIVES, LIMITS, 0, "random")
    found = [(0.9, 1.2, 3.5), (0.8, 2.0, 3.5), (0.5, 3.0, 1.5), (0.3, 6.0, 3.0)]
    for place, (p95, throughput, minutes) in enumerate(found):
        if place == 2:
            study.note(dry_run=[0, 1])
        trial, _ = study.ask(SPACE)
        study.tell(trial.number, complete_outcome(p95, throughput, 0.0), minutes)

    def box(place: int) -> float:
        return float(unit_objectives(*found[place][:2], 0.0, LIMITS.max_loss).prod())

    def gain(spent: float) -> float | None:
        reached, expected, best = module._progress(study, LIMITS.max_loss, spent, 480.0)
        assert best is not None and best.latency.p95_ratio == 0.3 and reached == pytest.approx(box(3))
        return expected

    assert gain(240.0) == pytest.approx(box(3) - box(2))
    assert gain(150.0) == pytest.approx(math.log2(480 / 150) * (box(3) - box(1)))
    assert gain(480.0) == pytest.approx(0.0) and gain(110.0) is None
    assert module._progress(Study("empty", in_memory(), OBJECTIVES, LIMITS, 0), 0.01, 60.0, 480.0) == (0.0, None, None)
