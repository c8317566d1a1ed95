"""The user's own recommender as its factory makes it, evaluated and compressed without retraining the original."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from typing import ClassVar

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from objectives.arrays import Arrays, Numbers
from objectives.held_out_rows import HELD_PARTS, HeldOut, HeldPart
from objectives.model_copy import copy_model
from objectives.output_kind import OutputKind
from objectives.recommenders.protocol import Facts, Method, Recommender
from objectives.recommenders.scoring import main_scores
from objectives.recommenders.user_model.factory import FactoryError, Given, batches_of, called
from objectives.recommenders.user_model.loss_curvature import relative_curvature
from objectives.recommenders.user_model.optimizer import optimizer_of
from objectives.recommenders.user_model.outputs import Outputs, kind_of, outputs_of
from objectives.recommenders.user_model.padded_forward import bags_of, padded_forward, take_padded
from objectives.recommenders.user_model.rows import Train, read_held_out, read_train
from objectives.recommenders.user_model.user_requests import Sent
from objectives.records import InputSpec
from objectives.task import Task
from objectives.training_rows import Labels, TrainingRows
from spaces.domains import Scalar
from spaces.serialization import digest
from spaces.techniques.architecture import Architecture

_LEARNING_RATE = 1e-3
BATCH = 256  # rows, unless the study sets another number
# Rows of train from which the kinds of the outputs are inferred.
_SAMPLE = 4096
# Batches of train on which the curvature of the user's loss is found.
_CURVATURE_BATCHES = 8


@dataclass(frozen=True, eq=False)
class UserRecommender(Recommender):
    """Recommender of the user's own factory.

    identity: as `identity_of` describes the result of the factory, before its code ran
    """

    given: Given
    task: Task
    sent: Sent
    identity: str
    method: ClassVar[Method] = "forward"
    references: ClassVar[tuple[str, ...]] = ()  # only tensors of the data are known

    @property
    def model(self) -> nn.Module:
        return self.given.model

    @cached_property
    def key(self) -> str:
        """Hash of the weights, all data, the requests, the user's inputs, and the user's code and settings."""
        content = hashlib.sha256()

        def add(arrays: Arrays) -> None:
            for name, values in arrays.items():
                content.update(f"{name} {values.dtype} {values.shape}".encode())
                content.update(np.ascontiguousarray(values).data)

        add({name: tensor.detach().cpu().numpy() for name, tensor in self.model.state_dict().items()})
        for held, _ in self._held.values():
            for block in held.inputs:
                add(block)
            add({"labels": held.labels, "groups": held.groups, **held.others})
        for request in self.sent.requests:
            add(request)
        train = self._train.content
        users = sorted(self.sent.of_user)
        return digest(self.given.name, content.hexdigest(), train, self.identity, users, torch.__version__)[:20]

    @property
    def custom_metric(self) -> bool:
        return not self.task.metric and not isinstance(self.given.metric, str)

    @property
    def metric(self) -> str:
        """Metric of the study, of the factory, or the name of the factory's function."""
        own = self.given.metric
        return self.task.metric or (own if isinstance(own, str) else getattr(own, "__name__", "own metric"))

    def evaluate_custom_metric(self, scores: Numbers, labels: Numbers, groups: Numbers) -> float:
        metric, what = self.given.metric, f"{self.given.name}: metric(scores, labels, groups)"
        assert not isinstance(metric, str)
        return called(what, lambda: float(metric(scores, labels, groups)))

    def held_out(self, part: HeldPart) -> HeldOut:
        return self._held[part][0]

    def facts(self) -> Facts:
        owners = set(self._train.groups).union(*(owners for _, owners in self._held.values()))
        auc: float | None = None
        test = self.held_out("test")
        if set(np.unique(test.labels)) == {0, 1}:
            auc = float(roc_auc_score(test.labels, main_scores(self, self.model, test.inputs)))
        return Facts(
            split="The parts are those that the factory gives.",
            rows={"train": self.train_rows().rows} | {part: len(of.labels) for part, (of, _) in self._held.items()},
            users=len(owners),
            training={},
            reference_metric="auc",  # which alone applies to any model
            references={"baseline": auc},
        )

    @cached_property
    def inputs(self) -> tuple[InputSpec, ...]:
        users, inferred = self.sent.of_user, self.sent.inferred
        bags = {one.offsets: one for one in bags_of(self.model)}
        bagged = {name for one in bags.values() for name in one.names}
        return tuple(
            InputSpec(
                name,
                str(values.dtype),
                (None, *values.shape[2:]) if name in bagged else self._shape(name),
                None,
                "user" if name in users else "item",
                name in inferred,
                bags.get(name),
            )
            for name, values in self.sent.first.items()
        )

    def _shape(self, name: str) -> tuple[int | None, ...]:
        """Return the shape after the rows; None where requests or batches differ."""
        blocks = (block for held, _ in self._held.values() for block in held.inputs)
        seen = {values[name].shape[1:] for values in (*self.sent.requests, *blocks)}
        return tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*seen, strict=True))

    @property
    def once(self) -> frozenset[str]:
        return self.sent.once

    def requests(self, seed: int) -> Iterable[Arrays]:
        return self.sent.requests

    def serving_rows(self, count: int) -> dict[str, Tensor]:
        return {name: torch.from_numpy(values) for name, values in self.sent.rows(count).items()}

    @cached_property
    def output_kinds(self) -> tuple[OutputKind, ...]:
        """Kinds of the outputs, inferred from the model's scores of a sample of train, from all labels and the loss."""
        self.model.eval()
        with torch.inference_mode():
            scores = torch.cat([self.teacher_outputs(inputs) for inputs in self.train_rows().sample(_SAMPLE)])
        labels = np.concatenate([self._outputs.labels(block.labels) for block in self._train.blocks])
        known = dict(zip((self._outputs.main, *self._outputs.others), labels.T, strict=True))
        columns = scores.reshape(len(scores), -1).double().numpy().T
        names = self._outputs.names or (None,)
        kinds = {name: kind_of(column, known.get(name)) for name, column in zip(names, columns, strict=True)}
        batches = islice(self.train_rows().batches(torch.Generator().manual_seed(0)), _CURVATURE_BATCHES)
        with torch.no_grad():
            given = [(self.outputs(self.model, inputs), labels) for inputs, labels in batches]
            for name in known:
                kind, output = kinds[name], partial(self._outputs.one, name=name)
                kinds[name] = replace(kind, weight=relative_curvature(given, output, kind, self.loss) or kind.weight)
        return tuple(kinds.values())

    def scores(self, outputs: object) -> Tensor:
        # A copy, since the user's loss may change the outputs in place.
        return self._outputs.scores(outputs).clone()

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(map(str, self._outputs.names))

    def loss(self, outputs: object, labels: Labels) -> Tensor:
        return self.given.loss(outputs, labels)

    def train_rows(self) -> TrainingRows:
        """Return the train rows, in batches of the study's size instead of the factory's."""
        batch_size, most_batches = self.task.batch_size or BATCH, self.task.most_batches
        return TrainingRows(self._train.blocks, batch_size, most_batches=most_batches)

    @property
    def hidden(self) -> str | None:
        return getattr(self.given, "hidden", None)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Make the user's own optimizer, else AdamW, as `optimizer_of` does for tables with sparse gradients."""
        make, where = getattr(self.given, "optimizer", None), f"{self.given.name}: optimizer"
        if make is None:
            return optimizer_of(model, partial(torch.optim.AdamW, lr=_LEARNING_RATE, fused=True))
        made = called(f"{where}(parameters)", lambda: optimizer_of(model, make))
        if not isinstance(made, torch.optim.Optimizer):
            raise FactoryError(f"{where} must give a torch.optim.Optimizer, but gave {type(made).__name__}")
        return made

    @property
    def built(self) -> bool:
        return getattr(self.given, "build", None) is not None

    def student(self) -> Mapping[str, tuple[Scalar, ...]]:
        shapes: Mapping[str, Sequence[Scalar]] = (getattr(self.given, "shapes", None) or {}) if self.built else {}
        for name, values in shapes.items():
            if not isinstance(values, (list, tuple)) or not values:
                raise FactoryError(f"{self.given.name}: shapes must list the sizes of {name!r}, but got {values!r}")
        return {name: tuple(values) for name, values in shapes.items()}

    def build(self, architecture: Architecture) -> nn.Module:
        make = getattr(self.given, "build", None)
        if make is None:
            raise FactoryError(f"{self.given.name}: a smaller sibling needs build(shape), but the factory gave none")
        shape = architecture.as_dict()
        made = called(f"{self.given.name}: build({shape})", lambda: make(shape))
        if not isinstance(made, nn.Module):
            raise FactoryError(f"{self.given.name}: build must give a torch.nn.Module, but gave {type(made).__name__}")
        # The result may share modules with the model or an earlier result: a copy trains neither.
        own = called(f"{self.given.name}: copying build({shape})", lambda: copy_model(made))
        if (forward := padded_forward(self.model)) is not None:
            take_padded(own, forward.bags, forward.masked)
        return own.to("cpu").float()

    @cached_property
    def _outputs(self) -> Outputs:
        inputs, labels, _ = next(batches_of(self.given, "train"))
        with torch.inference_mode():
            return outputs_of(self.given, self.outputs(self.model.eval(), inputs), labels)

    @cached_property
    def _train(self) -> Train:
        return read_train(self.given)

    @cached_property
    def _held(self) -> dict[HeldPart, tuple[HeldOut, frozenset[object]]]:
        told = (self._outputs, self._train, self.sent, self.task.slice_by)
        return {part: read_held_out(self.given, part, *told) for part in HELD_PARTS}
