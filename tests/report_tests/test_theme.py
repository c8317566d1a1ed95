"""Colours by WCAG's formula of relative luminance: text is legible, and palettes are in order in any colour vision."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from search.report.theme import DARK, DARK_FOR, LIGHT, Theme

THEMES = pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance of `#rrggbb`."""
    channels = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@THEMES
def test_text_is_legible(theme: Theme) -> None:
    for text in (theme.ink, theme.muted, theme.accent):
        for ground in (theme.paper, theme.soft):
            assert contrast(text, ground) >= 4.5
    assert contrast(theme.ink, theme.alert_soft) >= 7


@THEMES
def test_more_throughput_stands_out_more_without_any_hue(theme: Theme) -> None:
    distances = [contrast(colour, theme.paper) for colour in theme.palette]
    assert all(after > 1.25 * before for before, after in pairwise(distances))
    assert distances[-1] > 7


def test_each_light_colour_has_one_dark_counterpart() -> None:
    assert len(set(LIGHT.colours)) == len(LIGHT.colours) == len(DARK_FOR)
    assert all(re.fullmatch(r"#[0-9a-f]{6}|rgba\([\d, .]+\)", colour) for colour in (*LIGHT.colours, *DARK.colours))
