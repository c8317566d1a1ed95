"""Elastic network of a recommender: trained once for all shapes of one kind, which are then sliced in a second each."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from objectives.build.nested_shapes import network_of, part_of, shapes_of
from objectives.compression.elastic.network import ElasticNetwork, Slice
from objectives.compression.elastic.sandwich import Shapes, train_elastic
from objectives.compression.elastic.statistics import recompute_statistics
from objectives.compression.importance import Evidence
from objectives.compression.training_data import TrainingData
from objectives.errors import located
from objectives.jobs.protocol import Progress
from objectives.recommenders.protocol import Recommender
from spaces.model_structure import ModelStructure
from spaces.weights import Weights

_FILE = "network.pt"
# Batches for the statistics of a slice's batch normalisations.
_BATCHES = 16


def train(
    recommender: Recommender,
    weights: Weights,
    seed: int,
    training_data: TrainingData,
    evidence: Evidence,
    progress: Progress,
) -> ElasticNetwork:
    """Train the elastic network of all students, or of all ways to prune the model, whichever these weights are.

    Raises:
        ValueError: the shapes are not known to be nested; the model's forward or loss fails in training.
    """
    assert weights.distillation is not None
    network = network_of(recommender, weights, evidence, seed)
    optimizer = recommender.optimizer(network.model)
    if len(network.others):
        optimizer.add_param_group({"params": list(network.others)})
    shapes: Shapes[Any] = shapes_of(recommender, network, weights)
    given = weights.distillation
    try:
        train_elastic(network, shapes, training_data, optimizer, given, seed, recommender.model, progress)
    except Exception as error:  # anything that the user's forward or loss may raise in training, with fewer units too
        raise ValueError(f"The model must learn from a batch in every shape, but got {located(error)}") from error
    return network.eval()


def save(network: ElasticNetwork, folder: Path) -> None:
    torch.save(network, folder / _FILE)


def load(folder: Path) -> ElasticNetwork:
    # The cache is written by this program only.
    network: ElasticNetwork = torch.load(folder / _FILE, weights_only=False)
    return network


def sliced(
    recommender: Recommender, network: ElasticNetwork, weights: Weights, seed: int
) -> tuple[nn.Module, ModelStructure]:
    """Slice the weights of a shape out of a trained network, as an ordinary module, and return it with its structure.

    Raises:
        ValueError: the network does not hold the shape.
    """
    part, structure = part_of(recommender, network, weights)
    Slice(network, part).read()
    drawn = islice(recommender.train_rows().batches(torch.Generator().manual_seed(seed)), _BATCHES)
    recompute_statistics(part.module, (inputs for inputs, _ in drawn), recommender.outputs)
    return part.module.eval(), structure
