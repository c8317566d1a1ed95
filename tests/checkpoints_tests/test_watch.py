"""The watch over a real registry, with toy bundles in place of builds, and the state that a server would write."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from objectives.shadow.state import ShadowState, write_state
from search.checkpoints import steps as steps_module
from search.checkpoints.promotion import Promotion
from search.checkpoints.promotion_policy import PromotionPolicy
from search.checkpoints.steps import ENVIRONMENT, Steps
from search.checkpoints.watch import STATE, Watch, WatchIntervals
from search.checkpoints.watch_state import MOST_BUILDS, Decided, read_watch
from search.cli.console import Console
from search.cli.parser import run_command
from search.errors import ConfigError, LostJobError
from search.home import Home
from search.ledger import registry
from search.ledger.aliases import CHECKPOINT, DECISION, Aliases
from search.ledger.registry import CHALLENGER, CHAMPION
from tests.checkpoints_tests.registered import crowned, good_state, open_aliases, study_file
from tests.serve_tests.bundles import write_toy

QUIET = Console(True, True)


class KilledError(BaseException):
    """The process ends here."""


class Nights:
    """A home with a champion, a folder of checkpoints, and a server that shadows whatever is the challenger."""

    def __init__(self, home: Home, folder: Path) -> None:
        self.home, self.folder = home, folder / "checkpoints"
        self.folder.mkdir()
        self.aliases: Aliases = crowned(home, write_toy(folder / "first"))
        self.copies: list[Path] = []

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        os.utime(self.folder / name, (len(list(self.folder.iterdir())),) * 2)

    def watch(self, policy: PromotionPolicy | None = None, patience_s: float = 60.0) -> Watch:
        promotion = Promotion(
            self.aliases,
            self.home.shadow_states("toy"),
            policy or PromotionPolicy(),
            False,
            lambda *of: (None, "no rows"),
        )
        steps = Steps(self.aliases, promotion, self.home, None, patience_s, QUIET)
        return Watch(self.folder, steps, WatchIntervals(0.01, 0.01, 0.05), QUIET)

    def once(self, policy: PromotionPolicy | None = None, patience_s: float = 60.0) -> Decided | None:
        with self.serving():
            return self.watch(policy, patience_s).once()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Write the state of a good challenger beside the champion, as long as there is one."""
        stop = threading.Event()

        def serve() -> None:
            aliases = open_aliases(self.home)
            while not stop.wait(0.05):
                champion, challenger = aliases.version(CHAMPION), aliases.version(CHALLENGER)
                if champion is not None and challenger is not None:
                    folders = aliases.folder(champion), aliases.folder(challenger)
                    write_state(good_state(*folders), self.home.shadow_states("toy") / "a-0.json")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def aliased(self) -> dict[str, str]:
        aliases = self.aliases.client.get_registered_model("toy").aliases
        return {name: str(version) for name, version in aliases.items()}

    def versions(self) -> int:
        return len(self.aliases.client.search_model_versions("name = 'toy'"))

    def rebuild(self, recipe: object, home: Home, out: Path, console: Console) -> Any:
        """Stand in for a build: the checkpoint's text tells what becomes of it."""
        copy = Path(os.environ[ENVIRONMENT])
        self.copies.append(copy)
        text = copy.read_text()
        if text == "broken":
            raise ConfigError("shop:factory: must give a model, but raised RuntimeError")
        if text == "lost":
            raise LostJobError("The builder was ended by SIGKILL")
        if text == "bad":
            return SimpleNamespace(accepted=False, reason="refused: it loses 33%")
        write_toy(out, seed=int(text))
        return SimpleNamespace(accepted=True, reason="its loss is 0%")


