"""Lookup counts of each id of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack

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
        tables: tables of the model
        outputs: runs the model on a batch
    """
    computed = [table for table in tables if not table.inputs]
    found = {table.name: torch.zeros(table.rows, dtype=torch.int64) for table in tables}
    model.eval()
    with ExitStack() as hooks, torch.inference_mode():
        for table in computed:
            hooks.enter_context(_counting(model, table.name, found[table.name]))
        for inputs in batches:
            for table in tables:
                for name in table.inputs:
                    if name in inputs:
                        _add(found[table.name], inputs[name])
            if computed:
                for part in _parts(inputs):
                    outputs(model, part)
    missed = [table.name for table in computed if not found[table.name].any()]
    return {name: counts for name, counts in found.items() if name not in missed}


def _parts(inputs: Inputs) -> Iterator[Inputs]:
    """Iterate over the inputs, some rows at a time."""
    for i in range(0, len(next(iter(inputs.values()))), _BATCH):
        yield {name: values[i : i + _BATCH] for name, values in inputs.items()}


def _counting(model: nn.Module, name: str, counts: Tensor) -> torch.utils.hooks.RemovableHandle:
    """Add the ids of each call of a module to the counts, until the handle is closed."""

    def note(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        _add(counts, args[0] if args else kwargs["input"])

    return model.get_submodule(name).register_forward_pre_hook(note, with_kwargs=True)


def _add(counts: Tensor, ids: Tensor) -> None:
    counts += torch.bincount(ids.flatten().cpu(), minlength=len(counts))
