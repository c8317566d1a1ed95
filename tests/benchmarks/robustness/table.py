"""Tables and verdicts of the measurements, as text."""

from __future__ import annotations

from collections.abc import Sequence

from tests.benchmarks.robustness.load import Played


def show(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table whose columns are as wide as their widest cell."""
    cells = [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)), flush=True)


def verdict(wanted: str, holds: bool, found: str) -> bool:
    """Print whether a requirement is met, and return it."""
    print(f"{'met' if holds else 'NOT MET'}: {wanted}: {found}", flush=True)
    return holds


def counted(played: Played) -> str:
    """Return the outcomes with their numbers."""
    return ", ".join(f"{outcome}: {count:,}" for outcome, count in sorted(played.counts.items()))
