"""Work of a watch's steps: build, register, shadow, promote or refuse."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from objectives.errors import ExplainedError, InputError
from objectives.serving.bundle import Bundle, read_bundle, verify
from search.checkpoints.promotion import Promotion, told
from search.checkpoints.watch_state import Outcome, Step, Work
from search.choose.rebuild import RebuildResult, made_by, read_recipe, rebuild
from search.cli.console import Console
from search.errors import JobError, LostJobError
from search.home import Home
from search.ledger.aliases import Aliases
from search.ledger.registry import CHALLENGER, CHAMPION
from search.locking import locked

# Environment variable by which a factory finds the checkpoint that it is to load.
ENVIRONMENT = "LEANREC_CHECKPOINT"


@dataclass(frozen=True)
class Steps:
    """The steps of one registered model; implements `Actions`.

    model: factory of the checkpoint; None for the recipe's
    patience_s: longest time of shadowing
    """

    aliases: Aliases
    promotion: Promotion
    home: Home
    model: str | None
    patience_s: float
    console: Console

    @cached_property
    def _bundles(self) -> dict[str, Bundle]:
        """Verified bundles by version, since shadowing looks at them again and again."""
        return {}

    def folder(self, checkpoint: str) -> Path:
        """Return the folder of a checkpoint at work."""
        return self.home.watch(self.aliases.name) / checkpoint

    def copy_of(self, checkpoint: str, file: str) -> Path:
        """Return the place of the copy that a bundle is built from."""
        return self.folder(checkpoint) / "checkpoint" / Path(file).name

    def build(self, work: Work) -> tuple[Step, str]:
        """Apply the champion's recipe to the checkpoint.

        The checkpoint is refused where the factory, the build or the bundle's policy has anything against it.

        Raises:
            LostJobError: a worker's process died, which may not be the checkpoint's fault.
            ConfigError: the study is being run.
        """
        copy, out = self.copy_of(work.checkpoint, work.file), self.folder(work.checkpoint) / "bundle"
        if not copy.is_file():
            raise ExplainedError(f"the copy of the checkpoint must lie at {copy}, but is gone")
        champion = self.aliases.folder(self.aliases.numbered(self._champion()))
        recipe = read_recipe(champion, self.model)
        with locked(self.home, recipe.config.name), _in_environment(copy):
            try:
                found: RebuildResult = rebuild(recipe, self.home, out, self.console)
                if not found.accepted:
                    return "refuse", found.reason.removeprefix("refused: ")
                verify(out)
            except LostJobError:
                raise
            except (InputError, JobError) as error:
                return "refuse", " ".join(str(error).split())
        made = made_by(out)
        if made is not None and made == made_by(champion):
            return "leave", (
                "the factory gave the model that the champion was made of; if the checkpoint is another one, "
                f"the factory has to load {ENVIRONMENT}"
            )
        return "register", found.reason

    def register(self, work: Work) -> str:
        out = self.folder(work.checkpoint) / "bundle"
        tags = {"candidate": read_bundle(out).candidate.id, "reason": work.reason[:500]}
        return str(self.aliases.challenge(out, work.checkpoint, tags).version)

    def shadow(self, work: Work) -> tuple[Step, str, str]:
        assert work.version is not None and work.since is not None
        champion, aliased = self._champion(), self.aliases.number(CHALLENGER)
        if work.version not in (champion, aliased):
            # Another version was registered meanwhile, and took the alias.
            self.aliases.challenge(self.folder(work.checkpoint) / "bundle", work.checkpoint, {})
        found = self.promotion.verdict(self._bundle(champion), self._bundle(work.version))
        if found.outcome == "promoted":
            return "promote", told(found), champion
        assert found.broken is not None
        if found.outcome == "refused":
            return "refuse", found.broken, champion
        if time.time() - work.since > self.patience_s:
            return "give up", f"after {self.patience_s / 60:g} minutes of shadowing: {found.broken}", champion
        return "shadow", work.reason, champion

    def promote(self, work: Work) -> bool:
        assert work.version is not None
        return self.aliases.promote(self.aliases.numbered(work.version), work.reason, work.champion)

    def withdraw(self, work: Work, outcome: Outcome) -> None:
        if work.version is not None:
            self.aliases.withdraw(self.aliases.numbered(work.version), f"{outcome}: {work.reason}")

    def clear(self, work: Work) -> None:
        shutil.rmtree(self.folder(work.checkpoint), ignore_errors=True)

    def _champion(self) -> str:
        if (number := self.aliases.number(CHAMPION)) is None:
            raise InputError(f"STUDY: models:/{self.aliases.name}@{CHAMPION} must be registered, but there is none")
        return number

    def _bundle(self, number: str) -> Bundle:
        if number not in self._bundles:
            self._bundles[number] = read_bundle(self.aliases.folder(self.aliases.numbered(number)))
        return self._bundles[number]


@contextmanager
def _in_environment(copy: Path) -> Iterator[None]:
    """Tell the workers, and the factory in them, where the checkpoint lies."""
    before = os.environ.get(ENVIRONMENT)
    os.environ[ENVIRONMENT] = str(copy)
    try:
        yield
    finally:
        if before is None:
            del os.environ[ENVIRONMENT]
        else:
            os.environ[ENVIRONMENT] = before
