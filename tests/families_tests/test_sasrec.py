"""SASRec against a plain reading of the paper in numpy, torch's own attention, ONNX Runtime and sliced parts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from objectives.compression.export import Signature
from objectives.recommenders.families.sasrec import BASELINE, STUDENT, FeedForward, SASRec, Sizes, loss, outputs
from objectives.recommenders.families.self_attention import SelfAttention
from objectives.recommenders.families.sizes import resized
from spaces.model_structure import PrunableDim
from spaces.techniques.architecture import Architecture
from tests.model_structure_tests.written_structures import sasrec_anatomy as structure
from tests.protos import check_parity, multiply_adds, once_inputs, to_onnx

ITEMS = 40
SMALL = Sizes(embedding_dim=12, blocks=2, heads=3, feed_forward=10, length=9)
ROWS = (1, 2, 7, 64, 257)
Arrays = NDArray[np.float64]


def _model(sizes: Sizes = SMALL, seed: int = 0) -> SASRec:
    """Return a model with all parameters at random, so that each shows; padding's embedding stays zero."""
    torch.manual_seed(seed)
    model = SASRec(ITEMS, sizes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.5)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
        model.tables["item"].weight[0] = 0
    return model.eval()


def _history(length: int, real: int, seed: int = 0) -> torch.Tensor:
    """A history, (1, length), whose last `real` are items."""
    draw = torch.Generator().manual_seed(seed)
    history = torch.randint(1, ITEMS + 1, (1, length), generator=draw)
    history[:, : length - real] = 0
    return history


def _norm(x: Arrays, state: Mapping[str, Arrays], name: str) -> Arrays:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-8)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def _linear(x: Arrays, state: Mapping[str, Arrays], name: str) -> Arrays:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def reference(model: SASRec, codes: NDArray[np.int64]) -> Arrays:
    """The states (real, d) of a history of real items only, position after position, head after head."""
    state = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    count, size = len(codes), model.blocks[0].attention.head_dim  # type: ignore[union-attr]
    x = state["tables.item.weight"][codes] * np.sqrt(state["norm.weight"].size)
    x = x + state["tables.position.weight"][:count][::-1]
    for b in range(len(model.blocks)):
        name = f"blocks.{b}.attention"
        normed = _norm(x, state, f"{name}_norm")
        q, k, v = _linear(normed, state, f"{name}.q"), _linear(x, state, f"{name}.k"), _linear(x, state, f"{name}.v")
        mixed = np.zeros_like(q)
        for t, head in itertools.product(range(count), range(q.shape[1] // size)):
            of = slice(head * size, (head + 1) * size)
            weights = np.exp(k[: t + 1, of] @ q[t, of] / np.sqrt(size))
            mixed[t, of] = weights @ v[: t + 1, of] / weights.sum()
        x = _norm(normed + _linear(mixed, state, f"{name}.out"), state, f"blocks.{b}.feed_forward_norm")
        inner = np.maximum(_linear(x, state, f"blocks.{b}.feed_forward.inner"), 0)
        x = x + _linear(inner, state, f"blocks.{b}.feed_forward.outer")
    return _norm(x, state, "norm")


def _every_item(length: int) -> torch.Tensor:
    """The whole catalogue as candidates at each position, (1, length, items + 1)."""
    return torch.arange(ITEMS + 1).repeat(1, length, 1)


# -- the model


@pytest.mark.parametrize("sizes", [SMALL, Sizes(8, 1, 1, 5, 9), Sizes(8, 3, 2, 16, 9)])
@pytest.mark.parametrize("real", [1, 4, 9])
def test_it_is_the_papers(sizes: Sizes, real: int) -> None:
    model, history = _model(sizes), _history(9, real)
    expected = reference(model, history[0, -real:].numpy()) @ model.tables["item"].weight.double().detach().numpy().T
    with torch.inference_mode():
        got = model.positions(history, _every_item(9))[0, -real:]
    assert np.allclose(got.numpy(), expected, atol=1e-4)


def test_its_attention_is_torchs() -> None:
    torch.manual_seed(1)
    ours = SelfAttention(12, heads=3, head_dim=4, dropout=0.0)
    theirs = torch.nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.k.weight, ours.v.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.q.bias, ours.k.bias, ours.v.bias]))
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
    queries, read = torch.randn(2, 7, 12), torch.randn(2, 7, 12)
    later = torch.ones(7, 7, dtype=torch.bool).triu(1)
    expected, _ = theirs(queries, read, read, attn_mask=later)
    assert torch.allclose(ours(queries, read, torch.zeros(2, 1, 7)), expected, atol=1e-6)
    last = ours(queries[:, -2:], read, torch.zeros(2, 1, 7))
    assert torch.allclose(last, expected[:, -2:], atol=1e-6), "the queries are the last positions"


