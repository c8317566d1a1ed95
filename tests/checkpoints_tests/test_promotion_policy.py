"""Conditions of a promotion, one by one and together."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from objectives.records import Quality
from objectives.shadow.state import Counts
from objectives.shadow.summary import Quantiles, ShadowSummary
from search.checkpoints.promotion_policy import PromotionPolicy, loss_condition, reasons, shadow_conditions
from search.errors import ConfigError

POLICY = PromotionPolicy(
    min_requests=100, min_seconds=60, max_p95_ratio=1.2, max_difference=0.8, min_agreement=0.5, max_loss=0.01
)
_MS = Quantiles(1.0, 2.0, None)
GOOD = ShadowSummary(
    champion="a", challenger="b", seconds=60.0, counts=Counts(shadowed=100, dropped=7, refused=9, starved=2),
    mean_difference=0.8, max_difference=5.0, rank_agreement=0.5, ranked_requests=3, timed_requests=100,
    champion_ms=_MS, challenger_ms=_MS, windows=32, p95_ratio=1.1, p95_ratio_interval=(1.0, 1.2), unusable=None,
    last_failure=None,
)  # fmt: skip


def test_every_limit_holds_at_its_edge() -> None:
    found = shadow_conditions(POLICY, GOOD)
    assert all(condition.holds for condition in found) and reasons(found) is None
    assert [condition.name for condition in found] == [
        "requests shadowed", "seconds of shadowing", "failures", "requests with non-finite scores",
        "upper bound of the p95 ratio", "mean difference of scores", "top rows in common",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "name", "words", "final"),
    [
        (
            {"counts": Counts(shadowed=99, dropped=7, refused=9, starved=2)},
            "requests shadowed",
            ("99 (7 dropped, 9 refused, 2 starved of CPU)", "100"),
            False,
        ),
        ({"seconds": 59.0}, "seconds of shadowing", ("59", "60"), False),
        ({"counts": Counts(shadowed=100, failed=2), "last_failure": "it hung"}, "failures", ("2 (it hung)",), True),
        ({"counts": Counts(shadowed=100, not_finite=1)}, "requests with non-finite scores", ("1 (",), True),
        ({"p95_ratio_interval": (1.0, 1.21)}, "upper bound of the p95 ratio", ("1.21", "1.2x"), False),
        ({"p95_ratio_interval": (1.3, 1.5)}, "upper bound of the p95 ratio", ("1.5", "1.2x"), True),
        ({"p95_ratio_interval": (0.5, 3.0)}, "upper bound of the p95 ratio", ("0.5x to 3x", "32 windows"), False),
        (
            {"p95_ratio": None, "p95_ratio_interval": None, "windows": 31},
            "upper bound of the p95 ratio",
            ("not known: 31 windows, of 32",),
            False,
        ),
        ({"mean_difference": 0.81}, "mean difference of scores", ("0.81", "0.8"), True),
        ({"mean_difference": None}, "mean difference of scores", ("–",), True),
        ({"rank_agreement": 0.49}, "top rows in common", ("49%", "50%"), True),
        ({"rank_agreement": None}, "top rows in common", ("–",), True),
        ({"unusable": "it was changed"}, "challenger", ("it was changed",), True),
    ],
)
def test_a_limit_that_is_broken_is_told_alone(
    change: dict[str, Any], name: str, words: tuple[str, ...], final: bool
) -> None:
    found = shadow_conditions(POLICY, replace(GOOD, **change))
    (broken,) = (condition for condition in found if not condition.holds)
    assert broken.name == name and broken.final == final
    line = reasons(found)
    assert line is not None and line.startswith(f"{name}: must be ") and all(word in line for word in words)


def test_scores_are_judged_once_there_are_enough_requests() -> None:
    early = replace(GOOD, counts=Counts(shadowed=10), mean_difference=3.0, p95_ratio_interval=(2.0, 3.0))
    assert not any(condition.final for condition in shadow_conditions(POLICY, early))


def test_no_agreement_is_asked_for_where_the_policy_has_none() -> None:
    found = shadow_conditions(replace(POLICY, min_agreement=None), replace(GOOD, rank_agreement=None))
    assert reasons(found) is None


def test_the_loss_is_held_to_its_limit() -> None:
    def quality(loss: float) -> Quality:
        return Quality("auc", 0.7, 0.7, loss, (loss - 0.01, loss + 0.01), 2000, 100)

    assert loss_condition(0.01, quality(0.01), None).holds and loss_condition(0.01, quality(-0.2), None).holds
    broken = loss_condition(0.01, quality(0.011), None)
    assert not broken.holds and broken.final and "1.10%" in broken.value and "1%" in broken.limit
    unknown = loss_condition(0.01, None, "the study was not run")
    assert not unknown.holds and not unknown.final and "the study was not run" in unknown.value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_requests", 0), ("min_seconds", -1), ("max_p95_ratio", 0), ("max_p95_ratio", math.nan),
        ("max_difference", -0.1), ("min_agreement", 1.1), ("max_loss", -0.1),
    ],
)  # fmt: skip
def test_a_limit_that_is_none_is_bad_input(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: must .*but got"):
        replace(POLICY, **{field: value})
