"""Forward of a model of flat bags with offsets that takes the bags padded."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from objectives.bags import Bags

_SIGNATURE = inspect.signature(F.embedding_bag)


class PaddedForward:
    """Forward that takes bags padded and gives the model's own forward the same bags flat.

    masked: True where exports run the own forward on padded values, whose sizes do not depend on data, and
        `F.embedding_bag` leaves out what the mask does
    """

    def __init__(self, own: Callable[..., Any], bags: Sequence[Bags], masked: bool) -> None:
        self.own, self.bags, self.masked = own, tuple(bags), masked

    def forward(self, **inputs: Tensor) -> Any:
        if self.masked and torch.compiler.is_exporting():
            return self.on_padded(**inputs)
        flat = dict(inputs)
        for bags in self.bags:
            mask = inputs[bags.offsets]
            bounds = F.pad(mask.sum(1).cumsum(0), (1, 0))
            flat |= {name: inputs[name][mask] for name in bags.values}
            flat[bags.offsets] = bounds if bags.end else bounds[:-1]
        return self.own(**flat)

    def on_padded(self, **inputs: Tensor) -> Any:
        """Run the own forward on padded values, and offsets that stand for the masks."""
        offsets = {bags.offsets: torch.arange(inputs[bags.offsets].shape[0] + bags.end) for bags in self.bags}

        def reduced(given: Mapping[str, Any]) -> Tensor | None:
            masks = (inputs[name] for name, stand_in in offsets.items() if given.get("offsets") is stand_in)
            return next((_reduced(mask, **given) for mask in masks), None)

        with EmbeddingBagCalls(reduced):
            return self.own(**inputs | offsets)


def take_padded(model: nn.Module, bags: Sequence[Bags], masked: bool) -> None:
    """Let a model take its bags padded, in place; copies of it do too, and names of modules stay."""
    model.forward = PaddedForward(own_forward(model), bags, masked).forward


def own_forward(model: nn.Module) -> Callable[..., Any]:
    """Return the forward as the model's class has it."""
    padded = padded_forward(model)
    return model.forward if padded is None else padded.own


def bags_of(model: nn.Module) -> tuple[Bags, ...]:
    """Return the bags that a model takes padded."""
    padded = padded_forward(model)
    return () if padded is None else padded.bags


def padded_forward(model: nn.Module) -> PaddedForward | None:
    """Return the forward of a model that takes bags padded, None of any other."""
    owner = getattr(model.forward, "__self__", None)
    return owner if isinstance(owner, PaddedForward) else None


class EmbeddingBagCalls(TorchFunctionMode):
    """Mode in which `take` gets the arguments of each `F.embedding_bag`, and replaces it if it returns a result."""

    def __init__(self, take: Callable[[Mapping[str, Any]], Tensor | None]) -> None:
        super().__init__()
        self._take = take

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.embedding_bag:
            result = self._take(_SIGNATURE.bind(*args, **(kwargs or {})).arguments)
            if result is not None:
                return result
        return func(*args, **(kwargs or {}))


def _reduced(
    mask: Tensor,
    input: Tensor,
    weight: Tensor,
    offsets: Tensor,
    mode: str = "mean",
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
    **of: Any,
) -> Tensor:
    """Reduce padded bags within the mask by torch's form for bags of one length, in which a mean is a weighted sum."""
    # Reshaped only if the own forward flattened them, since graph passes do not see that rows stay apart.
    ids, factors = input if input.ndim == 2 else input.reshape(mask.shape), mask.to(weight.dtype)
    if mode == "max":
        repeated = torch.where(mask, ids, ids[:, :1])
        highest = F.embedding_bag(repeated, weight, mode=mode, padding_idx=padding_idx, **of)
        return highest.masked_fill(~mask[:, :1], 0.0)
    if mode == "mean":
        kept = mask if padding_idx is None else mask & (ids != padding_idx % len(weight))
        factors = factors / kept.sum(1, keepdim=True).clamp(min=1)
    if per_sample_weights is not None:
        factors = factors * (per_sample_weights if input.ndim == 2 else per_sample_weights.reshape(mask.shape))
    return F.embedding_bag(ids, weight, mode="sum", per_sample_weights=factors, padding_idx=padding_idx, **of)
