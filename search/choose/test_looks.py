"""Evaluations on test by nightly builds of one recipe, numbered, and recorded in the home."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from search.home import Home
from spaces.serialization import digest


@dataclass(frozen=True)
class Looks:
    """Evaluations on test by one recipe, by model.

    Every build of a new checkpoint is one more chance for the bound of a loss to hold by luck, so the k-th evaluation's
    interval is at `choose.confidence_of(k)`. A refused build leaves no bundle, but counts as well: that is why the
    evaluations are recorded here and not in the bundle only.
    """

    file: Path
    before: int

    @classmethod
    def of(cls, home: Home, recipe: object, before: int) -> Looks:
        """Open the record of a recipe.

        Args:
            recipe: identifies it, as plain data or frozen records
            before: number of evaluations that the bundle reports until it was made, here or in another home
        """
        return cls(home.mlruns / "looks" / f"{digest(recipe)[:20]}.json", before)

    def number(self, model: str) -> int:
        """Return the number of a model's evaluation, recorded at the first call; the same model counts only once."""
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
