"""Whether a baseline had learned all that its data tell: one more pass of its own loss, on a copy."""

from __future__ import annotations

import copy

import torch

from objectives.build.custom_metric import custom_metric
from objectives.measurement.metrics.paired_loss import UndefinedLossError
from objectives.measurement.metrics.quality import paired_quality
from objectives.recommenders.protocol import Recommender
from objectives.recommenders.scoring import main_scores


def undertrained(recommender: Recommender, seed: int) -> str | None:
    """What one more pass over train gains on validation where that is certain, the whole interval being a gain; None
    where it is not, or cannot be told. The model itself is not changed."""
    learner = copy.deepcopy(recommender.model).requires_grad_(True).train()
    optimizer = recommender.optimizer(learner)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for inputs, labels in recommender.batches(torch.Generator().manual_seed(seed)):
            optimizer.zero_grad(set_to_none=True)
            recommender.loss(recommender.outputs(learner, inputs), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    held = recommender.held_out("validation")
    ours, theirs = (main_scores(recommender, model, held.inputs) for model in (learner, recommender.model))
    try:
        if recommender.custom_metric:
            quality = custom_metric(recommender, ours, theirs, held, seed, 0.95)
        else:
            quality = paired_quality(recommender.metric, ours, theirs, held.labels, held.groups, seed)
    except UndefinedLossError:
        return None
    if not quality.loss_interval[1] < 0:
        return None
    low, high = (-end for end in reversed(quality.loss_interval))
    return f"one more pass over train betters {quality.metric} by {-quality.loss:.2%} [{low:.2%}, {high:.2%}]"
