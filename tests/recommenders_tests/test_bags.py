"""Flat bags with offsets are padded, and scored as the user's own forward scores them flat."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from objectives.bags import Bags, padded
from objectives.build.stages.graphs import signature_of
from objectives.compression.export import runner, to_onnx
from objectives.recommenders.user_model import load as opening
from objectives.recommenders.user_model.checks import model_warnings
from objectives.recommenders.user_model.factory import FactoryError
from objectives.recommenders.user_model.load import open_user_model
from objectives.recommenders.user_model.padded_forward import bags_of, own_forward, padded_forward
from objectives.recommenders.user_model.recommender import UserRecommender
from objectives.task import Task

IDS, WORDS = 40, 20
Flat = dict[str, np.ndarray[Any, Any]]


class Net(nn.Module):
    """Two bags, the second with a weight for each id."""

    def __init__(self, mode: str = "sum", end: bool = False, padding: int | None = None, hashed: bool = False) -> None:
        super().__init__()
        self.ids = nn.EmbeddingBag(IDS, 8, mode=mode, include_last_offset=end, padding_idx=padding)
        self.words = nn.EmbeddingBag(WORDS, 8, mode="sum", include_last_offset=end)
        nn.init.normal_(self.ids.weight)  # the row of padding too: it must not be read
        self.tower = nn.Sequential(nn.Linear(18, 16), nn.ReLU(), nn.Linear(16, 1))
        self.hashed = hashed

    def forward(self, dense: Tensor, ids: Tensor, starts: Tensor, words: Tensor, of: Tensor, weights: Tensor) -> Tensor:
        ids = (ids * 7 + 3) % IDS if self.hashed else ids
        bags = [self.ids(ids, starts), self.words(words, of, per_sample_weights=weights)]
        scores: Tensor = self.tower(torch.cat([dense, *bags], 1))
        return scores.squeeze(1)


class Segments(nn.Module):
    """Reads flat ids without an embedding bag."""

    def __init__(self) -> None:
        super().__init__()
        self.ids, self.tower = nn.Embedding(IDS, 8), nn.Linear(10, 1)

    def forward(self, dense: Tensor, ids: Tensor, starts: Tensor) -> Tensor:
        begun = torch.zeros(ids.shape[0] + 1, dtype=torch.int64).index_add(0, starts, torch.ones_like(starts))
        bag = begun.cumsum(0)[:-1] - 1
        sums = torch.zeros(starts.shape[0], 8).index_add(0, bag, self.ids(ids))
        scores: Tensor = self.tower(torch.cat([dense, sums], 1))
        return scores.squeeze(1)


class Given:
    """Bags of up to 6 ids and words, some of them empty, in each batch and request."""

    name, metric, loss = "given", "auc", nn.BCEWithLogitsLoss()

    def __init__(self, model: nn.Module, end: bool = False, names: tuple[str, ...] = ()) -> None:
        self.model, self.end, self.names = model, end, names

    def flat(self, rows: int, *seed: int) -> Flat:
        random = np.random.default_rng([rows, *seed])
        sizes = random.integers(0, 7, (2, rows))
        sizes[:, rows // 2] = 0
        bounds = np.cumsum(np.pad(sizes, [(0, 0), (1, 0)]), axis=1)[:, : None if self.end else -1]
        ids, words = (random.integers(0, most, of.sum()) for most, of in zip((IDS, WORDS), sizes, strict=True))
        weights = random.standard_normal(len(words)).astype(np.float32)
        dense = random.standard_normal((rows, 2)).astype(np.float32)
        inputs = {"dense": dense, "ids": ids, "starts": bounds[0], "words": words, "of": bounds[1], "weights": weights}
        return {name: values for name, values in inputs.items() if not self.names or name in self.names}

    def batches(self, split: str) -> Iterator[tuple[Flat, Tensor, Any]]:
        for number in range(3):
            yield self.flat(50, number, len(split)), torch.arange(50.0) % 2, np.arange(50) % 9

    def requests(self, seed: int) -> Iterator[Flat]:
        return (self.flat(rows, seed) for rows in range(2, 30))


def opened(given: Any, monkeypatch: pytest.MonkeyPatch) -> UserRecommender:
    monkeypatch.setattr(opening, "load_factory", lambda spec, folder: lambda: given)
    return open_user_model(Task("home", "given:factory", "", "", 200, 0.6, 1000, 0), lambda line: None)


def tensors(inputs: Any) -> dict[str, Tensor]:
    return {name: torch.from_numpy(values) for name, values in inputs.items()}


def check_graph(found: UserRecommender, given: Given) -> set[str]:
    """Compare the exported graph with the own forward on flat bags, and return its operators."""
    graph = to_onnx(found.model, found.serving_rows(60), signature_of(found))
    for rows in (1, 2, 90):
        flat = given.flat(rows, 7)
        with torch.no_grad():
            expected = own_forward(found.model)(**tensors(flat)).numpy()
        assert np.allclose(runner(graph)(padded(flat, bags_of(found.model))), expected, atol=1e-5)
    operators = {node.op_type for node in graph.graph}
    assert not operators & {"Loop", "Scan", "If"}
    return operators


def test_bags_are_padded_with_a_mask() -> None:
    inputs = {
        "ids": np.array([5, 6, 7]),
        "of": np.array([0, 0, 2]),
        "w": np.array([[1.0], [2.0], [3.0]]),
        "x": np.ones(3),
    }
    found = padded(inputs, [Bags("of", ("ids", "w"))])
    assert found["of"].tolist() == [[False, False], [True, True], [True, False]]
    assert found["ids"][found["of"]].tolist() == [5, 6, 7] and set(found["ids"].ravel().tolist()) <= {5, 6, 7}
    assert found["w"].shape == (3, 2, 1) and found["w"][found["of"]].tolist() == inputs["w"].tolist()
    assert found["x"] is inputs["x"] and padded(found, [Bags("of", ("ids", "w"))]) == found
    ended = padded({**inputs, "of": np.array([0, 0, 2, 3], np.int32)}, [Bags("of", ("ids", "w"), end=True)])
    assert all(np.array_equal(ended[name], found[name]) for name in inputs)
    none = padded({"ids": np.zeros(0, np.int64), "of": np.zeros(4, np.int64)}, [Bags("of", ("ids",))])
    assert none["ids"].shape == (4, 2) and not none["of"].any()


@pytest.mark.parametrize(
    ("offsets", "end"), [([1, 2], False), ([0, 2, 1], False), ([0, 4], False), ([0, 2], True), ([], False)]
)
def test_offsets_that_do_not_fit_are_refused(offsets: list[int], end: bool) -> None:
    with pytest.raises(ValueError, match=r"of: must ascend from 0 and fit ids, but got \["):
        padded({"ids": np.arange(3), "of": np.array(offsets, np.int64)}, [Bags("of", ("ids",), end)])


@pytest.mark.parametrize(
    ("mode", "end", "padding", "hashed"),
    [*itertools.product(("sum", "mean", "max"), (False, True), (None, 0, -1), (False, True))],
)
def test_a_padded_model_scores_as_its_own_forward_does(
    mode: str, end: bool, padding: int | None, hashed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    own, given = Net(mode, end, padding, hashed).eval(), Given(Net(mode, end, padding, hashed), end)
    given.model.load_state_dict(own.state_dict())
    found = opened(given, monkeypatch)
    assert bags_of(found.model) == (Bags("starts", ("ids",), end, True), Bags("of", ("words", "weights"), end, True))
    student = copy.deepcopy(found.model)
    nn.init.zeros_(student.get_parameter("tower.2.weight"))
    for flat, request in zip(given.requests(0), found.sent.requests, strict=True):
        with torch.no_grad():
            expected = own(**tensors(flat))
            assert torch.equal(found.model(**tensors(request)), expected)
            on_padded = padded_forward(found.model).on_padded(**tensors(request))  # type: ignore[union-attr]
            assert torch.allclose(on_padded, expected, atol=1e-5)
            assert torch.unique(student(**tensors(request))).numel() == 1, "a copy runs its own weights"


@pytest.mark.parametrize(("mode", "end", "padding", "hashed"), [("sum", True, None, True), ("mean", False, 3, False)])
def test_an_exported_graph_does_too(
    mode: str, end: bool, padding: int | None, hashed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    given = Given(Net(mode, end, padding, hashed), end)
    found = opened(given, monkeypatch)
    assert "NonZero" not in check_graph(found, given)


def test_rows_of_train_and_held_out_have_few_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    found = opened(Given(Net()), monkeypatch)
    assert [block.inputs["ids"].shape for block in found.train_rows().blocks] == [(150, 8)]
    assert [block["ids"].shape for block in found.held_out("test").inputs] == [(150, 8)]
    shapes = {spec.name: (spec.dtype, spec.shape, spec.bags) for spec in found.inputs}
    assert shapes["ids"] == ("int64", (None,), None) and shapes["dense"] == ("float32", (2,), None)
    assert shapes["starts"] == ("bool", (None,), Bags("starts", ("ids",), inferred=True))


def test_a_model_that_reads_flat_ids_otherwise_is_exported_with_its_bags_packed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    given = Given(Segments(), names=("dense", "ids", "starts"))
    with pytest.raises(FactoryError, match=r"given: requests\(0\): inputs must have the same rows, or one, unless"):
        opened(given, monkeypatch)
    given.bags = {"ids": "starts"}  # type: ignore[attr-defined]
    found = opened(given, monkeypatch)
    assert [line for line in model_warnings(found, 0) if "ids, starts are not given to embedding_bag" in line]
    check_graph(found, given)


class Lists(nn.Module):
    """Lists of ids and offsets, a quotient and a remainder of an id, and learned weights of ids, as in Meta's DLRM."""

    def __init__(self, weighted: bool) -> None:
        super().__init__()
        self.ids, self.weights = nn.EmbeddingBag(IDS, 8, mode="sum"), nn.Parameter(torch.rand(IDS))
        self.quotient, self.remainder = nn.EmbeddingBag(4, 8, mode="sum"), nn.EmbeddingBag(5, 8, mode="sum")
        self.tower, self.weighted = nn.Linear(10, 1), weighted

    def forward(self, dense: Tensor, ids: Tensor, starts: Tensor, words: Tensor, of: Tensor) -> Tensor:
        bags = self.embedded([ids, words], [starts, of])
        scores: Tensor = self.tower(torch.cat([dense, bags], 1))
        return scores.squeeze(1)

    def embedded(self, ids: list[Tensor], offsets: list[Tensor]) -> Tensor:
        weights = self.weights.gather(0, ids[0]) if self.weighted else None
        first: Tensor = self.ids(ids[0], offsets[0], per_sample_weights=weights)
        return first + self.quotient((ids[1] / 5).long(), offsets[1]) * self.remainder(ids[1] % 5, offsets[1])


