"""Resamples and ends of the interval of a paired loss, against closed forms."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from objectives.measurement.metrics import paired_loss as module
from objectives.measurement.metrics.paired_loss import content_key, paired_loss, resamples_for, tail_interval
from objectives.measurement.statistics import Floats, weighted_mean
from objectives.records import Quality
from search.choose.looks import confidence_of


def users_of_one_row(losses: Floats, confidence: float, seen: list[int] | None = None, seed: int = 0) -> Quality:
    """A mean over users, one row each: its loss is the mean of their losses, and the baseline is 1."""

    def candidate(kept: np.ndarray) -> object:
        def means(weights: Floats) -> Floats:
            if seen is not None:
                seen.append(weights.shape[1])
            return weighted_mean(1 - losses[kept], weights)

        return means

    def baseline(kept: np.ndarray) -> object:
        return lambda weights: np.ones(weights.shape[1])

    return paired_loss("mean", candidate, baseline, np.arange(len(losses)), seed, confidence, {})  # type: ignore[arg-type]


@pytest.mark.parametrize("look", [1, 2, 3, 4, 5])
def test_twenty_resamples_lie_beyond_each_end_at_every_look(look: int) -> None:
    confidence, seen = confidence_of(look), list[int]()
    users_of_one_row(np.random.default_rng(0).normal(size=50), confidence, seen)
    drawn = sum(seen[1:])  # the first call gives the point
    assert drawn * (1 - confidence) / 2 >= 20 - 1e-6
    assert drawn == resamples_for(confidence)


@pytest.mark.parametrize("look", [1, 5])
def test_the_ends_are_those_of_the_normal_distribution_of_a_mean(look: int) -> None:
    """The bootstrap of a mean of many users is normal, with the standard error of the sample."""
    losses = np.random.default_rng(1).normal(0.01, 0.1, 2000)
    confidence = confidence_of(look)
    found = users_of_one_row(losses, confidence)
    error, z = losses.std() / np.sqrt(len(losses)), NormalDist().inv_cdf((1 + confidence) / 2)
    np.testing.assert_allclose(
        np.subtract(found.loss_interval, losses.mean()) / error, [-z, z], rtol=0.06 if look == 1 else 0.1
    )


def test_ends_hardly_depend_on_the_seed_of_the_resamples() -> None:
    """An end with too few resamples beyond it would be the luck of one of them."""
    losses = np.random.default_rng(2).normal(0.0, 0.1, 400)
    highs = [users_of_one_row(losses, confidence_of(3), seed=seed).loss_interval[1] for seed in range(12)]
    assert np.std(highs) < 0.05 * np.mean(highs)


def test_an_end_beyond_what_can_be_drawn_is_the_normal_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A year of nightly builds takes so many looks that 20 resamples beyond an end would need 100 million in all."""
    drawn = np.random.default_rng(3).normal(0.02, 0.5, 100_000)
    for look in (9, 12, 60, 365):
        z = NormalDist().inv_cdf((1 + confidence_of(look)) / 2)
        low, high = tail_interval(drawn, confidence_of(look))
        np.testing.assert_allclose([(0.02 - low) / 0.5, (high - 0.02) / 0.5], z, rtol=0.05)
    assert resamples_for(confidence_of(365)) == 100_000
    highs = [tail_interval(drawn, confidence_of(look))[1] for look in range(1, 40)]
    assert np.all(np.diff(highs) > 0), "each further look widens the interval, across the border too"
    monkeypatch.setattr(module, "_MOST_RESAMPLES", 10**9)
    assert tail_interval(drawn, confidence_of(9))[1] == pytest.approx(highs[8])


def of_rows(values: Floats, computed: list[int]) -> Any:
    """The mean of values over rows, which notes the resamples that it is computed for."""

    def metric(kept: np.ndarray) -> object:
        def means(weights: Floats) -> Floats:
            computed.append(weights.shape[1])
            return weighted_mean(values[kept], weights)

        return means

    return metric


def test_the_baselines_resamples_are_kept_by_their_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates after the first get the same numbers without the baseline's resamples, in parts too."""
    monkeypatch.setattr(module, "_BASELINES", module._Kept(2))
    random, groups = np.random.default_rng(4), np.repeat(np.arange(60), 2)
    baseline, slices = random.uniform(0.5, 1.0, 120), {"even": groups % 2 == 0, "nobody": groups < 0}
    candidates = [baseline - random.normal(0.01, 0.1, 120) for _ in range(3)]

    def judged(candidate: Floats, key: str | None, seed: int = 0, confidence: float = 0.95) -> tuple[Quality, int]:
        computed: list[int] = []
        sides = of_rows(candidate, []), of_rows(baseline, computed)
        return paired_loss("mean", *sides, groups, seed, confidence, slices, key), sum(computed)

    for candidate in candidates:
        (expected, alone), (found, _) = judged(candidate, None), judged(candidate, "base")
        assert found == expected and alone == 2 * (1 + resamples_for(0.95))
        assert judged(candidate, "base") == (expected, 2), "the points alone are computed again"
    for other in ({"seed": 1}, {"confidence": 0.99}):
        assert judged(candidates[0], "base", **other)[0] == judged(candidates[0], None, **other)[0]
    assert judged(candidates[0], "base")[1] > 2, "two are kept, and others came since"


def test_a_key_follows_all_that_a_metric_is_computed_from() -> None:
    scores, labels, groups = np.array([0.1, 0.9]), np.array([0.0, 1.0]), np.array([0, 1])
    slices = {"first": np.array([True, False])}
    keys = [
        content_key("auc", scores, labels, groups, slices),
        content_key("gauc", scores, labels, groups, slices),
        content_key("auc", scores + 0.1, labels, groups, slices),
        content_key("auc", scores.astype(np.float32), labels, groups, slices),
        content_key("auc", scores, 1 - labels, groups, slices),
        content_key("auc", scores, labels, groups + 1, slices),
        content_key("auc", scores, labels, groups, {"second": slices["first"]}),
        content_key("auc", scores, labels, groups, {"first": ~slices["first"]}),
        content_key("auc", scores, labels, groups, {}),
    ]
    assert len(set(keys)) == len(keys)
    assert content_key("auc", scores.copy(), labels.copy(), groups.copy(), dict(slices)) == keys[0]
