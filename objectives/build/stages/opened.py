"""The recommender that a builder has open, with the graphs of its models: one builder serves one study."""

from __future__ import annotations

from dataclasses import replace

import torch

from objectives.compression.traced_graphs import TracedGraphs
from objectives.jobs.protocol import Progress
from objectives.recommenders.load import open_recommender
from objectives.recommenders.protocol import Recommender
from objectives.recommenders.user_model.factory import FactoryError
from objectives.task import Task
from spaces.serialization import digest

_opened: dict[str, Recommender] = {}
traced = TracedGraphs()


def open_once(task: Task, progress: Progress, threads: int | None = None) -> Recommender:
    """Open the recommender, or return the one in memory; from here on torch computes with so many threads.

    Raises:
        FactoryError: the recommender is not the one that the study was prepared with.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    key = digest(replace(task, expected=""))
    if key not in _opened:
        _opened.clear()
        traced.clear()
        _opened[key] = open_recommender(task, progress)
    if task.expected not in ("", _opened[key].key):
        raise FactoryError(
            f"{task.recommender}: must give the same model, data and requests, by the same code and library versions, "
            "whenever it is called, but gave others than when the study was prepared; let it load what was trained, "
            "and seed what it draws"
        )
    return _opened[key]
