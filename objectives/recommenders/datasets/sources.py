"""Opening of the source that a task names, as a log of clicks."""

from __future__ import annotations

from pathlib import Path

from objectives.recommenders.datasets.click_log import ClickLog
from objectives.recommenders.datasets.criteo import read_criteo
from objectives.recommenders.datasets.fetch import KNOWN, fetch
from objectives.recommenders.datasets.movielens import read_movielens
from objectives.recommenders.datasets.synthetic import synthetic_log
from objectives.recommenders.datasets.table import Schema, read_table
from objectives.task import Task
from spaces.serialization import from_plain

# Train rows that a hashed value needs for a code; rarer values carry no information and share the code of unseen ones.
_LEAST_OF_CRITEO = 10
# Options of a synthetic log that are integers.
_SIZES = ("rows", "users", "items", "fields")


def read_log(task: Task) -> ClickLog:
    """Read the log of the task's source.

    Raises:
        ValueError: the source is unknown or its files are invalid.
    """
    kind, _, path = task.source.partition(":")
    if task.source in KNOWN:
        return read_movielens(fetch(task.source, task.data_sets))
    if kind == "movielens" and path:
        return read_movielens(Path(path))
    if kind == "table" and path:
        if task.columns is None:
            raise ValueError("data.columns must say what those of a table hold, but got none.")
        return read_table(Path(path), from_plain(Schema, task.columns))
    if kind == "criteo" and path:
        return read_criteo(Path(path))
    if task.source == "synthetic" and task.synthetic is not None:
        given = {name: int(value) if name in _SIZES else float(value) for name, value in task.synthetic.items()}
        return synthetic_log(**given, seed=task.seed)  # type: ignore[arg-type]
    raise ValueError(
        f"data.source is one of {sorted(KNOWN)}, movielens:DIR, table:FILE, criteo:FILE or synthetic, but got "
        f"{task.source!r}."
    )


def least_count(source: str) -> int:
    """Return the number of train rows that a value of this source needs to have a code of its own."""
    return _LEAST_OF_CRITEO if source.startswith("criteo:") else 1


def all_taken(task: Task) -> bool:
    """Return whether each row is an item that the user took, as a rating is; of labels 0 and 1, those of 0 are not."""
    return task.columns is None or from_plain(Schema, task.columns).positive_from is not None
