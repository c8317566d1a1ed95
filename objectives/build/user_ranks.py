"""Ranks of users' next items in the whole catalogue, by the engine that will serve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from objectives.arrays import Arrays
from objectives.held_out_rows import HeldOut
from objectives.onnx_graph import is_large, load_graph, save_graph, with_constant
from objectives.ranking_metrics import ranks
from objectives.serving.engines import open_replica
from objectives.serving.split_engine import Engine
from spaces.techniques.placement import EmbeddingDevice, InstanceGroup

_ITEM = "item"


def user_ranks(
    model: Path,
    instance_group: InstanceGroup,
    lookup: EmbeddingDevice | None,
    compute: str,
    held: HeldOut,
    scratch: Path,
) -> NDArray[np.float64]:
    """Return the rank of each user's next item, (n,), among the items not seen before; each user is one request.

    Args:
        scratch: folder for a file that is there for a moment
    """
    items, seen = held.items, held.seen
    assert items is not None and seen is not None
    engine, catalogue = _opened(model, instance_group, lookup, compute, items, scratch)

    def score(user: int) -> NDArray[np.float32]:
        once = {name: values[user : user + 1] for name, values in held.inputs[0].items()}
        scores: NDArray[np.float32] = engine.run({**once, **catalogue})
        return scores

    return ranks(score, held.labels.astype(np.int64, copy=False), seen)


def _opened(
    model: Path,
    instance_group: InstanceGroup,
    lookup: EmbeddingDevice | None,
    compute: str,
    items: NDArray[np.int64],
    scratch: Path,
) -> tuple[Engine, Arrays]:
    """Open an engine for requests of all items, and return what is given to it besides a user's inputs.

    When it loads a graph, ONNX Runtime computes all that depends on constants only. So the items become a constant of
    the graph, and a request need not look up all of them again; its operations stay the same.
    """
    if instance_group.engine == "onnxruntime" and instance_group.device == "cpu" and lookup is None:
        graph = load_graph(model)
        if not is_large(graph):  # its tensors would be copied
            file = scratch / "catalogue.onnx"
            save_graph(with_constant(graph, _ITEM, items), file)
            engine = open_replica(file, instance_group, None, compute)
            file.unlink()
            return engine, {}
    return open_replica(model, instance_group, lookup, compute), {_ITEM: items}
