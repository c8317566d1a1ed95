"""Structured pruning: removes the least important units of a dimension from every tensor in the structure."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import torch
from torch import nn

from objectives.compression.importance import Evidence, importances
from objectives.compression.module_edit import keep, names_of, recounted, slices_at, tensors, with_dims
from objectives.model_copy import learning_copy
from spaces.model_structure import AxisSlice, ModelStructure, PrunableDim
from spaces.techniques.pruning import Pruning, kept_of

# Units to remove from each dimension.
Leaving = Mapping[PrunableDim, Collection[int]]


def pruning_steps(pruning: Pruning) -> tuple[Pruning, ...]:
    """Return the steps one by one; each ratio refers to the dimension before the first step, and the last is the total.

    Each step keeps the same share of the units left by the one before. Rounding refers to the whole dimension, so the
    last step ends where one-shot pruning does.
    """

    def after(share: float) -> Pruning:
        ratios = tuple((group, -math.expm1(math.log1p(-ratio) * share)) for group, ratio in pruning.ratios)
        return replace(pruning, ratios=ratios, steps=1)

    return (*(after(step / pruning.steps) for step in range(1, pruning.steps)), replace(pruning, steps=1))


def prune(
    model: nn.Module,
    pruning: Pruning,
    structure: ModelStructure,
    evidence: Evidence | None = None,
    between: Callable[[nn.Module], object] | None = None,
) -> tuple[nn.Module, ModelStructure]:
    """Copy the model without the least important units of the named groups, and return it with its structure.

    What is frozen stays frozen, unless all is. Importance is computed anew in each step, over all dimensions of it at
    once.

    Args:
        evidence: batches, required for importance by taylor and activation
        between: trains the copy in place between two steps; parameters are new objects in each step

    Raises:
        ValueError: a group cannot be pruned, or nothing can be removed; several steps without `between`; dimensions
        that do not fit the model or each other.
    """
    if pruning.steps > 1 and between is None:
        raise ValueError(f"Pruning in several steps trains between them, but got {pruning.steps} steps and no way to.")
    check_pruning(pruning, structure)
    pruned = learning_copy(model)
    smaller = structure
    for number, step in enumerate(pruning_steps(pruning)):
        if number and between is not None:
            between(pruned)
        leaving = _leaving(pruned.eval(), step, smaller, structure, evidence)
        smaller = remove_units(pruned, smaller, leaving)
    return pruned.eval(), recounted(smaller, pruned)


def remove_units(model: nn.Module, structure: ModelStructure, leaving: Leaving) -> ModelStructure:
    """Remove units from every tensor of the model in place, and return the structure that is left.

    Each axis is reduced once for all of its dimensions, and tied tensors once, by the first of their names.

    Raises:
        ValueError: the remaining units of a dimension are no longer adjacent.
    """
    smaller = shrunk(structure, leaving)
    gone = {(names_of(model, name)[0], axis): positions for (name, axis), positions in _positions(leaving).items()}
    for (name, axis), positions in gone.items():
        leave = set(positions)
        keep(model, name, axis, [p for p in range(tensors(model)[name].shape[axis]) if p not in leave])
    return smaller


def shrunk(structure: ModelStructure, leaving: Leaving) -> ModelStructure:
    """Return the structure after the removal: dimensions have fewer units, and positions after a removed one move up.

    Raises:
        ValueError: the remaining units of a dimension are no longer adjacent.
    """
    gone = _positions(leaving)

    def moved(cut: AxisSlice, units: list[int]) -> tuple[AxisSlice, ...]:
        before = gone.get((cut.tensor, cut.axis), [])
        made = slices_at(cut, [p - bisect_left(before, p) for p in cut.positions(units)], len(units))
        if made is None:
            raise ValueError(
                f"Units that are left lie side by side, but those of axis {cut.axis} of {cut.tensor!r} do not."
            )
        return made

    def shrink(width: PrunableDim) -> PrunableDim:
        units = [unit for unit in range(width.units) if unit not in leaving.get(width, ())]
        axis_slices = tuple(new for cut in width.axis_slices for new in moved(cut, units))
        return replace(width, units=len(units), axis_slices=axis_slices)

    return with_dims(structure, shrink)


def check_pruning(pruning: Pruning, structure: ModelStructure) -> None:
    """Check that every named group can be pruned, and loses a unit or more; else raise ValueError."""
    for name, ratio in pruning.ratios:
        group = structure.group(name)
        if not group.prunable:
            raise ValueError(f"The group {name!r} cannot be pruned: {group.unprunable_reason}.")
        if all(kept_of(width, ratio, pruning.multiple) == width.units for width in group.dims):
            units = [width.units for width in group.dims]
            raise ValueError(f"Pruning takes a unit or more, but {ratio} of {name!r} rounds to none of {units}.")


def _leaving(
    model: nn.Module, step: Pruning, structure: ModelStructure, whole: ModelStructure, evidence: Evidence | None
) -> dict[PrunableDim, tuple[int, ...]]:
    surplus: dict[PrunableDim, int] = {}
    for name, ratio in step.ratios:
        for width, before in zip(structure.group(name).dims, whole.group(name).dims, strict=True):
            count = width.units - kept_of(before, ratio, step.multiple)
            surplus |= {width: count} if count else {}
    if not surplus:
        return {}
    found = zip(surplus, importances(model, list(surplus), step.importance, evidence), strict=True)
    return {width: tuple(torch.argsort(scores, stable=True)[: surplus[width]].tolist()) for width, scores in found}


def _positions(leaving: Leaving) -> dict[tuple[str, int], list[int]]:
    """Return the positions to remove from each axis of each tensor over all dimensions, sorted."""
    found: dict[tuple[str, int], set[int]] = {}
    for width, units in leaving.items():
        for cut in width.axis_slices:
            found.setdefault((cut.tensor, cut.axis), set()).update(cut.positions(units))
    return {place: sorted(positions) for place, positions in found.items()}
