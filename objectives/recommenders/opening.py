"""A task's recommender: built in, by its name, or the user's own, by its factory."""

from __future__ import annotations

from collections.abc import Callable

from objectives.recommenders.families import FAMILIES
from objectives.recommenders.own.opening import open_own
from objectives.recommenders.pointwise import open_pointwise
from objectives.recommenders.protocol import Recommender
from objectives.recommenders.sequential import open_sequential
from objectives.task import Task


def open_recommender(task: Task, progress: Callable[[str], None], train: bool = True) -> Recommender:
    """With its data read; a built-in one's baseline found in the cache, else trained.

    Args:
        train: else a baseline that is not in the cache stays as it was drawn, for a rehearsal

    Raises:
        ValueError: the recommender, the source or a size is not known, the files are not what they should be, or the
            factory is not.
    """
    if ":" in task.recommender:
        return open_own(task, progress)
    if task.recommender in FAMILIES:
        return open_pointwise(task, progress, train)
    if task.recommender == "sasrec":
        return open_sequential(task, progress, train)
    raise ValueError(
        f"recommender is one of {', '.join((*FAMILIES, 'sasrec'))} or package.module:factory, but got "
        f"{task.recommender!r}."
    )
