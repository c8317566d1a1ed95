"""Importance of each unit of a prunable dimension: by its weights, by the loss without it, or by its activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate, chain

import torch
from torch import Tensor, nn

from objectives.compression.embeddings import CompressedTable
from objectives.compression.module_edit import check_lies_in, tensors
from objectives.compression.training_data import Loss, Outputs
from objectives.training_rows import Inputs, Labels
from spaces.model_structure import AxisSlice, PrunableDim
from spaces.techniques.pruning import Importance

# Modules that map ids to embeddings; a compressed table is treated as a whole, not by its parts.
_TABLES = (nn.Embedding, nn.EmbeddingBag, CompressedTable)


@dataclass(frozen=True)
class Evidence:
    """A few batches of train rows, and the functions that run the model and compute its loss on them.

    batches: inputs by name, and labels; read once for each step of the pruning
    outputs: (model, inputs) -> the outputs that the loss takes
    loss: (outputs, labels) -> a scalar, the mean over the rows
    """

    batches: Sequence[tuple[Inputs, Labels]]
    outputs: Outputs
    loss: Loss

    def __post_init__(self) -> None:
        if not self.batches:
            raise ValueError("Evidence has a batch or more, but got none.")


def importances(
    model: nn.Module, widths: Sequence[PrunableDim], kind: Importance, evidence: Evidence | None = None
) -> tuple[Tensor, ...]:
    """Compute the share of each unit, (units,), in the importance of its dimension, for each dimension.

    magnitude: the squared norm of all parameters of a unit (Fang et al., CVPR 2023, eq. 6).
    taylor: the squared first-order change of a batch's loss when all parameters of a unit go to zero, the mean over
        batches (Molchanov et al., CVPR 2019, eq. 8).
    activation: the mean absolute activation of a unit: of an embedding where the units are its dimensions; otherwise of
        the input of the next layers, that is, after normalisation and activation; of the layers' own outputs where none
        reads them, as for queries and keys. Units whose activations are seen nowhere, since no layer has them, or none
        of the layers is called, are judged by magnitude.

    The model is evaluated in its current mode.

    Raises:
        ValueError: dimensions that do not lie in the model, taylor or activation without evidence, or an importance
        that is not finite.
    """
    for width in widths:
        check_lies_in(model, width)
    if kind == "magnitude":
        found = [_magnitude(model, width) for width in widths]
    elif evidence is None:
        raise ValueError(f"Importance by {kind} is computed on rows, but got no evidence.")
    else:
        found = (_taylor if kind == "taylor" else _activation)(model, widths, evidence)
    for width, scores in zip(widths, found, strict=True):
        broken = int((~torch.isfinite(scores)).sum())
        if broken:
            raise ValueError(
                f"Importances are finite, but by {kind} {broken} of {width.units} of {width.name!r} are not."
            )
    return tuple(scores / scores.sum() if scores.any() else scores for scores in found)


def _magnitude(model: nn.Module, width: PrunableDim) -> Tensor:
    with torch.no_grad():
        return _over_cuts(_parameters(model, [width]), width, torch.square)


def _taylor(model: nn.Module, widths: Sequence[PrunableDim], evidence: Evidence) -> list[Tensor]:
    parameters = _parameters(model, widths)
    totals = [torch.zeros(width.units) for width in widths]
    with _requiring_gradients(parameters.values()):
        for inputs, labels in evidence.batches:
            loss = evidence.loss(evidence.outputs(model, inputs), labels)
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            changes = {
                name: tensor.detach() * (gradient.to_dense() if gradient.is_sparse else gradient)
                for (name, tensor), gradient in zip(parameters.items(), gradients, strict=True)
                if gradient is not None
            }
            for total, width in zip(totals, widths, strict=True):
                total += _over_cuts(changes, width).square()
    return [total / len(evidence.batches) for total in totals]


@contextmanager
def _requiring_gradients(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Let frozen tensors require gradients within the context."""
    frozen = [tensor for tensor in tensors if not tensor.requires_grad]
    for tensor in frozen:
        tensor.requires_grad_(True)
    try:
        yield
    finally:
        for tensor in frozen:
            tensor.requires_grad_(False)


