"""Models that cannot be trained as one graph are found before a trial is spent on them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from objectives.compression.training_graph import training_graph, trouble_with_training


class Net(nn.Module):
    """A model that turns its batch's size into a number, as hand-written code does."""

    def __init__(self, fixed: bool) -> None:
        super().__init__()
        self.layer, self.fixed = nn.Linear(4, 3), fixed

    def forward(self, numbers: Tensor) -> Tensor:
        x = self.layer(numbers).sum(1)
        return x + torch.ones(len(numbers)) if self.fixed else x


@pytest.mark.parametrize("fixed", [False, True])
def test_a_model_of_any_number_of_rows_is_one_graph(fixed: bool) -> None:
    model = Net(fixed).eval()
    batches = [{"numbers": torch.randn(rows, 4)} for rows in (8, 5)]
    told = trouble_with_training(model, "forward", batches)
    assert (told is not None) == fixed and not model.training
    if told is not None:
        assert "one graph" in told and "\n" not in told
        return
    graph = training_graph(model.train(), "forward", batches[0], None)
    (found,) = graph(batches[1]["numbers"])
    torch.testing.assert_close(found, model(batches[1]["numbers"]))
    found.sum().backward()
    assert model.layer.weight.grad is not None, "its own tensors are trained"


def test_batches_of_other_lengths_are_tried() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = nn.Embedding(9, 2), nn.Linear(6, 1)

        def forward(self, history: Tensor) -> Tensor:
            return self.out(self.table(history).flatten(1)).squeeze(1)

    batches = [{"history": torch.zeros(4, length, dtype=torch.int64)} for length in (3, 2)]
    assert trouble_with_training(Fixed(), "forward", batches[:1]) is None
    assert trouble_with_training(Fixed(), "forward", batches) is not None
