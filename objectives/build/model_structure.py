"""Structure of a recommender's model, or of a sibling of it, traced on a few rows of requests."""

from __future__ import annotations

from torch import nn

from objectives.compression.structure import Traced, trace
from objectives.recommenders.protocol import Recommender
from spaces.techniques.architecture import Architecture

_ROWS = 7
# Siblings whose structure stays in memory.
_MOST = 64


# A builder serves one study, so the structure of one model stays in memory, and those of its siblings by their sizes.
_known: dict[str, Traced] = {}
_siblings: dict[tuple[str, Architecture], Traced] = {}


def of_baseline(recommender: Recommender) -> Traced:
    """Return the structure of the recommender's own model, which never changes.

    Raises:
        TraceError: the model's forward cannot be traced.
    """
    if recommender.key not in _known:
        _known.clear()
        _known[recommender.key] = of_sibling(recommender, recommender.model)
    return _known[recommender.key]


def of_student(recommender: Recommender, student: nn.Module, architecture: Architecture) -> Traced:
    """Return the structure of a student, which is traced once for all that have its sizes.

    Raises:
        TraceError: the model's forward cannot be traced.
    """
    key = recommender.key, architecture
    if key not in _siblings:
        while len(_siblings) >= _MOST:
            del _siblings[next(iter(_siblings))]
        _siblings[key] = of_sibling(recommender, student)
    return _siblings[key]


def of_sibling(recommender: Recommender, model: nn.Module) -> Traced:
    """Return the structure of any model that takes the same inputs.

    Raises:
        TraceError: the model's forward cannot be traced.
    """
    rows = recommender.serving_rows(_ROWS)
    return trace(model, {n: values[:1] if n in recommender.once else values for n, values in rows.items()})
