"""Whether a width is what it was taken for: the model itself is asked, its units reordered, and with one cut away."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from objectives.compression.low_rank import LowRankLinear
from objectives.compression.surgery import keep, names_of, replace_module, tensors
from objectives.errors import one_line
from spaces.anatomy import Cut, Width

# Of scores, beside their own size: sums in another order.
_TOLERANCE = 1e-4


def shared_copy(model: nn.Module) -> nn.Module:
    """A module tree of its own over the same tensors, which surgery replaces and never changes."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors(model).values()})


def answers_of(model: nn.Module, example: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Every tensor that the model gives, in order."""
    with torch.inference_mode():
        return tuple(_tensors_in(model.eval()(**example)))


def tried(model: nn.Module, width: Width, example: Mapping[str, Tensor], expected: Sequence[Tensor]) -> bool | str:
    """Whether the width is normalised: the others' answers change when a unit leaves. Else why it cannot be cut.

    Args:
        expected: what the model gives for the example
    """
    if (trouble := _reordered(model, width, example, expected)) is not None:
        return trouble
    smaller = shared_copy(model)
    try:
        _arrange(smaller, width.cuts, range(1, width.units))
        found = answers_of(smaller, example)
        del smaller  # its tables may be gigabytes
    except Exception as error:  # whatever the user's own forward raises
        return f"with a unit less the model fails: {one_line(error)}"
    if not _alike(found, expected, shapes_alone=True):
        return "with a unit less the model's answers have another shape, or are not finite"
    return not _alike(found, answers_of(_silenced(model, width.cuts), example))


def trouble_with_factors(model: nn.Module, modules: Sequence[str], example: Mapping[str, Tensor]) -> str | None:
    """Why linear layers cannot be two in a row each, as of a module that reads a layer's weight itself; None where they
    can."""
    factored = shared_copy(model)
    for name in modules:
        layer = factored.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        thin = nn.Linear(layer.in_features, 1, bias=False)
        replace_module(factored, name, LowRankLinear(thin, nn.Linear(1, layer.out_features, layer.bias is not None)))
    try:
        answers_of(factored, example)
    except Exception as error:  # whatever the user's own forward raises
        return f"with two layers in place of each the model fails: {one_line(error)}"
    return None


def _reordered(model: nn.Module, width: Width, example: Mapping[str, Tensor], expected: Sequence[Tensor]) -> str | None:
    turned = shared_copy(model)
    _arrange(turned, width.cuts, [*range(1, width.units), 0])
    try:
        found = answers_of(turned, example)
    except Exception as error:  # whatever the user's own forward raises
        return f"with its units in another order the model fails: {one_line(error)}"
    if _alike(found, expected):
        return None
    return "with its units in another order the model gives other answers, so something else hangs on the order"


def _arrange(model: nn.Module, cuts: Iterable[Cut], units: Sequence[int]) -> None:
    """Of the cuts' positions those of these units stay, in this order; all others stay where they are."""
    by_axis: dict[tuple[str, int], list[Cut]] = defaultdict(list)
    for cut in cuts:
        by_axis[names_of(model, cut.tensor)[0], cut.axis].append(cut)
    for (name, axis), of_axis in by_axis.items():
        wanted: list[int | None] = list(range(tensors(model)[name].shape[axis]))
        for cut in of_axis:
            for repeat in range(cut.repeats):
                start = cut.first + repeat * cut.period
                _place(wanted, start, cut.size, units)
        keep(model, name, axis, [position for position in wanted if position is not None])


def _place(wanted: list[int | None], start: int, size: int, units: Sequence[int]) -> None:
    """Within one run of units side by side; what is left over at its end leaves."""
    count = max(units) + 1
    moved = [start + unit * size + i for unit in units for i in range(size)]
    wanted[start : start + count * size] = [*moved, *[None] * (count * size - len(moved))]


def _silenced(model: nn.Module, cuts: Iterable[Cut]) -> nn.Module:
    """The dense model with the first unit at zero wherever it lies."""
    silent = shared_copy(model)
    for cut in cuts:
        held = tensors(silent)[cut.tensor]
        zeroed = held.detach().clone()
        zeroed.index_fill_(cut.axis, torch.tensor(cut.positions([0]), device=held.device), 0)
        new = nn.Parameter(zeroed, held.requires_grad) if isinstance(held, nn.Parameter) else zeroed
        for name in names_of(silent, cut.tensor):
            owner, _, attribute = name.rpartition(".")
            setattr(silent.get_submodule(owner), attribute, new)
    return silent


def _alike(found: Sequence[Tensor], expected: Sequence[Tensor], shapes_alone: bool = False) -> bool:
    if len(found) != len(expected) or any(a.shape != b.shape for a, b in zip(found, expected, strict=True)):
        return False
    if any(not torch.isfinite(a[torch.isfinite(b)]).all() for a, b in zip(found, expected, strict=True)):
        return False
    return shapes_alone or all(
        torch.allclose(a.float(), b.float(), rtol=_TOLERANCE, atol=_TOLERANCE * max(1.0, _size(b)), equal_nan=True)
        for a, b in zip(found, expected, strict=True)
    )


def _size(values: Tensor) -> float:
    finite = values[torch.isfinite(values)]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _tensors_in(answer: object) -> Iterable[Tensor]:
    if isinstance(answer, Tensor):
        yield answer
    elif isinstance(answer, Mapping):
        for value in answer.values():
            yield from _tensors_in(value)
    elif isinstance(answer, (list, tuple)):
        for value in answer:
            yield from _tensors_in(value)
