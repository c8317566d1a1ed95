"""Time of a study by stage, and simulated beside measured values, by numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from objectives.records import EarlyLoss
from search.report.data import hypervolume_curves
from search.report.effort import (
    SIMULATION_COLUMNS,
    drawn_simulations,
    early_sentence,
    effort_figure,
    seconds_by_stage,
    simulation_figure,
    simulations,
)
from tests.search_tests.documents import read_front

Document = dict[str, Any]


def simulated(p95: float | None, throughput: float | None) -> Document:
    return {
        "service_p50_ratio": 0.5, "capacity_ratio": 2.0, "p50_ratio": 0.5, "p95_ratio": p95, "p99_ratio": None,
        "throughput_ratio": throughput,
    }  # fmt: skip


def measured(document: Document, values: list[tuple[float, float, Document | None]]) -> Document:
    """The document with these p95, known to 10%, and throughput ratios in its first complete rows, and no others."""
    rows = [row for row in document["rows"] if row["state"] == "complete"][: len(values)]
    for row, (p95, throughput, one) in zip(rows, values, strict=True):
        row["latency_ms"]["p95_ratio"], row["throughput_ratio"], row["simulated"] = p95, throughput, one
        row["latency_ms"]["p95_ratio_interval"] = [0.9 * p95, 1.1 * p95]
    return {**document, "rows": rows}


def test_seconds_are_summed_by_stage_and_the_final_benchmark_is_one(front_document: Document) -> None:
    rows = front_document["rows"][:2]
    rows[0]["seconds"] = {"cost": 1.0, "fit": None, "export": 2.0, "judge": None, "time": 10.0}
    rows[1]["seconds"] = {"cost": 0.5, "fit": None, "export": None, "judge": 0.5, "time": None}
    front = read_front({**front_document, "rows": rows, "final_seconds": 60.0})
    found = seconds_by_stage(front)
    assert [*found.values()] == [1.5, 2.0, 0.5, 10.0, 60.0] and "training" not in found
    figure: Any = effort_figure(front)
    assert dict(zip(figure["data"][0]["y"], figure["data"][0]["x"], strict=True)) == found


def test_simulated_values_stand_beside_measured_ones(front_document: Document) -> None:
    """Measured over simulated is 2, 1.5 and 1: corrected by 1.5, the errors are log 4/3, 0 and log 3/2."""
    values = [
        (0.2, 4.0, simulated(0.1, 4.0)), (0.3, 8.0, simulated(0.2, 4.0)), (0.4, 6.0, simulated(0.4, 6.0)),
        (0.5, 3.0, None), (0.5, 3.0, simulated(None, None)),
    ]  # fmt: skip
    p95, throughput, *others = simulations(read_front(measured(front_document, values)))
    assert (p95.simulated, p95.measured) == ((0.1, 0.2, 0.4), (0.2, 0.3, 0.4))
    assert p95.correction == pytest.approx(1.5) and p95.error == pytest.approx(0.2877, rel=1e-3)
    assert throughput.correction == 1.0 and throughput.error == 0.0
    assert [column.cell(p95).text for column in SIMULATION_COLUMNS] == ["p95 ratio", "3", "1.5x", "29%", "11%"]
    assert [one.name for one in others] == ["service p50 ratio", "capacity ratio"], (
        "of the others nothing was simulated"
    )
    assert drawn_simulations([p95, throughput, *others]) == [p95, throughput]
    figure: Any = simulation_figure((p95, throughput))
    line, ours, theirs = figure["data"]
    assert line["x"] == line["y"] and line["x"][0] < 0.1 and line["x"][1] > 8
    assert (ours["x"], ours["y"]) == (p95.simulated, p95.measured) and theirs["name"] == "throughput ratio"


def test_nothing_is_said_where_nothing_was_simulated(front_document: Document) -> None:
    assert simulations(read_front(measured(front_document, [(0.2, 4.0, None)]))) == ()


def test_what_a_final_benchmark_passed_over_adds_no_hypervolume(front_document: Document) -> None:
    before = hypervolume_curves(read_front(front_document))[0].hypervolume[-1]
    best = max(
        (row for row in front_document["rows"] if row["on_front"] and row["trial"]),
        key=lambda row: row["throughput_ratio"] / row["latency_ms"]["p95_ratio"],
    )
    best["passed_over"] = True
    after = hypervolume_curves(read_front(front_document))[0].hypervolume[-1]
    assert 0 <= after < before


def test_the_report_says_how_often_stopping_was_wrong(front_document: dict[str, Any]) -> None:
    """Weights count once, whose other placements may have reached the front."""
    front = read_front(front_document)
    assert early_sentence(front) == ""
    on, off = next(row for row in front.rows if row.on_front), next(row for row in front.rows if not row.on_front)
    prunable = EarlyLoss(0.3, 0.2, 0.1, True)
    rows = [
        replace(off, weights="w1", widths={}, early=prunable),
        replace(off, weights="w1", widths={}, early=prunable),
        replace(off, weights="w2", widths={}, early=prunable),
        replace(off, weights="w3", widths={"mlp": "fp32"}, early=prunable),
        replace(off, weights="w4", widths={"mlp": "fp32"}, early=prunable),
        replace(on, weights="w4", early=None),
        replace(off, weights="w5", widths={}, early=EarlyLoss(0.0)),
    ]
    said = early_sentence(replace(front, rows=tuple(rows)))
    assert "2 trainings were stopped; 2 of no better" in said and "1 of them entered the front" in said
