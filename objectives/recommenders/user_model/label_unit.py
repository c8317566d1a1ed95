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

    The curvature is the change of the gradient between an output and the same output with its rows in another order:
    that of the whole spread of the output, and not that near the labels. The mean squared error has the unit 1, and
    half the mean squared error the square root of 2, whatever the labels.

    Args:
        batches: a model's outputs, without gradients, and labels
        output: takes one output of the model's, (rows,) or (rows, 1)
    """
    found = squared = 0.0
    for given, labels in batches:
        before = output(given)
        if not before.is_floating_point():
            return None
        after = before.roll(len(before) // 2, 0)
        first, second = (_slope(given, labels, output, values, loss) for values in (before, after))
        if first is None or second is None:
            return None
        moved = (after - before).double()
        change = float((moved * (second - first)).sum())
        if math.isfinite(change):
            found += change
            squared += 2 * float(moved.square().sum()) / len(moved)
    ratio = found / squared if squared > 0 else 0.0
    return 1 / math.sqrt(ratio) if 0 < ratio < math.inf else None


def _slope(
    given: object, labels: Labels, output: Callable[[object], Tensor], values: Tensor, loss: Loss
) -> Tensor | None:
    """Return the gradient of the loss by the values of one output, None where it does not depend on them.

    What a loss draws at random is the same whenever this is called.
    """
    # A copy, since the loss may change the outputs in place, and one may be a tensor of the model's own.
    outputs = copy.deepcopy(given)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        by = values.clone().requires_grad_()
        changed = output(outputs)
        if 0 in changed.stride():  # one value, expanded over the rows
            return None
        changed.copy_(by)
        found = loss(outputs, labels)
        if not found.requires_grad:
            return None
        (slope,) = torch.autograd.grad(found, by, allow_unused=True)
    return None if slope is None else slope.double()
