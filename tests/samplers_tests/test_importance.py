"""Importance of knobs on problems whose truth is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from search.samplers.features import features_of
from search.samplers.gaussian_process import GaussianProcess
from search.samplers.importance import importance
from search.samplers.permutation import permutation_importance
from search.study import Study
from tests.samplers_tests.problem import LIMITS, OBJECTIVES, Problem
from tests.search_tests.measurements import in_memory


def test_shares_are_those_of_the_variances_of_an_additive_function() -> None:
    """Permuting a term changes the sum by twice its variance in the mean: the shares are 9, 4 and 0 of 13."""
    random = np.random.default_rng(0)
    knobs: list[dict[str, Any]] = [
        {"a": a, "b": b, "c": c} for a, b, c in random.choice([0.0, 0.5, 1.0], size=(150, 3)).tolist()
    ]
    targets = np.array([[3 * each["a"] + 2 * each["b"], each["c"]] for each in knobs])
    model = GaussianProcess([features_of(each) for each in knobs], targets, 0)
    first, second = permutation_importance(model, knobs, 1)
    assert first == pytest.approx({"a": 9 / 13, "b": 4 / 13, "c": 0.0}, abs=0.05)
    assert second == pytest.approx({"a": 0.0, "b": 0.0, "c": 1.0}, abs=0.02)


def test_what_does_not_vary_has_no_importance() -> None:
    knobs: list[dict[str, Any]] = [{"a": 1.0, "b": "x"}] * 6
    model = GaussianProcess([features_of(each) for each in knobs], np.ones((6, 1)), 0)
    assert permutation_importance(model, knobs, 0) == [{}]


def test_the_problems_own_knobs_come_first() -> None:
    """Cost does not depend on the training, nor loss on the placement; two of three groups are steep in one of them."""
    problem = Problem("random", 0)
    for _ in range(40):
        problem.step()
    study = problem.study
    found = importance(study._study, study.ended(), OBJECTIVES, LIMITS, 0)
    assert set(found) == set(OBJECTIVES)
    p95, quality = ({one.knob: one for one in found[name]} for name in ("latency_p95", "quality"))
    assert p95["pruning.mlp"].surrogate > p95["pruning.cross"].surrogate > p95["pruning.top"].surrogate
    assert not any(name.startswith("distillation") for name in p95)
    assert not any(name.startswith("placement") for name in quality)
    assert quality["pruning.cross"].surrogate > quality["pruning.top"].surrogate
    for ranked in found.values():
        shares = [one.surrogate for one in ranked]
        assert sum(shares) == pytest.approx(1.0) and shares == sorted(shares, reverse=True)
        known = {one.knob: one.ped_anova for one in ranked if one.ped_anova is not None}
        assert known and all(0 <= share <= 1 for share in known.values())
        assert "placement.replicas" not in known, "the layout was suggested"


def test_a_study_that_measured_nothing_has_none() -> None:
    study = Study("s", in_memory(), OBJECTIVES, LIMITS, 0)
    assert importance(study._study, study.ended(), OBJECTIVES, LIMITS, 0) == {}
