"""Low-rank factorisation of linear layers, by the truncated singular value decomposition of their weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from objectives.compression.module_edit import replace_module
from objectives.model_copy import copy_model
from spaces.model_structure import ModelStructure
from spaces.techniques.low_rank import LowRank

# Kernels work in vectors; a rank between two multiples costs as much as the higher one.
_MULTIPLE = 8
_PART_ROWS = 1 << 16
_TINY = 1e-300


class LowRankLinear(nn.Module):
    """Two linear layers in sequence, (..., in) -> (..., rank) -> (..., out), with nothing between."""

    first: nn.Linear
    second: nn.Linear

    def __init__(self, first: nn.Linear, second: nn.Linear) -> None:
        super().__init__()
        if first.bias is not None or first.out_features != second.in_features:
            raise ValueError(
                f"The first factor has no bias and gives what the second takes, but got {first}, {second}."
            )
        self.first = first
        self.second = second

    @property
    def in_features(self) -> int:
        return self.first.in_features

    @property
    def out_features(self) -> int:
        return self.second.out_features

    def forward(self, values: Tensor) -> Tensor:
        outputs: Tensor = self.second(self.first(values))
        return outputs


def factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return factors of (rows, rank) and (rank, columns) whose product is the nearest to the matrix.

    They are U sqrt(S) and sqrt(S) V^T (Eckart and Young 1936).

    The right singular vectors are the eigenvectors of the Gram matrix of the shorter side, summed in double precision
    over parts of the longer one, since the singular vectors of a table of gigabytes would be several times its size.
    The product, W V V^T, does not depend on how precise the small singular values are.
    """
    if len(matrix) < matrix.shape[1]:
        left, right = factors(matrix.T, rank)
        return right.T, left.T
    parts = torch.split(matrix.detach(), _PART_ROWS)
    gram = torch.stack([part.double().T @ part.double() for part in parts]).sum(0)
    squares, vectors = torch.linalg.eigh(gram)
    squares, vectors = squares.flip(0)[:rank], vectors.flip(1)[:, :rank]
    # Where a singular value is as good as 0, any scale will do.
    least = max(_TINY, torch.finfo(matrix.dtype).eps ** 2 * float(squares[0]))
    values = squares.clamp(min=least).sqrt()
    scaled = vectors / values.sqrt()
    left = torch.cat([(part.double() @ scaled).to(matrix.dtype) for part in parts])
    return left, (vectors * values.sqrt()).T.to(matrix.dtype)


def rank_of(inputs: int, outputs: int, share: float) -> int | None:
    """Return the rank for a share of the full rank; None where two factors would save no parameters.

    The rank is the nearest multiple of 8, or the multiple below where rounding up would cancel the gain. Where that
    multiple is 0, it is the nearest integer from 1. Two factors save nothing where they would hold as many parameters
    as the layer, or more.
    """
    wanted = share * min(inputs, outputs)
    whole = max(1, round(wanted))
    nearest = round(wanted / _MULTIPLE) * _MULTIPLE or whole
    below = math.floor(wanted / _MULTIPLE) * _MULTIPLE or whole

    def gains(rank: float) -> bool:
        return rank * (inputs + outputs) < inputs * outputs

    if gains(nearest):
        return nearest
    return below if gains(max(below, wanted)) else None


def factorize(model: nn.Module, low_rank: LowRank, structure: ModelStructure) -> nn.Module:
    """Copy the model with each nn.Linear of the named groups as a LowRankLinear, where that is smaller.

    Raises:
        ValueError: a group whose layers cannot be factors, or one in which no layer is smaller as two.
    """
    factorized = copy_model(model)
    for name, share in low_rank.shares:
        group = structure.group(name)
        if not group.factorable:
            why = group.unfactorable_reason or f"it is of kind {group.kind}, which is neither linear nor attention"
            raise ValueError(f"The group {name!r} cannot be factors: {why}.")
        changed = [_replace(factorized, module, share) for module in group.modules]
        if not any(changed):
            raise ValueError(f"Low rank has nothing to gain at {share} of the rank of {name!r}: no layer is smaller.")
    return factorized


def full_rank(layer: nn.Linear) -> LowRankLinear:
    """Return two factors that represent the layer's weight exactly."""
    return _split(layer, min(layer.in_features, layer.out_features))


def _replace(model: nn.Module, name: str, share: float) -> bool:
    """Replace the module by two factors if it is a Linear and becomes smaller, and return whether it was replaced."""
    layer = model.get_submodule(name)
    if not isinstance(layer, nn.Linear):
        return False
    rank = rank_of(layer.in_features, layer.out_features, share)
    if rank is not None:
        replace_module(model, name, _split(layer, rank))
    return rank is not None


def _split(layer: nn.Linear, rank: int) -> LowRankLinear:
    """Factorise a layer; the bias goes to the second factor, and what is frozen stays so."""
    like = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    first = nn.Linear(layer.in_features, rank, bias=False, **like)
    second = nn.Linear(rank, layer.out_features, bias=layer.bias is not None, **like)
    left, right = factors(layer.weight, rank)
    with torch.no_grad():
        first.weight.copy_(right)
        second.weight.copy_(left)
        if layer.bias is not None:
            second.bias.copy_(layer.bias)
            second.bias.requires_grad_(layer.bias.requires_grad)
    for factor in (first, second):
        factor.weight.requires_grad_(layer.weight.requires_grad)
    return LowRankLinear(first, second).train(layer.training)
