"""Numbers in the words that people use for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

MISSING = "–"


def significant(value: float, digits: int = 2) -> str:
    """Round to significant digits, never in powers of ten: 0.0035, 1.2, 87, 4,120."""
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(share: float) -> str:
    """Format a share in per cent: 0.0035 is 0.35%, 0.18 is 18%."""
    return f"{significant(100 * share)}%"


def span(interval: Sequence[float], word: Callable[[float], str] = percent) -> str:
    """Both ends of an interval: 0.35% to 1.2%."""
    return f"{word(interval[0])} to {word(interval[1])}"


def ranged(value: float, interval: Sequence[float], form: str = ".3f") -> str:
    """Format a value with its interval: 0.500 [0.475, 0.525]."""
    return f"{value:{form}} [{interval[0]:{form}}, {interval[1]:{form}}]"


def times(ratio: float) -> str:
    """Format a ratio, with a third digit where two would hide the difference from 1: 1.03x, 1.25x, 5.6x, 81x."""
    return f"{significant(ratio, 3 if 0.1 < ratio < 2 else 2)}x"


def milliseconds(value: float) -> str:
    return f"{significant(value, 3)} ms"


def rate(value: float) -> str:
    return f"{significant(value, 3)} requests per second"


def column_ratio(value: float) -> str:
    """Format a ratio in a column: the number of decimals is the same in rows of the same magnitude."""
    return f"{value:.3f}x" if value < 1 else f"{value:.2f}x" if value < 10 else f"{value:,.1f}x"


def column_percent(share: float) -> str:
    # Adding zero turns the -0.00 of a tiny gain into 0.00.
    return f"{round(100 * share, 2) + 0.0:.2f}%"


def column_milliseconds(value: float) -> str:
    return f"{value:.3f} ms" if value < 10 else f"{value:,.1f} ms"


def size(count: float) -> str:
    """Bytes in decimal units."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{significant(count, 3)} {unit}"
        count /= 1000
    return f"{significant(count, 3)} GB"


def metric_name(metric: str) -> str:
    """Return a metric's name as it is written in text: auc is AUC, ndcg@10 is NDCG@10."""
    return metric.upper() if len(metric.partition("@")[0]) <= 4 else metric


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def pairs(mapping: Mapping[str, object]) -> str:
    """Names and values in one line."""
    return ", ".join(f"{name} {value}" for name, value in mapping.items())


def listed(texts: Sequence[str]) -> str:
    """Join texts as in a sentence: one, two and three."""
    return " and ".join(filter(None, (", ".join(texts[:-1]), *texts[-1:])))


def knob_value(value: object) -> str:
    """One choice as a short text; fractions drawn from a range are rounded."""
    return significant(value, 3) if isinstance(value, float) else str(value)
