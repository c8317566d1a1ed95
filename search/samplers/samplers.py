"""Samplers by the name that a study file gives."""

from __future__ import annotations

from collections.abc import Sequence

import optuna

from search.config.loss_limits import Limits
from search.config.sections import SamplerName
from search.samplers.expected_gain import ExpectedGainSampler
from search.samplers.tpe import tpe


def make_sampler(
    name: SamplerName, objectives: Sequence[str], limits: Limits, seed: int
) -> optuna.samplers.BaseSampler:
    """Return the sampler of a study."""
    if name == "tpe":
        return tpe(seed)
    if name == "random":
        return ExpectedGainSampler(objectives, limits, seed, explored=1.0)
    return ExpectedGainSampler(objectives, limits, seed)