@pytest.mark.parametrize("real", [0, 1, 5, 9])
def test_the_last_query_alone_is_the_full_computation(real: int) -> None:
    model, history, item = _model(), _history(9, real), torch.randint(1, ITEMS + 1, (30,))
    with torch.inference_mode():
        got = model(history, item)
        full = model.positions(history, item.repeat(1, 9, 1))[0, -1]
    assert got.shape == (30,) and torch.isfinite(got).all()
    assert torch.allclose(got, full, atol=1e-6)


@settings(max_examples=25)
@given(st.integers(1, 9), st.integers(0, 8), st.integers(1, ITEMS), st.integers(0, 99))
def test_a_later_item_never_changes_an_earlier_answer(real: int, at: int, item: int, seed: int) -> None:
    model, history = _model(), _history(9, real, seed)
    changed = history.clone()
    changed[0, at] = item
    with torch.inference_mode():
        before, after = (model.positions(codes, _every_item(9)) for codes in (history, changed))
    assert torch.allclose(before[:, :at], after[:, :at], atol=1e-6)
    assert at < 9 - real or history[0, at] == item or not torch.allclose(before[:, at], after[:, at], atol=1e-6)


@pytest.mark.parametrize("real", [1, 3, 8])
def test_padding_is_never_attended_to(real: int) -> None:
    """A short history gives the same with padding before it and without."""
    model, history = _model(), _history(9, real)
    item = torch.arange(1, ITEMS + 1)
    with torch.inference_mode():
        assert torch.allclose(model(history, item), model(history[:, -real:], item), atol=1e-5)
        padded = model.positions(history, _every_item(9))[:, -real:]
        assert torch.allclose(padded, model.positions(history[:, -real:], _every_item(real)), atol=1e-5)


def test_padding_alone_gives_the_same_finite_scores_for_any_length() -> None:
    model, item = _model(), torch.arange(1, ITEMS + 1)
    with torch.inference_mode():
        scores = [model(torch.zeros(1, length, dtype=torch.long), item) for length in (9, 5, 1)]
    assert torch.isfinite(scores[0]).all()
    assert torch.allclose(scores[0], scores[1], atol=1e-5) and torch.allclose(scores[0], scores[2], atol=1e-5)


def test_a_longer_history_than_it_has_positions_for_is_refused() -> None:
    with pytest.raises(IndexError):
        _model()(_history(10, 10), torch.tensor([1]))


# -- training


def test_lists_without_a_target_are_left_out() -> None:
    model = _model()
    history, candidates = torch.cat([_history(9, 4), _history(9, 9, 1)]), torch.randint(1, ITEMS + 1, (2, 9, 3))
    candidates[0, :5, 0], candidates[1, 8, 0] = 0, 0
    got = outputs(model, {"history": history, "candidates": candidates})
    every = model.positions(history, candidates)
    assert got.shape == (4 + 8, 3)
    assert torch.equal(got, torch.cat([every[0, 5:], every[1, :8]]))


def test_shared_candidates_are_those_of_every_position() -> None:
    model, history = _model(), torch.cat([_history(9, 4), _history(9, 9, 1)])
    own, shared = torch.randint(1, ITEMS + 1, (2, 9, 2)), torch.randint(1, ITEMS + 1, (2, 5))
    own[0, :5, 0] = 0
    repeated = torch.cat([own, shared.unsqueeze(1).expand(2, 9, 5)], dim=-1)
    got = outputs(model, {"history": history, "candidates": own, "shared": shared})
    torch.testing.assert_close(got, outputs(model, {"history": history, "candidates": repeated}))


def test_the_loss_is_the_papers() -> None:
    """Section III-E: -log sigmoid(r_o) - log(1 - sigmoid(r_j)), over the lists; the mean where there are more j."""
    lists = np.random.default_rng(0).normal(size=(20, 4))
    sigmoid = 1 / (1 + np.exp(-lists))
    one = (-np.log(sigmoid[:, 0]) - np.log(1 - sigmoid[:, 1])).mean()
    more = (-np.log(sigmoid[:, 0]) - np.log(1 - sigmoid[:, 1:]).mean(1)).mean()
    assert loss(torch.from_numpy(lists[:, :2])).item() == pytest.approx(one)
    assert loss(torch.from_numpy(lists)).item() == pytest.approx(more)


