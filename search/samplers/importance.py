"""Importance of knobs for each objective: by the surrogate models, and by Optuna's PED-ANOVA."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial

import optuna

from search.config.loss_limits import Limits
from search.expected_cost import QUALITY
from search.samplers.knob_importance import KnobImportance
from search.samplers.permutation import permutation_importance
from search.samplers.surrogates import NoEvidenceError, Surrogates
from search.trials import EndedTrial

# Fewest complete trials with knobs that PED-ANOVA compares: the best tenth has one of them.
_FEWEST = 10


def importance(
    study: optuna.Study, ended: Sequence[EndedTrial], objectives: Sequence[str], limits: Limits, seed: int
) -> dict[str, tuple[KnobImportance, ...]]:
    """Return the knobs by objective, the most important first; empty where the study has too few trials for a model."""
    try:
        by_models = _by_models(Surrogates(ended, objectives, limits, seed), objectives, seed)
    except NoEvidenceError:
        return {}
    by_anova = _ped_anova(study, objectives)
    found = {}
    for objective, shares in by_models.items():
        others = by_anova.get(objective)
        knobs = [KnobImportance(knob, share, None if others is None else others.get(knob)) for knob, share in
                 shares.items()]  # fmt: skip
        found[objective] = tuple(sorted(knobs, key=lambda one: -one.surrogate))
    return found


def _by_models(surrogates: Surrogates, objectives: Sequence[str], seed: int) -> dict[str, dict[str, float]]:
    """Return the importance by objective; of the costs, in the order of the objectives, and of the loss."""
    costs = iter(permutation_importance(surrogates.cost, surrogates.cost_knobs, seed))
    (losses,) = permutation_importance(surrogates.loss, surrogates.loss_knobs, seed)
    return {name: losses if name == QUALITY else next(costs) for name in objectives}


def _ped_anova(study: optuna.Study, objectives: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return PED-ANOVA's importance by objective; empty where the complete trials are too few."""
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if sum(bool(trial.params) for trial in complete) < _FEWEST:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # marked experimental; and knobs that do not vary have no importance
        return {
            name: optuna.importance.get_param_importances(study, evaluator=evaluator, target=partial(_value, column))
            for column, name in enumerate(objectives)
        }


def _value(column: int, trial: optuna.trial.FrozenTrial) -> float:
    return float(trial.values[column])
