"""Limits of the loss, over all rows and on slices."""

from __future__ import annotations

import re

import pytest

from objectives.records import Quality, SliceQuality
from search.config.loss_limits import Limits, check_slices
from search.errors import ConfigError


def quality(loss: float, *slices: tuple[str, float]) -> Quality:
    parts = tuple(SliceQuality(n, 10, 3, 0.7, 0.7, value, (value - 0.01, value + 0.01)) for n, value in slices)
    return Quality("auc", 0.7, 0.7, loss, (loss - 0.001, loss + 0.001), 100, 9, 0.95, parts)


LIMITS = Limits(0.01, {"rare items": 0.03})


@pytest.mark.parametrize(
    ("found", "kept", "violated", "unproved"),
    [
        (quality(0.005, ("rare items", 0.01)), True, None, None),
        (quality(0.0095, ("rare items", 0.01)), True, None, "1.05%, 0.05% .* 1.00%"),
        (quality(0.005, ("rare items", 0.025)), True, None, "rare items .*3.50%, 0.50% .*3.00%"),
        (
            quality(0.005, ("rare items", 0.035)),
            False,
            r"3.50% \[2.50%, 4.50%\] on rare items .*3.00%",
            "rare items .*4.50%, 1.50% .*3.00%",
        ),
        (
            quality(0.005, ("rare items", 0.05)),
            False,
            r"5.00% \[4.00%, 6.00%\] .*rare items .*3.00%",
            "rare items .*6.00%, 3.00% .*3.00%",
        ),
        (quality(0.02), False, r"2.00% \[1.90%, 2.10%\] .*1.00%", "2.10%, 1.10% .*1.00%"),
        (quality(0.005), True, None, "rare items .*3.00%"),
        (quality(0.005, ("others", 0.5), ("rare items", 0.0)), True, None, None),
    ],
)
def test_limits_are_kept_violated_or_unproved(
    found: Quality, kept: bool, violated: str | None, unproved: str | None
) -> None:
    assert LIMITS.kept(found) == kept
    for line, expected in ((LIMITS.violated(found), violated), (LIMITS.unproved(found), unproved)):
        assert (line is None) == (expected is None) and re.search(expected or "", line or "")


def test_a_slice_that_nobody_limits_is_only_told() -> None:
    assert Limits(0.01).kept(quality(0.005, ("rare items", 0.9)))
    assert Limits(0.01).excesses(quality(0.005, ("rare items", 0.9))) == {"loss on all rows": pytest.approx(-0.005)}


@pytest.mark.parametrize(
    ("parts", "may"),
    [
        (("rare items", "output like"), r"rare items, output like, .*'rare item'; .*'rare items'\?"),
        ((), "'rare item'"),
    ],
)
def test_a_limit_is_on_a_part_that_there_is(parts: tuple[str, ...], may: str) -> None:
    check_slices(dict.fromkeys(parts, 0.1), parts)
    with pytest.raises(ConfigError, match=rf"^quality\.slices: .*{may}"):
        check_slices({"rare item": 0.1}, parts)
