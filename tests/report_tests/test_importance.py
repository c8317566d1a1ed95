"""The table of knobs that matter, in the page of a study."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from search.report.importance import importance_rows
from search.report.report import write_report
from search.samplers.knob_importance import KnobImportance
from tests.search_tests.documents import read_front

GIVEN = {
    "latency_p95": (KnobImportance("pruning.mlp", 0.7, 0.4), KnobImportance("placement.layout", 0.3, 0.6)),
    "quality": (KnobImportance("distillation.epochs", 0.995, None), KnobImportance("pruning.top", 0.005, None)),
}


def test_knobs_are_in_the_order_of_their_largest_share(front_document: dict[str, Any]) -> None:
    """A knob that matters for nothing is left out."""
    rows = importance_rows(replace(read_front(front_document), importance=GIVEN))
    assert [row.knob for row in rows] == ["distillation.epochs", "pruning.mlp", "placement.layout"]
    assert rows[1].by_objective == {"latency_p95": GIVEN["latency_p95"][0]}


def test_the_page_shows_both_estimates(front_document: dict[str, Any], tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    write_report(replace(read_front(front_document), importance=GIVEN), page)
    text = re.sub(r"<[^>]+>", " ", page.read_text().partition("Which knobs matter")[2].partition("<h3>")[0])
    words = " ".join(text.split())
    assert "knob latency p95 quality" in words
    assert "pruning.mlp 70% PED-ANOVA 40%" in words and "distillation.epochs \N{EN DASH} 100%" in words
    write_report(read_front(front_document), page)
    assert "Which knobs matter" not in page.read_text()
