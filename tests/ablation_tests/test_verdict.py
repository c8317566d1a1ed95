"""The verdict of an ablation: each case has given intervals."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from objectives.records import SliceQuality
from search.ablation.records import Difference, Effect
from search.ablation.verdict import groups_of, technique_verdict
from spaces.ablations import techniques
from spaces.serialization import from_plain, to_plain
from tests.ablation_tests.ablated import CHOSEN, PROFILE, difference


def said(
    technique: str, found: Difference, groups: tuple[str, ...] | None = ("tables",), profile: Any = PROFILE
) -> str:
    return technique_verdict(technique, Effect(technique, None, "without", CHOSEN, found), None, groups, profile)


def test_a_gain_is_told_with_its_interval_its_cost_and_its_bytes() -> None:
    found = difference((0.66, 0.64, 0.69), (0.5, 0.4, 0.6), (1.5, 1.4, 1.6), (0.004, 0.001, 0.007), 0.38)
    helped, carried, saved, cost = said("pruning", found).split("; ")
    assert "p95" in helped and "34% [31%, 36%]" in helped
    assert "1.5x" in carried and "[1.4x, 1.6x]" in carried and "62%" in saved
    assert "0.40% of AUC [0.10%, 0.70%]" in cost


@pytest.mark.parametrize(
    ("groups", "why"),
    [
        (("tables",), "tables .*3% .*80%"),
        (("tables.item",), "tables .*3% .*80%"),
        (("mlp", "tables"), "mlp and tables .*73% .*100%"),
        ((), "mlp and tables .*73% .*100%"),
        (None, ".*engine.*27%"),
    ],
)
def test_no_gain_is_said_plainly_and_why(groups: tuple[str, ...] | None, why: str) -> None:
    told = said("narrower weights", difference(), groups)
    assert re.fullmatch(rf"Gained nothing .*: {why}.*; .*AUC .*\[-0\.10%, 0\.30%\]\.", told)


def test_bytes_alone_are_a_gain_but_of_no_time() -> None:
    told = said("narrower weights", difference(bytes_ratio=0.5), profile=None)
    assert re.match("Gained no time .*; .*50% of the bytes; ", told)


def test_harm_and_what_only_the_service_time_shows() -> None:
    assert said("batching", difference((1.2, 1.1, 1.3))).startswith("Harms p95 by 20% [10%, 30%]; ")
    told = said("batching", difference(service=(0.9, 0.88, 0.92)))
    assert re.match(r"Helps service p50 .*10% \[8%, 12%\]", told)
    assert "gains 0.40% of AUC [0.10%, 0.70%]" in said("pruning", difference(loss=(-0.004, -0.007, -0.001)))
    assert "AUC" in said("routing", difference(loss=(0.0, 0.0, 0.0)))


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ((-0.004, -0.007, -0.001), r"Gained 0\.40% of AUC \[0\.10%, 0\.70%\] "),
        ((0.004, 0.001, 0.007), r"Lost 0\.40% of AUC \[0\.10%, 0\.70%\] "),
        ((-0.001, -0.003, 0.001), r"Gained no AUC .*0\.10% \[-0\.10%, 0\.30%\]"),
    ],
)
def test_learning_is_told_by_what_it_learned(loss: tuple[float, float, float], words: str) -> None:
    found = difference(loss=loss)
    for technique, other in (("distillation", "labels"), ("learning with rounding", "rounded")):
        told = said(technique, found)
        assert re.match(words, told) and other in told


def test_slices_that_pay_are_named_and_the_others_are_not() -> None:
    parts = (
        SliceQuality("users with little history", 50, 5, 0.7, 0.71, 0.012, (0.001, 0.023)),
        SliceQuality("rare items", 50, 5, 0.7, 0.7, 0.0, (-0.01, 0.01)),
        SliceQuality("new items", 50, 5, 0.72, 0.7, -0.02, (-0.03, -0.01)),
        SliceQuality("empty", 0, 0, reason="there is none"),
    )
    told = said("pruning", difference(slices=parts))
    assert "; users with little history lose 1.20% [0.10%, 2.30%]; new items gain 2.00% [1.00%, 3.00%]" in told
    assert "rare" not in told


def test_a_technique_known_only_alone_says_so() -> None:
    alone = Effect("pruning", None, "alone", CHOSEN, difference((0.5, 0.45, 0.55)))
    assert technique_verdict("pruning", None, alone, ("mlp",), PROFILE).startswith("Alone, ")
    failed = replace(alone, difference=None, reason="it broke")
    assert "it broke" in technique_verdict("pruning", failed, None, (), None)
    with pytest.raises(ValueError, match="reason"):
        replace(alone, reason="and more")


def test_effects_are_read_back_as_they_were() -> None:
    effect = Effect("narrower weights", "tables", "alone", CHOSEN, difference(), timings="x.npz")
    assert from_plain(Effect, json.loads(json.dumps(to_plain(effect)))) == effect


def test_every_technique_has_its_groups() -> None:
    known = {part.name: groups_of(part.name, part.group, CHOSEN) for part in techniques(CHOSEN)}
    assert known == {
        "pruning": ("mlp",),
        "distillation": (),
        "narrower weights": ("tables",),
        "engine and threads": None,
    }
