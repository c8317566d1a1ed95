"""Champion and challenger of one registered model: what they are, and how one becomes the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from objectives.errors import InputError
from search.home import Home
from search.ledger.client import open_client
from search.ledger.registry import CHALLENGER, CHAMPION, answering, bundle_of, challenge, check_store, crown

# Tags of a version: the checkpoint that it was built from, and what was decided of it.
CHECKPOINT, DECISION = "leanrec.checkpoint", "leanrec.decision"


@dataclass(frozen=True)
class Aliases:
    """A registered model in a store; methods raise ExplainedError where the store does not answer."""

    name: str
    store: str
    home: Home
    client: MlflowClient

    @classmethod
    def open(cls, name: str, store: str, home: Home) -> Aliases:
        """Open the model that a study's choice registered; InputError where there is none, or no champion."""
        check_store(store, f"models:/{name}", "STUDY")
        found = cls(name, store, home, open_client(store))
        if found.version(CHAMPION) is None:
            raise InputError(f"STUDY: models:/{name}@{CHAMPION} must be registered in {store}, but there is none")
        return found

    def version(self, alias: str) -> ModelVersion | None:
        """Return the version of an alias; None where there is none."""
        with answering(self.store, f"models:/{self.name}", "STUDY"):
            number = self.client.get_registered_model(self.name).aliases.get(alias)
            return None if number is None else self.client.get_model_version(self.name, number)

    def number(self, alias: str) -> str | None:
        """Return the number of an alias's version; None where there is none."""
        found = self.version(alias)
        return None if found is None else str(found.version)

    def numbered(self, number: str) -> ModelVersion:
        """Return a version by its number; InputError where there is none."""
        with answering(self.store, f"models:/{self.name}/{number}", "STUDY"):
            return self.client.get_model_version(self.name, number)

    def folder(self, version: ModelVersion) -> Path:
        """Return the folder of a version's bundle."""
        with answering(self.store, f"models:/{self.name}/{version.version}", "STUDY"):
            return bundle_of(self.client, self.store, version, self.home)

    def challenge(self, folder: Path, checkpoint: str, tags: Mapping[str, str]) -> ModelVersion:
        """Register a bundle as the challenger, once for each checkpoint, in the champion's run.

        Args:
            checkpoint: a hash of its content
        """
        with answering(self.store, f"models:/{self.name}", "STUDY"):
            for known in self.client.search_model_versions(f"name = '{self.name}'"):
                if known.tags.get(CHECKPOINT) == checkpoint:
                    self.client.set_registered_model_alias(self.name, CHALLENGER, known.version)
                    return known
            champion = self.client.get_model_version_by_alias(self.name, CHAMPION)
            return challenge(self.client, self.name, folder, champion.run_id, {**tags, CHECKPOINT: checkpoint})

    def promote(self, version: ModelVersion, reason: str, judged: str | None) -> bool:
        """Make a version the champion; the alias moves last, after the reason is written to the version.

        Args:
            judged: number of the champion that the version was compared with

        Returns:
            False where another one is the champion by now, with which it was not compared.
        """
        if self.number(CHAMPION) not in (judged, str(version.version)):
            return False
        with answering(self.store, f"models:/{self.name}", "STUDY"):
            self.client.set_model_version_tag(self.name, version.version, DECISION, f"promoted: {reason}"[:500])
            crown(self.client, version)
        return True

    def withdraw(self, version: ModelVersion, decision: str) -> None:
        """Take the alias from a challenger that is not promoted, after the decision is written to the version."""
        with answering(self.store, f"models:/{self.name}", "STUDY"):
            self.client.set_model_version_tag(self.name, version.version, DECISION, decision[:500])
            challenger = self.version(CHALLENGER)
            if challenger is not None and challenger.version == version.version:
                self.client.delete_registered_model_alias(self.name, CHALLENGER)
