"""A study keeps the checkpoint that it was begun with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from objectives.record import Artifact, Prepared
from search import launch
from search.console import Console
from search.study_yaml import ConfigError
from spaces.anatomy import Anatomy
from spaces.canonical import to_plain


def _prepared(key: str) -> Prepared:
    baseline = Artifact("a", "model.onnx", {}, 10, 0.0)
    return Prepared(key, "holdout", Anatomy(()), {}, (), baseline, "by time", {"test": 9}, 3, {}, {"baseline": 0.8})


class Begun:
    """A study with what was noted, and so many trials."""

    def __init__(self, trials: int) -> None:
        self.facts: dict[str, Any] = {"prepared": to_plain(_prepared("old"))}
        self.trials = trials

    def finished(self) -> list[int]:
        return list(range(self.trials))

    def note(self, **facts: Any) -> None:
        self.facts |= facts


@pytest.mark.parametrize(("key", "trials", "refused"), [("old", 3, False), ("new", 0, False), ("new", 3, True)])
def test_a_study_goes_on_with_the_checkpoint_it_was_begun_with(
    key: str, trials: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "prepared_by", lambda *asked: _prepared(key))
    study = Begun(trials)
    session: Any = SimpleNamespace(config=SimpleNamespace(name="shop"), home=None, study=study)
    if not refused:
        assert launch.prepare(session, None, Console(True, False)).key == key  # type: ignore[arg-type]
        assert study.facts["prepared"]["key"] == key
        return
    with pytest.raises(ConfigError, match=r"recommender: must give the model, data and requests that the study 'shop'"):
        launch.prepare(session, None, Console(True, False))  # type: ignore[arg-type]
    assert study.facts["prepared"]["key"] == "old"
