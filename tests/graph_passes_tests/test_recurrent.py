"""Recurrent layers: the hidden size as a width, one plain form in the graph, and the user's side once a request."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from objectives.compression.export import Signature
from objectives.compression.graph_passes.exported import GATES
from objectives.compression.importance import Evidence, importances
from objectives.compression.pruning import prune
from objectives.compression.quantization import WidthError
from objectives.compression.structure import trace
from spaces.techniques.pruning import Pruning
from spaces.techniques.quantization import Precision
from tests.model_structure_tests.recurrent_models import (
    HIDDEN,
    INPUTS,
    LENGTH,
    Attentive,
    Begun,
    LastState,
    Recurrent,
    rows,
    seeded,
)
from tests.protos import (
    check_parity,
    compute_once,
    infer,
    largest_difference,
    multiply_adds,
    once_inputs,
    quantize,
    read_widths,
    run_onnx,
    to_onnx,
)

USER = frozenset({"history", "length"})
BOTH_WAYS: dict[str, Any] = {"num_layers": 2, "bidirectional": True}
MODELS = [
    seeded(Recurrent, nn.GRU),
    seeded(Recurrent, nn.GRU, num_layers=2, bias=False),
    seeded(Recurrent, nn.GRU, **BOTH_WAYS),
    seeded(Recurrent, nn.LSTM),
    seeded(Recurrent, nn.LSTM, **BOTH_WAYS),
    seeded(Recurrent, nn.RNN, **BOTH_WAYS),
    seeded(LastState, nn.GRU, num_layers=2),
    seeded(LastState, nn.LSTM),
    seeded(Attentive),
]
NAMES = [f"{type(m).__name__}-{m.encoder}" for m in MODELS]


# -- the hidden size


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS, ids=NAMES)
def test_a_removed_unit_equals_a_silenced_one(model: nn.Module) -> None:
    """A unit whose gates, states and readers are nought stays at nought: h' = (1 - z) n + z h, n = tanh(0), h_0 = 0."""
    structure = trace(model, rows(7)).structure
    group = structure.group("encoder")
    assert group.kind == "recurrent" and group.modules == ("encoder",)
    (width,) = group.dims
    assert width.units == HIDDEN and not width.normalised
    pruned, smaller = prune(model, Pruning((("encoder", 0.5),), multiple=1), structure)
    assert pruned.encoder.hidden_size == HIDDEN // 2 and smaller.group("encoder").dims[0].units == HIDDEN // 2
    kept = _kept(model, pruned)
    silent = _silenced(model, sorted(set(range(HIDDEN)) - set(kept)))
    states, _ = silent.encoder(torch.randn(5, LENGTH, INPUTS))
    gone = [d * HIDDEN + u for d in range(states.shape[-1] // HIDDEN) for u in range(HIDDEN) if u not in kept]
    assert not states[..., gone].any() and states.any()
    few = rows(33, seed=1)
    with torch.inference_mode():
        assert torch.allclose(pruned(**few), silent(**few), atol=1e-6)
        assert not torch.allclose(pruned(**few), model(**few), atol=1e-3), "something was taken away"


def test_what_is_pruned_trains_and_is_exported() -> None:
    model = seeded(Recurrent, nn.GRU, num_layers=2)
    pruned, _ = prune(model, Pruning((("encoder", 0.5), ("tables", 0.5)), multiple=1), trace(model, rows(7)).structure)
    assert (pruned.encoder.input_size, pruned.encoder.hidden_size) == (INPUTS // 2, HIDDEN // 2)
    optimizer, few = torch.optim.Adam(pruned.parameters(), 1e-2), rows(64)
    wanted, losses = torch.randn(64, generator=torch.Generator().manual_seed(0)), []
    pruned.train()
    for _ in range(30):
        optimizer.zero_grad()
        loss = (pruned(**few) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    check_parity(pruned.eval(), to_onnx(pruned, rows(257)), rows(257))


@pytest.mark.parametrize("importance", ["magnitude", "taylor", "activation"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_silent_unit_matters_least(importance: Any, bidirectional: bool) -> None:
    model = seeded(Recurrent, nn.GRU, bidirectional=bidirectional)
    silent = _silenced(model, [4]).requires_grad_(True)
    (width,) = trace(model, rows(7)).structure.group("encoder").dims
    evidence = Evidence(
        ((rows(64), torch.ones(64)),),
        lambda of, inputs: of(**inputs),
        lambda out, labels: (out - labels).square().mean(),
    )
    (found,) = importances(silent, [width], importance, evidence)
    assert int(found.argmin()) == 4 and float(found[4]) == 0 and (np.delete(found.detach().numpy(), 4) > 0).all()


def test_units_that_no_linear_layer_reads_are_seen_in_what_the_layer_gives() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.GRU(INPUTS, HIDDEN, batch_first=True)

        def forward(self, numbers: torch.Tensor) -> torch.Tensor:
            return self.encoder(numbers)[0][:, -1].sum(1)

    model, numbers = seeded(Bare), torch.randn(20, LENGTH, INPUTS)
    (width,) = trace(model, {"numbers": numbers}).structure.group("encoder").dims
    evidence = Evidence((({"numbers": numbers}, None),), lambda of, inputs: of(**inputs), lambda out, _: out.mean())
    (found,) = importances(model, [width], "activation", evidence)
    expected = model.encoder(numbers)[0].abs().mean((0, 1))
    assert torch.allclose(found, expected / expected.sum(), atol=1e-6)


def test_what_cannot_be_narrowed_is_left_alone_with_the_reason() -> None:
    begun = trace(seeded(Begun), rows(7)).structure.group("encoder")
    assert not begun.prunable and "fails" in str(begun.unprunable_reason)
    projected = trace(seeded(Projected), rows(7)).structure.group("encoder")
    assert not projected.prunable and "lstm" in str(projected.unprunable_reason)


class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(INPUTS, HIDDEN, proj_size=4, batch_first=True)
        self.item, self.out = nn.Embedding(50, INPUTS), nn.Linear(4, INPUTS)

    def forward(self, item: torch.Tensor, history: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        return (self.out(self.encoder(self.item(history))[0][:, -1]) * self.item(item)).sum(1)


def _kept(model: nn.Module, pruned: nn.Module) -> list[int]:
    """Columns of a reader that are still there, by their values."""
    whole, left = ((m.out if hasattr(m, "out") else m.a_2).weight for m in (model, pruned))
    rows_left = range(len(left)) if hasattr(model, "out") else None
    if rows_left is None:  # of a square matrix the rows left too: by what the state's own row holds
        whole, left = model.encoder.weight_ih_l0.T, pruned.encoder.weight_ih_l0.T
    return [
        next(u for u in range(HIDDEN) if torch.equal(whole[:, u], left[:, i]))
        for i in range(pruned.encoder.hidden_size)
    ]


def _silenced(model: nn.Module, units: list[int]) -> nn.Module:
    """Silence units by the definition of the layers: rows of all gates, columns of the state and of their readers."""
    silent = copy.deepcopy(model)
    encoder = silent.encoder
    assert isinstance(encoder, nn.RNNBase)
    directions = 2 if encoder.bidirectional else 1
    of_outputs = [d * HIDDEN + u for d in range(directions) for u in units]
    with torch.no_grad():
        for name, tensor in encoder.named_parameters():
            gates = len(tensor) // HIDDEN
            tensor[[g * HIDDEN + u for g in range(gates) for u in units]] = 0
            if "weight_hh" in name:
                tensor[:, units] = 0
            elif "weight_ih" in name and "_l0" not in name:
                tensor[:, of_outputs] = 0
        if isinstance(silent, Attentive):
            for square in (silent.a_1, silent.a_2):
                square.weight[units] = 0
                square.weight[:, units] = 0
            silent.v_t.weight[:, units] = 0
            silent.b.weight[:, [*units, *(HIDDEN + u for u in units)]] = 0
        else:
            silent.out.weight[:, of_outputs] = 0
    return silent


# -- in the graph

# Without nn.RNN, which the exporter writes out step by step.
GRAPHS = (0, 2, 4, 6, 8)
OF_GRAPHS = [NAMES[number] for number in GRAPHS]


@cache
def exported(number: int) -> onnx.ModelProto:
    """Export a copy, as of a pruned or trained model; for histories of any length."""
    return to_onnx(copy.deepcopy(MODELS[number]), rows(257), Signature(open={"history": (1,)}))


@pytest.mark.slow
@pytest.mark.parametrize("number", GRAPHS, ids=OF_GRAPHS)
def test_a_layer_has_one_plain_form(number: int) -> None:
    model, graph = MODELS[number], exported(number)
    layers = [node for node in graph.graph.node if node.op_type in GATES]
    encoder = model.encoder
    assert isinstance(encoder, nn.RNNBase) and len(layers) == encoder.num_layers
    held = {tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer}
    directions = 2 if encoder.bidirectional else 1
    for depth, layer in enumerate(layers):
        for kind, name, size in zip(("ih", "hh"), layer.input[1:3], _sizes(encoder, depth), strict=True):
            assert name == f"model.encoder.weight_{kind}_l{depth}.gates"
            assert held[name] == (directions, len(GATES[layer.op_type]) * HIDDEN, size)
        assert not any(layer.input[4:]), "no lengths, no states"
        if encoder.bias:
            assert layer.input[3] == f"model.encoder.bias_l{depth}.gates"
    known = _shapes(infer(graph, 9, {"history": (4,)}))
    assert all(isinstance(size, int) for node in graph.graph.node for o in node.output if o for size in known[o])
    for steps in (1, 4, LENGTH, 9):
        few = rows(13, steps=steps)
        with torch.inference_mode():
            expected = model(**few).numpy()
        assert np.allclose(run_onnx(graph, _arrays(few)), expected, atol=1e-6)
    widths = read_widths(graph, trace(model, rows(7)).structure)
    assert widths["encoder"] == "fp32"


def test_a_large_layers_weights_are_no_work_at_run_time() -> None:
    """The exporter folds small weights alone."""

    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.GRU(100, 120, batch_first=True)

        def forward(self, numbers: torch.Tensor) -> torch.Tensor:
            return self.encoder(numbers)[0][:, -1].sum(1)

    model, numbers = seeded(Large), {"numbers": torch.randn(257, 5, 100)}
    graph = to_onnx(model, numbers)
    (layer,) = (node for node in graph.graph.node if node.op_type == "GRU")
    held = {tensor.name for tensor in graph.graph.initializer}
    assert set(layer.input[1:4]) <= held and {n.op_type for n in graph.graph.node}.isdisjoint({"Concat", "Shape"})
    check_parity(model, graph, numbers)


def _shapes(inferred: onnx.ModelProto) -> dict[str, list[Any]]:
    """Sizes by the value's name, None where one is not fixed."""
    graph = inferred.graph
    return {
        value.name: [d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
    }


def _sizes(encoder: nn.RNNBase, layer: int) -> tuple[int, int]:
    return (HIDDEN * (2 if encoder.bidirectional else 1) if layer else INPUTS), HIDDEN


# -- once a request


@pytest.mark.parametrize("number", GRAPHS, ids=OF_GRAPHS)
def test_the_history_is_read_once_a_request(number: int) -> None:
    graph = exported(number)
    once = compute_once(graph, USER)
    assert once_inputs(once) == USER
    assert largest_difference(once, graph, _arrays(rows(257)), 1e-5) < 1e-5
    lengths = {"history": (LENGTH,)}
    known = _shapes(infer(once, 40, lengths))
    for node in once.graph.node:
        if node.op_type in GATES:
            assert known[node.input[0]][:2] == [LENGTH, 1], "steps, and one row"
    assert multiply_adds(once, 40, lengths) == multiply_adds(graph, 1, lengths), "products hang on the history alone"


@pytest.mark.parametrize("number", GRAPHS[:3], ids=OF_GRAPHS[:3])
def test_multiply_adds_are_those_of_the_layers(number: int) -> None:
    model, graph = MODELS[number], exported(number)
    encoder = model.encoder
    assert isinstance(encoder, nn.RNNBase)
    matrices = sum(p.numel() for name, p in encoder.named_parameters() if "weight" in name)
    out = model.out.weight.numel()
    assert multiply_adds(graph, 9, {"history": (5,)}) == 9 * (5 * matrices + out)


def test_what_reads_the_number_of_rows_still_has_it() -> None:
    """Sizes that are read off the user's inputs are those of N rows."""

    class Spread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.GRU(INPUTS, HIDDEN, batch_first=True)
            self.out = nn.Linear(HIDDEN, 3)

        def forward(self, price: torch.Tensor, history: torch.Tensor) -> torch.Tensor:
            state = self.out(self.encoder(history)[0][:, -1])
            ones = torch.ones(history.shape[0], 3)
            return (state * price.unsqueeze(1) + ones * history.shape[0]).sum(1)

    model = seeded(Spread)
    given = {"price": torch.randn(257), "history": torch.randn(257, LENGTH, INPUTS)}
    graph = to_onnx(model, given)
    once = compute_once(graph, frozenset({"history"}))
    assert largest_difference(once, graph, _arrays(given), 1e-4) < 1e-4
    request = {"price": given["price"][:20], "history": given["history"][:1].repeat(20, 1, 1)}
    with torch.inference_mode():
        assert np.allclose(run_onnx(once, _arrays(request)), model(**request).numpy(), atol=1e-4)


def test_other_groups_are_narrowed_beside_a_recurrent_one() -> None:
    model = MODELS[4]
    structure, given = trace(model, rows(7)).structure, _arrays(rows(257))
    graph = compute_once(exported(4), USER)
    for name, width in (("tables", "int8"), ("out", "int8-dynamic"), ("out", "int8-static")):
        narrow = quantize(graph, Precision(((name, width),)), structure, given)
        assert read_widths(narrow, structure)[name] == width and read_widths(narrow, structure)["encoder"] == "fp32"
        assert largest_difference(narrow, graph, given) < 0.1


@pytest.mark.parametrize("once", [False, True])
def test_an_lstm_in_int8_is_that_of_its_rounded_weights(once: bool) -> None:
    """Weights rounded row by row explain the difference, but for the rounding of what is read."""
    model = MODELS[4]
    structure, given = trace(model, rows(7)).structure, _arrays(rows(257))
    graph = compute_once(exported(4), USER) if once else exported(4)
    narrow = quantize(graph, Precision((("encoder", "int8-lstm"),)), structure, given)
    assert read_widths(narrow, structure)["encoder"] == "int8-lstm"
    assert "LSTM" not in {node.op_type for node in narrow.graph.node}
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in rounded.encoder.named_parameters():
            if "weight" in name:
                step = tensor.abs().amax(1, keepdim=True) / 127
                tensor.copy_((tensor / step).round() * step)
        few = rows(40)
        few = {n: v[:1].repeat(40, *[1] * (v.dim() - 1)) if n in USER else v for n, v in few.items()}
        expected, fp32 = rounded(**few).numpy(), model(**few).numpy()
    got = run_onnx(narrow, _arrays(few))
    assert np.abs(got - expected).max() < 0.05 * fp32.std() and not np.array_equal(got, fp32)


def test_a_gru_has_no_int8() -> None:
    structure, given = trace(MODELS[0], rows(7)).structure, _arrays(rows(257))
    with pytest.raises(WidthError, match=r"LSTM.*GRU"):
        quantize(exported(0), Precision((("encoder", "int8-lstm"),)), structure, given)


def _arrays(given: dict[str, torch.Tensor]) -> dict[str, NDArray[Any]]:
    return {name: values.numpy() for name, values in given.items()}
