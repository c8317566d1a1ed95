"""The end of a run, whenever Ctrl-C comes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState

from search.config.study_file import load
from search.explore import run as module
from search.home import Home
from search.study import Study
from tests.samplers_tests.problem import LIMITS, OBJECTIVES, SPACE
from tests.search_tests.measurements import in_memory


def test_trials_are_closed_when_ctrl_c_comes_while_the_search_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The search is interrupted before it has closed what was under way, which the next run asks for."""
    storage = in_memory()
    study = Study("s", storage, OBJECTIVES, LIMITS, 0, "auto")
    levelled: list[int] = []
    session: Any = SimpleNamespace(study=study, level=lambda console: levelled.append(len(study.finished())))

    def interrupted(session: Any, console: Any) -> None:
        session.study.ask(SPACE)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "open_session", lambda config, home: session)
    monkeypatch.setattr(module, "search", interrupted)
    (tmp_path / "mlruns").mkdir()
    with pytest.raises(KeyboardInterrupt):
        module.run(load("ml-100k", []), Home(tmp_path), SimpleNamespace())  # type: ignore[arg-type]
    assert [trial.state for trial in study.finished()] == [TrialState.PRUNED]
    assert levelled == [1], "it is in the ledger too"
