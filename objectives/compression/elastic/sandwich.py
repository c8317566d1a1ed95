"""Training of an elastic network by the sandwich rule: each step trains the largest, the smallest and random shapes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from objectives.compression.distillation import one_cycle, training_loss
from objectives.compression.elastic.network import ElasticNetwork, Slice, Subnetwork
from objectives.compression.training_data import TrainingData
from objectives.training_rows import NumberedBatch
from spaces.techniques.distillation import Distillation

S = TypeVar("S", bound=Hashable)
# Random shapes in a step, beside the largest and the smallest (Yu and Huang, ICCV 2019, section 3.1: four in all).
_RANDOM = 2
# Modules that are kept between steps, and their bytes at most, but those of a step; others are built anew.
_KEPT, _KEPT_BYTES = 64, 1 << 30


@dataclass(frozen=True)
class Shapes(Generic[S]):
    """Shapes that are nested in an elastic network; `build` makes a module of a shape, of any weights."""

    largest: S
    smallest: S
    draw: Callable[[np.random.Generator], S]
    build: Callable[[S], Subnetwork]


def sandwich_step(slices: Sequence[Slice], loss: Callable[[nn.Module], Tensor]) -> list[float]:
    """Set the gradients of the elastic network to the sum of its slices', and return the loss of each slice."""
    losses = []
    for part in slices:
        part.read()
        of_part = loss(part.module)
        of_part.backward()  # type: ignore[no-untyped-call]
        part.add_gradients()
        losses.append(float(of_part.detach()))
    return losses


def train_elastic(
    network: ElasticNetwork,
    shapes: Shapes[S],
    training_data: TrainingData,
    optimizer: torch.optim.Optimizer,
    distillation: Distillation,
    seed: int,
    teacher: nn.Module | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> tuple[float, ...]:
    """Train the network in place over one cycle of the learning rate.

    Each slice learns as in `distil`, from the labels and the teacher's outputs.

    Args:
        optimizer: over the parameters of the network
        distillation: `elastic_epochs` passes over train; features are not distilled
        seed: for the order of batches, for dropout and for the shapes; the global generator is left as it was

    Returns:
        The mean loss of each epoch over the slices of a step.
    """
    random, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)

    size: int = sum(tensor.nbytes for tensor in network.model.state_dict().values())

    @lru_cache(maxsize=max(_RANDOM + 2, min(_KEPT, _KEPT_BYTES // size)))
    def slice_of(shape: S) -> Slice:
        part = Slice(network, shapes.build(shape))
        part.module.train()
        return part

    epochs, steps = distillation.elastic_epochs, training_data.rows.batches_per_epoch
    schedule = one_cycle(optimizer, epochs * steps)
    losses: list[float] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for number in range(1, epochs + 1):
            found: list[float] = []
            for batch in training_data.rows.epoch(generator):
                drawn = (shapes.draw(random) for _ in range(_RANDOM))
                chosen = dict.fromkeys([shapes.largest, shapes.smallest, *drawn])
                optimizer.zero_grad(set_to_none=True)
                loss = _loss_on(batch, training_data, distillation, teacher, 1 / len(chosen))
                found.append(sum(sandwich_step([slice_of(shape) for shape in chosen], loss)))
                optimizer.step()
                schedule.step()
            losses.append(float(np.mean(found)))
            progress(f"elastic network: epoch {number} of {epochs}, loss {losses[-1]:.4f}")
    return tuple(losses)


def _loss_on(
    batch: NumberedBatch,
    training_data: TrainingData,
    distillation: Distillation,
    teacher: nn.Module | None,
    share: float,
) -> Callable[[nn.Module], Tensor]:
    """Return a function that computes a slice's share of a step's loss.

    The step's loss is the mean over the slices. With their sum, an optimizer's decay of the weights would count less
    than it does for a model by itself.
    """
    return lambda student: share * training_loss(student, batch, training_data, distillation, teacher)
