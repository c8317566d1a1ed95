"""Models and requests that the benchmarks share: DCN-V2 in the sizes of the built-in baseline or others, untrained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from objectives.compression.export import to_onnx
from objectives.compression.graph_passes.user_once import compute_once
from objectives.compression.quantization import quantize
from objectives.compression.structure import trace
from objectives.onnx_graph import save_graph
from objectives.recommenders.datasets.features import Field
from objectives.recommenders.families.dcn_v2 import BASELINE, DCNV2, Sizes
from objectives.serving.devices import int8_weight_bits
from spaces.techniques.placement import InstanceGroup, Placement
from spaces.techniques.quantization import Precision

# MovieLens 100K's fields and vocabularies.
USER_FIELDS = {"user": 944, "age": 62, "gender": 3, "occupation": 22, "zip": 796}
ITEM_FIELDS = {"item": 1683, "year": 73, "genres": 217}
FIELDS = {**USER_FIELDS, **ITEM_FIELDS}
INPUTS = [
    *(Field(name=name, side="user", vocabulary=size) for name, size in USER_FIELDS.items()),
    *(Field(name=name, side="item", vocabulary=size) for name, size in ITEM_FIELDS.items()),
]
SMALL_STUDENT = Sizes(embedding_dim=8, crosses=2, mlp=(64,))
STUDENT = Sizes(embedding_dim=16, crosses=2, mlp=(128, 64))
FP32 = Precision()
INT8 = Precision((("cross", "int8-dynamic"), ("mlp", "int8-dynamic")))
Requests = list[dict[str, NDArray[np.int64]]]
ONE_THREAD = Placement(InstanceGroup(threads=1))

_CALIBRATION_ROWS = 64


def baseline_model(folder: Path, sizes: Sizes = BASELINE) -> Path:
    return write_model(folder, sizes)


def write_model(folder: Path, sizes: Sizes = BASELINE, precision: Precision = FP32, user_once: bool = False) -> Path:
    """The file `model.onnx` in a folder; the user's side once a request, then the widths, as a study builds it."""
    torch.manual_seed(0)
    model = DCNV2(INPUTS, sizes)
    rows = {name: torch.zeros(4, dtype=torch.int64) for name in FIELDS}
    graph = to_onnx(model, rows)
    if user_once:
        graph = compute_once(graph, frozenset(USER_FIELDS))
    if precision.widths:
        structure, calibration = trace(model, rows).structure, request(_CALIBRATION_ROWS, np.random.default_rng(0))
        graph = quantize(graph, precision, structure, calibration, weight_bits=int8_weight_bits())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    save_graph(graph, path)
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
