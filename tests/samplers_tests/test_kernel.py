"""Gaussian processes beside scikit-learn's, which has the same kernel as a sum and product of three."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from search.samplers.features import features_of
from search.samplers.gaussian_process import GaussianProcess, _prefix, _Process
from search.samplers.kernel import Kernel, fitted, log_likelihood


def of_sklearn(kernel: Kernel, optimizer: str | None = None) -> GaussianProcessRegressor:
    matern = Matern(kernel.lengths, (0.05, 20.0), nu=2.5)
    whole = ConstantKernel(kernel.variance, (0.1, 30.0)) * matern + WhiteKernel(kernel.noise, (1e-4, 0.3))
    return GaussianProcessRegressor(whole, alpha=1e-8, optimizer=optimizer)


def table(seed: int, count: int, features: int) -> tuple[Any, Any]:
    """Rows in which some features are categories, as those of candidates are, and values that are nearly smooth."""
    random = np.random.default_rng(seed)
    rows = random.random((count, features))
    rows[:, ::2] = np.round(rows[:, ::2])
    values = np.sin(3 * rows[:, 0]) + rows @ np.linspace(-1, 1, features) + 0.1 * random.normal(size=count)
    return rows, (values - values.mean()) / values.std()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    count=st.integers(2, 40),
    logs=st.lists(st.floats(-2.5, 2.5), min_size=3, max_size=6),
    noise=st.floats(1e-4, 0.3),
)
def test_likelihood_and_gradient_are_those_of_scikit_learn(
    seed: int, count: int, logs: list[float], noise: float
) -> None:
    rows, values = table(seed, count, len(logs) - 1)
    theta = np.array([*logs, np.log(noise)])
    model = of_sklearn(Kernel(1.0, np.ones(rows.shape[1]), 0.01)).fit(rows, values)
    expected, gradient = model.log_marginal_likelihood(theta, eval_gradient=True)
    found = log_likelihood(theta, rows, values)
    assert found[0] == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(found[1], gradient, rtol=1e-5, atol=1e-5 * np.abs(gradient).max())


@pytest.mark.parametrize("seed", range(4))
def test_predictions_are_those_of_scikit_learn(seed: int) -> None:
    rows, values = table(seed, 60, 5)
    kernel = Kernel(2.0, np.linspace(0.3, 4.0, 5), 0.05)
    mean, deviation = of_sklearn(kernel).fit(rows, values).predict(new := table(seed + 9, 30, 5)[0], return_std=True)
    process = _Process(kernel, rows, values)
    np.testing.assert_allclose(process.predict(new), [mean, deviation], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(process.mean(new), mean, rtol=1e-6, atol=1e-8)


@pytest.mark.filterwarnings("ignore:The optimal value found")
@pytest.mark.parametrize("seed", range(4))
def test_a_few_steps_come_near_the_best_likelihood(seed: int) -> None:
    rows, values = table(seed, 80, 6)
    found = fitted(rows, values)
    logs = np.log([found.variance, *found.lengths, found.noise])
    ends = np.log([(0.1, 30.0), *[(0.05, 20.0)] * 6, (1e-4, 0.3)])
    assert (logs >= ends[:, 0] - 1e-9).all() and (logs <= ends[:, 1] + 1e-9).all()
    best = of_sklearn(Kernel.plain(6), "fmin_l_bfgs_b").fit(rows, values).log_marginal_likelihood_value_
    first = log_likelihood(np.log([1.0, *np.ones(6), 0.01]), rows, values)[0]
    assert log_likelihood(logs, rows, values)[0] > best - 0.1 * (best - first)


def test_it_goes_through_what_is_known_and_back_to_the_mean_far_away() -> None:
    rows = [{"a": place / 20} for place in range(21)]
    targets = np.array([[10 + np.sin(4 * row["a"])] for row in rows])
    model = GaussianProcess(rows, targets, 0)
    np.testing.assert_allclose(model.mean(rows), targets, atol=0.02)
    draws = model.draw([{"a": 0.5}, {"a": 100.0}])
    assert draws[:, 0].std() < 0.05 < draws[:, 1].std()
    assert draws.shape == (32, 2, 1)
    assert model.mean([{"a": 1e4}])[0, 0] == pytest.approx(targets[: _prefix(21)].mean(), abs=0.01)


def test_a_feature_that_nothing_varied_says_nothing() -> None:
    model = GaussianProcess([{"a": 0.0, "b": 1.0}, {"a": 1.0, "b": 1.0}, {"a": 0.5, "b": 1.0}], np.eye(3), 0)
    np.testing.assert_allclose(model.mean([{"a": 0.3}]), model.mean([{"a": 0.3, "b": 7.0, "c": 1.0}]))
    alone = GaussianProcess([{"a": 1.0}] * 2, np.array([[1.0], [3.0]]), 0)
    assert alone.mean([{"a": 5.0}, {}]) == pytest.approx(np.full((2, 1), 2.0))


def test_the_kernel_is_fitted_to_a_prefix_that_seldom_grows() -> None:
    sizes = [_prefix(count) for count in range(1, 400)]
    assert sizes == sorted(sizes) and all(size <= count for count, size in enumerate(sizes, 1))
    assert len(set(sizes)) < 25 and min(np.divide(sizes, np.arange(1, 400))) > 0.75


def test_features_of_numbers_categories_and_widths() -> None:
    found = features_of({"x": 0.5, "rows": 1024, "back": -8, "on": True, "engine": "onnx", "mlp": "64-32"})
    assert found == pytest.approx(
        {"x": 0.5, "rows": 11.0, "back": -4.0, "on": 1.0, "engine=onnx": 1.0, "mlp=64-32": 1.0, "mlp.sum": np.log2(97)}
    )
    assert features_of({"n": 1}) == features_of({"n": True}) == {"n": 1.0}
    assert features_of({}) == {}
