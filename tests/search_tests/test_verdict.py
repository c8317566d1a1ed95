"""Sentences of the verdict, and above all when each may stand."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from search.format import column_percent, milliseconds, percent, significant, size, times
from search.results import Point
from search.verdict import Verdict, alike_trials, best_compromise, helps, subject
from search.verdict import verdict as verdict_of
from tests.search_tests.documents import read_front

Document = dict[str, Any]


def verdict(document: Document) -> Verdict:
    return verdict_of(read_front(document))


def whole(words: Verdict) -> str:
    return " ".join([words.headline, *words.sentences])


def winner(document: Document) -> Point:
    points = [point for point in read_front(document).points if helps(point)]
    return best_compromise([point for point in points if point.on_front] or points, document["max_loss"])


# Every candidate gets the given loss, p95 ratio or throughput ratio, with an interval around it.
def spoil(document: Document, refresh: Callable[[Document], Document], **changes: float) -> Document:
    for row in document["rows"][1:]:
        if row["state"] == "complete":
            if "loss" in changes:
                loss = changes["loss"]
                row["quality"] |= {"loss": loss, "loss_interval": [loss - 0.001, loss + 0.001]}
            if "p95" in changes:
                p95 = changes["p95"]
                row["latency_ms"] |= {"p95_ratio": p95, "p95_ratio_interval": [0.9 * p95, 1.1 * p95]}
            if "throughput" in changes:
                ratio = changes["throughput"]
                row |= {"throughput_ratio": ratio, "throughput_ratio_interval": [0.9 * ratio, 1.1 * ratio]}
    return refresh(document)


def test_a_search_alone_speaks_of_validation(front_document: Document) -> None:
    words = verdict(front_document)
    point = winner(front_document)
    assert re.match(rf"It helped on validation.*trial {point.trial} ", words.headline)
    assert percent(point.p95_ratio) in words.headline
    assert times(point.throughput_ratio) in words.headline
    assert "proved" not in whole(words)
    assert "leanrec choose" in whole(words)


def test_the_verdict_is_about_the_subject_of_the_report(front_document: Document, refresh_front: Any) -> None:
    """A point that helps more by its box alone, and is off the front at the resolution of the data, is not in it."""
    for row in front_document["rows"]:
        if row["state"] == "complete" and row["trial"] and not row["on_front"]:
            row["latency_ms"] |= {"p95_ratio": 0.001, "p95_ratio_interval": [0.0009, 0.0011]}
            row["quality"] |= {"loss": 0.0, "loss_interval": [-0.001, 0.001]}
            row["feasible"] = True
    document = {**front_document}
    best = subject(read_front(document))
    assert best is not None and best.on_front
    assert f"trial {best.trial} " in verdict(document).headline


def test_what_a_final_benchmark_passed_over_is_no_headline(front_document: Document, refresh_front: Any) -> None:
    """The single visit of such a point may have been a lucky one."""
    lucky = winner(front_document)
    row = next(row for row in front_document["rows"] if row["trial"] == lucky.trial)
    row["latency_ms"] |= {"p95_ratio": 0.001, "p95_ratio_interval": [0.0009, 0.0011]}
    row["passed_over"] = True
    said = verdict(refresh_front(front_document))
    assert f"trial {lucky.trial} " not in whole(said) and f"trial {lucky.trial}," not in whole(said)


def with_overhead(document: Document, overhead_ms: float) -> None:
    """Measure the document's study through HTTP, with so long spent elsewhere, for ratios that are told by it."""
    document |= {"through": "http", "overhead_ms": overhead_ms}
    for row in document["rows"]:
        if row["state"] == "complete":
            numbers: Document = {f"{name}_ratio": 0.9 for name in ("p50", "p95")}
            numbers |= {f"{name}_ratio_interval": [0.875, 0.925] for name in ("p50", "p95")}
            numbers |= {"overhead_ms": overhead_ms, "p99_ratio": None, "p99_ratio_interval": None}
            row |= {"through": "http", "with_overhead": numbers}


