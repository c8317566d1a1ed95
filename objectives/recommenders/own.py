"""The user's own recommender, as its factory gives it: judged, shrunk and asked as it is, never retrained."""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from objectives.errors import one_line
from objectives.holdout import HeldOut
from objectives.recommenders.counts import counted
from objectives.recommenders.factory import FactoryError, Given, batches_of, given_by, load_factory
from objectives.recommenders.protocol import Answer, Batch, Facts, Inputs, Method
from objectives.recommenders.slices import LITTLE_HISTORY, RARE_ITEMS
from objectives.record import InputSpec
from objectives.task import Task
from spaces.anatomy import Table
from spaces.architecture import Architecture
from spaces.canonical import digest

Progress = Callable[[str], None]
_REQUESTS = 1000
# Requests of several rows that must agree on an input before it is taken to be the user's.
_TELLING = 20
# Of the users by their rows in train, and of the items: the share that counts as having little.
_FEW = 0.25
_LEARNING_RATE = 1e-3
_LARGEST = 1_900_000_000
# Those of scores and labels that leanrec knows.
_METRICS = ("auc", "gauc")


@dataclass(frozen=True, eq=False)
class OwnRecommender:
    """Implements `Recommender`."""

    given: Given
    task: Task
    sent: tuple[Mapping[str, NDArray[Any]], ...]
    method: Method = "forward"

    @property
    def model(self) -> nn.Module:
        return self.given.model

    @cached_property
    def key(self) -> str:
        """Of the weights, of the code of the model's class and of all data."""
        content = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            content.update(name.encode())
            content.update(tensor.detach().contiguous().cpu().numpy().tobytes())
        for part in ("validation", "test"):
            held = self._held[part]
            for block in held.inputs:
                for name, values in block.items():
                    content.update(name.encode() + values.tobytes())
            content.update(held.labels.tobytes() + held.groups.tobytes())
        train = self._train.content
        return digest(self.given.name, content.hexdigest(), train, _code(self.given), torch.__version__)[:20]

    @property
    def graded(self) -> bool:
        return not self.task.metric and not isinstance(self.given.metric, str)

    @property
    def metric(self) -> str:
        """The study's, the factory's, or the name of the factory's function."""
        own = self.given.metric
        return self.task.metric or (own if isinstance(own, str) else getattr(own, "__name__", "own metric"))

    def grade(self, scores: NDArray[Any], labels: NDArray[Any], groups: NDArray[Any]) -> float:
        assert not isinstance(self.given.metric, str)
        try:
            return float(self.given.metric(scores, labels, groups))
        except Exception as error:  # whatever the user's own metric raises
            raise FactoryError(
                f"{self.given.name}: metric(scores, labels, groups) failed: {one_line(error)}"
            ) from error

    @cached_property
    def inputs(self) -> tuple[InputSpec, ...]:
        first = self.sent[0]
        users = self._of_user
        return tuple(
            InputSpec(name, str(values.dtype), self._shape(name), None, "user" if name in users else "item")
            for name, values in first.items()
        )

    @cached_property
    def once(self) -> frozenset[str]:
        """Inputs of one row beside others of several."""
        several = [request for request in self.sent if max(map(len, request.values())) > 1]
        names = set(self.sent[0])
        return frozenset(n for n in names if several and all(len(request[n]) == 1 for request in several))

    @property
    def hidden(self) -> str | None:
        return getattr(self.given, "hidden", None)

    @cached_property
    def answer(self) -> Answer:
        """Probabilities where everything that the model gives lies between 0 and 1 and labels are 0 and 1; logits where
        labels alone are; else values."""
        inputs, labels, _ = next(batches_of(self.given, "train"))
        if not set(np.unique(self._labels(labels, self._main))) <= {0, 1}:
            return "values"
        with torch.inference_mode():
            scores = self.scores(self.outputs(self.model.eval(), inputs))
        return "probabilities" if bool(((scores >= 0) & (scores <= 1)).all()) else "logits"

    def outputs(self, model: nn.Module, inputs: Inputs) -> Any:
        return model(**inputs)

    def loss(self, outputs: Any, labels: Any) -> Tensor:
        return self.given.loss(outputs, labels)

    def scores(self, outputs: Any) -> Tensor:
        """(rows,), or (rows, outputs) where the model has several: the one that the metric is of comes first."""
        names = self.names_of(outputs)
        if names is None:
            return _column(outputs, "the model")
        values = [outputs[name] for name in names]
        return torch.stack([_column(value, f"output {name}") for name, value in zip(names, values, strict=True)], 1)

    def names_of(self, outputs: Any) -> list[Any] | None:
        """Of the model's outputs the names or numbers, the main one first; None where there is one alone.

        Raises:
            FactoryError: `output` does not say which of several is the main one, or what is given is no tensor.
        """
        if isinstance(outputs, Tensor):
            return None
        known = list(outputs) if isinstance(outputs, Mapping) else list(range(len(outputs)))
        main = getattr(self.given, "output", None)
        if len(known) > 1 and main not in known:
            raise FactoryError(f"{self.given.name}: output must be one of the model's {known}, but got {main!r}")
        main = known[0] if main is None else main
        rest = [name for name in known if name != main]
        return [main, *sorted(rest, key=lambda name: name not in self._labelled)]

    def train_rows(self) -> None:
        return None

    def lessons(self, generator: torch.Generator) -> Iterator[Batch]:
        """In the user's own order; a batch of one row, which batch normalisation cannot take, is left out."""
        for inputs, labels, groups in batches_of(self.given, "train"):
            if len(groups) > 1:
                yield inputs, labels

    @cached_property
    def per_pass(self) -> int:
        return self._train.batches

    def serving_rows(self, count: int) -> dict[str, Tensor]:
        """Rows of requests, of those of the commonest lengths."""
        shapes = Counter(_shape_of(request) for request in self.sent)
        (common, _), *_ = shapes.most_common(1)
        alike = [self._rowed(request) for request in self.sent if _shape_of(request) == common]
        joined = {name: np.concatenate([request[name] for request in alike]) for name in alike[0]}
        rows = len(next(iter(joined.values())))
        picks = np.resize(np.arange(rows), count)
        return {name: torch.from_numpy(values[picks]) for name, values in joined.items()}

    def counts(self, tables: Sequence[Table]) -> Mapping[str, Tensor]:
        return counted(tables, (inputs for inputs, _, _ in batches_of(self.given, "train")))

    def held_out(self, part: Literal["validation", "test"]) -> HeldOut:
        return self._held[part]

    def requests(self, seed: int) -> Iterable[Mapping[str, NDArray[Any]]]:
        return self.sent

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The user's own, else AdamW."""
        make = getattr(self.given, "optimizer", None)
        if make is None:
            return torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE)
        made = make(model.parameters())
        if not isinstance(made, torch.optim.Optimizer):
            raise FactoryError(
                f"{self.given.name}: optimizer must give a torch.optim.Optimizer, but gave {type(made).__name__}"
            )
        return made

    def build(self, architecture: Architecture) -> nn.Module:
        make = getattr(self.given, "build", None)
        if make is None:
            raise FactoryError(f"{self.given.name}: a smaller sibling needs build(shape), but the factory gave none")
        try:
            made = make(architecture.as_dict())
        except Exception as error:  # whatever the user's own code raises
            raise FactoryError(
                f"{self.given.name}: build({architecture.as_dict()}) failed: {one_line(error)}"
            ) from error
        if not isinstance(made, nn.Module):
            raise FactoryError(f"{self.given.name}: build must give a torch.nn.Module, but gave {type(made).__name__}")
        return made.to("cpu").float()

    @property
    def built(self) -> bool:
        return getattr(self.given, "build", None) is not None

    def student(self) -> Mapping[str, Any]:
        return dict(getattr(self.given, "shapes", None) or {}) if self.built else {}

    def history(self) -> None:
        return None

    def facts(self) -> Facts:
        rows = {part: self._rows(part) for part in ("train", "validation", "test")}
        return Facts(
            split="The parts are those that the factory gives.",
            rows=rows,
            users=len(np.unique(np.concatenate([self._held[p].groups for p in ("validation", "test")]))),
            training={},
            reference_metric="auc",
            references=self._references(),
        )

    @cached_property
    def _labelled(self) -> frozenset[Any]:
        """Names or numbers of the outputs that there are labels of."""
        _, labels, _ = next(batches_of(self.given, "train"))
        if isinstance(labels, Mapping):
            return frozenset(labels)
        if isinstance(labels, (list, tuple)):
            return frozenset(range(len(labels)))
        return frozenset(range(labels.shape[1] if labels.ndim == 2 else 1))

    # -- what the batches and the requests tell

    @cached_property
    def _train(self) -> _Seen:
        return _look(self.given)

    @cached_property
    def _held(self) -> dict[str, HeldOut]:
        return {part: self._gathered(part) for part in ("validation", "test")}

    def _gathered(self, part: Literal["validation", "test"]) -> HeldOut:
        """Rows of one shape lie together, since histories may be of several lengths."""
        by_shape: dict[Any, list[_Rows]] = {}
        at = 0
        for inputs, labels, groups in batches_of(self.given, part):
            arrays = self._rowed({name: values.numpy() for name, values in inputs.items()}, len(groups))
            truth = [self._labels(labels, name) for name in (self._main, *self._others)]
            rows = _Rows(arrays, np.stack(truth, axis=1), groups, np.arange(at, at + len(groups)))
            at += len(groups)
            by_shape.setdefault(_shape_of(arrays), []).append(rows)
        blocks = tuple(
            {name: np.concatenate([rows.inputs[name] for rows in alike]) for name in alike[0].inputs}
            for alike in by_shape.values()
        )
        every = [rows for alike in by_shape.values() for rows in alike]
        labels_of = np.concatenate([rows.labels for rows in every]).astype(np.float32)
        owners, places = (np.concatenate([getattr(rows, of) for rows in every]) for of in ("groups", "places"))
        return HeldOut(
            inputs=blocks,
            labels=labels_of[:, 0],
            groups=np.unique(owners, return_inverse=True)[1].astype(np.int64),
            slices=self._slices(part, blocks, owners, places),
            others={str(name): labels_of[:, i] for i, name in enumerate(self._others, 1)},
        )

    @cached_property
    def _names(self) -> list[Any] | None:
        inputs, _, _ = next(batches_of(self.given, "train"))
        with torch.inference_mode():
            return self.names_of(self.outputs(self.model.eval(), inputs))

    @property
    def columns(self) -> tuple[str, ...]:
        return () if self._names is None else tuple(map(str, self._names))

    @property
    def _main(self) -> Any:
        return None if self._names is None else self._names[0]

    @property
    def _others(self) -> list[Any]:
        """The other outputs that there are labels of."""
        return [] if self._names is None else [name for name in self._names[1:] if name in self._labelled]

    def _slices(
        self, part: str, inputs: Sequence[Mapping[str, NDArray[Any]]], owners: NDArray[Any], places: NDArray[np.int64]
    ) -> dict[str, NDArray[np.bool_]]:
        """The user's own, else users and items that train has little of."""
        own = getattr(self.given, "slices", None)
        if own is not None:
            masks = {str(name): np.asarray(mask) for name, mask in own(part).items()}
            wrong = [n for n, m in masks.items() if m.dtype != np.bool_ or m.shape != (len(owners),)]
            if wrong:
                raise FactoryError(
                    f"{self.given.name}: slices({part!r}) must be masks of {len(owners)} rows, but {wrong[0]!r} is "
                    f"{masks[wrong[0]].dtype} of the shape {masks[wrong[0]].shape}"
                )
            return {name: mask[places] for name, mask in masks.items()}
        found = {LITTLE_HISTORY: _little(owners, self._train.groups)}
        if (item := self._item) is not None and item in self._train.codes:
            found[RARE_ITEMS] = _little(np.concatenate([block[item] for block in inputs]), self._train.codes[item])
        return {name: mask for name, mask in found.items() if mask.any() and not mask.all()}

    @cached_property
    def _item(self) -> str | None:
        """Of the inputs that differ within a request, the one whose codes have the most values."""
        several = {n: c for n, c in self._train.codes.items() if n in self.sent[0] and n not in self._of_user}
        return max(several, key=lambda name: len(several[name]), default=None)

    @cached_property
    def _of_user(self) -> frozenset[str]:
        """Inputs that are the same in all rows of each request."""
        telling = [r for r in self.sent if max(map(len, r.values())) > 1]
        if len(telling) < _TELLING:
            return self.once
        names = self.sent[0]
        return frozenset(n for n in names if all((request[n] == request[n][:1]).all() for request in telling))

    def _shape(self, name: str) -> tuple[int | None, ...]:
        """After the rows; None where requests differ, or the batches do."""
        seen = {values[name].shape[1:] for values in (*self.sent, *(b for h in self._held.values() for b in h.inputs))}
        return tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*seen, strict=True))

    def _rowed(self, arrays: Mapping[str, NDArray[Any]], rows: int | None = None) -> dict[str, NDArray[Any]]:
        """What is given once, repeated for each row."""
        count = rows or max(map(len, arrays.values()))
        return {n: np.repeat(v, count, axis=0) if len(v) == 1 < count else v for n, v in arrays.items()}

    def _labels(self, labels: Any, output: Any) -> NDArray[Any]:
        """(rows,) of one output, None where there is one alone."""
        if isinstance(labels, Mapping):
            if output not in labels:
                raise FactoryError(
                    f"{self.given.name}: labels must hold those of output {output!r}, but have {list(labels)}"
                )
            labels = labels[output]
        elif isinstance(labels, (list, tuple)):
            labels = labels[output if isinstance(output, int) else 0]
        elif labels.ndim == 2 and labels.shape[1] > 1 and isinstance(output, int):
            labels = labels[:, output]
        found = np.asarray(labels, dtype=np.float64)
        return found.reshape(len(found), -1)[:, 0]

    def _rows(self, part: str) -> int:
        return self._train.rows if part == "train" else len(self._held[part].labels)

    def _references(self) -> dict[str, float | None]:
        """On test; only AUC can be told of any model."""
        held, parts = self._held["test"], []
        if set(np.unique(held.labels)) != {0, 1}:
            return {"baseline": None}
        with torch.inference_mode():
            for block in held.inputs:
                tensors = {n: torch.from_numpy(v[:1] if n in self.once else v) for n, v in block.items()}
                scores = self.scores(self.outputs(self.model.eval(), tensors))
                parts.append(scores if scores.ndim == 1 else scores[:, 0])
        return {"baseline": float(roc_auc_score(held.labels, torch.cat(parts).numpy()))}


