"""Reused graphs against graphs that are traced anew: the same nodes and weights, or no reuse."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, fx, nn

from objectives.compression import traced_graphs
from objectives.compression.export import PARITY_ROWS, Signature, to_onnx, trace
from objectives.compression.traced_graphs import TracedGraphs
from objectives.recommenders.datasets.features import Field
from objectives.recommenders.families import dcn_v2, dlrm, sasrec
from tests.families_tests.mixed_fields import draw, lively

FIELDS = (
    Field(name="user", side="user", vocabulary=300),
    Field(name="age", side="user", kind="numeric"),
    Field(name="item", side="item", vocabulary=400),
    Field(name="tags", side="item", kind="multi", vocabulary=20, length=3),
)
ROWS = draw(FIELDS, max(PARITY_ROWS))
RANKED = {"history": torch.randint(1, 41, (len(ROWS["user"]), 6)), "item": torch.randint(1, 41, (len(ROWS["user"]),))}


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The models that were traced, in order."""
    models: list[nn.Module] = []

    def noted(model: nn.Module, *of: Any) -> ir.Model:
        models.append(model)
        return trace(model, *of)

    monkeypatch.setattr(traced_graphs, "trace", noted)
    return models


def parts(graph: ir.Model) -> tuple[list[object], dict[str, object]]:
    """Nodes and weights, as they would be in a file; constants stand for their names, which the exporter numbers."""
    proto = ir.to_proto(graph).graph
    arrays = {t.name: (t.data_type, numpy_helper.to_array(t).tolist()) for t in proto.initializer}
    constants = {name: array for name, array in arrays.items() if not name.startswith("model.")}
    nodes = [
        (node.op_type, [constants.get(name, name) for name in node.input], list(node.output), list(node.attribute))
        for node in proto.node
    ]
    return nodes, {name: array for name, array in arrays.items() if name not in constants}


def ranker(embedding_dim: int, blocks: int, heads: int, feed_forward: int) -> nn.Module:
    return sasrec.SASRec(40, sasrec.Sizes(embedding_dim, blocks, heads, feed_forward, 6))


PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], dict[str, Tensor], Signature]] = {
    "dcn-v2": (
        lambda: dcn_v2.DCNV2(FIELDS, dcn_v2.Sizes(16, 2, (48, 32))),
        lambda: dcn_v2.DCNV2(FIELDS, dcn_v2.Sizes(6, 2, (20, 8))),
        ROWS,
        Signature(),
    ),
    "dlrm": (
        lambda: dlrm.DLRM(FIELDS, dlrm.Sizes(16, (32, 24), (48, 32))),
        lambda: dlrm.DLRM(FIELDS, dlrm.Sizes(16, (12, 8), (20, 8))),
        ROWS,
        Signature(),
    ),
    "sasrec": (lambda: ranker(16, 2, 2, 24), lambda: ranker(16, 2, 2, 7), RANKED, Signature(frozenset(["history"]))),
}


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return lively(make()).eval()


@pytest.mark.parametrize("name", PAIRS)
def test_a_model_of_other_sizes_has_the_graph_that_tracing_gives(name: str, traced: list[nn.Module]) -> None:
    first, second, rows, signature = PAIRS[name]
    graphs, models = TracedGraphs(), [made(first), made(second)]
    for model in models:
        graph, parity = graphs.export(model, rows, signature)
        assert parity < 1e-4
        assert parts(graph) == parts(to_onnx(model, rows, signature))
        onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    assert traced == models[:1]


def test_other_weights_of_the_same_sizes_have_the_graph_that_tracing_gives(traced: list[nn.Module]) -> None:
    """The first model's graph lacks nothing that its weights made superfluous: its biases are zeros."""
    first, _, rows, signature = PAIRS["dcn-v2"]
    plain, trained = made(first), made(first)
    for name, parameter in plain.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    graphs = TracedGraphs()
    graphs.export(plain, rows, signature)
    graph, _ = graphs.export(trained, rows, signature)
    assert parts(graph) == parts(to_onnx(trained, rows, signature))
    assert traced == [plain]


