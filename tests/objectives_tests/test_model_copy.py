"""Copies of models, of those too that keep what they computed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from objectives.model_copy import copy_model, learning_copy


class Keeping(nn.Module):
    """A model that keeps its attention, and all of its layers' results, as DeepCTR-Torch's AutoInt does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 4)
        self.attention: Tensor | None = None
        self.results: dict[str, list[Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        self.attention = hidden.softmax(-1)
        self.results["all"] = [hidden, self.attention]
        return (self.attention * self.second(hidden)).sum(-1)  # type: ignore[no-any-return]


def test_what_a_forward_left_is_copied_apart_from_its_computation() -> None:
    torch.manual_seed(0)
    model, x = Keeping(), torch.randn(5, 3)
    expected = model(x)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    copied = copy_model(model)
    kept, own = model.attention, copied.attention
    assert isinstance(kept, Tensor) and isinstance(own, Tensor)
    assert torch.equal(own, kept) and not own.requires_grad and own.data_ptr() != kept.data_ptr()
    results = copied.results
    assert isinstance(results, dict) and results["all"][1] is own, "one tensor stays one"
    assert torch.equal(copied(x), expected)
    copied(x).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert copied.first.weight is not model.first.weight


def test_what_is_shared_is_not_copied() -> None:
    model = Keeping()
    model(torch.randn(2, 3))
    copied = copy_model(model, {id(model.first.weight): model.first.weight})
    assert copied.first.weight is model.first.weight and copied.second.weight is not model.second.weight


def test_what_is_frozen_stays_frozen_unless_nothing_else_is_left() -> None:
    model = Keeping()
    model(torch.randn(2, 3))
    model.first.requires_grad_(False)
    assert [one.requires_grad for one in learning_copy(model).parameters()] == [False, False, True, True]
    model.requires_grad_(False)
    assert all(one.requires_grad for one in learning_copy(model).parameters())
