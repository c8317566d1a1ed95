"""Optuna's tree-structured Parzen estimator, over a conditional space."""

from __future__ import annotations

import warnings

import optuna


def tpe(seed: int) -> optuna.samplers.BaseSampler:
    """Return the sampler; the constraint that a stopped trial is told with keeps it from the good ones."""
    with warnings.catch_warnings():
        # Grouped sampling is marked experimental; it is what a conditional space needs.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)