def test_the_path_of_requests_and_ratios_with_overhead_are_said(front_document: Document) -> None:
    silent = whole(verdict(front_document))
    assert "HTTP" not in silent and "elsewhere" not in silent
    with_overhead(front_document, 4.0)
    words = verdict(front_document)
    assert any("through the HTTP server" in sentence for sentence in words.sentences)
    (told,) = (sentence for sentence in words.sentences if "elsewhere" in sentence)
    assert "4 ms" in told and "p95 0.900 [0.875, 0.925]" in told and "p99" not in told and "SLO covers" in told
    assert percent(winner(front_document).p95_ratio) in words.headline, "what was measured comes first"


def test_proved_is_said_of_a_loss_confirmed_on_test(front_document: Document, choose_trial: Any) -> None:
    trial = winner(front_document).trial
    front_document["chosen"] = choose_trial(front_document, trial, (0.001, 0.006))
    words = verdict(front_document)
    assert re.match(f"It helped.* proved .*trial {trial} .*0.35% of AUC", words.headline)
    assert re.search("0.1% and 0.6%.* once|once.*0.1% and 0.6%", words.sentences[0])


@pytest.mark.parametrize("upper", [0.0101, 0.02])
def test_an_upper_end_above_the_tolerated_loss_is_not_proof(
    front_document: Document, choose_trial: Any, upper: float
) -> None:
    trial = winner(front_document).trial
    front_document["chosen"] = choose_trial(front_document, trial, (0.001, upper), 3)
    words = verdict(front_document)
    assert words.headline.startswith("Not confirmed")
    assert "proved" not in whole(words)
    assert "looked at 3 times" in whole(words)


def test_an_upper_end_at_the_tolerated_loss_is_proof(front_document: Document, choose_trial: Any) -> None:
    trial = winner(front_document).trial
    front_document["chosen"] = choose_trial(front_document, trial, (0.001, front_document["max_loss"]))
    assert "proved" in verdict(front_document).headline


@pytest.mark.parametrize(("tolerated", "upper", "proved"), [(0.03, 0.022, True), (0.005, 0.006, False)])
def test_a_loss_is_proved_by_the_policy_of_the_choice(
    front_document: Document, choose_trial: Any, tolerated: float, upper: float, proved: bool
) -> None:
    """The study tolerates 1%, the policy of `choose` more or less."""
    chosen = choose_trial(front_document, winner(front_document).trial, (0.001, upper))
    front_document["chosen"] = chosen | {"max_loss": tolerated}
    words = verdict(front_document)
    assert ("proved" in words.headline) == proved and f"tolerated {percent(tolerated)}" in whole(words)


def test_a_proved_loss_without_a_gain_is_no_help(
    front_document: Document, choose_trial: Any, refresh_front: Any
) -> None:
    spoil(front_document, refresh_front, p95=1.0, throughput=1.0, loss=0.002)
    trial = next(row["trial"] for row in front_document["rows"][1:] if row["state"] == "complete")
    front_document["chosen"] = choose_trial(front_document, trial, (0.001, 0.003))
    words = verdict(front_document)
    assert words.headline.startswith("Nothing gained")
    assert "It helped" not in whole(words)


def test_choosing_the_baseline_is_no_help(front_document: Document, choose_trial: Any) -> None:
    front_document["chosen"] = choose_trial(front_document, 0, (0.0, 0.0))
    assert re.match("Nothing helped.* baseline", verdict(front_document).headline)


def test_an_interval_over_zero_is_no_loss_that_can_be_shown(front_document: Document, choose_trial: Any) -> None:
    trial = winner(front_document).trial
    front_document["chosen"] = choose_trial(front_document, trial, (-0.002, 0.003))
    assert re.search("no loss .*0.3%", verdict(front_document).headline)


def test_a_gain_in_quality_is_called_one(front_document: Document, choose_trial: Any) -> None:
    trial = winner(front_document).trial
    front_document["chosen"] = choose_trial(front_document, trial, (-0.004, -0.002))
    assert "with AUC better by 0.3%" in verdict(front_document).headline


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss": 0.05}, "lose more .*trial"),
        ({"p95": 1.02, "throughput": 0.97, "loss": 0.002}, "slower"),
        ({"p95": 1.5, "throughput": 0.6, "loss": 0.002}, "slower"),
    ],
)
def test_nothing_helped(front_document: Document, refresh_front: Any, changes: dict[str, float], said: str) -> None:
    words = verdict(spoil(front_document, refresh_front, **changes))
    assert re.match("Nothing helped: .*1%", words.headline)
    assert re.search(said, whole(words))


