"""Windows and truncated histories of SASRec: against a dense banded mask, the truncated input, the graph's sizes."""

from __future__ import annotations

import copy

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from objectives.compression.attention import sparsify
from objectives.compression.export import Signature
from objectives.recommenders.families import self_attention
from objectives.recommenders.families.sasrec import SASRec, Sizes
from objectives.recommenders.families.self_attention import SelfAttention
from spaces.techniques.attention import Attention
from tests.protos import check_parity, multiply_adds, to_onnx

ITEMS = 40
LENGTH = 12
D, FEED_FORWARD = 8, 6
WINDOWS = (1, 2, 3, 5, 8, LENGTH, LENGTH + 3)


def _model(blocks: int = 2, length: int = LENGTH) -> SASRec:
    torch.manual_seed(blocks)
    model = SASRec(ITEMS, Sizes(D, blocks, 2, FEED_FORWARD, length))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.5)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
        model.tables["item"].weight[0] = 0
    return model.eval()


def _histories(*real: int, length: int = LENGTH) -> Tensor:
    """Histories, (histories, length), of which the last so many are items."""
    draw = torch.Generator().manual_seed(7)
    histories = torch.randint(1, ITEMS + 1, (len(real), length), generator=draw)
    for row, count in enumerate(real):
        histories[row, : length - count] = 0
    return histories


def _every_item(histories: Tensor) -> Tensor:
    return torch.arange(ITEMS + 1).repeat(*histories.shape, 1)


def _banded(model: SASRec, window: int) -> SASRec:
    """The full model with an oracle in each attention: torch's own, dense, under a banded mask."""

    def attend(module: SelfAttention, args: tuple[Tensor, Tensor, Tensor, int | None], out: Tensor) -> Tensor:
        queries, read, padding, _ = args
        q, k, v = (
            t.unflatten(-1, (-1, module.head_dim)).transpose(-3, -2)  # type: ignore[no-untyped-call]
            for t in (module.q(queries), module.k(read), module.v(read))
        )
        asked, seen = q.shape[-2], k.shape[-2]
        band = torch.ones(seen, seen, dtype=torch.bool).tril().triu(1 - window)[seen - asked :]
        mask = padding.unsqueeze(-3) + torch.zeros(asked, seen).masked_fill(~band, -torch.inf)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return module.out(mixed.transpose(-3, -2).flatten(-2))  # type: ignore[no-any-return]

    dense = copy.deepcopy(model)
    for block in dense.blocks:
        block.attention.register_forward_hook(attend)  # type: ignore[union-attr,arg-type]
    return dense


# -- what is computed


