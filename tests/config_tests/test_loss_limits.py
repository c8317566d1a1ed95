"""Limits of the loss, over all rows and on slices."""

from __future__ import annotations

import pytest

from objectives.records import Quality, SliceQuality
from search.config.loss_limits import Limits, check_slices
from search.errors import ConfigError


def quality(loss: float, *slices: tuple[str, float]) -> Quality:
    parts = tuple(SliceQuality(n, 10, 3, 0.7, 0.7, value, (value - 0.01, value + 0.01)) for n, value in slices)
    return Quality("auc", 0.7, 0.7, loss, (loss - 0.001, loss + 0.001), 100, 9, 0.95, parts)


LIMITS = Limits(0.01, {"rare items": 0.03})


@pytest.mark.parametrize(
    ("found", "kept", "lost", "unproved"),
    [
        (quality(0.005, ("rare items", 0.01)), True, None, None),
        (quality(0.0095, ("rare items", 0.01)), True, None, "the loss may be 1.05%, 0.05% above the 1.00%"),
        (
            quality(0.005, ("rare items", 0.025)),
            True,
            None,
            "the loss on rare items may be 3.50%, 0.50% above the 3.00%",
        ),
        (
            quality(0.005, ("rare items", 0.035)),
            False,
            None,
            "the loss on rare items may be 4.50%, 1.50% above the 3.00%",
        ),
        (
            quality(0.005, ("rare items", 0.05)),
            False,
            "its loss of 5.00% [4.00%, 6.00%] on rare items is above the tolerated 3.00%",
            "the loss on rare items may be 6.00%, 3.00% above the 3.00%",
        ),
        (
            quality(0.02),
            False,
            "its loss of 2.00% [1.90%, 2.10%] is above the tolerated 1.00%",
            "the loss may be 2.10%, 1.10% above the 1.00%",
        ),
        (quality(0.005), True, None, "the loss on rare items is undefined, and must be at most 3.00%"),
        (quality(0.005, ("others", 0.5), ("rare items", 0.0)), True, None, None),
    ],
)
def test_limits_are_kept_broken_or_unproved(found: Quality, kept: bool, lost: str | None, unproved: str | None) -> None:
    assert (LIMITS.kept(found), LIMITS.lost(found), LIMITS.unproved(found)) == (kept, lost, unproved)


def test_a_slice_that_nobody_limits_is_only_told() -> None:
    assert Limits(0.01).kept(quality(0.005, ("rare items", 0.9)))
    assert Limits(0.01).excesses(quality(0.005, ("rare items", 0.9))) == {"all rows": pytest.approx(-0.005)}


@pytest.mark.parametrize(
    ("parts", "may"),
    [
        (
            ("rare items", "output like"),
            "one of rare items, output like, but got 'rare item'; did you mean 'rare items'?",
        ),
        ((), "left out, since the held-out rows have no slices, but got 'rare item'"),
    ],
)
def test_a_limit_is_on_a_part_that_there_is(parts: tuple[str, ...], may: str) -> None:
    check_slices(dict.fromkeys(parts, 0.1), parts)
    with pytest.raises(ConfigError) as caught:
        check_slices({"rare item": 0.1}, parts)
    assert str(caught.value) == f"quality.slices: must be {may}"
