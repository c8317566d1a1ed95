"""Verification of prunable dimensions, and of other forms of layers and tables, on changed copies of the model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from objectives.compression.embeddings import whole_forms
from objectives.compression.low_rank import full_rank
from objectives.compression.module_edit import arrange, names_of, replace_module, replace_tensor, tensors
from objectives.compression.structure.program import TraceError
from objectives.compression.structure.rules import instances
from objectives.errors import located, one_line
from objectives.model_copy import copy_model
from spaces.model_structure import PrunableDim

# Tolerances relative to an output's spread over the rows, and to its size, for sums in another order.
_OF_SPREAD, _OF_SIZE = 1e-4, 1e-5


class UnprunableError(ValueError):
    """Units of a dimension cannot be removed from the model; the message has the reason."""


class Verifier:
    """Comparison of changed copies of a model with the model itself, by their outputs for an example of a few rows.

    Raises:
        TraceError: the model cannot be copied, so that nothing can be verified on it.
    """

    def __init__(self, model: nn.Module, example: Mapping[str, Tensor]) -> None:
        self.model, self._example = model, example
        try:
            _shared_copy(model)
        except Exception as error:  # a lock, a handle or anything else in the user's own model
            raise TraceError(f"The model must be one that copy.deepcopy takes, but got {located(error)}") from error
        self._expected = self._run(model)

    def check_dimension(self, width: PrunableDim) -> bool:
        """Verify a prunable dimension, and return whether it is normalised.

        It is normalised where the other units' outputs change when one is removed.

        A model that interprets the remaining units differently, as where the number of heads is fixed and their size is
        not, raises no error, but no longer treats them alike: so they are reordered after a removal as well.

        Raises:
            UnprunableError: units cannot be removed, with the reason.
        """
        whole, when = range(width.units), "with its units in another order"
        if not _alike(self._arranged(width, _turned(whole), when), self._expected):
            raise UnprunableError(f"{when} the model gives other answers, so something else hangs on the order")
        normalised = False
        for kept, when in _cuts(width.units):
            found = self._arranged(width, kept, when)
            if not _of_shapes(found, self._expected):
                raise UnprunableError(f"{when} the model's answers have another shape, or are not finite")
            if not _alike(self._arranged(width, _turned(kept), when), found):
                raise UnprunableError(
                    f"{when} the model's answers hang on the order of the others, as where the number of heads is fixed"
                )
            if gone := set(whole).difference(kept):
                normalised |= not _alike(found, self._run(_silenced(self.model, width, gone)))
        return normalised

    def trouble_with_factors(self, modules: Sequence[str]) -> str | None:
        """Return the reason why linear layers cannot be factorised; None where they can.

        Two factors of the full rank must give the same outputs, and no other module may hold the layer's weight. This
        is tried, since a module may read the weight itself, and a subclass or a hook may do more than multiply by it.
        """
        for name in modules:
            if (other := self._holder_beside(name)) is not None:
                return f"{other} holds the weight of {name} too"
        layers = [layer for layer in map(self.model.get_submodule, modules) if isinstance(layer, nn.Linear)]
        when = "with two layers of the full rank in place of each"
        return self._trouble_with(when, modules, *map(full_rank, layers))

    def trouble_with_forms(self, table: str) -> str | None:
        """Return why a table's rows cannot be shared or narrowed; None where lossless forms give the same outputs."""
        module = self.model.get_submodule(table)
        if not isinstance(module, nn.Embedding):
            return f"leanrec shares and narrows the rows of nn.Embedding, not of {type(module).__name__}"
        if (other := self._holder_beside(table)) is not None:
            return f"{other} holds its weight too"
        # One form at a time, which may be as large as the model.
        trouble_with = partial(self._trouble_with, "with all its rows in another form", [table])
        return next(filter(None, map(trouble_with, whole_forms(module))), None)

    def _run(self, model: nn.Module) -> tuple[Tensor, ...]:
        """Return every tensor that a model outputs, in order."""
        with torch.inference_mode():
            return tuple(instances(Tensor, model.eval()(**self._example)))

    def _arranged(self, width: PrunableDim, units: Sequence[int], when: str) -> tuple[Tensor, ...]:
        """Return the model's outputs with these units of the dimension in this order, or raise UnprunableError."""
        arranged = _shared_copy(self.model)
        try:
            arrange(arranged, width, units)
            return self._run(arranged)
        except Exception as error:  # anything that the user's own forward may raise
            raise UnprunableError(f"{when} the model fails: {one_line(error)}") from error

    def _trouble_with(self, when: str, names: Sequence[str], *modules: nn.Module) -> str | None:
        """Return how the model fails or differs with modules in place of the named ones; None where it does neither."""
        changed = _shared_copy(self.model)
        for name, module in zip(names, modules, strict=True):
            replace_module(changed, name, module)
        try:
            found = self._run(changed)
        except Exception as error:  # anything that the user's own forward may raise
            return f"{when} the model fails: {one_line(error)}"
        return None if _alike(found, self._expected) else f"{when} the model gives other answers"

    def _holder_beside(self, name: str) -> str | None:
        """Return another module that holds the weight of the one of this name, by its own name."""
        module = self.model.get_submodule(name)
        owners = (other.rpartition(".")[0] for other in names_of(self.model, f"{name}.weight"))
        return next((owner for owner in owners if self.model.get_submodule(owner) is not module), None)


def _shared_copy(model: nn.Module) -> nn.Module:
    """Copy a module tree over the same tensors, which edits replace and never change."""
    return copy_model(model, {id(tensor): tensor for tensor in tensors(model).values()})


def _cuts(units: int) -> Iterator[tuple[Sequence[int], str]]:
    """Yield the units that stay, and a description. Of two units, one cannot be reordered: then a third is added."""
    yield range(1, units), "with a unit less"
    if units > 3:
        yield range(units // 2, units), "with half of its units"
    if units == 2:
        yield (0, 1, 0), "with a unit doubled"


def _turned(units: Sequence[int]) -> list[int]:
    return [*units[1:], units[0]]


def _silenced(model: nn.Module, width: PrunableDim, units: Collection[int]) -> nn.Module:
    """Return the dense model with these units at zero in every tensor."""
    silent = _shared_copy(model)
    for cut in width.axis_slices:
        held = tensors(silent)[cut.tensor].detach()
        positions = torch.tensor(cut.positions(units), device=held.device)
        replace_tensor(silent, cut.tensor, held.index_fill(cut.axis, positions, 0))
    return silent


def _of_shapes(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Return whether the shapes are the expected ones, and all values are finite that should be."""
    return len(found) == len(expected) and all(
        a.shape == b.shape and bool(torch.isfinite(a[torch.isfinite(b)]).all())
        for a, b in zip(found, expected, strict=True)
    )


def _alike(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return _of_shapes(found, expected) and all(_close(a, b) for a, b in zip(found, expected, strict=True))


def _close(found: Tensor, expected: Tensor) -> bool:
    """Compare values relative to their spread over the rows: scores may lie around 0.001, or differ by 1 at 1000."""
    finite = torch.isfinite(expected)
    if not torch.equal(found[~finite].nan_to_num(), expected[~finite].nan_to_num()):
        return False
    values = torch.where(finite, expected, 0).double()
    spread = values.std(0, unbiased=False) if values.dim() else values.new_zeros(())
    size = values.abs().amax(0) if values.dim() else values.abs()
    allowed = _OF_SPREAD * spread + _OF_SIZE * size
    return bool(((torch.where(finite, found, 0).double() - values).abs() <= allowed).all())
