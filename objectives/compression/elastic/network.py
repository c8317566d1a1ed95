"""Elastic network: the tensors of the largest model, and the slices of them that are the tensors of a smaller one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from objectives.compression.module_edit import tensors
from objectives.tensor_layout import Layout, TensorLayout, leading

# Name of a tensor, and its role.
Key = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Subnetwork:
    """An ordinary module of some shape, and the layout of its tensors."""

    module: nn.Module
    layout: Layout


class ElasticNetwork(nn.Module):
    """Weights in which those of smaller networks are nested.

    A smaller network has the first units of each size (Yu and Huang, ICCV 2019; Cai et al., ICLR 2020).

    Args:
        model: the largest network, its units in order of importance
        layout: of its tensors
        others: tensors by name and role that only smaller networks have, with their layouts
    """

    def __init__(
        self, model: nn.Module, layout: Layout, others: Mapping[Key, tuple[TensorLayout, Tensor]] | None = None
    ) -> None:
        super().__init__()
        self.model, self.layout = model, dict(layout)
        given = dict(others or {})
        self.others = nn.ParameterList(nn.Parameter(values) for _, values in given.values())
        self.of_others = {key: (number, shape) for number, (key, (shape, _)) in enumerate(given.items())}

    def source(self, name: str, wanted: TensorLayout | None) -> tuple[Tensor, TensorLayout | None]:
        """Return the tensor that another of this name and layout is nested in, and its layout.

        Raises:
            ValueError: no tensor has this name and role.
        """
        known, held = self.layout.get(name), tensors(self.model)
        if name in held and ((known is None and wanted is None) or (known and wanted and known.role == wanted.role)):
            return held[name], known
        key = name, "" if wanted is None else wanted.role
        if key not in self.of_others:
            raise ValueError(f"A tensor of a smaller network is nested in a larger one, but got {key} with no other.")
        number, layout = self.of_others[key]
        return self.others[number], layout


class Slice:
    """Slice of an elastic network that is a smaller one.

    The smaller network's tensors are copies, so any module trains as it does by itself: gradients are added to those of
    the whole.

    Raises:
        ValueError: a tensor of the smaller network is not nested in one of the whole.
    """

    def __init__(self, network: ElasticNetwork, part: Subnetwork) -> None:
        self.module = part.module
        parameters = dict(part.module.named_parameters())
        for own in parameters.values():
            own.grad = None  # a copy of the whole may have its gradients
        self._learned = [(own, *_found(network, part, name, own)) for name, own in parameters.items()]
        kept = {name: own for name, own in part.module.state_dict(keep_vars=True).items() if own.is_floating_point()}
        buffers = {name: own for name, own in kept.items() if not isinstance(own, nn.Parameter)}
        self._kept = [(own, *_found(network, part, name, own)) for name, own in buffers.items()]

    def read(self) -> None:
        """Copy the weights and statistics of the whole to the smaller network."""
        with torch.no_grad():
            for own, whole, index in (*self._learned, *self._kept):
                own.copy_(whole[index])

    def add_gradients(self) -> None:
        """Add the gradients of the smaller network's parameters to those of the whole, and clear them."""
        for own, whole, index in self._learned:
            if own.grad is None:
                continue
            if whole.grad is None:
                whole.grad = torch.zeros_like(whole)
            whole.grad[index] += own.grad.to_dense() if own.grad.is_sparse else own.grad
            own.grad = None


_Index = tuple[slice | Tensor, ...]


def _found(network: ElasticNetwork, part: Subnetwork, name: str, own: Tensor) -> tuple[Tensor, _Index]:
    """Return the tensor of the whole that holds the named one, and its index there."""
    layout = part.layout.get(name)
    whole, of_whole = network.source(name, layout)
    if layout is None or of_whole is None:
        index: _Index = (slice(None),) * own.dim()
    else:
        index = _index([leading(a, b) for a, b in zip(layout.axes, of_whole.axes, strict=True)])
    if whole[index].shape != own.shape:
        raise ValueError(
            f"A slice has the shape of its tensor, but {name!r} of {tuple(own.shape)} got {tuple(whole[index].shape)}."
        )
    return whole, index


def _index(positions: list[tuple[int, ...]]) -> _Index:
    """Return the index of these positions of each axis: slices where all are adjacent, else tensors that broadcast."""
    if all(at == tuple(range(at[0], at[0] + len(at))) for at in positions):
        return tuple(slice(at[0], at[0] + len(at)) for at in positions)
    axes = len(positions)
    return tuple(torch.tensor(at).reshape(-1, *[1] * (axes - axis - 1)) for axis, at in enumerate(positions))
