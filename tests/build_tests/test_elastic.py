"""Elastic networks of each family and of a user's model: slices against tracing and zeroed units, stages, the cache."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession
from torch import Tensor, nn

from objectives.build.elastic import sliced
from objectives.build.fit import fit, fit_elastic
from objectives.build.model_structure import of_baseline, of_sibling
from objectives.build.nested_shapes import network_of, part_of, shapes_of, student
from objectives.build.stages.weights import elastic_key, fit_network, fitted_weights, weights_folder
from objectives.compression.distillation import Training
from objectives.compression.elastic.network import ElasticNetwork, Slice
from objectives.compression.elastic.prunable import dims_of
from objectives.compression.importance import Evidence
from objectives.compression.pruning import prune
from objectives.jobs.requests import FitNetworkRequest
from objectives.recommenders.load import open_recommender
from objectives.recommenders.protocol import Recommender
from objectives.task import Task
from spaces.domains import Scalar
from spaces.techniques.architecture import Architecture
from spaces.techniques.distillation import Distillation
from spaces.techniques.pruning import Pruning
from spaces.techniques.quantization import Precision
from spaces.weights import Weights
from tests.build_tests import staged
from tests.build_tests.small import FAMILIES
from tests.build_tests.test_user_model_pipeline import SHOP
from tests.compression_tests.test_pruning import zeroed

Opened = Callable[[str], Recommender]
LEARNING = Distillation(2.0, 0.5, 0, elastic_epochs=2)
# The baseline's sizes with fewer units of each, as many layers, and whose removal equals zero.
NARROW: Mapping[str, Mapping[str, Scalar]] = {
    "dcn-v2": {"embedding_dim": 4, "crosses": 2, "mlp": "16-8"},
    "dlrm": {"embedding_dim": 4, "bottom": "16", "top": "16-8"},
    "sasrec": {"embedding_dim": 16, "blocks": 2, "heads": 2, "feed_forward": 8},
}
SMALL: Mapping[str, Mapping[str, Scalar]] = {
    "dcn-v2": {"embedding_dim": 4, "crosses": 1, "mlp": "16"},
    "dlrm": {"embedding_dim": 4, "bottom": "16", "top": "16"},
    "sasrec": {"embedding_dim": 8, "blocks": 1, "heads": 1, "feed_forward": 16},
}


# All tests of one family in turn, whose structure stays in memory.
@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _student(sizes: Mapping[str, Scalar], learning: Distillation = LEARNING) -> Weights:
    return Weights(architecture=Architecture(tuple(sizes.items())), distillation=learning)


def _evidence(recommender: Recommender) -> Evidence:
    batches = recommender.train_rows().batches(torch.Generator().manual_seed(0))
    return Evidence([next(batches)], recommender.outputs, recommender.loss)


def _scores(recommender: Recommender, model: nn.Module) -> Tensor:
    with torch.inference_mode():
        scores: Tensor = model.eval()(**recommender.serving_rows(100))
    return scores


def _read(recommender: Recommender, network: ElasticNetwork, weights: Weights) -> nn.Module:
    part, _ = part_of(recommender, network, weights)
    Slice(network, part).read()
    return part.module


@pytest.fixture(scope="module")
def untrained(opened: Opened) -> Callable[[str], ElasticNetwork]:
    return cache(lambda of: network_of(opened(of), _student(opened(of).sizes()), _evidence(opened(of)), 0))


def test_the_baselines_own_sizes_score_as_the_baseline(
    family: str, opened: Opened, untrained: Callable[[str], ElasticNetwork]
) -> None:
    recommender = opened(family)
    own = _read(recommender, untrained(family), _student(recommender.sizes()))
    expected = _scores(recommender, recommender.model)
    torch.testing.assert_close(_scores(recommender, own), expected, rtol=1e-5, atol=1e-5)


def test_a_narrower_student_is_the_whole_with_units_at_zero(
    family: str, opened: Opened, untrained: Callable[[str], ElasticNetwork]
) -> None:
    """The family's layout is written by hand, and the prunable dimensions are traced: they agree."""
    recommender, network = opened(family), untrained(family)
    narrow = _read(recommender, network, _student(NARROW[family]))
    left = {dim.name: dim.units for dim in dims_of(of_sibling(recommender, narrow).structure)}
    whole = dims_of(of_sibling(recommender, network.model).structure)
    assert {dim.name for dim in whole} == left.keys() and sum(left.values()) < sum(dim.units for dim in whole)
    narrowed = [dim for dim in whole if left[dim.name] < dim.units]
    silent = zeroed(network.model, {dim: list(range(left[dim.name], dim.units)) for dim in narrowed})
    expected = _scores(recommender, silent)
    torch.testing.assert_close(_scores(recommender, narrow), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_each_offered_student_is_nested(
    family: str, opened: Opened, untrained: Callable[[str], ElasticNetwork]
) -> None:
    """A student's tensors have the shapes of its layout, and everything in them is read from the network."""
    recommender, network, offered = opened(family), untrained(family), opened(family).student()
    for values in product(*offered.values()):
        architecture = Architecture(tuple(zip(offered, values, strict=True)))
        part = student(recommender, architecture)
        for name, tensor in part.module.state_dict().items():
            assert name not in part.layout or part.layout[name].shape == tuple(tensor.shape)
        for parameter in part.module.parameters():
            nn.init.constant_(parameter, torch.nan)
        Slice(network, part).read()
        assert all(bool(torch.isfinite(tensor).all()) for tensor in part.module.parameters())


def test_a_layer_that_reads_another_one_is_trained_by_itself(untrained: Callable[[str], ElasticNetwork]) -> None:
    """After one hidden layer, the output layer reads other units than after two."""
    assert untrained("dcn-v2").of_others.keys() == {
        ("head.weight", "after 1 layers"), ("head.bias", "after 1 layers")
    }  # fmt: skip
    assert ("norm.weight", "after 1 blocks") in untrained("sasrec").of_others


def test_a_pruned_slice_has_the_shape_and_structure_of_pruning(family: str, opened: Opened) -> None:
    recommender = opened(family)
    structure = of_baseline(recommender).structure
    groups = [group.name for group in structure.groups if group.prunable]
    pruning = Pruning(tuple((name, 0.5) for name in groups), "taylor", multiple=4)
    weights = Weights(pruning=pruning, distillation=LEARNING)
    network = network_of(recommender, weights, _evidence(recommender), 0)
    module, found = sliced(recommender, network, weights, 0)
    expected, of_expected = prune(recommender.model, pruning, structure, _evidence(recommender), 0)
    assert found == of_expected
    shapes = [{name: tensor.shape for name, tensor in one.state_dict().items()} for one in (module, expected)]
    assert shapes[0] == shapes[1]


def test_shapes_are_drawn_between_the_smallest_and_the_whole(family: str, opened: Opened) -> None:
    recommender, random = opened(family), np.random.default_rng(0)
    weights = Weights(pruning=Pruning((("tables", 0.5),), multiple=2), distillation=LEARNING)
    network = network_of(recommender, weights, _evidence(recommender), 0)
    shapes = shapes_of(recommender, network, weights)
    drawn = [dict(shapes.draw(random)) for _ in range(20)]  # type: ignore[arg-type]
    whole = {dim.name: dim.units for dim in dims_of(of_baseline(recommender).structure)}
    least = dict(shapes.smallest)  # type: ignore[arg-type]
    assert dict(shapes.largest) == whole and len({tuple(one.items()) for one in drawn}) > 5  # type: ignore[arg-type]
    assert all(least[name] <= one[name] <= whole[name] for one in drawn for name in whole)
    students = shapes_of(recommender, network, _student(SMALL[family]))
    assert students.largest == Architecture(tuple(recommender.sizes().items()))


@pytest.mark.slow
def test_training_lowers_the_loss_of_a_slice(family: str, opened: Opened) -> None:
    recommender = opened(family)
    weights = _student(SMALL[family], replace(LEARNING, elastic_epochs=8))
    lines: list[str] = []
    trained = fit_elastic(recommender, weights, 0, lines.append)
    assert len(lines) == 8
    inputs, labels = next(recommender.train_rows().batches(torch.Generator().manual_seed(9)))
    losses = []
    for network in (network_of(recommender, weights, _evidence(recommender), 0), trained):
        module = sliced(recommender, network, weights, 0)[0]
        with torch.inference_mode():
            losses.append(float(recommender.loss(recommender.outputs(module, inputs), labels)))
    assert losses[1] < losses[0]


@pytest.mark.slow
def test_epochs_of_its_own_start_from_the_slice(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    recommender, seen = opened("dlrm"), list[dict[str, Tensor]]()
    weights = _student(SMALL["dlrm"], replace(LEARNING, epochs=1))
    network = fit_elastic(recommender, weights, 0, lambda line: None)

    def look(student: nn.Module, *_: object, begun: None) -> Training:
        seen.append({name: tensor.clone() for name, tensor in student.state_dict().items()})
        return Training((0.0,), {}, {}, torch.empty(0), torch.empty(0))

    monkeypatch.setattr("objectives.build.fit.distil", look)
    fit(recommender, weights, 0, lambda line: None, network=network)
    slice_ = sliced(recommender, network, weights, 0)[0].state_dict()
    assert len(seen) == 1 and all(torch.equal(seen[0][name], tensor) for name, tensor in slice_.items())


# -- stages


@pytest.mark.parametrize("family", ["dlrm", *(pytest.param(of, marks=pytest.mark.slow) for of in ("dcn-v2", "sasrec"))])
def test_the_network_is_trained_once_for_all_shapes(
    family: str, opened: Opened, task_of: Callable[[str], Task]
) -> None:
    """What is in the cache is used, and what is missing of it is made again, with the same result."""
    task, recommender, lines = task_of(family), opened(family), list[str]()
    learning = replace(LEARNING, elastic_epochs=3)
    small, narrow = _student(SMALL[family], learning), _student(NARROW[family], learning)
    tuned = replace(small, distillation=replace(learning, epochs=1))

    def told(weights: Weights) -> list[str]:
        lines.clear()
        staged.fit(task, weights, lines.append)
        return [line.partition(":")[0] for line in lines if "epoch" in line and "baseline" not in line]

    assert told(small) == ["elastic network"] * 3
    assert told(narrow) == [] and told(small) == []
    assert told(tuned) == ["distilling"]
    first = _scores(recommender, fitted_weights(task, recommender, small).model)
    shutil.rmtree(weights_folder(task, recommender, small))
    assert told(small) == []
    shutil.rmtree(weights_folder(task, recommender, small))
    shutil.rmtree(task.cache / "elastic_networks" / elastic_key(task, recommender, small))
    assert told(small) == ["elastic network"] * 3
    assert torch.equal(first, _scores(recommender, fitted_weights(task, recommender, small).model))


def test_a_network_is_trained_before_its_slices(opened: Opened, task_of: Callable[[str], Task]) -> None:
    task, lines, threads = task_of("dlrm"), list[str](), torch.get_num_threads()
    weights = _student(SMALL["dlrm"], replace(LEARNING, elastic_epochs=4))
    found = [fit_network(FitNetworkRequest(task, weights, threads), lines.append) for _ in range(2)]
    assert [one.reused for one in found] == [False, True]
    assert sum(line.startswith("elastic network: epoch") for line in lines) == 4
    lines.clear()
    assert not staged.fit(task, weights, lines.append).reused
    assert not any("epoch" in line for line in lines)


@pytest.mark.slow
def test_an_exported_slice_scores_as_its_module(family: str, opened: Opened, task_of: Callable[[str], Task]) -> None:
    task, recommender, weights = task_of(family), opened(family), _student(SMALL[family])
    staged.fit(task, weights, lambda line: None)
    artifact, _ = staged.export(task, weights, Precision(), staged.Form(), lambda line: None)
    rows = {name: values.numpy() for name, values in recommender.serving_rows(50).items()}
    fed = {name: values[:1] if name in recommender.once else values for name, values in rows.items()}
    (found,) = InferenceSession(str(Path(task.home) / artifact.path)).run(None, fed)
    model = fitted_weights(task, recommender, weights).model.eval()
    with torch.inference_mode():
        expected = model(**{name: torch.from_numpy(values) for name, values in fed.items()})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_users_model_is_sliced_by_its_prunable_dimensions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elastic_shop.py").write_text(SHOP)
    monkeypatch.syspath_prepend(str(tmp_path))
    task = Task(str(tmp_path), "elastic_shop:factory", "", "", 20, 0.5, 60, 0)
    recommender = open_recommender(task, lambda line: None)
    sys.modules.pop("elastic_shop", None)
    structure = of_baseline(recommender).structure
    weights = Weights(pruning=Pruning((("tower", 0.5),), multiple=4), distillation=LEARNING)
    network = fit_elastic(recommender, weights, 0, lambda line: None)
    module, left = sliced(recommender, network, weights, 0)
    kept = {dim.name: dim.units for dim in dims_of(left)}
    assert kept.keys() == {dim.name for dim in dims_of(structure)} and kept["tower.0"] == 16
    narrowed = [dim for dim in dims_of(structure) if kept[dim.name] < dim.units]
    silent = zeroed(network.model, {dim: list(range(kept[dim.name], dim.units)) for dim in narrowed})
    rows = recommender.serving_rows(40)
    with torch.inference_mode():
        for name, expected in silent.eval()(**rows).items():
            torch.testing.assert_close(module(**rows)[name], expected, rtol=1e-4, atol=1e-5)
