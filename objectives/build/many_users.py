"""Scores of many users' rows in one run, of a model that takes a user's inputs once a request."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from objectives.arrays import Arrays
from objectives.held_out_rows import runs
from objectives.onnx_graph import is_large, load_graph, save_graph, with_row_for_each
from objectives.parity import LIMIT, compare_scores
from objectives.serving.split_engine import Engine

# Users whose scores have to be the same, and at most so many rows of each; and times that both ways are timed, of which
# the shortest counts.
_USERS, _ROWS, _TIMES = 32, 64, 3


def open_for_many_users(
    open_engine: Callable[[Path], Engine], model: Path, engine: Engine, blocks: Sequence[Arrays], scratch: Path
) -> Engine | None:
    """Open an engine that takes rows of many users in one run, each row with its own user's inputs.

    A graph whose operators treat rows independently gives the same scores where a user's inputs have a row for each row
    of the request and not one for all, and needs one run for thousands of users. Whether it does so, and takes less
    time, is tried on some users of each block.

    Args:
        engine: that of the model file, which takes one user's inputs in a run
        blocks: the rows that will be scored, by input
        scratch: folder for a file that is there for a moment

    Returns:
        None where the scores are not the same, a run fails, nothing is gained, or the graph is large.

    Raises:
        OSError: the file cannot be written.
    """
    graph = load_graph(model)
    if is_large(graph):  # its tensors would be copied
        return None
    file = scratch / "many_users.onnx"
    try:
        save_graph(with_row_for_each(graph, engine.once), file)
        many = open_engine(file)
        tried = [_tried(many, engine, block) for block in blocks]
    except OSError:
        raise
    except Exception:  # of an engine, whose errors have no common base class: users are scored one by one then
        return None
    finally:
        file.unlink(missing_ok=True)
    alone_s, together_s = np.sum(tried, axis=0)
    return many if together_s < alone_s else None


def _tried(many: Engine, engine: Engine, block: Arrays) -> tuple[float, float]:
    """Score rows of some users one by one, and in one run; return the seconds of both, of a block of one user 0.

    Raises:
        ParityError: the scores are not the same.
    """
    of_users = runs(block, engine.once)
    if len(of_users) < 2:
        return 0.0, 0.0
    chosen = [of_users[at][:_ROWS] for at in np.linspace(0, len(of_users) - 1, min(_USERS, len(of_users))).astype(int)]
    each, joint = [_rows_of(block, rows) for rows in chosen], _rows_of(block, np.concatenate(chosen))
    alone = [engine.run(rows) for rows in each]
    compare_scores([many.run(joint)], [np.concatenate(alone)], LIMIT / 10)
    alone_s, together_s = [], []
    for _ in range(_TIMES):
        start = time.perf_counter()
        for rows in each:
            engine.run(rows)
        middle = time.perf_counter()
        many.run(joint)
        alone_s.append(middle - start)
        together_s.append(time.perf_counter() - middle)
    return min(alone_s), min(together_s)


def _rows_of(block: Arrays, rows: NDArray[np.int64]) -> Arrays:
    return {name: values[rows] for name, values in block.items()}
