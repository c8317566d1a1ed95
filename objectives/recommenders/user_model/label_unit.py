"""Unit of an output in which a squared distance has the curvature of the user's own loss."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from objectives.training_rows import Labels

Loss = Callable[[object, Labels], Tensor]


def label_unit(
    batches: Iterable[tuple[object, Labels]], output: Callable[[object], Tensor], loss: Loss
) -> float | None:
    """Return the unit in which a mean squared distance has the curvature of the loss, None where that is not above 0.

    The curvature is the change of the gradient between an output and the same output with its rows in another order.
    The mean squared error has the unit 1, half of it the square root of 2, whatever the labels.

    Args:
        batches: a model's outputs, without gradients, and labels
        output: takes one output of the model's, (rows,) or (rows, 1)
    """
    found = squared = 0.0
    for given, labels in batches:
        # A copy to be changed, since an output may be a tensor of the model's own.
        outputs = copy.deepcopy(given)
        values = output(outputs)
        if 0 in values.stride():  # one value, expanded over the rows
            continue
        before = values.clone()
        after = before.roll(len(before) // 2, 0)
        first = _slope(outputs, labels, values, loss)
        values.copy_(after)
        second = _slope(outputs, labels, values, loss)
        moved = after - before
        if first is not None and second is not None:
            found += float((moved * (second - first)).sum())
            squared += 2 * float(moved.square().sum()) / len(moved)
    ratio = found / squared if squared > 0 else 0.0
    return 1 / math.sqrt(ratio) if 0 < ratio < math.inf else None


def _slope(outputs: object, labels: Labels, values: Tensor, loss: Loss) -> Tensor | None:
    """Return the gradient of the loss by the values, None where it does not depend on them."""
    values.requires_grad_()
    try:
        with torch.enable_grad():
            found = loss(outputs, labels)
        if not found.requires_grad:
            return None
        (slope,) = torch.autograd.grad(found, values, allow_unused=True)
        return slope
    finally:
        values.requires_grad_(False)