def test_throughput_alone_is_help_and_slower_is_said(front_document: Document, refresh_front: Any) -> None:
    words = verdict(spoil(front_document, refresh_front, p95=1.5, throughput=3.0, loss=0.002))
    assert re.search(r"150% .*\(1.5x slower\) .*3x its load", words.headline)


def test_less_throughput_is_said_beside_more_speed(front_document: Document, refresh_front: Any) -> None:
    words = verdict(spoil(front_document, refresh_front, p95=0.18, throughput=0.5, loss=0.002))
    assert re.search(r"18% .*\(5.6x faster\), .*only 50% of its load", words.headline)


def test_a_resolution_above_the_tolerated_loss_is_a_doubt(front_document: Document) -> None:
    assert "smallest loss" not in whole(verdict(front_document))
    front_document["resolution"] = 0.02
    said = whole(verdict(front_document))
    assert re.search("smallest loss .*2%, .*1%", said)


def test_few_trials_are_a_doubt(front_document: Document) -> None:
    assert "Only" not in whole(verdict(front_document))
    front_document["rows"] = [row for row in front_document["rows"] if row["state"] == "complete"][:19]
    assert "Only 19 trials" in whole(verdict(front_document))


@pytest.mark.parametrize(("popularity", "regression"), [(0.8, 0.7), (0.7, 0.792), (0.8, 0.81)])
def test_a_baseline_that_loses_to_a_reference_is_a_doubt(
    front_document: Document, popularity: float, regression: float
) -> None:
    assert "does not beat" not in whole(verdict(front_document))
    front_document["references"] |= {"popularity": popularity, "logistic_regression": regression}
    said = whole(verdict(front_document))
    assert re.search(r"0\.792\) does not beat", said)
    assert ("popularity (" in said, "logistic regression (" in said) == (popularity >= 0.792, regression >= 0.792)


def test_references_that_were_not_measured_are_no_doubt(front_document: Document) -> None:
    front_document["references"] = {"popularity": None, "logistic_regression": None, "baseline": None}
    assert "does not beat" not in whole(verdict(front_document))


def test_with_the_baseline_alone_nothing_can_be_said(front_document: Document, refresh_front: Any) -> None:
    front_document["rows"] = front_document["rows"][:1]
    words = verdict(refresh_front(front_document))
    assert words.headline.startswith("Nothing can")


def test_without_a_baseline_nothing_can_be_said(front_document: Document) -> None:
    front_document |= {"baseline": None, "rows": []}
    assert re.match("Nothing can .*baseline", verdict(front_document).headline)


def test_the_load_carried_on_test_is_the_one_that_counts(front_document: Document, choose_trial: Any) -> None:
    chosen = choose_trial(front_document, winner(front_document).trial, (0.001, 0.006))
    chosen["confirmed"] |= {"throughput_ratio": 1.01, "throughput_ratio_interval": [0.9, 1.1], "p95_ms": 7.77}
    front_document["chosen"] = chosen
    words = verdict(front_document)
    assert "no change in load" in words.headline and re.search("7.77 ms .*1.34 ms", whole(words))


def test_points_too_close_to_tell_apart_are_counted(front_document: Document, refresh_front: Any) -> None:
    best = winner(front_document)
    twin = next(row for row in front_document["rows"] if row["trial"] == best.trial) | {"trial": 99}
    front_document["rows"].append(twin)
    refresh_front(front_document)
    assert 99 in alike_trials(read_front(front_document), best)
    assert "too close" in whole(verdict(front_document))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (percent(0.0035), "0.35%"),
        (percent(0.18), "18%"),
        (percent(0), "0%"),
        (percent(-0.001), "-0.1%"),
        (percent(1.2), "120%"),
        (times(1 / 0.18), "5.6x"),
        (times(1.03), "1.03x"),
        (times(81.3), "81x"),
        (milliseconds(0.254), "0.254 ms"),
        (milliseconds(1234.5), "1,234 ms"),
        (significant(0.0996), "0.1"),
        (size(812_345), "812 kB"),
        (size(2.5e9), "2.5 GB"),
        (column_percent(-1e-7), "0.00%"),
    ],
)
def test_numbers_in_words(said: str, expected: str) -> None:
    assert said == expected
