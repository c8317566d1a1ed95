"""Training with early stopping."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from objectives.training_rows import Inputs

# Inputs by name, (rows, ...) each, and labels.
Labelled = tuple[Inputs, Tensor]


@dataclass(frozen=True)
class Trained:
    """Result of a training; `history` is the validation metric after each epoch."""

    best: float
    best_epoch: int
    history: tuple[float, ...]
    seconds: float


def train_to_optimum(
    model: nn.Module,
    loss: Callable[[nn.Module, Inputs, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    batches: Callable[[], Iterable[Labelled]],
    validate: Callable[[nn.Module], float],
    patience: int = 2,
    reductions: int = 2,
    most_epochs: int = 100,
    progress: Callable[[str], None] = lambda line: None,
) -> Trained:
    """Train in place until validation no longer improves, and leave the best weights in the model.

    After `patience` epochs without an improvement the best weights are restored and the learning rate is divided by
    ten; after `reductions` such divisions training ends (the schedule of the FuxiCTR library, with which BARS was run).
    """
    start = time.monotonic()
    best, best_epoch, history = float("-inf"), -1, list[float]()
    kept = copy.deepcopy(model.state_dict())
    waited = fallen = 0
    for epoch in range(most_epochs):
        model.train()
        for inputs, labels in batches():
            optimizer.zero_grad(set_to_none=True)
            loss(model, inputs, labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        history.append(validate(model))
        progress(f"baseline: epoch {epoch + 1}, validation {history[-1]:.4f}, {time.monotonic() - start:.0f} s")
        if history[-1] > best:
            best, best_epoch, waited = history[-1], epoch, 0
            kept = copy.deepcopy(model.state_dict())
            continue
        waited += 1
        if waited < patience:
            continue
        if fallen == reductions:
            break
        fallen, waited = fallen + 1, 0
        model.load_state_dict(kept)
        for settings in optimizer.param_groups:
            settings["lr"] *= 0.1
    model.load_state_dict(kept)
    model.eval()
    return Trained(best, best_epoch, tuple(history), time.monotonic() - start)
