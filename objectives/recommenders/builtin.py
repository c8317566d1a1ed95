"""The built-in recommenders, by name."""

from __future__ import annotations

from collections.abc import Callable

from objectives.recommenders.families import FAMILIES
from objectives.recommenders.pointwise import open_pointwise
from objectives.recommenders.protocol import Recommender
from objectives.recommenders.sequential import open_sequential
from objectives.task import Task


def open_builtin(task: Task, progress: Callable[[str], None]) -> Recommender:
    """With its data read and its baseline trained, or found in the cache.

    Raises:
        ValueError: the recommender, the source or a size is not known, or the files are not what they should be.
    """
    if task.recommender in FAMILIES:
        return open_pointwise(task, progress)
    if task.recommender == "sasrec":
        return open_sequential(task, progress)
    raise ValueError(f"recommender is one of {', '.join((*FAMILIES, 'sasrec'))}, but got {task.recommender!r}.")