@pytest.fixture
def nights(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nights:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    found = Nights(home, tmp_path)
    recipe = SimpleNamespace(config=SimpleNamespace(name="toy"))
    monkeypatch.setattr(steps_module, "read_recipe", lambda folder, model: recipe)
    monkeypatch.setattr(steps_module, "rebuild", found.rebuild)
    return found


def test_checkpoints_are_promoted_and_refused_once_each(nights: Nights) -> None:
    assert nights.once() is None, "there is no checkpoint yet"
    outcomes = []
    for name, text in (("a.pt", "1"), ("b.pt", "bad"), ("c.pt", "broken"), ("d.pt", "2")):
        nights.write(name, text)
        found = nights.once()
        assert found is not None and found.file == str(nights.folder / name)
        outcomes.append((found.outcome, found.reason.partition(";")[0]))
        assert nights.once() is None, "the same checkpoint again is none"
    assert outcomes == [
        ("promoted", "requests shadowed 2,000"),
        ("refused", "it loses 33%"),
        ("refused", "shop:factory: must give a model, but raised RuntimeError"),
        ("promoted", "requests shadowed 2,000"),
    ]
    assert nights.aliased() == {"champion": "3"} and nights.versions() == 3
    tags = nights.aliases.numbered("3").tags
    assert (
        tags[DECISION].startswith("promoted") and tags[CHECKPOINT] == read_watch(_file(nights)).decided[-1].checkpoint
    )
    assert [path.name for path in nights.copies] == ["a.pt", "b.pt", "c.pt", "d.pt"]
    assert not any(path.exists() for path in nights.copies) and ENVIRONMENT not in os.environ
    nights.write("e.pt", "2")
    assert nights.once() is None, "its content was decided under another name"


def _file(nights: Nights) -> Path:
    return nights.home.watch("toy") / STATE


@pytest.mark.parametrize("place", ["registered", "aliased", "promoted", "crowned"])
def test_a_kill_between_the_registrys_own_steps_changes_nothing(
    place: str, nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends after a version is made, after its alias is set, and on both sides of the champion's alias."""
    nights.write("a.pt", "1")
    client = type(nights.aliases.client)
    alias, delete = client.set_registered_model_alias, client.delete_registered_model_alias

    def set_alias(self: Any, name: str, given: str, version: str) -> None:
        if place == "registered" and given == CHALLENGER:
            raise KilledError
        if place == "promoted" and given == CHAMPION:
            raise KilledError
        alias(self, name, given, version)
        if place == "aliased":
            raise KilledError

    def delete_alias(self: Any, name: str, given: str) -> None:
        if place == "crowned":
            raise KilledError
        delete(self, name, given)

    with monkeypatch.context() as patch:
        patch.setattr(client, "set_registered_model_alias", set_alias)
        patch.setattr(client, "delete_registered_model_alias", delete_alias)
        with pytest.raises(KilledError):
            nights.once()
    found = nights.once()
    assert found is not None and found.outcome == "promoted"
    assert nights.aliased() == {"champion": "2"} and nights.versions() == 2 and len(nights.copies) == 1


def test_shadowing_that_breaks_the_policy_refuses_and_takes_the_alias_away(nights: Nights) -> None:
    nights.write("a.pt", "1")
    found = nights.once(PromotionPolicy(max_difference=0.01))
    assert found is not None and found.outcome == "refused" and "mean difference of scores" in found.reason
    assert nights.aliased() == {"champion": "1"} and nights.aliases.numbered("2").tags[DECISION].startswith("refused")


def test_patience_ends(nights: Nights) -> None:
    nights.write("a.pt", "1")
    watch = nights.watch(PromotionPolicy(min_requests=5000), patience_s=0.2)
    steps = watch._steps
    shadow = steps.shadow

    def look(work: Any) -> Any:
        versions = nights.aliases.version(CHAMPION), nights.aliases.version(CHALLENGER)
        folders = [nights.aliases.folder(version) for version in versions if version is not None]
        write_state(good_state(*folders), nights.home.shadow_states("toy") / "a-0.json")
        return shadow(work)

    object.__setattr__(steps, "shadow", look)
    found = watch.once()
    assert found is not None and found.outcome == "undecided"
    assert "must be at least 5,000, but is 2,000" in found.reason
    assert nights.aliased() == {"champion": "1"} and nights.aliases.numbered("2").tags[DECISION].startswith("undecided")
    assert nights.once() is None, "it is decided once"


def test_another_champion_meanwhile_is_the_one_to_beat(nights: Nights, tmp_path: Path) -> None:
    """A choice registers a bundle while a challenger is shadowed: its alias is given back."""
    nights.write("a.pt", "1")
    watch = nights.watch()
    steps, state = watch._steps, nights.home.shadow_states("toy") / "a-0.json"
    write_state(ShadowState("x", "y"), state)
    looks = []
    shadow = steps.shadow

    def look(work: Any) -> Any:
        if not looks:
            other = write_toy(tmp_path / "other", seed=7)
            run = nights.aliases.numbered("1").run_id
            assert registry.register(nights.aliases.client, nights.aliases.store, "toy", other, run, {}).refused is None
            assert nights.aliased() == {"champion": "3"}
        found = shadow(work)
        looks.append(nights.aliased())
        return found

    object.__setattr__(steps, "shadow", look)
    with nights.serving():
        found = watch.once()
    assert found is not None and found.outcome == "promoted" and looks[0] == {"champion": "3", "challenger": "2"}
    assert nights.aliased() == {"champion": "2"}


def test_lost_workers_are_tried_again_and_then_refused(nights: Nights) -> None:
    nights.write("a.pt", "lost")
    watch = nights.watch()
    for _ in range(MOST_BUILDS):
        with pytest.raises(LostJobError):
            watch.once()
    found = watch.once()
    assert found is not None and found.outcome == "refused" and "cut short" in found.reason


def test_the_commands_status_tells_the_outcome(
    nights: Nights, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["watch", study_file(tmp_path), "--home", str(nights.home.root), "--checkpoint", str(nights.folder)]
    words += ["--once", "--settle", "0.01", "--quiet"]
    assert run_command(words) == 0
    assert "there is no new checkpoint" in capsys.readouterr().out
    nights.write("a.pt", "bad")
    assert run_command(words) == 1
    assert "a.pt" in (out := capsys.readouterr().out) and "is refused: it loses 33%" in out
    assert run_command([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"outcome": None}
