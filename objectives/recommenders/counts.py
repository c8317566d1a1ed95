"""How often each id of a table is looked up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from spaces.anatomy import Table


def counted(tables: Sequence[Table], batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """(rows,) by the table's name, over all inputs that it looks up as they are; tables without any are left out."""
    found = {table.name: torch.zeros(table.rows, dtype=torch.int64) for table in tables if table.inputs}
    for inputs in batches:
        for table in tables:
            for name in table.inputs:
                if name in inputs:
                    found[table.name] += torch.bincount(inputs[name].flatten().cpu(), minlength=table.rows)
    return found
