"""The page's scripts outside a page: in V8, as Chromium has it, without a document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from py_mini_racer import MiniRacer

from search.report.page_data import Links, page_data
from search.results import Front

TEMPLATES = Path(__file__).resolve().parents[2] / "search" / "report" / "templates"


class Scripts:
    """Scripts that need no document, on the data of one study."""

    def __init__(self, front: Front, links: Links | None = None) -> None:
        self._engine = MiniRacer()
        for name in ("format.js", "policy.js", "trials.js"):
            self._engine.eval((TEMPLATES / name).read_text(encoding="utf-8"))
        data = json.dumps(page_data(front, links or Links()), allow_nan=False)
        self._engine.eval(f"const study = {data}; study.baseline_at = study.trials.numbers.indexOf(0);")
        self._engine.eval("const rows = readTrials(study), knobs = readKnobs(study);")

    def run(self, expression: str, **values: Any) -> Any:
        """The value of an expression in which the values are variables."""
        names, given = ", ".join(values), ", ".join(json.dumps(value) for value in values.values())
        return json.loads(self._engine.eval(f"JSON.stringify((({names}) => ({expression}))({given}))"))
