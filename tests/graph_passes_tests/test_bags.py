"""Bags of embeddings are exported as lookups and reductions, and give what torch gives."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from tests.protos import check_parity, compute_once, run_onnx, to_onnx

_KINDS = [("sum", None), ("sum", 7), ("mean", None), ("mean", 0), ("max", None), ("max", -1)]
_ROWS = 300


class FixedBags(nn.Module):
    """Bags of one length; `scaled` has a factor for each id."""

    def __init__(self, mode: str, padding: int | None, scaled: bool) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(50, 8, mode=mode, padding_idx=padding)
        nn.init.normal_(self.bag.weight)  # the row of padding too: it must not be read
        self.scaled = scaled

    def forward(self, words: Tensor, factors: Tensor) -> Tensor:
        return (self.bag(words, per_sample_weights=factors if self.scaled else None) * torch.arange(1.0, 9.0)).sum(1)


class PackedBags(nn.Module):
    """Padded ids that the model packs itself: bags of any length, empty ones too, by their offsets."""

    def __init__(self, mode: str, padding: int | None, last: bool) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(50, 8, mode=mode, padding_idx=padding, include_last_offset=last)
        nn.init.normal_(self.bag.weight)
        self.last = last

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        ends = lengths.cumsum(0)
        packed = words[torch.arange(words.shape[1]) < lengths.unsqueeze(1)]
        offsets = torch.cat([ends - lengths, ends[-1:]]) if self.last else ends - lengths
        return (self.bag(packed, offsets) * torch.arange(1.0, 9.0)).sum(1)


def _words(padding: int | None, length: int = 5) -> Tensor:
    """Some rows with padding here and there, the first five with nothing else."""
    words = torch.randint(0, 50, (_ROWS, length))
    if padding is not None:
        words[torch.rand(words.shape) < 0.3] = padding % 50
        words[:5] = padding % 50
    return words


def _operators(graph: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in graph.graph.node}


@pytest.mark.parametrize(
    ("mode", "padding", "scaled"), [*((*kind, False) for kind in _KINDS), ("sum", None, True), ("sum", 7, True)]
)
def test_bags_of_one_length_are_a_lookup_and_a_reduction(mode: str, padding: int | None, scaled: bool) -> None:
    torch.manual_seed(0)
    model, rows = FixedBags(mode, padding, scaled), {"words": _words(padding), "factors": torch.randn(_ROWS, 5)}
    graph = to_onnx(model, rows)
    assert not _operators(graph) & {"Loop", "Scan", "If"} and "Gather" in _operators(graph)
    given = {name: values.numpy() for name, values in rows.items()}
    expected = model(**rows).detach().numpy()
    assert np.isfinite(expected).all() and np.abs(expected).max() > 1
    assert np.allclose(run_onnx(graph, given), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "padding"), _KINDS)
@pytest.mark.parametrize("last", [False, True])
def test_bags_by_offsets_that_the_model_works_out_are_no_loop(mode: str, padding: int | None, last: bool) -> None:
    torch.manual_seed(1)
    lengths = torch.randint(0, 6, (_ROWS,))
    lengths[-1] = 0  # a bag that starts behind the last id
    model, rows = PackedBags(mode, padding, last), {"words": _words(padding), "lengths": lengths}
    graph = to_onnx(model, rows)
    assert not _operators(graph) & {"Loop", "Scan", "If"}
    assert check_parity(model, graph, rows) < 1e-4
    expected = model(**rows).detach().numpy()
    found = run_onnx(graph, {name: values.numpy() for name, values in rows.items()})
    assert np.allclose(found, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("norm", [1.0, 2.0])
def test_rows_are_rescaled_to_a_norm_as_they_are_looked_up(norm: float) -> None:
    torch.manual_seed(2)
    model = FixedBags("sum", None, False)
    model.bag.max_norm, model.bag.norm_type = 2.5, norm
    words = _words(None)
    lengths = model.bag.weight.detach().norm(norm, -1)
    assert (lengths > 2.5).any() and (norm == 1.0 or (lengths < 2.5).any())
    rows = {"words": words, "factors": torch.zeros(_ROWS, 5)}
    graph = to_onnx(model, rows)
    with torch.no_grad():
        expected = model(**rows).numpy()  # from now on the table holds what was rescaled
    found = run_onnx(graph, {name: values.numpy() for name, values in rows.items()})
    assert np.allclose(found, expected, atol=1e-4, rtol=1e-4)


def test_a_users_bag_is_computed_once_a_request() -> None:
    """A loop cannot be rewritten; a reduction over the axis behind the rows can."""

    class Shop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.liked = nn.EmbeddingBag(50, 8, mode="mean", padding_idx=0)
            self.item = nn.Embedding(40, 8)

        def forward(self, liked: Tensor, item: Tensor) -> Tensor:
            return (self.liked(liked) * self.item(item)).sum(1)

    torch.manual_seed(3)
    rows = {"liked": _words(0), "item": torch.randint(0, 40, (_ROWS,))}
    graph = to_onnx(Shop(), rows)
    once = compute_once(graph, frozenset({"liked"}))
    request = {"liked": rows["liked"][:1].repeat(9, 1).numpy(), "item": rows["item"][:9].numpy()}
    assert np.allclose(run_onnx(once, request), run_onnx(graph, request), atol=1e-6)