def open_own(task: Task, progress: Progress) -> OwnRecommender:
    """
    Raises:
        FactoryError: the factory, or something that it gave, is not what it should be.
    """
    progress(f"recommender: calling {task.recommender}")
    given = given_by(load_factory(task.recommender, Path.cwd()), task.recommender)
    torch.manual_seed(task.seed)
    size = 4 * sum(tensor.numel() for tensor in given.model.state_dict().values())
    if size > _LARGEST:
        raise FactoryError(
            f"{given.name}: model must hold {_LARGEST / 1e9:.1f} GB of weights at most, as much as one ONNX graph can, "
            f"but holds {size / 1e9:.1f} GB"
        )
    recommender = OwnRecommender(given, task, _sent(given, task.seed))
    _try_out(recommender)
    return recommender


def _sent(given: Given, seed: int) -> tuple[Mapping[str, NDArray[Any]], ...]:
    where = f"{given.name}: requests({seed})"
    try:
        requests = tuple(
            {name: _array(value) for name, value in request.items()}
            for request in islice(given.requests(seed), _REQUESTS)
        )
    except Exception as error:  # whatever the user's own code raises
        raise FactoryError(f"{where} failed: {one_line(error)}") from error
    if not requests:
        raise FactoryError(f"{where} must yield a request or more, but yielded none")
    names = list(requests[0])
    for request in requests:
        if list(request) != names:
            raise FactoryError(f"{where} must name the same inputs in each, but got {names} and {list(request)}")
        rows = {name: len(values) if values.ndim else 0 for name, values in request.items()}
        if not rows or min(rows.values()) == 0 or any(size not in (1, max(rows.values())) for size in rows.values()):
            raise FactoryError(f"{where}: inputs must have the same rows, or one, but got {rows}")
    return requests


