"""Nested shapes of any model, from the prunable dimensions of its structure: fewer units of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from objectives.compression.elastic.network import Subnetwork
from objectives.compression.importance import Evidence, importances
from objectives.compression.module_edit import arrange, names_of, recounted, tensors
from objectives.compression.pruning import remove_units
from objectives.model_copy import learning_copy
from objectives.tensor_layout import Axis, Layout, Run, TensorLayout
from spaces.model_structure import ModelStructure, PrunableDim

# Units that are left of each dimension, by its name.
Kept = Mapping[str, int]


def dims_of(structure: ModelStructure) -> tuple[PrunableDim, ...]:
    return tuple(dim for group in structure.groups for dim in group.dims)


def in_order(model: nn.Module, dims: Sequence[PrunableDim], evidence: Evidence) -> nn.Module:
    """Copy the model with the units of each dimension in order of importance, the most important first.

    The outputs stay the same. Importance is by the Taylor criterion, so the first units of a dimension are the best to
    keep (Cai et al., ICLR 2020, section 3.2).
    """
    ordered = learning_copy(model).eval()
    found = importances(ordered, dims, "taylor", evidence) if dims else ()
    for dim, scores in zip(dims, found, strict=True):
        arrange(ordered, dim, torch.argsort(scores, descending=True, stable=True).tolist())
    return ordered


def layout_of(model: nn.Module, dims: Sequence[PrunableDim], kept: Kept | None = None) -> Layout:
    """Return the layout of the model's tensors, or of those that are left with so many units of each dimension."""
    runs: dict[str, dict[int, set[tuple[int, str, int, int]]]] = defaultdict(lambda: defaultdict(set))
    for dim in dims:
        left = dim.units if kept is None else kept[dim.name]
        for cut in dim.axis_slices:
            starts = (cut.first + repeat * cut.period for repeat in range(cut.repeats))
            # Under each name of a tied weight.
            for name in names_of(model, cut.tensor):
                runs[name][cut.axis] |= {(at, dim.name, dim.units * cut.size, left * cut.size) for at in starts}
    held = tensors(model)
    return {
        name: TensorLayout(tuple(_axis(sorted(axes[axis]), size) for axis, size in enumerate(held[name].shape)))
        for name, axes in runs.items()
    }


def _axis(runs: Sequence[tuple[int, str, int, int]], size: int) -> Axis:
    """Return the runs of an axis: those of the dimensions with the units that are left, and whole ones in between."""
    found: list[Run] = []
    at = 0
    for start, name, length, left in runs:
        found += [("", start - at)] * (start > at) + [(name, left)]
        at = start + length
    return (*found, *([("", size - at)] * (size > at)))


def smaller(model: nn.Module, structure: ModelStructure, kept: Kept) -> tuple[Subnetwork, ModelStructure]:
    """Copy the model with the first units of each dimension, as pruning the others would leave it.

    Raises:
        ValueError: the remaining units of a dimension are no longer adjacent.
    """
    dims = dims_of(structure)
    module = learning_copy(model)
    leaving = {dim: range(kept[dim.name], dim.units) for dim in dims if kept[dim.name] < dim.units}
    left = recounted(remove_units(module, structure, leaving), module)
    return Subnetwork(module, layout_of(model, dims, kept)), left
