"""Curvature of the user's own loss, by that of the comparison with a teacher's outputs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from objectives.output_kind import OutputKind
from objectives.training_rows import Labels

# Share of the gradients below which their change is an error of rounding.
_ROUNDING = 1e-6
Loss = Callable[[object, Labels], Tensor]


def relative_curvature(
    batches: Iterable[tuple[object, Labels]], output: Callable[[object], Tensor], kind: OutputKind, loss: Loss
) -> float | None:
    """Return how many times as curved as the comparison with a teacher the loss is, None where that is not above 0.

    The curvature is the change of the gradient between an output and the same output with its rows in another order:
    that over the whole spread of the output, and not that near the labels. The mean squared error of values and the
    mean cross entropy of logits have 1, half of it 0.5, and the sum over a batch its rows, whatever the labels. It is
    rounded to three digits.

    Args:
        batches: a model's outputs, without gradients, and labels
        output: takes one output of the model's, (rows,) or (rows, 1)
        kind: of this output
    """
    found = compared = unsure = 0.0
    for given, labels in batches:
        if not output(given).is_floating_point():
            return None
        before = kind.raw(output(given).detach().double())
        after = before.roll(len(before) // 2, 0)
        first, second = (_slope(given, labels, output, kind, raw, loss) for raw in (before, after))
        moved = after - before
        change = float((moved * (second - first)).sum())
        if math.isfinite(change):
            found += change
            unsure += _ROUNDING * float((moved * (second.abs() + first.abs())).abs().sum())
            compared += float((moved * _difference(kind, before, after)).sum())
    ratio = found / compared if compared > 0 and found > unsure else 0.0
    return float(f"{ratio:.3g}") if 0 < ratio < math.inf else None


def _slope(
    given: object, labels: Labels, output: Callable[[object], Tensor], kind: OutputKind, raw: Tensor, loss: Loss
) -> Tensor:
    """Return the gradient of the loss by the raw values of one output, 0 where it does not depend on them.

    What a loss draws at random with torch is the same whenever this is called.
    """
    # Copies, since the loss may change what it is given, and an output may be a tensor of the model's own.
    detached = {id(tensor): tensor.detach().clone() for tensor in _tensors(given)}
    outputs, told = copy.deepcopy(given, dict[int, object](detached)), copy.deepcopy(labels)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        by = raw.clone().requires_grad_()
        output(outputs).copy_(kind.scores(by))
        found = loss(outputs, told)
        if not found.requires_grad:
            return torch.zeros_like(raw)
        (slope,) = torch.autograd.grad(found, by, allow_unused=True)
    return torch.zeros_like(raw) if slope is None else slope


def _tensors(outputs: object) -> Iterator[Tensor]:
    """Yield the tensors of outputs by name or in order."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, (Mapping, list, tuple)):
        for value in outputs.values() if isinstance(outputs, Mapping) else outputs:
            yield from _tensors(value)


def _difference(kind: OutputKind, before: Tensor, after: Tensor) -> Tensor:
    """Return the change of the gradient of the comparison, which is that for any teacher."""

    def slope(raw: Tensor) -> Tensor:
        with torch.enable_grad():
            by = raw.clone().requires_grad_()
            (found,) = torch.autograd.grad(kind.distance(by.flatten(), before.flatten(), 1.0), by)
        return found

    return slope(after) - slope(before)
