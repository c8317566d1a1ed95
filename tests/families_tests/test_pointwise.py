"""A recommender that scores rows by their fields.

Covers its inputs and scores, row by row, and when its baseline is trained anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import log_loss, roc_auc_score
from torch import nn

from objectives.build.model_structure import of_baseline, of_sibling
from objectives.recommenders.families import pointwise
from objectives.recommenders.families.pointwise import FAMILIES, PointwiseRecommender, open_pointwise
from objectives.recommenders.protocol import Recommender
from objectives.recommenders.training import Trained
from objectives.task import Task
from spaces.domains import Scalar
from spaces.model_structure import Table
from spaces.techniques.architecture import Architecture

SIZES: Mapping[str, Mapping[str, Scalar]] = {
    "dcn-v2": {"embedding_dim": 4, "crosses": 1, "mlp": "16"},
    "dlrm": {"embedding_dim": 4, "top": "16"},
}
STUDENT: Mapping[str, Mapping[str, Scalar]] = {
    "dcn-v2": SIZES["dcn-v2"],
    "dlrm": {"embedding_dim": 4, "top": "16", "bottom": "8"},
}
SYNTHETIC = {"rows": 1285, "users": 40, "items": 30, "fields": 5}
TRAIN = 1028  # 4 batches of 256 and 4 rows


def _task(home: Path, family: str = "dcn-v2", **given: Any) -> Task:
    plain = Task(str(home), family, "synthetic", "auc", 20, 0.5, 60, 3, synthetic=SYNTHETIC, sizes=SIZES[family])
    return replace(plain, **given)


def _open(task: Task) -> PointwiseRecommender:
    return open_pointwise(task, lambda line: None)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module", params=FAMILIES)
def opened(request: pytest.FixtureRequest, home: Path) -> PointwiseRecommender:
    return _open(_task(home, request.param))


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Count the baselines that would be trained."""
    trained: list[int] = []

    def train(fresh: nn.Module, dataset: Any, seed: int, progress: Any) -> Trained:
        trained.append(seed)
        return Trained(0, (0.5,), 0.0)

    monkeypatch.setattr(pointwise, "_train", train)
    yield trained


def _scores(recommender: PointwiseRecommender, inputs: Any) -> NDArray[np.float32]:
    with torch.inference_mode():
        rows = {name: torch.as_tensor(np.asarray(values)) for name, values in inputs.items()}
        scores: NDArray[np.float32] = recommender.outputs(recommender.model, rows).numpy()
    return scores


def test_it_is_a_recommender(opened: PointwiseRecommender) -> None:
    recommender: Recommender = opened
    assert (recommender.once, recommender.method, recommender.history()) == (frozenset(), "forward", None)
    assert not recommender.model.training
    assert isinstance(recommender.model.get_submodule(recommender.hidden), nn.Sequential)


def test_inputs_are_described_as_they_come(opened: PointwiseRecommender) -> None:
    rows = opened.serving_rows(50)
    assert list(rows) == [spec.name for spec in opened.inputs]
    for spec in opened.inputs:
        assert rows[spec.name].shape == (50, *spec.shape) and str(rows[spec.name].dtype) == f"torch.{spec.dtype}"
        assert spec.vocabulary is not None and int(rows[spec.name].max()) < spec.vocabulary
    sides = {spec.name: spec.side for spec in opened.inputs}
    assert sides == {"user": "user", "item": "item", "hour": "user", "user_0": "user", "item_0": "item"}


def test_a_pass_shows_each_train_row_once(opened: PointwiseRecommender) -> None:
    batches = list(opened.train_rows().batches(torch.Generator().manual_seed(1)))
    assert sorted(len(labels) for _, labels in batches) == [205] * 2 + [206] * 3
    assert len(batches) == opened.train_rows().batches_per_epoch
    (block,) = opened.train_rows().blocks
    inputs, labels = block.inputs, block.labels
    assert len(labels) == TRAIN
    whole = zip(*(inputs[name].tolist() for name in inputs), labels.tolist(), strict=True)
    shown = (zip(*(rows[name].tolist() for name in inputs), truth.tolist(), strict=True) for rows, truth in batches)
    assert Counter(row for part in shown for row in part) == Counter(whole)


