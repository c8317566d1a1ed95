"""Warnings about a benchmark beside its numbers reach the reader of the verdict."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from objectives.records import Latency
from search.verdict import best_compromise, helps, interference_warnings, verdict
from tests.search_tests.documents import read_front
from tests.search_tests.measurements import complete_outcome


def latency(**changes: Any) -> Latency:
    """A p95 ratio of 0.500 [0.475, 0.525] over 22 pairs, of which 20 were kept."""
    measured = complete_outcome(0.5).measurement
    assert measured is not None
    return replace(measured.latency, **{"p95_ratio_all": 0.5, "pairs": 22, **changes})


def test_of_a_calm_benchmark_nothing_is_said() -> None:
    assert interference_warnings(latency()) == []
    assert interference_warnings(latency(p95_ratio_interval=(0.42, 0.62))) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"p95_ratio_interval": (0.35, 0.7)}, r"p95 .*\[0\.350, 0\.700\].* p50 .*0\.500 \[0\.475, 0\.525\].*capacity"),
        ({"p95_ratio_interval": (0.0, 0.7)}, r"p95 .*\[0\.000, 0\.700\]"),
        ({"p95_ratio_all": 0.6}, r"22 pairs .*p95 .*0\.600"),
        ({"p95_ratio_all": 0.4}, r"22 pairs .*p95 .*0\.400"),
        ({"busy_share": 0.2}, "processes .*20% of a core"),
        ({"drift": 2.0}, "baseline.* 2x"),
        ({"lateness": 0.2}, "generator .*20% of the p95"),
    ],
)
def test_what_weakens_a_benchmark_is_said(changes: dict[str, Any], said: str) -> None:
    (sentence,) = interference_warnings(latency(**changes))
    assert re.search(said, sentence)


def test_the_verdict_tells_what_weakens_the_timing_of_its_subject(
    front_document: dict[str, Any], choose_trial: Any
) -> None:
    rows = front_document["rows"]
    best = best_compromise([p for p in read_front(front_document).points if helps(p)], front_document["max_loss"])
    for row in rows:
        row["warnings"] = [f"number {row['trial']} was disturbed"]
    trial = best.trial
    found = [line for line in verdict(read_front(front_document)).sentences if "disturbed" in line]
    assert len(found) == 1 and re.search(rf"trial {trial}\b.*number {trial} was disturbed", found[0])
    front_document["chosen"] = choose_trial(front_document, trial, (0.001, 0.006))
    front_document["chosen"]["confirmed"]["warnings"] = ["the long window was disturbed"]
    found = [line for line in verdict(read_front(front_document)).sentences if "disturbed" in line]
    assert len(found) == 1 and re.search(rf"trial {trial}\b.*window was disturbed", found[0])