@pytest.mark.parametrize("shape", [(0, 2), (3, 1), (3,)])
def test_a_loss_needs_a_negative(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="negative"):
        loss(torch.zeros(shape))


def test_it_learns_an_order() -> None:
    """The item after i is i + 1: soon the first of the whole catalogue, wherever the history begins."""
    torch.manual_seed(0)
    items, length = 12, 6
    model = SASRec(items, Sizes(16, 2, 2, 16, length), dropout=0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        start = torch.randint(0, items, (64, 1))
        codes = (start + torch.arange(length + 1)) % items + 1
        history, target = codes[:, :-1].clone(), codes[:, 1:].clone()
        short = torch.randint(0, length, (64, 1)) > torch.arange(length)
        history[short], target[short] = 0, 0
        candidates = torch.stack([target, torch.randint(1, items + 1, target.shape)], -1)
        optimizer.zero_grad()
        loss(outputs(model, {"history": history, "candidates": candidates})).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()
    every = torch.arange(1, items + 1)
    for start in range(items):
        history = ((start + torch.arange(length)) % items + 1)[None]
        assert every[model(history, every).argmax()] == (start + length) % items + 1
    assert not model.tables["item"].weight[0].any(), "padding's embedding learns nothing"


# -- sizes


def test_the_published_sizes() -> None:
    assert Sizes(embedding_dim=50, blocks=2, heads=1, feed_forward=50, length=50) == BASELINE
    model = SASRec(1000, BASELINE)
    block = 4 * (50 * 50 + 50) + 2 * (50 * 50 + 50) + 2 * (50 + 50)
    assert sum(p.numel() for p in model.parameters()) == 1001 * 50 + 50 * 50 + 2 * block + (50 + 50)
    assert not model.tables["item"].weight[0].any()


def test_a_student_has_the_sizes_asked_for() -> None:
    architecture = Architecture((("embedding_dim", 16), ("blocks", 1), ("heads", 2), ("feed_forward", 32)))
    assert resized(replace(BASELINE, length=20), architecture.as_dict()) == Sizes(16, 1, 2, 32, 20)


def test_every_student_can_be_built_and_the_baseline_is_one() -> None:
    domains = {name: domain.values for name, domain in STUDENT.items()}
    chosen = [tuple(zip(domains, values, strict=True)) for values in itertools.product(*domains.values())]
    made = [resized(BASELINE, Architecture(sizes).as_dict()) for sizes in chosen]
    assert BASELINE in made


@pytest.mark.parametrize(
    "changed", [{"embedding_dim": 0}, {"blocks": 0}, {"heads": 5}, {"feed_forward": 0}, {"length": 0}]
)
def test_sizes_are_checked(changed: dict[str, int]) -> None:
    sizes = {"embedding_dim": 12, "blocks": 2, "heads": 3, "feed_forward": 10, "length": 9}
    with pytest.raises(ValueError, match="{}={}".format(*next(iter(changed.items())))):
        Sizes(**(sizes | changed))


# -- its parts


def _cut(model: SASRec, width: PrunableDim, kept: list[int]) -> dict[str, torch.Tensor]:
    """The state with these units of a width alone."""
    state = dict(model.state_dict())
    for cut in width.axis_slices:
        state[cut.tensor] = state[cut.tensor].index_select(cut.axis, torch.tensor(cut.positions(kept)))
    return state


def _silenced(model: SASRec, width: PrunableDim, gone: list[int]) -> SASRec:
    """The model with the tensors of these units at zero."""
    silent = _model()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for cut in width.axis_slices:
        state[cut.tensor].index_fill_(cut.axis, torch.tensor(cut.positions(gone)), 0)
    silent.load_state_dict(state)
    return silent


def _scores(model: SASRec) -> tuple[torch.Tensor, torch.Tensor]:
    history = _history(9, 6)
    with torch.inference_mode():
        return model(history, torch.arange(ITEMS + 1)), model.positions(history, _every_item(9))


def _assert_same(one: SASRec, other: SASRec) -> None:
    for a, b in zip(_scores(one), _scores(other), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_the_groups() -> None:
    model = _model()
    groups = structure(model).groups
    assert [(g.name, g.kind) for g in groups] == [("tables", "table"), ("attention", "attention"), ("mlp", "linear")]
    named = [module for group in groups for module in group.modules]
    held = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Embedding)}
    assert set(named) == held
    norms = sum(p.numel() for n, p in model.named_parameters() if "norm" in n)
    assert sum(g.parameters for g in groups) == sum(p.numel() for p in model.parameters()) - norms
    assert [w.units for g in groups for w in g.dims] == [12, 3, 3, 10, 10]
    assert [w.normalised for g in groups for w in g.dims] == [True, False, False, False, False]


