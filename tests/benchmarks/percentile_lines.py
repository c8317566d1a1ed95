"""Lines of a table of percentiles, with intervals by resampled blocks."""

from __future__ import annotations

from objectives.measurement.statistics import Floats, block_percentiles, block_picks, interval, percentile

PERCENTS = (50, 95, 99)


def heading() -> str:
    """Return the first line of a table."""
    return f"{'milliseconds':<34}" + "".join(f"{f'p{percent}':>28}" for percent in PERCENTS)


def line(name: str, latency: Floats, beside: Floats | None) -> str:
    """Return the percentiles of an arm, or their differences to another one's, by the same resamples of blocks."""
    picks, cells = block_picks(len(latency), 0), []
    for percent in PERCENTS:
        value, drawn = percentile(latency, percent), block_percentiles(latency, percent, picks)
        if beside is not None:
            value, drawn = value - percentile(beside, percent), drawn - block_percentiles(beside, percent, picks)
        low, high = interval(drawn)
        cells.append(f"{value:8.3f} [{low:.3f}, {high:.3f}]")
    return f"{name:<34}" + "".join(f"{cell:>28}" for cell in cells)