@pytest.mark.parametrize("weighted", [False, True])
def test_bags_are_recognised_in_lists_and_by_computed_ids(weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    given = Given(Lists(weighted), names=("dense", "ids", "starts", "words", "of"))
    found = opened(given, monkeypatch)
    forward = padded_forward(found.model)
    assert forward is not None and forward.masked == (not weighted), "weights of single ids are looked up in flat ones"
    assert forward.bags == (Bags("starts", ("ids",), inferred=True), Bags("of", ("words",), inferred=True))
    assert ("NonZero" in check_graph(found, given)) == weighted


class Twice(nn.Module):
    """Both bags by what is computed of their ids, of which there are equally many."""

    def __init__(self) -> None:
        super().__init__()
        self.ids, self.tower = nn.EmbeddingBag(IDS, 8, mode="sum"), nn.Linear(8, 1)

    def forward(self, a: Tensor, b: Tensor, first: Tensor, second: Tensor) -> Tensor:
        scores: Tensor = self.tower(self.ids(a % 7, first) * self.ids(b % 5, second))
        return scores.squeeze(1)


def test_bags_that_are_not_clear_are_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Given(Twice())
    random = np.random.default_rng(0)
    one = {"a": random.integers(0, IDS, 80), "b": random.integers(0, IDS, 80)}
    starts = {"first": np.sort(random.integers(0, 80, 50)), "second": np.sort(random.integers(0, 80, 50))}
    for offsets in starts.values():
        offsets[0] = 0
    given.flat = lambda rows, *seed: {**one, **starts}  # type: ignore[method-assign]
    with pytest.raises(FactoryError, match=r"given: bags must be declared, as \{values: offsets\}"):
        opened(given, monkeypatch)
    given.bags = {"a": "first"}  # type: ignore[attr-defined]
    with pytest.raises(FactoryError, match="must have the same rows"):
        opened(given, monkeypatch)
    given = Given(Twice())
    given.flat, given.bags = lambda rows, *seed: {**one, **starts}, {"a": "first", "b": "second"}  # type: ignore
    assert bags_of(opened(given, monkeypatch).model) == (Bags("first", ("a",)), Bags("second", ("b",)))
    for wrong in ({"c": "first"}, {"a": "third"}):
        given = Given(Twice())
        given.flat, given.bags = lambda rows, *seed: {**one, **starts}, wrong  # type: ignore
        with pytest.raises(FactoryError, match="given: bags must map inputs of values to inputs of offsets, of a, b"):
            opened(given, monkeypatch)
