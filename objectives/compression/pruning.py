"""Structured pruning: whole units leave each layer of a group, by Torch-Pruning's dependency graph."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping

import torch
import torch_pruning
from torch import Tensor, nn

from spaces.anatomy import Anatomy
from spaces.pruning import Pruning

# Kernels work in vectors of 16 floats; a width between two multiples costs as much as the higher one.
UNIT = 16


def kept_units(width: int, ratio: float) -> int:
    """Units that stay of `width` when `ratio` of them is to go, rounded to whole vectors where there is one."""
    kept = round(width * (1 - ratio) / UNIT) * UNIT
    return min(width, max(kept, UNIT))


def prune(model: nn.Module, pruning: Pruning, anatomy: Anatomy, example: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the model with the least important output units of each layer of the named groups cut away.

    Importance is the group L2 norm over all coupled parameters (Fang et al., CVPR 2023, eq. 6).

    Args:
        example: inputs of two rows or more, to trace with.

    Raises:
        ValueError: a group that cannot be pruned, with the reason that the anatomy gives.
    """
    pruned = copy.deepcopy(model).eval()
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    for name, ratio in pruning.ratios:
        group = anatomy.group(name)
        if not group.prunable:
            raise ValueError(f"The group {name!r} cannot be pruned: {group.unprunable_reason}.")
        for module_name in group.modules:
            _cut(pruned, module_name, ratio, importance, example)
    for parameter in pruned.parameters():
        parameter.requires_grad_(True)
    return pruned


def _cut(model: nn.Module, module_name: str, ratio: float, importance: object, example: Mapping[str, Tensor]) -> None:
    layer = model.get_submodule(module_name)
    assert isinstance(layer, nn.Linear)
    surplus = layer.out_features - kept_units(layer.out_features, ratio)
    if surplus == 0:
        return
    logging.getLogger("torch_pruning").setLevel(logging.ERROR)
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=dict(example))
    every = list(range(layer.out_features))
    scores = importance(graph.get_pruning_group(layer, torch_pruning.prune_linear_out_channels, idxs=every))  # type: ignore[operator]
    least = torch.argsort(scores)[:surplus].tolist()
    graph.get_pruning_group(layer, torch_pruning.prune_linear_out_channels, idxs=least).prune()
