"""Colours of pages and figures, on light and on dark paper.

The palettes are ordered by lightness, so that they read in any colour vision and in grey. Figures are described in the
light colours; the page's script replaces each by its dark counterpart (`DARK_FOR`).
"""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass


@dataclass(frozen=True)
class Theme:
    """Colours in CSS's notation.

    palette: from little to much throughput; much stands out from the paper
    bars: of intervals; fill, band: areas below curves; steel: bytes of weights; infeasible, dominated: lines of trials
    """

    paper: str
    ink: str
    muted: str
    line: str
    soft: str
    accent: str
    alert: str
    alert_soft: str
    bars: str
    fill: str
    band: str
    steel: str
    infeasible: str
    dominated: str
    palette: tuple[str, ...]

    @property
    def colours(self) -> tuple[str, ...]:
        """All colours in a fixed order."""
        *single, palette = astuple(self)
        return (*single, *palette)


def css_variables(theme: Theme) -> str:
    """Return the single colours as custom properties of CSS, such as `--ink`."""
    named = {name: value for name, value in asdict(theme).items() if isinstance(value, str)}
    return " ".join(f"--{name.replace('_', '-')}: {value};" for name, value in named.items())


LIGHT = Theme(
    paper="#ffffff", ink="#1d2733", muted="#5d6b7a", line="#dfe4ea", soft="#f5f7f9", accent="#c2352b",
    alert="#d99a1c", alert_soft="#fdf6e6", bars="rgba(93, 107, 122, 0.6)", fill="rgba(111, 47, 128, 0.08)",
    band="rgba(93, 107, 122, 0.12)", steel="#8fa3b8", infeasible="#e8ebef", dominated="#c4ccd5",
    palette=("#f2b04c", "#e5714a", "#bb3e6b", "#6f2f80", "#231f5c"),
)  # fmt: skip
DARK = Theme(
    paper="#14181d", ink="#e6ebf1", muted="#9aa8b7", line="#303944", soft="#1d232b", accent="#ff8a75",
    alert="#e0a93a", alert_soft="#2c2415", bars="rgba(154, 168, 183, 0.6)", fill="rgba(245, 139, 71, 0.14)",
    band="rgba(154, 168, 183, 0.16)", steel="#7289a1", infeasible="#262d36", dominated="#4a5562",
    palette=("#6647ad", "#b0529c", "#dd6a72", "#f59c53", "#fbe08a"),
)  # fmt: skip
DARK_FOR = dict(zip(LIGHT.colours, DARK.colours, strict=True))
