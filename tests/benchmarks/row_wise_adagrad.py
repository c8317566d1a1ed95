"""Sparse gradients with row-wise Adagrad for the tables, against Adam over whole tables as the families train.

    python tests/benchmarks/row_wise_adagrad.py --data DIR [--family dcn-v2] [--epochs 5] [--seeds 0,1] [--rows 0,9000]

Row-wise Adagrad keeps one sum of squares for each row (Naumov et al. 2019, DLRM; FBGEMM's EXACT_ROWWISE_ADAGRAD), and
a step reads and writes no rows but those of the batch. Of a MovieLens folder: seconds of an epoch and the validation
AUC after each, by optimizer of the tables; the rest of the model has Adam. Then milliseconds of the fastest step where
the tables of users and items have so many rows each; the further rows are never looked up, which costs Adam as much.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from objectives.recommenders.datasets.features import Dataset, encode
from objectives.recommenders.datasets.movielens import read_movielens
from objectives.recommenders.datasets.split import split_in_time
from objectives.recommenders.families.pointwise import (
    BATCH,
    FAMILIES,
    LARGE_BATCH,
    LEARNING_RATE,
    _optimizer,
    _scores,
    _shuffled,
    _tensors,
)
from objectives.recommenders.training import Labelled

_STEPS = 10


class RowWiseAdagrad(torch.optim.Optimizer):
    """Adagrad with one accumulator for each row of a table, for sparse gradients."""

    def __init__(self, tables: Iterable[Tensor], lr: float, eps: float = 1e-8) -> None:
        super().__init__(tables, {"lr": lr, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # the loss is never evaluated again
        for group in self.param_groups:
            for table in group["params"]:
                state = self.state[table]
                if not state:
                    state["sum"] = torch.zeros(len(table))
                gradient = table.grad.coalesce()
                rows, values = gradient.indices()[0], gradient.values()
                state["sum"][rows] += values.pow(2).mean(dim=1)
                scale = group["lr"] / (state["sum"][rows].sqrt() + group["eps"])
                table.index_add_(0, rows, values * scale.unsqueeze(1), alpha=-1)


Optimizers = list[torch.optim.Optimizer]


def whole(model: nn.Module) -> Optimizers:
    return [_optimizer(model)]


def sparse(make: Callable[[list[Tensor]], torch.optim.Optimizer]) -> Callable[[nn.Module], Optimizers]:
    """Return what makes the optimizers of a model whose tables have sparse gradients."""

    def optimizers(model: nn.Module) -> Optimizers:
        tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        for module in tables:
            module.sparse = True
        held = {id(module.weight) for module in tables}
        others = [parameter for parameter in model.parameters() if id(parameter) not in held]
        rest = torch.optim.Adam(others, lr=LEARNING_RATE, fused=True)
        return [make([module.weight for module in tables]), rest]

    return optimizers


OPTIMIZERS = {
    "Adam, whole tables": whole,
    "SparseAdam": sparse(lambda tables: torch.optim.SparseAdam(tables, lr=LEARNING_RATE)),
    "row-wise Adagrad 0.01": sparse(lambda tables: RowWiseAdagrad(tables, lr=0.01)),
    "row-wise Adagrad 0.03": sparse(lambda tables: RowWiseAdagrad(tables, lr=0.03)),
}


def train(model: nn.Module, optimizers: Optimizers, batches: Iterable[Labelled]) -> None:
    model.train()
    for inputs, labels in batches:
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        F.binary_cross_entropy_with_logits(model(**inputs), labels).backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()


def quality(dataset: Dataset, family: str, name: str, seed: int, epochs: int) -> None:
    """Print seconds of an epoch and the AUC after each."""
    torch.manual_seed(seed)
    model = FAMILIES[family].build(dataset.fields)
    optimizers, generator = OPTIMIZERS[name](model), torch.Generator().manual_seed(seed)
    inputs, labels = _tensors(dataset, "validation")
    found, seconds = [], []
    for _ in range(epochs):
        start = time.perf_counter()
        train(model, optimizers, _shuffled(dataset, BATCH, generator))
        seconds.append(time.perf_counter() - start)
        found.append(float(roc_auc_score(labels.numpy(), _scores(model, inputs))))
    each = " ".join(f"{auc:.4f}" for auc in found)
    print(f"{family}, {name}, seed {seed}: {sorted(seconds)[len(seconds) // 2]:.2f} s an epoch; AUC {each}", flush=True)


def steps(dataset: Dataset, family: str, name: str, rows: int, batch: int) -> None:
    """Print the fewest milliseconds of a step with tables of so many rows."""
    fields = [
        replace(field, vocabulary=max(field.vocabulary, rows)) if field.name in ("user", "item") else field
        for field in dataset.fields
    ]
    torch.manual_seed(0)
    model = FAMILIES[family].build(fields)
    optimizers, taken = OPTIMIZERS[name](model), []
    for number, one in enumerate(_shuffled(dataset, batch, torch.Generator().manual_seed(0))):
        start = time.perf_counter()
        train(model, optimizers, [one])
        taken.append(1000 * (time.perf_counter() - start))
        if number == _STEPS:
            break
    print(
        f"{family}, {name}, {rows:,} rows a table, batches of {batch}: {min(taken):.1f} ms a step",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of MovieLens")
    parser.add_argument("--family", choices=sorted(FAMILIES), default="dcn-v2")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--rows", default="0,100000,1000000")
    parser.add_argument("--batches", default=f"{BATCH},{LARGE_BATCH}")
    parser.add_argument("--optimizers", default="|".join(OPTIMIZERS))
    options = parser.parse_args()
    log = read_movielens(options.data)
    dataset = encode(log, split_in_time(log), 1)
    for name in options.optimizers.split("|"):
        for seed in map(int, options.seeds.split(",") if options.epochs else ()):
            quality(dataset, options.family, name, seed, options.epochs)
    for rows in [int(rows) for rows in options.rows.split(",") if rows]:
        for name in list(OPTIMIZERS)[:3]:
            for batch in map(int, options.batches.split(",")):
                steps(dataset, options.family, name, rows, batch)


if __name__ == "__main__":
    main()
