"""Changes of a module tree by name (positions of a tensor are removed, modules are replaced), and of its structure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from objectives.model_copy import copy_model
from spaces.model_structure import AxisSlice, ModelStructure, PrunableDim


class Positional(nn.Module):
    """A model with its inputs by position.

    torch.export takes dynamic shapes by position where a forward takes any names. The names of the model's tensors
    begin with `model.`.

    run: (model, inputs by name) -> outputs
    """

    def __init__(
        self, model: nn.Module, names: Sequence[str], run: Callable[[nn.Module, dict[str, Tensor]], object]
    ) -> None:
        super().__init__()
        self.model, self.names, self.run = model, tuple(names), run

    def forward(self, *values: Tensor) -> object:
        return self.run(self.model, dict(zip(self.names, values, strict=True)))


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer under each of its names."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(model.named_buffers(remove_duplicate=False))}


def names_of(model: nn.Module, name: str) -> tuple[str, ...]:
    """Return all names of the tensor of this name, in the model's order; tied weights have several."""
    held = tensors(model)
    if name not in held:
        raise ValueError(f"A tensor of the model is named, but got {name!r}.")
    return tuple(other for other, tensor in held.items() if tensor is held[name])


def check_lies_in(model: nn.Module, width: PrunableDim) -> None:
    """Check that the model has every position of a prunable dimension.

    Raises:
        ValueError: a slice of the dimension names a tensor or a position that the model does not have.
    """
    held = tensors(model)
    for cut in width.axis_slices:
        shape = tuple(held[cut.tensor].shape) if cut.tensor in held else ()
        last = max(cut.positions([width.units - 1]))
        if cut.axis >= len(shape) or last >= shape[cut.axis]:
            raise ValueError(
                f"A dimension lies in the model, but {width.name!r} has {last} on axis {cut.axis} of {cut.tensor!r}, "
                f"which is {shape or 'not there'}."
            )


def keep(model: nn.Module, name: str, axis: int, positions: Sequence[int]) -> None:
    """Keep only these positions of a tensor along the axis, in this order; sizes stored in its modules follow.

    An optimizer made before holds the old parameter.

    Raises:
        ValueError: no such tensor, or positions that it does not have.
    """
    old = tensors(model)[names_of(model, name)[0]]
    size = old.shape[axis] if axis < old.dim() else 0
    if not positions or min(positions) < 0 or max(positions) >= size:
        got = f"{min(positions)} to {max(positions)}" if positions else "none"
        raise ValueError(f"Positions that stay of {name!r} on axis {axis} lie below {size}, but got {got}.")
    kept = old.detach().index_select(axis, torch.as_tensor(positions, device=old.device))
    for module in replace_tensor(model, name, kept):
        _mend(module, kept)
        if isinstance(module, nn.Embedding) and axis == 0 and (padding := module.padding_idx) is not None:
            module.padding_idx = positions.index(padding) if padding in positions else None


def arrange(model: nn.Module, width: PrunableDim, units: Sequence[int]) -> None:
    """Keep the positions of these units of the dimension, in this order, and all other positions."""
    runs: dict[tuple[str, int], set[tuple[int, int]]] = defaultdict(set)
    for cut in width.axis_slices:
        starts = (cut.first + repeat * cut.period for repeat in range(cut.repeats))
        runs[names_of(model, cut.tensor)[0], cut.axis] |= {(start, cut.size) for start in starts}
    for (name, axis), of_axis in runs.items():
        positions: list[int] = []
        at = 0
        for start, size in sorted(of_axis):
            positions += range(at, start)
            positions += (start + unit * size + i for unit in units for i in range(size))
            at = start + width.units * size
        keep(model, name, axis, [*positions, *range(at, tensors(model)[name].shape[axis])])


def replace_tensor(model: nn.Module, name: str, values: Tensor) -> list[nn.Module]:
    """Put other values in place of a parameter or buffer under all of its names, and return the modules that hold it.

    Raises:
        ValueError: no such tensor.
    """
    names = names_of(model, name)
    old = tensors(model)[name]
    new = nn.Parameter(values, old.requires_grad) if isinstance(old, nn.Parameter) else values
    modules = []
    for owner, _, attribute in (other.rpartition(".") for other in names):
        modules.append(model.get_submodule(owner))
        setattr(modules[-1], attribute, new)
    return modules


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in place of the one of this name, wherever the tree holds it."""
    old = model.get_submodule(name)
    for other in [other for other, held in model.named_modules(remove_duplicate=False) if held is old]:
        model.set_submodule(other, module)


def with_modules(model: nn.Module, modules: Mapping[str, nn.Module]) -> nn.Module:
    """Copy a module tree with other modules in place of the named ones, whose own tensors are not copied."""
    replaced = {id(module): module for module in map(model.get_submodule, modules)}
    shared = {id(tensor) for module in model.modules() if id(module) not in replaced for tensor in _own(module)}
    leaving = {id(tensor): tensor for module in replaced.values() for tensor in _own(module)}
    result = copy_model(model, {of: tensor for of, tensor in leaving.items() if of not in shared})
    for name, module in modules.items():
        replace_module(result, name, module)
    return result


def _own(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


def parameters_of(model: nn.Module, modules: Sequence[str]) -> int:
    """Return the number of parameters of the modules of these names."""
    return sum(parameter.numel() for name in modules for parameter in model.get_submodule(name).parameters())


def recounted(structure: ModelStructure, model: nn.Module) -> ModelStructure:
    """Return the structure with the current numbers of parameters of the model's modules."""
    groups = (replace(group, parameters=parameters_of(model, group.modules)) for group in structure.groups)
    return replace(structure, groups=tuple(groups))


def with_dims(structure: ModelStructure, change: Callable[[PrunableDim], PrunableDim]) -> ModelStructure:
    """Return the structure with each of its dimensions changed."""
    groups = (replace(group, dims=tuple(map(change, group.dims))) for group in structure.groups)
    return replace(structure, groups=tuple(groups))


def slices_at(like: AxisSlice, positions: list[int], units: int) -> tuple[AxisSlice, ...] | None:
    """Return slices of this axis and size whose units lie at these positions, in the order of the repeats.

    A single slice is returned where the repeats have equal distances, else one for each repeat; None where the units
    lie in no such order.
    """
    starts = positions[:: units * like.size]
    periods = {later - earlier for earlier, later in pairwise(starts)}
    if len(periods) > 1:
        made = tuple(replace(like, first=start, repeats=1, period=0) for start in starts)
    else:
        made = (replace(like, first=starts[0], repeats=len(starts), period=next(iter(periods), 0)),)
    return made if [p for new in made for p in new.positions(range(units))] == positions else None


def _mend(module: nn.Module, tensor: Tensor) -> None:
    """Update the sizes that a module stores in addition to a tensor that was just reduced."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.RNNBase):
        module.input_size = module.get_parameter("weight_ih_l0").shape[1]
        module.hidden_size = module.get_parameter("weight_hh_l0").shape[1]
    elif isinstance(module, nn.BatchNorm1d):
        module.num_features = len(tensor)
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        module.normalized_shape = tuple(tensor.shape)