def test_the_order_is_the_generators(opened: PointwiseRecommender) -> None:
    first, again, other = (
        torch.cat([rows["item"] for rows, _ in opened.train_rows().batches(torch.Generator().manual_seed(seed))])
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_batches_have_the_studys_size(home: Path, untrained: list[int]) -> None:
    opened = _open(_task(home, batch_size=300))
    batches = opened.train_rows().batches(torch.Generator())
    assert [len(labels) for _, labels in batches] == [257] * 4 and opened.train_rows().batches_per_epoch == 4
    assert opened.key == _open(_task(home)).key, "the same baseline"


def test_the_rows_are_held_once(opened: PointwiseRecommender) -> None:
    assert opened.train_rows() is opened.train_rows()


def test_a_long_log_is_read_in_large_batches(home: Path, untrained: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    before = _open(_task(home)).key
    monkeypatch.setattr(pointwise, "_MANY_ROWS", 1000)
    monkeypatch.setattr(pointwise, "LARGE_BATCH", 600)
    opened = _open(_task(home))
    shown = pointwise._shuffled(opened.dataset, pointwise._batch(opened.dataset), torch.Generator())
    assert [len(labels) for _, labels in shown] == [600, 428]
    assert opened.key != before, "another baseline"


def test_the_loss_is_sklearns(opened: PointwiseRecommender) -> None:
    inputs, labels = next(opened.train_rows().batches(torch.Generator()))
    outputs = opened.outputs(opened.model, inputs)
    probability = 1 / (1 + np.exp(-outputs.detach().double().numpy()))
    assert opened.loss(outputs, labels).item() == pytest.approx(log_loss(labels.numpy(), probability), abs=1e-6)


def test_what_is_judged_and_what_is_told_are_of_one_model(opened: PointwiseRecommender) -> None:
    held, facts = opened.held_out("test"), opened.facts()
    assert held.seen is held.items is None
    assert set(held.slices) == {
        "users with little history", "users with more history", "rare items", "popular items",
    }  # fmt: skip
    assert {len(values) for values in (*held.inputs[0].values(), held.labels, held.groups, *held.slices.values())} == {
        129
    }
    auc = roc_auc_score(held.labels, _scores(opened, held.inputs[0]))
    assert facts.reference_metric == "auc" and facts.references["baseline"] == pytest.approx(auc, abs=1e-9)
    assert facts.rows == {"train": TRAIN, "validation": 128, "test": 129} and facts.users == 40
    assert facts.training["history"][facts.training["best_epoch"]] == max(facts.training["history"])
    validation = opened.held_out("validation")
    best = roc_auc_score(validation.labels, _scores(opened, validation.inputs[0]))
    assert best == pytest.approx(max(facts.training["history"]), abs=1e-9), "the best epoch's weights are kept"


def test_a_log_without_items_has_no_popularity(tmp_path: Path, untrained: list[int]) -> None:
    file, random = tmp_path / "clicks.csv", np.random.default_rng(0)
    lines = (f"{n},{random.integers(2)},{random.integers(9)},{random.random():.3f}" for n in range(400))
    file.write_text("at,clicked,town,age\n" + "\n".join(lines) + "\n")
    columns = {"label": "clicked", "timestamp": "at", "categorical": ["town"], "numeric": ["age"]}
    opened = _open(_task(tmp_path, source=f"table:{file}", columns=columns))
    facts = opened.facts()
    assert facts.references["popularity"] is None and facts.references["logistic_regression"] is not None
    assert opened.held_out("test").slices == {}
    town = Table("tables.town", 12, ("town",))
    counts = opened.counts(opened.model, [town])
    assert counts["tables.town"].sum() == facts.rows["train"]


def test_requests_are_of_the_tasks_sizes(opened: PointwiseRecommender) -> None:
    requests = list(opened.requests(5))
    sizes = [len(request["item"]) for request in requests]
    assert len(requests) == 1000 and min(sizes) >= 1 and max(sizes) <= 60
    assert np.median(sizes) == pytest.approx(20, abs=2)
    for request in requests[:50]:
        assert all(len(np.unique(request[name])) == 1 for name in ("user", "hour", "user_0"))


def test_tables_alone_decay(opened: PointwiseRecommender) -> None:
    tables, others = opened.optimizer(opened.model).param_groups
    names = {id(p): name for name, p in opened.model.named_parameters()}
    assert {names[id(p)] for p in tables["params"]} == {n for n in names.values() if n.startswith("tables.")}
    assert {names[id(p)] for p in others["params"]} == {n for n in names.values() if not n.startswith("tables.")}
    assert (tables["weight_decay"], others["weight_decay"], others["lr"]) == (1e-3, 0, 1e-3)


def test_a_sibling_takes_the_same_inputs(opened: PointwiseRecommender) -> None:
    family = opened.task.recommender
    sibling = opened.build(Architecture(tuple(STUDENT[family].items())))
    with torch.inference_mode():
        assert sibling.eval()(**opened.serving_rows(7)).shape == (7,)
    sizes = set(opened.student())
    assert sizes == set(SIZES[family]), "a bottom only where there are numbers"
    assert opened.sizes() == SIZES[family], "the baseline's own are those it was made with"
    assert all(values[-1] == SIZES[family][name] for name, values in opened.student().items())
    assert [g.name for g in of_sibling(opened, sibling).structure.groups] == [
        g.name for g in of_baseline(opened).structure.groups
    ]


def test_a_baseline_is_trained_once(home: Path, untrained: list[int], tmp_path: Path) -> None:
    task = _task(tmp_path)
    first, again = _open(task), _open(replace(task, rows_median=30, metric="gauc"))
    assert untrained == [3] and first.key == again.key
    assert all(torch.equal(p, q) for p, q in zip(first.model.parameters(), again.model.parameters(), strict=True))
    elsewhere = _open(_task(tmp_path / "elsewhere"))
    assert elsewhere.key == first.key and untrained == [3, 3], "a home is no part of what it is"


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"sizes": {"mlp": "8"}}, {"synthetic": {**SYNTHETIC, "items": 31}}, {"recommender": "dlrm"}]
)
def test_another_model_or_other_data_have_another_key(
    change: dict[str, Any], tmp_path: Path, untrained: list[int]
) -> None:
    task = _task(tmp_path)
    if "recommender" in change:
        change = {**change, "sizes": SIZES["dlrm"]}
    assert _open(task).key != _open(replace(task, **change)).key and len(untrained) == 2


def test_a_logistic_regression_is_fitted_once_for_each_cache(
    opened: PointwiseRecommender, tmp_path: Path, untrained: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process finds it, with the same scores; a study in another home does not."""
    fits: list[int] = []
    fit = pointwise.logistic_regression
    monkeypatch.setattr(pointwise, "logistic_regression", lambda *given: fits.append(1) or fit(*given))
    rows = opened.serving_rows(50)
    first = _open(replace(opened.task, home=str(tmp_path))).reference("logistic_regression")
    again = _open(replace(opened.task, home=str(tmp_path))).reference("logistic_regression")
    assert len(fits) == 1 and not again.training
    fitted = fit(opened.dataset, opened.task.seed)
    with torch.inference_mode():
        for model in (first, again):
            np.testing.assert_array_equal(model(**rows), fitted(**rows))
    assert np.ptp(fitted(**rows).numpy()) > 0
