"""The built-in recommenders: a data set, a family, and the baseline trained to its optimum."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from objectives.recommenders import dcn_v2
from objectives.recommenders.clicklog import ClickLog
from objectives.recommenders.features import Dataset, encode
from objectives.recommenders.fetch import KNOWN, fetch
from objectives.recommenders.movielens import read_movielens
from objectives.recommenders.protocol import Batch, Part
from objectives.recommenders.requests import draw_requests, lognormal_rows, recorded_rows
from objectives.recommenders.split import split_in_time
from objectives.recommenders.synthetic import synthetic_log
from objectives.recommenders.training import train_to_optimum
from objectives.store import make_once
from objectives.task import Task
from spaces.anatomy import Anatomy
from spaces.architecture import Architecture
from spaces.canonical import digest
from spaces.domains import Choice

Progress = Callable[[str], None]

# Raised when training or its data change, so that no older baseline is found in the cache.
STAGE = 1
BATCH = 256
LEARNING_RATE = 1e-3
# L2 on the whole tables at each step, as FuxiCTR's embedding_regularizer.
TABLE_DECAY = 1e-3
REQUESTS = 1000


def open_dataset(task: Task) -> Dataset:
    """The task's click log, split in time and encoded.

    Raises:
        ValueError: the source is not known or its files are not what they should be.
    """
    log = _read(task)
    return encode(log, split_in_time(log))


def _read(task: Task) -> ClickLog:
    kind, _, folder = task.source.partition(":")
    if task.source in KNOWN:
        return read_movielens(fetch(task.source, task.data_sets))
    if kind == "movielens" and folder:
        return read_movielens(Path(folder))
    if task.source == "synthetic" and task.synthetic is not None:
        options = dict(task.synthetic)
        turnover = float(options.pop("user_turnover", 0.0))
        return synthetic_log(**{k: int(v) for k, v in options.items()}, seed=task.seed, user_turnover=turnover)
    raise ValueError(f"data.source is one of {sorted(KNOWN)}, movielens:DIR or synthetic, but got {task.source!r}.")


@dataclass(frozen=True)
class DCNV2Recommender:
    """DCN-V2 on a click log; implements `Recommender`."""

    dataset: Dataset
    model: dcn_v2.DCNV2
    task: Task
    training: Mapping[str, Any]
    name: str = "dcn-v2"
    metric: str = "auc"

    @property
    def key(self) -> str:
        return _key(self.task, self.dataset)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs, labels)

    def batches(self, part: Part) -> Iterator[Batch]:
        return _batches(self.dataset, part)

    def requests(self, seed: int) -> Iterator[Mapping[str, NDArray[np.int64]]]:
        task = self.task
        if task.rows_trace is not None:
            with np.load(task.rows_trace) as trace:
                rows = recorded_rows(trace["rows"], task.rows_max, REQUESTS)
        else:
            rows = lognormal_rows(task.rows_median, task.rows_sigma, task.rows_max, REQUESTS, seed)
        drawn = draw_requests(self.dataset, rows, seed)
        return (drawn[i] for i in range(len(drawn)))

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return _optimizer(model)

    def build(self, architecture: Architecture) -> nn.Module:
        return dcn_v2.DCNV2(_fields(self.dataset), dcn_v2.Sizes.of(architecture))

    def anatomy(self) -> Anatomy:
        return dcn_v2.anatomy(self.model)

    def student(self) -> Mapping[str, Any]:
        return {name: list(d.values) for name, d in dcn_v2.STUDENT.items() if isinstance(d, Choice)}


def open_builtin(task: Task, progress: Progress) -> DCNV2Recommender:
    """Read the data and train the baseline, or find it in the cache."""
    progress(f"data: reading {task.source}")
    dataset = open_dataset(task)
    progress(f"data: {len(dataset.label):,} rows; {dataset.split.reason}")
    model = dcn_v2.DCNV2(_fields(dataset), dcn_v2.BASELINE)
    folder = task.cache / "baselines" / _key(task, dataset)

    def train(into: Path) -> None:
        torch.manual_seed(task.seed)
        generator = torch.Generator().manual_seed(task.seed)
        fresh = dcn_v2.DCNV2(_fields(dataset), dcn_v2.BASELINE)
        inputs, labels, _ = _tensors(dataset, "validation")
        trained = train_to_optimum(
            fresh,
            F.binary_cross_entropy_with_logits,
            _optimizer(fresh),
            lambda: _batches(dataset, "train", generator),
            lambda m: _auc(m, inputs, labels),
            progress=progress,
        )
        torch.save(fresh.state_dict(), into / "state.pt")
        facts = {"best_epoch": trained.best_epoch, "history": trained.history, "seconds": trained.seconds}
        (into / "training.json").write_text(json.dumps(facts))

    make_once(folder, train)
    model.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    training = json.loads((folder / "training.json").read_text())
    return DCNV2Recommender(dataset, model.eval(), task, training)


def _key(task: Task, dataset: Dataset) -> str:
    sizes = [dcn_v2.BASELINE, dcn_v2.DROPOUT, BATCH, LEARNING_RATE, TABLE_DECAY, STAGE]
    return digest(task.recommender, dataset.key(), sizes, task.seed, torch.__version__)[:20]


def _fields(dataset: Dataset) -> dict[str, int]:
    return {field.name: field.vocabulary for field in dataset.fields}


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    tables = [p for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()]
    of_tables = {id(p) for p in tables}
    others = [p for p in model.parameters() if id(p) not in of_tables]
    return torch.optim.Adam(
        [{"params": tables, "weight_decay": TABLE_DECAY}, {"params": others, "weight_decay": 0.0}], lr=LEARNING_RATE
    )


def _tensors(dataset: Dataset, part: Part) -> Batch:
    inputs, labels, groups = dataset.rows(part)
    return {k: torch.from_numpy(v) for k, v in inputs.items()}, torch.from_numpy(labels), torch.from_numpy(groups)


def _batches(dataset: Dataset, part: Part, shuffle: torch.Generator | None = None) -> Iterator[Batch]:
    """In order, or shuffled anew; a last batch of one row, which batch normalisation cannot take, joins no batch."""
    inputs, labels, groups = _tensors(dataset, part)
    order = torch.arange(len(labels)) if shuffle is None else torch.randperm(len(labels), generator=shuffle)
    for start in range(0, len(order), BATCH):
        pick = order[start : start + BATCH]
        if shuffle is None or len(pick) > 1:
            yield {name: values[pick] for name, values in inputs.items()}, labels[pick], groups[pick]


def _auc(model: nn.Module, inputs: Mapping[str, Tensor], labels: Tensor) -> float:
    model.eval()
    with torch.inference_mode():
        return float(roc_auc_score(labels.numpy(), model(**inputs).numpy()))
