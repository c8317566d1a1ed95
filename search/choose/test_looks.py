"""Looks at test by nightly builds of one recipe: numbered, and kept in the home."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from search.home import Home
from spaces.serialization import digest


@dataclass(frozen=True)
class Looks:
    """The looks that a recipe took at test, by what was looked at.

    Every build of a new checkpoint is one more chance for the bound of a loss to hold by luck, so the k-th look's
    interval is at `choose.confidence_of(k)`. A build that is refused leaves no bundle, but was a look all the same:
    that is why they are kept here and not in the bundle alone.
    """

    file: Path
    before: int

    @classmethod
    def of(cls, home: Home, recipe: object, before: int) -> Looks:
        """
        Args:
            recipe: whatever names it, as plain data or frozen records
            before: looks that the bundle says were taken until it was made, here or in another home
        """
        return cls(home.mlruns / "looks" / f"{digest(recipe)[:20]}.json", before)

    def number(self, model: str) -> int:
        """The number of the look at a model, noted with the first call; another look at the same model is none."""
        known = self._known()
        if model not in known:
            known[model] = 1 + max(self.before, *known.values(), 0)
            self.file.parent.mkdir(parents=True, exist_ok=True)
            partial = self.file.with_suffix(".partial")
            partial.write_text(json.dumps(known, indent=1) + "\n")
            partial.rename(self.file)
        return known[model]

    def _known(self) -> dict[str, int]:
        found: dict[str, int] = json.loads(self.file.read_text()) if self.file.exists() else {}
        return found
