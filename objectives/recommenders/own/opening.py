"""The user's own recommender opened: its factory called, and one batch and one request tried on the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from objectives.errors import one_line
from objectives.recommenders.own.factory import FactoryError, batches_of, given_by, load_factory
from objectives.recommenders.own.recommender import OwnRecommender
from objectives.recommenders.own.sent import sent_by
from objectives.task import Task

# Those of scores and labels that leanrec knows.
_METRICS = ("auc", "gauc")
_LARGEST = 1_900_000_000


def open_own(task: Task, progress: Callable[[str], None]) -> OwnRecommender:
    """
    Raises:
        FactoryError: the factory, or something that it gave, is not what it should be.
    """
    progress(f"recommender: calling {task.recommender}")
    given = given_by(load_factory(task.recommender, Path.cwd()), task.recommender)
    torch.manual_seed(task.seed)
    if isinstance(given.metric, str) and given.metric not in _METRICS:
        known = ", ".join(_METRICS)
        raise FactoryError(f"{given.name}: metric must be one of {known} or a function, but got {given.metric!r}")
    size = 4 * sum(tensor.numel() for tensor in given.model.state_dict().values())
    if size > _LARGEST:
        raise FactoryError(
            f"{given.name}: model must hold {_LARGEST / 1e9:.1f} GB of weights at most, as much as one ONNX graph can, "
            f"but holds {size / 1e9:.1f} GB"
        )
    recommender = OwnRecommender(given, task, sent_by(given, task.seed))
    _try_out(recommender)
    return recommender


def _try_out(recommender: OwnRecommender) -> None:
    """One batch and one request through the model, and one step back through the loss."""
    given = recommender.given
    inputs, labels, _ = next(batches_of(given, "train"))
    for what, of in (("a batch of train", inputs), ("a request", _tensors(recommender.sent.first))):
        try:
            with torch.no_grad():
                outputs = recommender.outputs(recommender.model.eval(), of)
        except Exception as error:  # whatever the user's own forward raises
            raise FactoryError(f"{given.name}: {what} does not fit the model: {one_line(error)}") from error
        recommender.scores(outputs)
    try:
        loss = recommender.loss(recommender.outputs(recommender.model, inputs), labels)
    except Exception as error:  # whatever the user's own loss raises
        raise FactoryError(f"{given.name}: loss(outputs, labels) failed: {one_line(error)}") from error
    if not isinstance(loss, Tensor) or loss.ndim != 0 or not loss.requires_grad:
        got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise FactoryError(f"{given.name}: loss must give one number that has a gradient, but gave {got}")


def _tensors(request: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(values) for name, values in request.items()}
