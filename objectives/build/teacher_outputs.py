"""The baseline's outputs on the rows of train, computed once for all fits and kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from objectives.recommenders.protocol import Recommender
from objectives.store import make_once
from objectives.training_rows import NumberedBatch
from spaces.serialization import digest

# Version of the cached outputs, raised when their content changes.
STAGE = 1
# Size limit of the cache in bytes; above it the teacher is evaluated batch by batch.
LARGEST = 4_000_000_000
_FILE = "outputs.npy"


def kept_scores(recommender: Recommender, cache: Path) -> Callable[[NumberedBatch], Tensor] | None:
    """Return a function that reads the teacher's scores of a batch from its outputs on train.

    The outputs are computed unless the cache has them. The scores are those of running the teacher, but for the last
    bits: a product rounds by the number of rows that are computed together. None is returned where the outputs would
    exceed `LARGEST` bytes.
    """
    rows = recommender.train_rows()
    recommender.model.eval()
    with torch.no_grad():
        _, some = next(rows.in_order())
        shape = (rows.rows, *recommender.teacher_outputs(some).shape[1:])
    if 4 * np.prod(shape, dtype=np.int64) > LARGEST:
        return None
    folder = cache / "teacher_outputs" / digest(recommender.key, shape, STAGE)[:20]

    def write(into: Path) -> None:
        kept = np.lib.format.open_memmap(into / _FILE, mode="w+", dtype=np.float32, shape=shape)
        with torch.inference_mode():
            for first, inputs in rows.in_order():
                outputs = recommender.teacher_outputs(inputs)
                kept[first : first + len(outputs)] = outputs.numpy()
        kept.flush()

    make_once(folder, write)
    kept = np.load(folder / _FILE, mmap_mode="r")

    def scores(batch: NumberedBatch) -> Tensor:
        with torch.no_grad():
            return recommender.teacher_scores(torch.from_numpy(kept[batch.rows.numpy()]), batch.inputs)

    return scores
