"""Importance of knobs for a model, by permutation (Breiman, 2001, section 10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from search.front import Floats
from search.samplers.features import features_of
from search.samplers.gaussian_process import GaussianProcess
from spaces.domains import Scalar

# Permutations of a knob's values.
_PERMUTATIONS = 5


def permutation_importance(
    model: GaussianProcess, knobs: Sequence[Mapping[str, Scalar]], seed: int
) -> list[dict[str, float]]:
    """Return the importance of each knob for each target of a model, as shares of 1.

    It is how much predictions change in the mean square if the knob's values are permuted among the candidates. A
    target has none where nothing varies.
    """
    random, expected = np.random.default_rng(seed), _mean(model, knobs)
    changed = {}
    for name in sorted({name for each in knobs for name in each}):
        moved = np.zeros(expected.shape[1])
        for _ in range(_PERMUTATIONS):
            order = random.permutation(len(knobs))
            shuffled = [_with(each, name, knobs[other]) for each, other in zip(knobs, order, strict=True)]
            moved += ((_mean(model, shuffled) - expected) ** 2).mean(axis=0)
        changed[name] = moved
    total = sum(changed.values(), np.zeros(expected.shape[1]))
    return [
        {name: float(moved[target] / total[target]) for name, moved in changed.items()} if total[target] > 0 else {}
        for target in range(expected.shape[1])
    ]


def _mean(model: GaussianProcess, knobs: Sequence[Mapping[str, Scalar]]) -> Floats:
    return model.mean([features_of(each) for each in knobs])


def _with(knobs: Mapping[str, Scalar], name: str, other: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return knobs with one of them as another candidate has it, or has it not."""
    kept = {key: value for key, value in knobs.items() if key != name}
    return {**kept, name: other[name]} if name in other else kept
