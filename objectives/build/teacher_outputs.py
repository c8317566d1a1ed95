"""What the baseline's scores of the train rows follow from: worked out once for all fits, and kept on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from objectives.recommenders.protocol import Recommender
from objectives.store import make_once
from objectives.training_rows import NumberedBatch
from spaces.serialization import digest

# Raised when what is kept changes, so that nothing older is found in the cache.
STAGE = 1
# Bytes. Where there would be more, the teacher is asked batch by batch.
LARGEST = 4_000_000_000
_FILE = "outputs.npy"


@dataclass(frozen=True, eq=False)
class TeacherOutputs:
    """Of each row of train, (rows, ...), read from disk where it is asked for."""

    recommender: Recommender
    kept: NDArray[np.float32]

    def scores(self, batch: NumberedBatch) -> Tensor:
        """The teacher's scores of a batch, as running the teacher would give them."""
        outputs = torch.from_numpy(self.kept[batch.rows.numpy()])
        with torch.no_grad():
            return self.recommender.teacher_scores(outputs, batch.inputs)


def teacher_outputs(recommender: Recommender, cache: Path) -> TeacherOutputs | None:
    """None where they would be too large to keep."""
    rows = recommender.train_rows()
    recommender.model.eval()
    with torch.no_grad():
        _, some = next(rows.in_order())
        shape = (rows.rows, *recommender.teacher_outputs(some).shape[1:])
    if 4 * np.prod(shape, dtype=np.int64) > LARGEST:
        return None
    folder = cache / "teacher_outputs" / digest(recommender.key, shape, STAGE)[:20]

    def write(into: Path) -> None:
        kept: Any = np.lib.format.open_memmap(into / _FILE, mode="w+", dtype=np.float32, shape=shape)
        with torch.inference_mode():
            for first, inputs in rows.in_order():
                outputs = recommender.teacher_outputs(inputs)
                kept[first : first + len(outputs)] = outputs.numpy()
        kept.flush()

    make_once(folder, write)
    return TeacherOutputs(recommender, np.load(folder / _FILE, mmap_mode="r"))
