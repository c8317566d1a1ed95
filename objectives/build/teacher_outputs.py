"""The baseline's outputs on the rows of train, computed once for all fits and kept on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
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


@dataclass(frozen=True, eq=False)
class TeacherOutputs:
    """The teacher's outputs on each row of train, (rows, ...), read from disk on demand."""

    recommender: Recommender
    kept: NDArray[np.float32]

    def scores(self, batch: NumberedBatch) -> Tensor:
        """Return the teacher's scores of a batch, equal to those of running the teacher."""
        outputs = torch.from_numpy(self.kept[batch.rows.numpy()])
        with torch.no_grad():
            return self.recommender.teacher_scores(outputs, batch.inputs)


def teacher_outputs(recommender: Recommender, cache: Path) -> TeacherOutputs | None:
    """Compute the teacher's outputs on train or read them from the cache; None where they would exceed
    `LARGEST` bytes.
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
    return TeacherOutputs(recommender, np.load(folder / _FILE, mmap_mode="r"))