@pytest.fixture(params=[True, False], ids=["in blocks", "at once"])
def always(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention computes a window in blocks of queries always, or, at these sizes, never."""
    monkeypatch.setattr(self_attention, "WORTHWHILE", -(10**9) if request.param else 10**9)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("window", WINDOWS)
def test_a_window_is_a_dense_banded_mask(window: int, blocks: int) -> None:
    """Both forms agree: the training form at all positions, the serving form at fewer from block to block."""
    model = _model(blocks)
    narrowed, histories = sparsify(model, Attention(window=window)), _histories(0, 1, 5, LENGTH)
    with torch.inference_mode():
        expected = _banded(model, window).positions(histories, _every_item(histories))
        got = narrowed.positions(histories, _every_item(histories))  # type: ignore[operator]
        assert torch.allclose(got, expected, atol=1e-5)
        for history, scores in zip(histories, expected[:, -1], strict=True):
            served = narrowed(history[None], torch.arange(ITEMS + 1))
            assert torch.allclose(served, scores, atol=1e-5)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(("blocks", "window", "reach"), [(1, 4, 4), (2, 4, 7), (3, 3, 7), (3, 4, 10)])
def test_the_last_position_depends_on_its_reach(blocks: int, window: int, reach: int) -> None:
    """Scores depend on 1 + blocks * (window - 1) positions: an older item changes nothing, the oldest within does."""
    narrowed, history = sparsify(_model(blocks), Attention(window=window)), _histories(LENGTH)
    with torch.inference_mode():
        before = narrowed(history, torch.arange(ITEMS + 1))
        for at in range(LENGTH):
            changed = history.clone()
            changed[0, at] = changed[0, at] % ITEMS + 1
            same = torch.equal(narrowed(changed, torch.arange(ITEMS + 1)), before)
            assert same == (at < LENGTH - reach)


@pytest.mark.parametrize("history", [1, 4, 5, LENGTH, LENGTH + 3])
@pytest.mark.parametrize("window", [None, 3])
def test_a_truncated_history_is_the_truncated_input(history: int, window: int | None) -> None:
    model = _model()
    narrowed = sparsify(model, Attention(window, history))
    plain = model if window is None else sparsify(model, Attention(window))
    for real in (2, LENGTH):
        codes = _histories(real)
        with torch.inference_mode():
            got = narrowed(codes, torch.arange(ITEMS + 1))
            assert torch.allclose(got, plain(codes[:, -history:], torch.arange(ITEMS + 1)), atol=1e-5)


@pytest.mark.parametrize("history", [1, 4, 5])
def test_training_reads_pieces_of_that_length(history: int) -> None:
    """Training sequences are cut from the end; all positions are answered, each from its own piece."""
    model, codes = _model(), _histories(LENGTH, 7)
    narrowed = sparsify(model, Attention(history=history))
    with torch.inference_mode():
        got = narrowed.positions(codes, _every_item(codes))  # type: ignore[operator]
        assert got.shape == (2, LENGTH, ITEMS + 1)
        for end in range(LENGTH, 0, -history):
            piece = slice(max(0, end - history), end)
            expected = model.positions(codes[:, piece], _every_item(codes[:, piece]))
            assert torch.allclose(got[:, piece], expected, atol=1e-5)
        served = narrowed(codes[:1], torch.arange(ITEMS + 1))
        assert torch.allclose(got[0, -1], served, atol=1e-5), "the last is what is served"


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("asked", [Attention(window=5), Attention(history=5), Attention(3, 7)])
def test_gradients_are_finite_under_padding(asked: Attention) -> None:
    narrowed, histories = sparsify(_model(), asked).train(), _histories(0, 1, 6, LENGTH)
    narrowed.positions(histories, _every_item(histories)).sum().backward()  # type: ignore[operator]
    assert all(torch.isfinite(p.grad).all() for p in narrowed.parameters() if p.grad is not None)
    assert narrowed.get_parameter("blocks.0.attention.k.weight").grad is not None


# -- the transform


def test_the_model_itself_is_left_as_it_was() -> None:
    model = _model()
    narrowed = sparsify(model, Attention(window=3))
    assert (model.window, model.history) == (None, None)
    assert (narrowed.window, narrowed.history) == (3, None)
    for name, parameter in narrowed.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)) and parameter is not model.get_parameter(name)


def test_a_model_without_such_attention_is_refused() -> None:
    model = nn.TransformerEncoderLayer(8, 2)
    with pytest.raises(ValueError, match=r"TransformerEncoderLayer.*window"):
        sparsify(model, Attention(window=16))


def test_every_part_that_can_be_narrowed_is() -> None:
    """Every module with both attributes is narrowed, wherever it lies; other modules are left alone."""

    class Narrow(nn.Module):
        window: int | None = None
        history: int | None = None

    narrowed = sparsify(nn.Sequential(Narrow(), nn.Linear(2, 2), nn.Sequential(Narrow())), Attention(4, 9))
    found = [(m.window, m.history) for m in narrowed.modules() if isinstance(m, Narrow)]
    assert found == [(4, 9), (4, 9)]


# -- the graph


def _graph(model: nn.Module) -> onnx.ModelProto:
    return to_onnx(model, {"history": _histories(5), "item": torch.arange(1, 4)}, Signature(frozenset({"history"})))


def _products(spans: list[int], scores: list[int]) -> int:
    """Count the blocks' multiply-adds by hand.

    Block b reads `spans[b]` positions and computes `spans[b + 1]`, with `scores[b]` scores of a query and a key.
    """
    total = 0
    for read, asked, pairs in zip(spans, spans[1:], scores, strict=False):
        total += 2 * read * D * D + 2 * asked * D * D + 2 * pairs * D + 2 * asked * D * FEED_FORWARD
    return total


@pytest.mark.slow
@pytest.mark.parametrize(
    ("blocks", "asked", "spans", "scores"),
    [
        (2, None, [12, 12, 1], [12 * 12, 12]),
        (2, Attention(window=3), [5, 3, 1], [3 * 5, 3]),
        (2, Attention(history=5), [5, 5, 1], [5 * 5, 5]),
        (2, Attention(window=3, history=4), [4, 3, 1], [3 * 4, 3]),
        # Blocks of two queries, each with three keys, where all with all would be 4 * 5.
        (4, Attention(window=2), [5, 4, 3, 2, 1], [4 * 3, 4 * 3, 2 * 3, 2]),
    ],
    ids=["all", "window", "history", "both", "in blocks"],
)
def test_the_graph_computes_that_much_less(
    monkeypatch: pytest.MonkeyPatch, blocks: int, asked: Attention | None, spans: list[int], scores: list[int]
) -> None:
    monkeypatch.setattr(self_attention, "WORTHWHILE", 0)
    narrowed = _model(blocks) if asked is None else sparsify(_model(blocks), asked)
    graph = _graph(narrowed)
    assert multiply_adds(graph, 20) == _products(spans, scores) + 20 * D
    histories = _histories(LENGTH).repeat(257, 1)
    for row in (histories, _histories(2).repeat(257, 1), torch.zeros_like(histories)):
        assert check_parity(narrowed, graph, {"history": row, "item": torch.arange(257) % (ITEMS + 1)}) < 1e-4
    shape = [d.dim_value for d in graph.graph.input[0].type.tensor_type.shape.dim]
    assert shape == [1, LENGTH], "the request stays as it was"


def test_the_training_form_costs_the_length_times_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of w queries with 2w - 1 keys each, where all with all would be L squared."""
    monkeypatch.setattr(self_attention, "WORTHWHILE", 0)

    class TrainingForm(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, history: Tensor, candidates: Tensor) -> Tensor:
            return self.model.positions(history, candidates)  # type: ignore[operator,no-any-return]

    window, histories = 3, _histories(LENGTH, 5)
    narrowed = TrainingForm(sparsify(_model(), Attention(window=window)))
    graph = to_onnx(narrowed, {"history": histories, "candidates": histories.unsqueeze(-1).repeat(1, 1, 2)})
    scores = LENGTH * (2 * window - 1)
    assert multiply_adds(graph, 2) == 2 * (_products([LENGTH] * 3, [scores] * 2) + LENGTH * 2 * D)


def test_a_long_history_costs_its_length_and_not_its_square() -> None:
    """Operations of the products are counted by torch."""
    model = sparsify(_model(2, 400), Attention(window=4))
    counts = []
    for length in (200, 400):
        histories = _histories(length, length=length)
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            model.positions(histories, histories.unsqueeze(-1))  # type: ignore[operator]
        counts.append(counter.get_total_flops())
    assert counts[1] == 2 * counts[0]