def _try_out(recommender: OwnRecommender) -> None:
    """One batch and one request through the model, and one step back through the loss."""
    given = recommender.given
    inputs, labels, _ = next(batches_of(given, "train"))
    for what, of in (("a batch of train", inputs), ("a request", _tensors(recommender.sent[0]))):
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
    if isinstance(given.metric, str) and given.metric not in _METRICS:
        known = ", ".join(_METRICS)
        raise FactoryError(f"{given.name}: metric must be one of {known} or a function, but got {given.metric!r}")
    if not isinstance(loss, Tensor) or loss.ndim != 0 or not loss.requires_grad:
        got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise FactoryError(f"{given.name}: loss must give one number that has a gradient, but gave {got}")


@dataclass(frozen=True, eq=False)
class _Rows:
    """A batch of held-out rows: labels (rows, outputs), groups, and the places of the rows in their part."""

    inputs: Mapping[str, NDArray[Any]]
    labels: NDArray[Any]
    groups: NDArray[Any]
    places: NDArray[np.int64]


@dataclass(frozen=True)
class _Seen:
    """Train, looked at once: rows, batches of two rows or more, how often each group and each code was there, and a
    digest of all of it."""

    rows: int
    batches: int
    groups: Counter[Any]
    codes: Mapping[str, Counter[int]]
    content: str


