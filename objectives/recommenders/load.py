"""Opening of a task's recommender: built-in, by its name, or the user's own, by its factory."""

from __future__ import annotations

from objectives.recommenders.families.pointwise import FAMILIES, open_pointwise
from objectives.recommenders.families.sequential import open_sequential
from objectives.recommenders.protocol import Recommender
from objectives.recommenders.training import Progress
from objectives.recommenders.user_model.load import open_user_model
from objectives.task import Task


def open_recommender(task: Task, progress: Progress) -> Recommender:
    """Open a recommender with its data; a built-in one's baseline is trained once, except in a dry run.

    Raises:
        ValueError: the recommender, the source or a size is unknown, or the files or the factory are invalid.
    """
    if ":" in task.recommender:
        return open_user_model(task, progress)
    if task.recommender in FAMILIES:
        return open_pointwise(task, progress)
    if task.recommender == "sasrec":
        return open_sequential(task, progress)
    raise ValueError(
        f"recommender is one of {', '.join((*FAMILIES, 'sasrec'))} or package.module:factory, but got "
        f"{task.recommender!r}."
    )
