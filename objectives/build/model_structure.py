"""What a recommender's model, or a sibling of it, is made of: traced on a few rows as requests give them."""

from __future__ import annotations

from torch import nn

from objectives.compression.structure import Traced, trace
from objectives.recommenders.protocol import Recommender

_ROWS = 7


# One builder serves one study, so what one model is made of stays in memory.
_known: dict[str, Traced] = {}


def of_baseline(recommender: Recommender) -> Traced:
    """Of its own model, which never changes.

    Raises:
        TraceError: its forward cannot be traced.
    """
    if recommender.key not in _known:
        _known.clear()
        _known[recommender.key] = of_sibling(recommender, recommender.model)
    return _known[recommender.key]


def of_sibling(recommender: Recommender, model: nn.Module) -> Traced:
    """Of any model that takes the same inputs.

    Raises:
        TraceError: its forward cannot be traced.
    """
    rows = recommender.serving_rows(_ROWS)
    return trace(model, {n: values[:1] if n in recommender.once else values for n, values in rows.items()})
