"""Samplers by the name that a study file gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import optuna

from search.config.loss_limits import Limits
from search.config.sections import SamplerName
from search.samplers.expected_gain import ExpectedGainSampler
from search.samplers.optuna_samplers import gp, nsga3, tpe

_OF_OPTUNA: Mapping[str, Callable[[int], optuna.samplers.BaseSampler]] = {"tpe": tpe, "nsga3": nsga3, "gp": gp}


def make_sampler(
    name: SamplerName, objectives: Sequence[str], limits: Limits, seed: int
) -> optuna.samplers.BaseSampler:
    """Return the sampler of a study."""
    if name in _OF_OPTUNA:
        return _OF_OPTUNA[name](seed)
    if name == "random":
        return ExpectedGainSampler(objectives, limits, seed, explored=1.0)
    return ExpectedGainSampler(objectives, limits, seed)