def test_pruned_heads_are_the_dense_model_with_these_heads_at_zero() -> None:
    model = _model()
    for block, width in enumerate(structure(model).group("attention").dims):
        pruned = _model()
        pruned.blocks[block].attention = SelfAttention(12, heads=2, head_dim=4, dropout=0.0)
        pruned.load_state_dict(_cut(model, width, [0, 2]))
        _assert_same(pruned.eval(), _silenced(model, width, [1]))


def test_pruned_units_are_the_dense_model_with_these_units_at_zero() -> None:
    model = _model()
    for block, width in enumerate(structure(model).group("mlp").dims):
        pruned = _model()
        pruned.blocks[block].feed_forward = FeedForward(12, 4, dropout=0.0)
        pruned.load_state_dict(_cut(model, width, [1, 4, 5, 9]))
        _assert_same(pruned.eval(), _silenced(model, width, [0, 2, 3, 6, 7, 8]))


def test_a_pruned_dimension_is_a_smaller_model_with_the_sliced_tensors() -> None:
    """The smaller model is built with that dimension; each tensor fits, and the numpy reading of the paper agrees."""
    model, kept = _model(), [0, 1, 3, 4, 5, 8, 10]
    (width,) = structure(model).group("tables").dims
    smaller = SASRec(ITEMS, Sizes(7, 2, 1, 10, 9))
    for block in smaller.blocks:
        block.attention = SelfAttention(7, heads=3, head_dim=4, dropout=0.0)
    smaller.load_state_dict(_cut(model, width, kept))
    history = _history(9, 9)
    states = reference(smaller, history[0].numpy())
    table = model.tables["item"].weight.detach().double().numpy()[:, kept]
    assert np.allclose(_scores_of(smaller.eval(), history), states @ table.T, atol=1e-4)


def _scores_of(model: SASRec, history: torch.Tensor) -> NDArray[np.float32]:
    with torch.inference_mode():
        scores: NDArray[np.float32] = model.positions(history, _every_item(9))[0].numpy()
    return scores


def test_a_single_head_is_not_pruned() -> None:
    group = structure(_model(Sizes(8, 2, 1, 5, 9))).group("attention")
    assert not group.prunable and "one head" in str(group.unprunable_reason)
    assert len(group.modules) == 8


def test_hidden_is_the_last_normalisation() -> None:
    model = _model()
    seen: list[torch.Tensor] = []
    model.get_submodule("norm").register_forward_hook(lambda module, args, out: seen.append(out))
    history = _history(9, 9)
    scores = _scores_of(model, history)
    table = model.tables["item"].weight.detach()
    assert seen[0].shape == (1, 9, 12)
    assert np.allclose((seen[0][0] @ table.T).numpy(), scores, atol=1e-5)


# -- export


def _graph(model: SASRec) -> onnx.ModelProto:
    return to_onnx(model, {"history": _history(9, 5), "item": torch.arange(1, 4)}, Signature(frozenset({"history"})))


@pytest.mark.parametrize("sizes", [SMALL, Sizes(10, 2, 1, 10, 9)])
def test_the_graph_takes_one_history_and_any_number_of_items(sizes: Sizes) -> None:
    model = _model(sizes)
    graph = _graph(model)
    assert [i.name for i in graph.graph.input] == ["history", "item"]
    assert once_inputs(graph) == {"history"}
    for real in (0, 1, 6, 9):
        rows = {"history": _history(9, real, real).repeat(max(ROWS), 1), "item": torch.randint(0, ITEMS + 1, (257,))}
        assert check_parity(model, graph, rows) < 1e-4
    gathered = [n.input[0] for n in graph.graph.node if n.op_type == "Gather"]
    assert gathered.count("model.tables.item.weight") == 2, "history and candidates read one table"


def test_the_graph_computes_what_the_last_position_needs() -> None:
    """Multiply-adds by hand: the first block's at all positions; of the last, keys and values alone."""
    d, f, length, rows = 12, 10, 9, 20
    first = 4 * length * d * d + 2 * length * length * d + 2 * length * d * f
    last = 2 * length * d * d + 2 * d * d + 2 * length * d + 2 * d * f
    assert multiply_adds(_graph(_model()), rows) == first + last + rows * d
