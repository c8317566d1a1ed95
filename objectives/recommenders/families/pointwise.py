"""Pointwise recommender: scores each row of a request by its fields with a family's model, on an encoded log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import sklearn
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from objectives.arrays import Array, Arrays
from objectives.errors import SettingError
from objectives.held_out_rows import HeldOut, HeldPart
from objectives.output_kind import OutputKind
from objectives.recommenders.datasets.click_log import ClickLog
from objectives.recommenders.datasets.features import Dataset, Field, encode
from objectives.recommenders.datasets.sources import least_count, read_log
from objectives.recommenders.datasets.split import Part, split_in_time
from objectives.recommenders.families import dcn_v2, dlrm
from objectives.recommenders.families.sizes import FieldSizes, no_larger, resized, told
from objectives.recommenders.protocol import Facts, Method
from objectives.recommenders.references import LinearModel, logistic_regression, popularity
from objectives.recommenders.requests import draw_requests, request_rows
from objectives.recommenders.slices import commonest, of_values, slices_of
from objectives.recommenders.training import (
    BuiltIn,
    Labelled,
    Progress,
    Trained,
    open_baseline,
    student_batch,
    train_to_optimum,
)
from objectives.records import InputSpec
from objectives.store import make_once
from objectives.task import Task
from objectives.tensor_layout import Layout
from objectives.training_rows import Block, Inputs, Labels, TrainingRows
from spaces.domains import Scalar
from spaces.serialization import digest
from spaces.techniques.architecture import Architecture

# The published sizes of each family.
FAMILIES: Mapping[str, FieldSizes] = {"dcn-v2": dcn_v2.BASELINE, "dlrm": dlrm.BASELINE}
# Version of training and its data, raised when either changes, so that older baselines in the cache are not used.
STAGE = 3
BATCH = 256
LARGE_BATCH = 4096  # for a log of more rows than _MANY_ROWS
_MANY_ROWS = 1_000_000
STUDENT_BATCH = (256, 1024)  # least and most rows, for models that are trained from the baseline
LEARNING_RATE = 1e-3
# L2 on the whole tables at each step, as FuxiCTR's embedding_regularizer.
TABLE_DECAY = 1e-3


@dataclass(frozen=True, eq=False)
class PointwiseRecommender(BuiltIn[nn.Module]):
    """Recommender of one of the field-based families."""

    dataset: Dataset
    by: Arrays = field(default_factory=dict)  # (rows of the data set,), the columns of slice_by
    once: ClassVar[frozenset[str]] = frozenset()
    method: ClassVar[Method] = "forward"
    output_kinds: ClassVar[tuple[OutputKind, ...]] = (OutputKind("logits"),)

    @property
    def _family(self) -> FieldSizes:
        return FAMILIES[self.task.recommender]

    @property
    def hidden(self) -> str:
        return self._family.hidden

    @property
    def encoding(self) -> str:
        return self.dataset.encoding

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        return tuple(map(_input, self.dataset.fields))

    def loss(self, outputs: object, labels: Labels) -> Tensor:
        assert isinstance(outputs, Tensor) and isinstance(labels, Tensor)
        return F.binary_cross_entropy_with_logits(outputs, labels)

    def train_rows(self) -> TrainingRows:
        return self._train_rows

    @cached_property
    def _train_rows(self) -> TrainingRows:
        block = Block(*_tensors(self.dataset, "train"))
        batch_size = self.task.batch_size or student_batch(block.rows, *STUDENT_BATCH)
        return TrainingRows((block,), batch_size, most_batches=self.task.most_batches)

    def serving_rows(self, count: int) -> dict[str, Tensor]:
        rows = len(self.dataset.split.train)
        drawn = np.random.default_rng([self.task.seed, 6]).choice(rows, size=min(count, rows), replace=False)
        return {name: values[drawn] for name, values in self.train_rows().blocks[0].inputs.items()}

    def held_out(self, part: HeldPart) -> HeldOut:
        inputs, labels, groups = self.dataset.rows(part)
        rows, train = getattr(self.dataset.split, part), self.dataset.split.train
        wanted = {name: commonest(column[train].tolist()) for name, column in self.by.items()}
        by_value = of_values({name: column[rows] for name, column in self.by.items()}, wanted)
        return HeldOut((inputs,), labels, groups, slices_of(self.dataset, part) | by_value)

    def requests(self, seed: int) -> Iterator[Arrays]:
        return iter(draw_requests(self.dataset, request_rows(self.task, seed), seed))

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return _optimizer(model)

    def build(self, architecture: Architecture) -> nn.Module:
        return resized(self._family, architecture.as_dict()).build(self.dataset.fields)

    def layout(self, architecture: Architecture | None) -> Layout:
        own = resized(self._family, self.task.sizes)
        sizes = own if architecture is None else resized(self._family, architecture.as_dict())
        return sizes.layout(self.dataset.fields)

    @property
    def references(self) -> tuple[str, ...]:
        return (*(("popularity",) if self.dataset.field("item") else ()), "logistic_regression")

    def reference(self, name: str) -> nn.Module:
        return (popularity(self.dataset) if name == "popularity" else self._logistic_regression()).eval()

    def _logistic_regression(self) -> LinearModel:
        """Load the logistic regression from the cache, else fit it, which takes minutes on millions of rows."""
        key = digest(self.dataset.key(), self.task.seed, STAGE, sklearn.__version__)[:20]
        folder, file = self.task.cache / "references" / key, "logistic_regression.pt"
        make_once(
            folder,
            lambda into: torch.save(logistic_regression(self.dataset, self.task.seed).state_dict(), into / file),
        )
        model = LinearModel.zeros(self.dataset.fields)
        model.load_state_dict(torch.load(folder / file, weights_only=True))
        return model

    def student(self) -> Mapping[str, tuple[Scalar, ...]]:
        published = self._family.student(self.dataset.fields)
        return {name: no_larger(published[name], own).values for name, own in self.sizes().items()}

    def sizes(self) -> Mapping[str, Scalar]:
        return told(resized(self._family, self.task.sizes), self._family.student(self.dataset.fields))

    def facts(self) -> Facts:
        dataset = self.dataset
        inputs, labels = _tensors(dataset, "test")
        aucs: dict[str, float | None] = dict.fromkeys(("baseline", "popularity", "logistic_regression"))
        for name in ("baseline", *self.references):
            model = self.model if name == "baseline" else self.reference(name)
            aucs[name] = float(roc_auc_score(labels.numpy(), _scores(model, inputs)))
        return Facts(
            split=dataset.split.reason,
            rows={p: len(getattr(dataset.split, p)) for p in ("train", "validation", "test")},
            users=len(np.unique(dataset.group)) if any(field.name == "user" for field in dataset.fields) else 0,
            training=self.baseline.training,
            reference_metric="auc",
            references=aucs | ({} if dataset.bayes_auc is None else {"bayes_optimal": dataset.bayes_auc}),
        )


def open_pointwise(task: Task, progress: Progress) -> PointwiseRecommender:
    """Read the data and load the baseline from the cache, else train it; in a dry run, leave it untrained.

    Raises:
        SettingError: a column of slice_by does not exist, or is numeric.
        ValueError: the source or a size is unknown, or the files are invalid.
    """
    progress(f"data: reading {task.source}")
    log = read_log(task)
    dataset = encode(log, split_in_time(log), least_count(task.source))
    progress(f"data: {len(dataset.label):,} rows; {dataset.split.reason}")
    sizes, by = resized(FAMILIES[task.recommender], task.sizes), _named(log, task.slice_by)
    baseline = open_baseline(
        task,
        dataset.key(),
        [sizes, _batch(dataset), LEARNING_RATE, TABLE_DECAY, STAGE],
        lambda: sizes.build(dataset.fields),
        lambda fresh: _train(fresh, dataset, task.seed, progress),
    )
    return PointwiseRecommender(task, baseline, dataset, by)


def _input(field: Field) -> InputSpec:
    """Return the field as an input of the model; code 0 is that of unseen values."""
    side: Literal["user", "item"] = "item" if field.side == "item" else "user"
    unseen = 0 if field.vocabulary else None
    return InputSpec(field.name, field.dtype, field.shape, field.vocabulary or None, side, unseen=unseen)


def _named(log: ClickLog, names: Sequence[str]) -> dict[str, Array]:
    """Return the named columns of the log, (rows,) each, which must not be numeric."""
    known = [name for name, kind in log.kinds.items() if kind != "numeric"]
    if unknown := [name for name in names if name not in known]:
        have = f"columns among {', '.join(known)}" if known else "no column of these data, which have none"
        raise SettingError(f"quality.slice_by: must name {have}, but got {unknown[0]!r}")
    return {name: log.columns[name] for name in names}


def _train(fresh: nn.Module, dataset: Dataset, seed: int, progress: Progress) -> Trained:
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = _tensors(dataset, "validation")
    return train_to_optimum(
        fresh,
        lambda model, given, truth: F.binary_cross_entropy_with_logits(model(**given), truth),
        _optimizer(fresh),
        lambda: _shuffled(dataset, _batch(dataset), generator),
        lambda model: float(roc_auc_score(labels.numpy(), _scores(model, inputs))),
        progress=progress,
    )


def _batch(dataset: Dataset) -> int:
    return LARGE_BATCH if len(dataset.split.train) > _MANY_ROWS else BATCH


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    tables = [p for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()]
    of_tables = {id(p) for p in tables}
    others = [p for p in model.parameters() if id(p) not in of_tables]
    return torch.optim.Adam(
        [{"params": tables, "weight_decay": TABLE_DECAY}, {"params": others, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        fused=True,
    )


def _tensors(dataset: Dataset, part: Part) -> Labelled:
    inputs, labels, _ = dataset.rows(part)
    return {name: torch.from_numpy(values) for name, values in inputs.items()}, torch.from_numpy(labels)


def _shuffled(dataset: Dataset, batch: int, generator: torch.Generator) -> Iterator[Labelled]:
    """Iterate over shuffled batches of train, without a last one of one row, which batch normalisation refuses."""
    inputs, labels = _tensors(dataset, "train")
    for pick in torch.split(torch.randperm(len(labels), generator=generator), batch):
        if len(pick) > 1:
            yield {name: values[pick] for name, values in inputs.items()}, labels[pick]


def _scores(model: nn.Module, inputs: Inputs, chunk: int = 65536) -> NDArray[np.float32]:
    """Compute the scores of all rows, (rows,)."""
    model.eval()
    rows = len(next(iter(inputs.values())))
    with torch.inference_mode():
        parts = [model(**{n: v[i : i + chunk] for n, v in inputs.items()}) for i in range(0, rows, chunk)]
    scores: NDArray[np.float32] = torch.cat(parts).numpy()
    return scores