class Scaled(nn.Module):
    """A model whose graph holds numbers that depend on the width of its table, or on a setting that is no size."""

    def __init__(self, width: int, times: float = 1.0) -> None:
        super().__init__()
        self.table, self.head, self.times = nn.Embedding(30, width), nn.Linear(width, 1), times

    def forward(self, item: Tensor) -> Tensor:
        table: Tensor = self.table(item)
        return self.times * self.head(table * table.shape[-1] ** 0.5).squeeze(1)  # type: ignore[no-any-return]


class Unscaled(nn.Module):
    """A model whose graph holds no number."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(30, width), nn.Linear(width, 1)

    def forward(self, item: Tensor) -> Tensor:
        return self.head(self.table(item)).squeeze(1)  # type: ignore[no-any-return]


class Clamped(nn.Module):
    """A model that reads its last row for ids behind it, which few requests have, times a scalar parameter."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.table, self.times = nn.Embedding(rows, 4), nn.Parameter(torch.tensor(2.0))

    def forward(self, item: Tensor) -> Tensor:
        table: Tensor = self.table(item.clamp(max=self.table.num_embeddings - 1))
        return (self.times * table).sum(1)


class Hashed(nn.Module):
    """A model that looks ids up modulo the rows of a table of its own."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(rows, 4))

    def forward(self, item: Tensor) -> Tensor:
        return F.embedding(item % self.table.shape[0], self.table).sum(1)


class Shifted(nn.Module):
    """A model that adds what a tensor without a name, or a list of them, holds for an id."""

    def __init__(self, rare: float, within: Callable[[Tensor], object] = lambda values: values) -> None:
        super().__init__()
        values = torch.zeros(5000)
        values[4000:] = rare
        self.table, self.shift = nn.Embedding(5000, 4), within(values)

    def forward(self, item: Tensor) -> Tensor:
        shift = self.shift if isinstance(self.shift, Tensor) else self.shift[0]  # type: ignore[index]
        return self.table(item).sum(1) + shift[item]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "models",
    [
        (Scaled(8), Scaled(4)),
        (Scaled(8), Scaled(8, times=3.0)),
        (ranker(16, 1, 2, 8), ranker(16, 1, 1, 8)),
        (Clamped(30), Clamped(29)),
        (Hashed(500), Hashed(2000)),
        (Shifted(0.0), Shifted(5.0)),
        (Shifted(0.0, lambda values: [values]), Shifted(5.0, lambda values: [values])),
    ],
    ids=["a constant of a size", "a setting", "heads", "rows of a table", "rows of its own table", "values", "a list"],
)
def test_a_graph_with_numbers_of_another_model_is_not_reused(
    models: tuple[nn.Module, nn.Module], traced: list[nn.Module]
) -> None:
    items = {"item": torch.randint(30, (max(PARITY_ROWS),))}
    rows, once = (RANKED, frozenset(["history"])) if isinstance(models[0], sasrec.SASRec) else (items, frozenset[str]())
    graphs, signature = TracedGraphs(), Signature(once)
    for model in map(lively, models):
        graph, parity = graphs.export(model, rows, signature)
        assert parity < 1e-4
        assert parts(graph) == parts(to_onnx(model.eval(), rows, signature))
    assert traced == list(models)


class Folded(nn.Module):
    """A model whose weights are combined before a request: the graph keeps the combination alone."""

    def __init__(self, width: int, turned: bool) -> None:
        super().__init__()
        self.table, self.square, self.norm = nn.Embedding(30, width), nn.Linear(width, width), nn.BatchNorm1d(width)
        self.matrix, self.turned = nn.Parameter(torch.randn(width, width)), turned

    def forward(self, item: Tensor) -> Tensor:
        matrix = self.matrix.T if self.turned else self.matrix
        table = self.norm(self.square(self.table(item)))
        return (table.unsqueeze(1) @ (2.0 * matrix)).squeeze(1).sum(1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("turned", [False, True])
def test_weights_that_are_turned_or_combined_are_those_of_the_second_model(
    turned: bool, traced: list[nn.Module]
) -> None:
    rows, graphs = {"item": torch.randint(30, (max(PARITY_ROWS),))}, TracedGraphs()
    for _ in range(2):
        model = lively(Folded(8, turned)).eval()
        graph, parity = graphs.export(model, rows, Signature())
        assert parity < 1e-4
        assert parts(graph) == parts(to_onnx(model, rows))
    assert len(traced) == 1


def test_a_model_that_holds_what_cannot_be_pickled_is_traced_each_time(traced: list[nn.Module]) -> None:
    graphs, rows = TracedGraphs(), {"item": torch.arange(max(PARITY_ROWS)) % 30}
    for _ in range(2):
        model = Scaled(8)
        model.hidden = lambda: None  # type: ignore[assignment]
        assert graphs.export(model, rows, Signature())[1] < 1e-4
    assert len(traced) == 2


class Shared(nn.Module):
    """A model with one layer under two names, and one that other code has made."""

    def __init__(self, width: int, traced: bool = False) -> None:
        super().__init__()
        self.table, self.first, self.head = nn.Embedding(30, width), nn.Linear(width, width), nn.Linear(width, 1)
        self.second = self.first
        self.act = fx.symbolic_trace(nn.Sequential(nn.ReLU())) if traced else nn.ReLU()

    def forward(self, item: Tensor) -> Tensor:
        return self.head(self.act(self.second(self.first(self.table(item))))).squeeze(1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("made", [False, True])
def test_a_layer_under_two_names_is_exported_and_one_of_an_unknown_kind_is_traced_each_time(
    made: bool, traced: list[nn.Module]
) -> None:
    graphs, rows = TracedGraphs(), {"item": torch.arange(max(PARITY_ROWS)) % 30}
    for width in (8, 4):
        assert graphs.export(lively(Shared(width, made)), rows, Signature())[1] < 1e-4
    assert len(traced) == 1 + made


def doubled(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    return 2 * output


def rarely(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return torch.where(inputs[0].unsqueeze(1) > 4000, 3 * output, 2 * output)


def test_models_with_other_hooks_are_of_other_programs(traced: list[nn.Module]) -> None:
    graphs, rows = TracedGraphs(), {"item": torch.arange(max(PARITY_ROWS)) % 30}
    for hook in (doubled, rarely):
        model = lively(Unscaled(8))
        model.get_submodule("table").register_forward_hook(hook)
        assert graphs.export(model, rows, Signature())[1] < 1e-4
    assert len(traced) == 2


def test_what_a_model_holds_of_itself_does_not_stand_for_its_values(traced: list[nn.Module]) -> None:
    """An optimizer and a list of layers beside the registered ones, as in models of some packages."""
    graphs, rows = TracedGraphs(), {"item": torch.arange(max(PARITY_ROWS)) % 30}
    for width in (8, 8, 4):
        model = lively(Unscaled(width))
        model.optimizer = torch.optim.Adam(model.parameters())  # type: ignore[assignment]
        model.layers = [model.head]  # type: ignore[assignment]
        assert graphs.export(model, rows, Signature())[1] < 1e-4
    assert len(traced) == 1


def test_the_graph_of_the_most_equal_shapes_is_taken(traced: list[nn.Module]) -> None:
    """DLRM's graph holds the width of its vectors."""
    graphs, models = TracedGraphs(), []
    for width, hidden in ((16, 24), (6, 24), (16, 8), (6, 8), (16, 12)):
        models.append(made(lambda: dlrm.DLRM(FIELDS, dlrm.Sizes(width, (hidden,), (20, 8)))))  # noqa: B023
        assert graphs.export(models[-1], ROWS, Signature())[1] < 1e-4
    assert traced == models[:2]


def test_a_reused_graph_keeps_its_weights_when_the_first_model_changes() -> None:
    rows, graphs, first = {"item": torch.arange(max(PARITY_ROWS)) % 30}, TracedGraphs(), Scaled(8)
    graphs.export(first, rows, Signature())
    second = copy.deepcopy(first)
    nn.init.zeros_(first.head.weight)
    graph, _ = graphs.export(second, rows, Signature())
    held = {t.name: numpy_helper.to_array(t) for t in ir.to_proto(graph).graph.initializer}
    np.testing.assert_array_equal(held["model.head.weight"], second.head.weight.detach().numpy())


def test_a_model_that_cannot_be_exported_says_so_each_time(traced: list[nn.Module]) -> None:
    class Broken(Scaled):
        def forward(self, item: Tensor) -> Tensor:
            return super().forward(item) / 0 * 0

    graphs, rows = TracedGraphs(), {"item": torch.arange(max(PARITY_ROWS)) % 30}
    for _ in range(2):
        with pytest.raises(Exception, match="finite"):
            graphs.export(Broken(8), rows, Signature())
