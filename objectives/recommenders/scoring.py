"""Scores of held-out rows by a recommender's own model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from objectives.arrays import Arrays
from objectives.held_out_rows import runs
from objectives.recommenders.protocol import Recommender


def main_scores(recommender: Recommender, model: nn.Module, blocks: Sequence[Arrays]) -> NDArray[np.float32]:
    """Compute the main output's scores, (n,), in the blocks' order; rows with equal inputs of `once` run together."""
    found, once = [], recommender.once
    model.eval()
    with torch.inference_mode():
        for block in blocks:
            scores = np.empty(len(next(iter(block.values()))), dtype=np.float32)
            for rows in runs(block, once):
                inputs = {n: torch.from_numpy(v[rows[:1] if n in once else rows]) for n, v in block.items()}
                given = recommender.scores(recommender.outputs(model, inputs))
                scores[rows] = (given if given.ndim == 1 else given[:, 0]).numpy()
            found.append(scores)
    return np.concatenate(found)
