"""Opening of the user's own recommender: its factory is called, and a batch and a request run through the model."""

from __future__ import annotations

import io
import pickle
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from objectives.errors import one_line
from objectives.recommenders.requests import request_rows
from objectives.recommenders.user_model.bags import take_bags
from objectives.recommenders.user_model.factory import FactoryError, Given, batches_of, called, given_by, load_factory
from objectives.recommenders.user_model.identity import identity_of
from objectives.recommenders.user_model.recommender import UserRecommender
from objectives.recommenders.user_model.user_requests import sent_by
from objectives.task import Task
from spaces.techniques.architecture import Architecture

# Built-in metrics of scores and labels.
_METRICS = ("auc", "gauc")


def open_user_model(task: Task, progress: Callable[[str], None]) -> UserRecommender:
    """Open the recommender of the task's factory.

    Raises:
        FactoryError: the factory, or a part of its result, is invalid.
    """
    progress(f"recommender: calling {task.recommender}")
    # for random draws of the factory without a seed of its own
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(task.seed)
    given = given_by(load_factory(task.recommender, Path.cwd()), task.recommender)
    if isinstance(given.metric, str) and given.metric not in _METRICS:
        known = ", ".join(_METRICS)
        raise FactoryError(f"{given.name}: metric must be one of {known} or a function, but got {given.metric!r}")
    identity = called(f"{given.name}: its code and settings", lambda: identity_of(given))
    take_bags(given)
    sent = sent_by(given, task.seed)
    if task.rows_trace is not None:
        sent = sent.sized(request_rows(task, task.seed))
    recommender = UserRecommender(given, task, sent, identity)
    _try_out(recommender)
    return recommender


def _try_out(recommender: UserRecommender) -> None:
    """Run one batch and one request through the model, one step back through the loss, and one sibling."""
    given, model = recommender.given, recommender.model
    inputs, labels, _ = next(batches_of(given, "train"))
    where = f"{given.name}: a request as tensors"
    request = called(where, lambda: {n: torch.from_numpy(v) for n, v in recommender.sent.first.items()})
    for what, of in (("a batch of train", inputs), ("a request", request)):
        try:
            with torch.no_grad():
                outputs = recommender.outputs(model.eval(), of)
        except Exception as error:  # anything that the user's own forward may raise
            raise FactoryError(f"{given.name}: {what} does not fit the model: {one_line(error)}") from error
        recommender.scores(outputs)
    _compare(given, inputs, request)
    where = f"{given.name}: loss(outputs, labels)"
    loss = called(where, lambda: recommender.loss(recommender.outputs(model, inputs), labels))
    with torch.no_grad():  # the last forward's outputs that a layer keeps cannot be copied while they have a gradient
        recommender.outputs(model, inputs)
    if not isinstance(loss, Tensor) or loss.ndim != 0 or not loss.requires_grad:
        got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise FactoryError(f"{given.name}: loss must give one number that has a gradient, but gave {got}")
    _check_pickled(given.name, "model", model)
    if recommender.hidden is not None and recommender.hidden not in dict(model.named_modules()):
        raise FactoryError(f"{given.name}: hidden must be a module of the model, but got {recommender.hidden!r}")
    if shapes := recommender.student():
        first = Architecture(tuple((name, values[0]) for name, values in shapes.items()))
        sibling, what = recommender.build(first), f"{given.name}: the forward of build({first.as_dict()})"
        called(what, lambda: recommender.scores(recommender.outputs(sibling.eval(), inputs)))
        _check_pickled(given.name, f"build({first.as_dict()})", sibling)
        if recommender.hidden is not None and recommender.hidden not in dict(sibling.named_modules()):
            raise FactoryError(f"{given.name}: build must give a model with the hidden module {recommender.hidden!r}")


class _WithoutTensors(pickle.Pickler):
    """Pickler that leaves out the tensors, which can be pickled and may be large."""

    def persistent_id(self, value: object) -> str | None:
        return "tensor" if isinstance(value, Tensor) else None


def _check_pickled(name: str, what: str, model: nn.Module) -> None:
    """Check that a trained model can be saved: as a whole, since a pruned one is no longer what its class makes."""
    try:
        _WithoutTensors(io.BytesIO()).dump(model)
    except Exception as error:  # anything that a user's own class may raise
        raise FactoryError(
            f"{name}: {what} must be a model that torch.save can save, with classes, functions and hooks defined at "
            f"the top of a module, but got {one_line(error)}"
        ) from error


def _compare(given: Given, batch: Mapping[str, Tensor], request: Mapping[str, Tensor]) -> None:
    """Check that batches and requests have the same inputs in the same types, as one graph serves both."""
    kinds = [{n: str(values.dtype).removeprefix("torch.") for n, values in of.items()} for of in (batch, request)]
    if kinds[0] != kinds[1]:
        told = [", ".join(f"{name} {kind}" for name, kind in sorted(of.items() - other.items()))
                for of, other in (kinds, kinds[::-1])]  # fmt: skip
        raise FactoryError(
            f"{given.name}: batches and requests must have the same inputs in the same types, but differ in: batches "
            f"{told[0] or 'nothing'}; requests {told[1] or 'nothing'}"
        )
