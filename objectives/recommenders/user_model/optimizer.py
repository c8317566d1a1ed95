"""Optimizer of a model with sparse gradients of some tables, which few optimizers support."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

Make = Callable[[Iterable[nn.Parameter]], Optimizer]


class WithSparseTables(Optimizer):
    """Optimizer that steps with another one, and with SparseAdam for the tables; its groups are those of both."""

    def __init__(self, others: Optimizer | None, tables: torch.optim.SparseAdam) -> None:
        self._tables = tables
        self._steps = [tables] if others is None else [others, tables]
        super().__init__([group for each in self._steps for group in each.param_groups], {})

    def add_param_group(self, param_group: dict[str, object]) -> None:
        if not any(param_group is group for each in self._steps for group in each.param_groups):
            self._steps[0].add_param_group(param_group)
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both, by their place."""
        return {str(place): each.state_dict() for place, each in enumerate(self._steps)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the states of both, whose groups are new objects then."""
        for place, each in enumerate(self._steps):
            each.load_state_dict(state_dict[str(place)])
        self.param_groups = [group for each in self._steps for group in each.param_groups]

    @property
    def steps(self) -> tuple[Optimizer, ...]:
        return tuple(self._steps)

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # the loss is never evaluated again
        for group in self._tables.param_groups:
            for parameter in group["params"]:
                # Dense where a table is also used as a matrix, for example tied to the output.
                if parameter.grad is not None and not parameter.grad.is_sparse:
                    parameter.grad = parameter.grad.to_sparse(1)
        for each in self._steps:
            each.step()


def keeps_state(optimizer: Optimizer) -> bool:
    """Return whether an optimizer goes on from its state dictionary as if it had not stopped: torch's own do."""
    steps = optimizer.steps if isinstance(optimizer, WithSparseTables) else (optimizer,)
    return all(type(each).__module__.startswith("torch.optim.") for each in steps)


def optimizer_of(model: nn.Module, make: Make) -> Optimizer:
    """Make the model's optimizer; tables whose sparse gradients it does not support get SparseAdam at the same rate."""
    kinds = (nn.Embedding, nn.EmbeddingBag)
    held = [module.weight for module in model.modules() if isinstance(module, kinds) and module.sparse]
    # Each once, even if several modules hold it.
    tables = [*dict.fromkeys(weight for weight in held if isinstance(weight, nn.Parameter) and weight.requires_grad)]
    if not tables or _takes_sparse(make):
        return make(model.parameters())
    of_tables = {id(table) for table in tables}
    others = [parameter for parameter in model.parameters() if id(parameter) not in of_tables]
    made = make(others or [_throwaway()])
    rate = float(made.param_groups[0]["lr"])
    return WithSparseTables(made if others else None, torch.optim.SparseAdam(tables, lr=rate))


def _takes_sparse(make: Make) -> bool:
    """Return whether an optimizer supports sparse gradients: it fails in a step, so a throwaway table takes one."""
    table = _throwaway()
    table.grad = torch.ones_like(table).to_sparse(1)
    try:
        make([table]).step()
    except Exception:  # anything that an optimizer may raise
        return False
    return True


def _throwaway() -> nn.Parameter:
    return nn.Parameter(torch.zeros(2, 2))
