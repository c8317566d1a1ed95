"""Weighted AUC against scikit-learn, the bootstrap against brute force and coverage, percentiles against SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from objectives.measurement.metrics.quality import resolution
from objectives.measurement.statistics import (
    TooFewSamplesError,
    fewest_samples,
    group_weights,
    percentile,
    percentile_interval,
    ratio_of_percentiles,
    weighted_auc,
)
from tests.metrics_tests.arrays import paired_quality


@given(seed=st.integers(0, 10_000), levels=st.sampled_from([2, 5, 1000]))
def test_weighted_auc_is_scikit_learns(seed: int, levels: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.integers(0, levels, 80).astype(float)
    labels = np.concatenate([[0.0, 1.0], random.integers(0, 2, 78).astype(float)])
    weights = random.integers(0, 4, (80, 3)).astype(float)
    weights[:2] = 1
    expected = [roc_auc_score(labels, scores, sample_weight=w) for w in weights.T]
    assert np.allclose(weighted_auc(scores, labels)(weights), expected)


def test_groups_are_resampled_whole() -> None:
    groups = np.array([5, 5, 9, 9, 9, 1], dtype=np.int64)
    weights = np.concatenate(list(group_weights(groups, seed=0, resamples=200)), axis=1)
    assert weights.shape == (6, 200)
    assert (weights[0] == weights[1]).all()
    assert (weights[2] == weights[4]).all()
    assert (weights[0] + weights[2] + weights[5] == 3).all()


def _draw(seed: int, users: int, better: float) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(seed)
    groups = np.repeat(np.arange(users), 12)
    truth = random.normal(size=len(groups))
    labels = (truth + random.normal(size=len(groups)) > 0).astype(np.float32)
    noise = random.normal(size=(2, len(groups)))
    return (truth + better * noise[0]).astype(np.float32), (truth + noise[1]).astype(np.float32), labels, groups


def test_equal_models_lose_nothing_exactly() -> None:
    ours, _, labels, groups = _draw(0, 50, 1.0)
    quality = paired_quality("auc", ours, ours, labels, groups, 0)
    assert quality.loss == 0
    assert quality.loss_interval == (0, 0)
    assert resolution(quality) == 0


def test_the_loss_interval_covers_as_often_as_it_says() -> None:
    """Two models of equal true quality: about 380 of 400 intervals hold zero; 360 would be those of 90%."""
    held = 0
    for seed in range(400):
        low, high = paired_quality("auc", *_draw(seed, 80, 1.0), seed).loss_interval
        held += low <= 0 <= high
    assert 371 <= held <= 391


def test_a_worse_model_has_a_positive_loss() -> None:
    ours, theirs, labels, groups = _draw(1, 300, 3.0)
    quality = paired_quality("auc", ours, theirs, labels, groups, 0)
    assert quality.loss_interval[0] > 0
    assert quality.loss == pytest.approx(1 - roc_auc_score(labels, ours) / roc_auc_score(labels, theirs))


def test_scores_that_are_not_finite_are_refused() -> None:
    ours, theirs, labels, groups = _draw(1, 30, 1.0)
    ours[3] = np.nan
    with pytest.raises(ValueError, match="finite"):
        paired_quality("auc", ours, theirs, labels, groups, 0)


def test_the_ratio_is_that_of_pooled_percentiles() -> None:
    random = np.random.default_rng(0)
    ours, theirs = random.exponential(1, (20, 30)), random.exponential(2, (20, 30))
    point, (low, high) = ratio_of_percentiles(ours, theirs, 95, seed=0)
    pooled = sorted(ours.ravel()), sorted(theirs.ravel())
    at = [v[569] for v in pooled]  # 570 of 600, 95%, are no larger
    assert point == pytest.approx(at[0] / at[1])
    assert low < point < high


def test_the_interval_of_a_ratio_covers_as_often_as_it_says() -> None:
    """About 142 of 150 intervals hold the ratio, and misses lie on both sides.

    The p95 is half as long, in blocks that both sides find slower or faster by a third.
    """
    misses = np.zeros(2)
    for seed in range(150):
        random = np.random.default_rng(seed)
        slower = np.exp(random.normal(0, 0.3, (20, 1)))
        ours, theirs = (slower * random.exponential(mean, (20, 25)) for mean in (0.5, 1.0))
        _, (low, high) = ratio_of_percentiles(ours, theirs, 95, seed)
        misses += [low > 0.5, high < 0.5]
    assert 3 <= misses.sum() <= 13 and misses.min() >= 1, misses


def test_pairing_cancels_what_disturbs_both_arms() -> None:
    """The machine is three times slower in some blocks: paired, the interval still knows the ratio of 0.5."""
    random = np.random.default_rng(3)
    slow = np.where(random.random((24, 1)) < 0.5, 3.0, 1.0)
    base = random.exponential(1, (24, 200))
    point, (low, high) = ratio_of_percentiles(0.5 * slow * base, slow * base, 95, seed=1)
    assert point == pytest.approx(0.5)
    assert high - low < 1e-9


@pytest.mark.parametrize(("percent", "fewest"), [(50, 11), (90, 64), (95, 130), (99, 662)])
def test_the_fewest_samples_are_those_of_the_early_stopping_rule(percent: float, fewest: int) -> None:
    assert fewest_samples(percent) == fewest


@given(st.floats(1, 99))
@settings(max_examples=40)
def test_with_one_sample_less_two_beyond_the_percentile_would_not_be_sure(percent: float) -> None:
    fewest, beyond = fewest_samples(percent), 1 - percent / 100
    assert stats.binom.cdf(1, fewest, beyond) <= 0.01 * (1 + 1e-9)
    assert stats.binom.cdf(1, fewest - 1, beyond) > 0.01 * (1 - 1e-9)


@given(
    st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(math.inf)), min_size=1, max_size=60),
    st.sampled_from([50, 90, 95, 99]),
)
def test_a_percentile_is_the_smallest_sample_that_enough_do_not_exceed(samples: list[float], percent: int) -> None:
    enough = [each for each in samples if 100 * sum(other <= each for other in samples) >= percent * len(samples)]
    assert percentile(np.array(samples), percent) == min(enough)


def test_refused_requests_do_not_reach_a_percentile_below_them() -> None:
    samples = np.concatenate([np.arange(1.0, 96.0), np.full(5, np.inf)])
    assert percentile(samples, 95) == 95, "no average with infinity, which would be infinite or not a number"
    assert percentile(samples, 96) == np.inf
    (low, high) = percentile_interval(np.concatenate([samples, samples]), 90)[1]
    assert low < 90 < high < np.inf


@pytest.mark.parametrize("percent", [50, 90, 95, 99])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_the_ranks_of_an_interval_are_the_closest_that_the_binomial_law_allows(percent: int, confidence: float) -> None:
    """The interval is ranks (r, s) of samples 1 to n; it misses with P(B < r) + P(B >= s), B binomial (n, q)."""
    fewest, tail = fewest_samples(percent), (1 - confidence) / 2
    for count in [*range(fewest, fewest + 30), 700, 1000, 3001]:
        point, (low, high) = percentile_interval(np.arange(1.0, count + 1), percent, confidence)
        law = stats.binom(count, percent / 100)
        assert point == math.ceil(count * percent / 100)
        assert law.cdf(low - 1) <= tail and law.sf(high - 1) <= tail, "the coverage is at least the nominal"
        assert law.cdf(low) > tail and law.sf(high - 2) > tail, "a rank closer on either side would be too close"


def test_an_interval_of_order_statistics_covers_as_often_as_it_says() -> None:
    count, windows, true_p95 = 200, 3000, -math.log(0.05)
    drawn = np.random.default_rng(5).exponential(size=(windows, count))
    held = sum(low <= true_p95 <= high for low, high in (percentile_interval(row, 95)[1] for row in drawn))
    assert 0.95 - 3 * math.sqrt(0.95 * 0.05 / windows) <= held / windows <= 0.985


@pytest.mark.parametrize("percent", [50, 90, 95, 99])
def test_a_percentile_of_too_few_samples_is_refused(percent: int) -> None:
    fewest = fewest_samples(percent)
    percentile_interval(np.ones(fewest), percent)
    with pytest.raises(TooFewSamplesError, match=f"p{percent} .*{fewest} samples .*{fewest - 1}"):
        percentile_interval(np.ones(fewest - 1), percent)
