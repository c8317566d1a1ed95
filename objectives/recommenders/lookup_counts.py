"""Lookup counts of each id of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from objectives.training_rows import Inputs
from spaces.model_structure import Table

_BATCH = 4096


def counted(
    model: nn.Module, tables: Sequence[Table], batches: Iterable[Inputs], outputs: Callable[[nn.Module, Inputs], object]
) -> dict[str, Tensor]:
    """Count the lookups of each row of each table, (rows,) by the table's name, over all inputs that index it directly.

    Ids that a model computes from its inputs, such as hashes, are counted where the table's module is called; a table
    that is read in another way has no counts.

    Args:
        outputs: runs the model on a batch
    """
    computed = [table.name for table in tables if not table.inputs]
    found = {table.name: torch.zeros(table.rows, dtype=torch.int64) for table in tables}
    model.eval()
    with ExitStack() as hooks, torch.inference_mode():
        for name in computed:
            hook = partial(_count_call, found[name])
            hooks.enter_context(model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True))
        for inputs in batches:
            for table in tables:
                for name in table.inputs:
                    if name in inputs:
                        _count(found[table.name], inputs[name])
            for start in range(0, len(next(iter(inputs.values()))) if computed else 0, _BATCH):
                outputs(model, {name: values[start : start + _BATCH] for name, values in inputs.items()})
    return {name: counts for name, counts in found.items() if name not in computed or counts.any()}


def _count_call(counts: Tensor, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
    _count(counts, args[0] if args else kwargs["input"])


def _count(counts: Tensor, ids: Tensor) -> None:
    counts += torch.bincount(ids.flatten().cpu(), minlength=len(counts))
