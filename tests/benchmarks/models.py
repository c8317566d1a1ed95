"""Models and requests that the benchmarks share: DCN-V2 in the sizes of the built-in baseline, untrained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from objectives.compression.export import to_onnx
from objectives.recommenders.dcn_v2 import BASELINE, DCNV2, Sizes

# MovieLens 100K's fields and vocabularies.
USER_FIELDS = {"user": 944, "age": 62, "gender": 3, "occupation": 22, "zip": 796}
ITEM_FIELDS = {"item": 1683, "year": 73, "genres": 217}
FIELDS = {**USER_FIELDS, **ITEM_FIELDS}
Requests = list[dict[str, NDArray[np.int64]]]


def baseline_model(folder: Path, sizes: Sizes = BASELINE) -> Path:
    torch.manual_seed(0)
    example = {name: torch.zeros(4, dtype=torch.int64) for name in FIELDS}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    onnx.save(to_onnx(DCNV2(FIELDS, sizes), example), str(path))
    return path


def request(rows: int, random: np.random.Generator) -> dict[str, NDArray[np.int64]]:
    """One user and `rows` items."""
    users = {name: np.full(rows, random.integers(size)) for name, size in USER_FIELDS.items()}
    items = {name: random.integers(0, size, rows) for name, size in ITEM_FIELDS.items()}
    return users | items


def lognormal_requests(count: int, seed: int, median: int = 200, sigma: float = 0.6, most: int = 1000) -> Requests:
    random = np.random.default_rng(seed)
    sizes = np.clip(random.lognormal(np.log(median), sigma, count), 1, most).astype(int)
    return [request(int(rows), random) for rows in sizes]