def _activation(model: nn.Module, widths: Sequence[PrunableDim], evidence: Evidence) -> list[Tensor]:
    """Return the sum over layers of the mean activations of each unit, or its magnitude where there are none."""
    watched = [[_Answers(width, *place) for place in _places(model, width)] for width in widths]
    with ExitStack() as hooks, torch.no_grad():
        for answers in chain.from_iterable(watched):
            layer = model.get_submodule(answers.module)
            hooks.enter_context(layer.register_forward_hook(answers.note, with_kwargs=True))
        for inputs, _ in evidence.batches:
            evidence.outputs(model, inputs)
    means = [[answers.mean() for answers in of_width if answers.count] for of_width in watched]
    return [
        torch.stack(seen).sum(0) if seen else _magnitude(model, width)
        for width, seen in zip(widths, means, strict=True)
    ]


def _parameters(model: nn.Module, widths: Sequence[PrunableDim]) -> dict[str, nn.Parameter]:
    """Return the parameters that the dimensions slice, without statistics of a normalisation."""
    held = tensors(model)
    cut = dict.fromkeys(cut.tensor for width in widths for cut in width.axis_slices)
    return {name: tensor for name in cut if isinstance(tensor := held[name], nn.Parameter)}


def _over_cuts(
    values: Mapping[str, Tensor], width: PrunableDim, of: Callable[[Tensor], Tensor] = torch.positive
) -> Tensor:
    """Sum a function of the values at each unit's positions over the slices, (units,)."""
    total = torch.zeros(width.units)
    for cut in width.axis_slices:
        if cut.tensor in values:
            total += _per_unit(of(values[cut.tensor]), cut, width.units)
    return total


def _per_unit(values: Tensor, cut: AxisSlice, units: int) -> Tensor:
    others = [axis for axis in range(values.dim()) if axis != cut.axis]
    at = values.sum(others) if others else values
    positions = torch.tensor(cut.positions(range(units)), device=values.device)
    return at[positions].reshape(cut.repeats, units, cut.size).sum((0, 2)).cpu()


class _Answers:
    """Accumulator of the activations that one layer has for the units of a dimension, in `count` rows so far."""

    def __init__(self, width: PrunableDim, module: str, cut: AxisSlice, read: bool) -> None:
        self.module = module
        self.count = 0
        self._width, self._cut, self._read = width, replace(cut, axis=1), read
        self._total = torch.zeros(width.units)

    def note(
        self,
        module: nn.Module,
        args: tuple[Tensor, ...],
        kwargs: dict[str, Tensor],
        output: Tensor | tuple[Tensor, ...],
    ) -> None:
        """Add one call's activations, as a forward hook."""
        if self._read:
            values = args[0] if args else kwargs.get("input", next(iter(kwargs.values())))
        else:
            values = output[0] if isinstance(output, tuple) else output
        rows = values.detach().abs().reshape(-1, values.shape[-1])
        self._total += _per_unit(rows, self._cut, self._width.units)
        self.count += len(rows)

    def mean(self) -> Tensor:
        return self._total / self.count


def _places(model: nn.Module, width: PrunableDim) -> list[tuple[str, AxisSlice, bool]]:
    """Return the layers whose activations are recorded: module, positions of the units, and whether it reads them."""
    tables = {name: cut for cut in width.axis_slices if (name := _table(model, cut)) is not None}
    if tables:
        return [(name, cut, False) for name, cut in tables.items()]
    linear, recurrent = [], []
    for cut in width.axis_slices:
        name, _, tensor = cut.tensor.rpartition(".")
        layer = model.get_submodule(name)
        if isinstance(layer, nn.Linear) and tensor == "weight":
            linear.append((name, cut))
        elif isinstance(layer, nn.RNNBase) and tensor == "weight_hh_l0" and cut.axis == 0:
            # The output of a recurrent layer holds its directions side by side.
            repeats, period = (2, layer.hidden_size) if layer.bidirectional else (1, 0)
            recurrent.append((name, AxisSlice(cut.tensor, 0, repeats=repeats, period=period)))
    layers = linear + recurrent
    readers = [(name, cut, True) for name, cut in layers if cut.axis == 1]
    return readers or [(name, cut, False) for name, cut in layers]


def _table(model: nn.Module, cut: AxisSlice) -> str | None:
    """Return the outermost table that holds the tensor."""
    owners = accumulate(cut.tensor.split(".")[:-1], "{}.{}".format)
    return next((name for name in owners if isinstance(model.get_submodule(name), _TABLES)), None)