def _look(given: Given) -> _Seen:
    rows = batches = 0
    groups: Counter[Any] = Counter()
    codes: dict[str, Counter[int]] = {}
    content = hashlib.sha256()
    for inputs, labels, owners in batches_of(given, "train"):
        for part in (*inputs.values(), *_leaves(labels)):
            content.update(part.detach().contiguous().numpy().tobytes())
        rows, batches = rows + len(owners), batches + (len(owners) > 1)
        groups.update(owners.tolist())
        for name, values in inputs.items():
            if values.ndim == 1 and not values.is_floating_point():
                codes.setdefault(name, Counter()).update(values.tolist())
    if batches == 0:
        raise FactoryError(f"{given.name}: batches('train') must yield a batch of two rows or more, but yielded none")
    return _Seen(rows, batches, groups, codes, content.hexdigest())


def _leaves(labels: Any) -> Iterator[Tensor]:
    """Of labels in any nesting, the tensors."""
    if isinstance(labels, Tensor):
        yield labels
    else:
        for part in labels.values() if isinstance(labels, Mapping) else labels:
            yield from _leaves(part)


def _little(values: NDArray[Any], counts: Counter[Any]) -> NDArray[np.bool_]:
    """Rows of the values that train has little of: not more than a quarter of the values there have."""
    most = np.quantile(list(counts.values()), _FEW)
    return np.array([counts.get(value, 0) <= most for value in values.tolist()], dtype=np.bool_)


def _column(value: Any, what: str) -> Tensor:
    """(rows,)"""
    if not isinstance(value, Tensor) or value.ndim not in (1, 2) or (value.ndim == 2 and value.shape[1] != 1):
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise FactoryError(f"{what} must give one score for each row, but gave {got}")
    return value.reshape(len(value))


def _tensors(request: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(values) for name, values in request.items()}


def _array(value: Any) -> NDArray[Any]:
    return np.ascontiguousarray(value.cpu().numpy() if isinstance(value, Tensor) else value)


def _shape_of(arrays: Mapping[str, NDArray[Any]]) -> tuple[tuple[int, ...], ...]:
    return tuple(values.shape[1:] for values in arrays.values())


def _code(given: Given) -> str:
    """Of the model's class and the loss, as far as it can be read."""
    parts = []
    for thing in (type(given.model), given.loss):
        try:
            parts.append(inspect.getsource(thing))
        except (OSError, TypeError):
            parts.append(repr(thing))
    return "\n".join(parts)
