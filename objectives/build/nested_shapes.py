"""Shapes that are nested in a recommender's elastic network: all of its family's students, or all ways to prune it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from objectives.build.model_structure import of_baseline, of_student
from objectives.compression.elastic.network import ElasticNetwork, Key, Subnetwork
from objectives.compression.elastic.prunable import Kept, dims_of, in_order, layout_of, smaller
from objectives.compression.elastic.sandwich import Shapes
from objectives.compression.importance import Evidence
from objectives.compression.module_edit import tensors
from objectives.compression.pruning import check_pruning
from objectives.recommenders.protocol import Recommender
from objectives.tensor_layout import Layout, TensorLayout, common, leading
from spaces.model_structure import ModelStructure
from spaces.techniques.architecture import Architecture
from spaces.techniques.pruning import kept_of
from spaces.weights import Weights

# Share of the units of each group that training leaves out at most: the strongest pruning that is offered by default.
_MOST_PRUNED = 0.9


def network_of(recommender: Recommender, weights: Weights, evidence: Evidence, seed: int) -> ElasticNetwork:
    """Return the untrained elastic network of the shapes that these weights are one of; it scores as the baseline does.

    Args:
        seed: for what only students have; the global generator is left as it was

    Raises:
        ValueError: the layout of the recommender's students is unknown.
    """
    dims = dims_of(of_baseline(recommender).structure)
    model = in_order(recommender.model, dims, evidence)
    if weights.architecture is None:
        return ElasticNetwork(model, layout_of(model, dims))
    layout = _layout(recommender, None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ElasticNetwork(model, layout, dict(_others(recommender, tensors(model), layout)))


@dataclass(frozen=True)
class PrunedShapes:
    """Shapes of a model with fewer units in each group of its structure.

    multiple: what is left of a dimension is a multiple of this
    """

    network: ElasticNetwork
    structure: ModelStructure
    multiple: int

    def shapes(self) -> Shapes[tuple[tuple[str, int], ...]]:
        groups = [group.name for group in self.structure.groups if group.prunable]

        def draw(random: np.random.Generator) -> tuple[tuple[str, int], ...]:
            return tuple(self.kept({name: random.uniform(0, _MOST_PRUNED) for name in groups}).items())

        return Shapes(
            tuple(self.kept({}).items()),
            tuple(self.kept(dict.fromkeys(groups, _MOST_PRUNED)).items()),
            draw,
            lambda kept: self.part(dict(kept))[0],
        )

    def kept(self, ratios: Mapping[str, float]) -> Kept:
        """Return the units that are left of each dimension at these ratios by group."""
        return {
            dim.name: kept_of(dim, ratios.get(group.name, 0.0), self.multiple)
            for group in self.structure.groups
            for dim in group.dims
        }

    def part(self, kept: Kept) -> tuple[Subnetwork, ModelStructure]:
        return smaller(self.network.model, self.structure, kept)


def students(recommender: Recommender) -> Shapes[Architecture]:
    """Return the shapes of the sizes that are offered to students, from the smallest to the baseline's own."""
    offered = recommender.student()

    def draw(random: np.random.Generator) -> Architecture:
        return Architecture(tuple((name, values[random.integers(len(values))]) for name, values in offered.items()))

    return Shapes(
        Architecture(tuple(recommender.sizes().items())),
        Architecture(tuple((name, values[0]) for name, values in offered.items())),
        draw,
        lambda architecture: student(recommender, architecture),
    )


def student(recommender: Recommender, architecture: Architecture) -> Subnetwork:
    """Build a student, of any weights, with its layout."""
    return Subnetwork(recommender.build(architecture), _layout(recommender, architecture))


def part_of(recommender: Recommender, network: ElasticNetwork, weights: Weights) -> tuple[Subnetwork, ModelStructure]:
    """Build a module in the shape of these weights, of any weights, and return it with its structure.

    Raises:
        ValueError: the weights are neither a student nor pruned, or the pruning would leave a group unchanged.
    """
    if weights.architecture is not None:
        made = student(recommender, weights.architecture)
        return made, of_student(recommender, made.module, weights.architecture).structure
    if weights.pruning is None:
        raise ValueError(f"A slice is a student or pruned, but got {weights}.")
    shapes = PrunedShapes(network, of_baseline(recommender).structure, weights.pruning.multiple)
    check_pruning(weights.pruning, shapes.structure)
    return shapes.part(shapes.kept(dict(weights.pruning.ratios)))


def shapes_of(
    recommender: Recommender, network: ElasticNetwork, weights: Weights
) -> Shapes[Architecture] | Shapes[tuple[tuple[str, int], ...]]:
    """Return the shapes that the elastic network of these weights is trained in."""
    if weights.architecture is not None:
        return students(recommender)
    assert weights.pruning is not None
    return PrunedShapes(network, of_baseline(recommender).structure, weights.pruning.multiple).shapes()


def _layout(recommender: Recommender, architecture: Architecture | None) -> Layout:
    layout = recommender.layout(architecture)
    if layout is None:
        raise ValueError("An elastic network of students needs the layout of their tensors, but the model gives none.")
    return layout


def _others(
    recommender: Recommender, held: Mapping[str, Tensor], whole: Layout
) -> Iterator[tuple[Key, tuple[TensorLayout, Tensor]]]:
    """Yield the tensors that only students have, by name and role.

    Each comes from the largest student that has it; the entries that it shares with the baseline's tensor of the same
    name are the baseline's.
    """
    largest: dict[Key, tuple[TensorLayout, Architecture]] = {}
    offered = recommender.student()
    for values in product(*offered.values()):
        architecture = Architecture(tuple(zip(offered, values, strict=True)))
        for name, layout in _layout(recommender, architecture).items():
            known = whole.get(name)
            if known is not None and known.role == layout.role:
                continue
            key = name, layout.role
            if key not in largest or np.prod(largest[key][0].shape) < np.prod(layout.shape):
                largest[key] = layout, architecture
    for (name, role), (layout, architecture) in largest.items():
        tensor = recommender.build(architecture).get_parameter(name).detach().clone()
        if name in whole:
            shared = common(layout, whole[name])
            ours, theirs = (_grid(shared, of) for of in (layout, whole[name]))
            tensor[ours] = held[name].detach()[theirs]
        yield (name, role), (layout, tensor)


def _grid(part: TensorLayout, whole: TensorLayout) -> tuple[Tensor, ...]:
    """Return indices of each axis, which broadcast, at which the part begins each run of the whole."""
    axes = [leading(ours, theirs[: len(ours)]) for ours, theirs in zip(part.axes, whole.axes, strict=True)]
    return torch.meshgrid([torch.tensor(at, dtype=torch.long) for at in axes], indexing="ij")
