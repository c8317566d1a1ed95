"""Convergence check of a baseline: train a copy for one more epoch with its own loss."""

from __future__ import annotations

import copy

import torch

from objectives.build.custom_metric import custom_metric
from objectives.measurement.metrics.paired_loss import UndefinedLossError
from objectives.measurement.metrics.quality import paired_quality
from objectives.recommenders.protocol import Recommender
from objectives.recommenders.scoring import main_scores


def undertrained(recommender: Recommender, seed: int) -> str | None:
    """Train a copy of the model for one more epoch and describe the improvement on validation; the model itself is not
    changed.

    Returns:
        A sentence with the relative improvement where its whole interval is one; None where it is not, or where the
        metric is undefined.
    """
    learner = copy.deepcopy(recommender.model).requires_grad_(True).train()
    optimizer = recommender.optimizer(learner)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for inputs, labels in recommender.train_rows().batches(torch.Generator().manual_seed(seed)):
            optimizer.zero_grad(set_to_none=True)
            recommender.loss(recommender.outputs(learner, inputs), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    held = recommender.held_out("validation")
    ours, theirs = (main_scores(recommender, model, held.inputs) for model in (learner, recommender.model))
    try:
        if recommender.custom_metric:
            quality = custom_metric(recommender, ours, theirs, held, seed, 0.95)
        else:
            quality = paired_quality(recommender.metric, ours, theirs, held, seed)
    except UndefinedLossError:
        return None
    if not quality.loss_interval[1] < 0:
        return None
    low, high = (-end for end in reversed(quality.loss_interval))
    return f"one more epoch of training improves {quality.metric} by {-quality.loss:.2%} [{low:.2%}, {high:.2%}]"
