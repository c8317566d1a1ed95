"""Reuse of trained weights in other precisions and placements, which contribute as much to their cost as
the weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from optuna.trial import FrozenTrial

from search.config.loss_limits import Limits
from search.study import candidate_of, front_of, measured

# Number of ways to run weights on the front, before new ones are worth more.
_WAYS = 6


def least_tried(
    trials: Sequence[FrozenTrial], flying: Sequence[str], objectives: Sequence[str], limits: Limits, resolution: float
) -> FrozenTrial | None:
    """Return the trial on the front whose weights were tried in the fewest ways; None where all were tried in enough.

    Args:
        flying: ids of the weights of running trials
    """
    able = {n: m for n, m in measured(trials).items() if n > 0 and limits.kept(m.quality)}
    if not able:
        return None
    front = {n for n, kept in zip(able, front_of(list(able.values()), objectives, resolution), strict=True) if kept}
    tried = Counter([*map(_weights, trials), *flying])
    ways = [t for t in trials if t.number in front and t.params]
    if not ways:
        return None
    least = min(ways, key=lambda trial: tried[_weights(trial)])
    return least if tried[_weights(least)] < _WAYS else None


def _weights(trial: FrozenTrial) -> str | None:
    candidate = candidate_of(trial)
    return None if candidate is None else candidate.weights.id
