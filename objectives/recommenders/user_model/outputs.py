"""Outputs of the user's own model: their names, which have labels, and the main one, which the metric evaluates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from objectives.output_kind import OutputKind
from objectives.recommenders.user_model.factory import FactoryError, Given
from objectives.training_rows import Labels

# Name of an output, or its number where outputs are numbered.
Name = str | int


@dataclass(frozen=True)
class Outputs:
    """Outputs of a model.

    names: names or numbers of several outputs, the main one first; empty where the model returns a single tensor
    labelled: the outputs that have labels
    """

    factory: str
    names: tuple[Name, ...]
    labelled: frozenset[Name]

    @property
    def main(self) -> Name | None:
        return self.names[0] if self.names else None

    @property
    def others(self) -> tuple[Name, ...]:
        """Outputs with labels other than the main one."""
        return tuple(name for name in self.names[1:] if name in self.labelled)

    def scores(self, outputs: object) -> Tensor:
        """Return the scores, (rows,), or (rows, outputs) where there are several, with the main one first.

        Raises:
            FactoryError: an output is not one score for each row.
        """
        if not self.names:
            return _column(outputs, f"{self.factory}: the model")
        several = _by_name(outputs, self.factory)
        return torch.stack([_column(several[name], f"{self.factory}: output {name}") for name in self.names], 1)

    def one(self, outputs: object, name: Name | None) -> Tensor:
        """Return one of the model's outputs as the model gives it; None names the only one."""
        found = outputs if name is None else _by_name(outputs, self.factory)[name]
        assert isinstance(found, Tensor)
        return found

    def labels(self, labels: Labels) -> NDArray[np.float64]:
        """Return the labels, (rows, 1 + others), of the main output, then of the others."""
        return np.stack([self._of(labels, name) for name in (self.main, *self.others)], axis=1)

    def _of(self, labels: Labels, output: Name | None) -> NDArray[np.float64]:
        if isinstance(labels, Tensor):
            several = labels.ndim == 2 and labels.shape[1] > 1 and len(self.names) > 1
            known: Mapping[Name | None, object] = dict(enumerate(labels.T)) if several else {output: labels}
        else:
            known = dict[Name | None, object](labels.items() if isinstance(labels, dict) else enumerate(labels))
        name = output if isinstance(labels, (Tensor, dict)) or len(self.names) > 1 else 0
        if name not in known:
            raise FactoryError(f"{self.factory}: labels must hold those of output {name!r}, but have {list(known)}")
        found = np.asarray(known[name], dtype=np.float64)
        return found.reshape(len(found), -1)[:, 0]


def outputs_of(given: Given, outputs: object, labels: Labels) -> Outputs:
    """Determine the outputs from one batch.

    One column of labels belongs to the main output. Several are named or numbered like the outputs; where there is only
    one output, the first is its own.

    Raises:
        FactoryError: `output` does not select the main one of several, or the main one has no labels.
    """
    if isinstance(outputs, Tensor):
        if isinstance(labels, dict):
            raise FactoryError(f"{given.name}: labels must be those of the one output, but have names {list(labels)}")
        return Outputs(given.name, (), frozenset())
    known = list(_by_name(outputs, given.name))
    main = getattr(given, "output", None)
    if len(known) > 1 and main not in known:
        raise FactoryError(f"{given.name}: output must be one of the model's {known}, but got {main!r}")
    main = known[0] if main is None else main
    alone = len(known) == 1 and not isinstance(labels, dict)
    labelled = frozenset({main}) if alone else _labelled(labels, main)
    if main not in labelled:
        raise FactoryError(f"{given.name}: labels must hold those of output {main!r}, but have {sorted(labelled)}")
    rest = sorted((name for name in known if name != main), key=lambda name: name not in labelled)
    return Outputs(given.name, (main, *rest), labelled)


def kind_of(scores: NDArray[np.float64], labels: NDArray[np.float64] | None) -> OutputKind:
    """Infer the kind of an output from its scores, (n,), and its labels, (rows,), if any.

    The output gives probabilities where all scores lie between 0 and 1, and any labels are 0 and 1; logits where only
    the labels are; else values, weighted by the inverse of their variance, or, where they do not vary, of their square.
    """
    binary = labels is not None and bool(np.isin(labels, (0, 1)).all())
    within = bool(((scores >= 0) & (scores <= 1)).all())
    if within and (binary or labels is None):
        return OutputKind("probabilities")
    if binary:
        return OutputKind("logits")
    spread, size = float(scores.std()), float(np.abs(scores).max())
    return OutputKind("values", (spread if spread > 1e-6 * size else size or 1.0) ** -2)


def _by_name(outputs: object, factory: str) -> Mapping[Name, object]:
    """Return several outputs by name or number."""
    if isinstance(outputs, Mapping):
        return outputs
    if isinstance(outputs, (list, tuple)):
        return dict(enumerate(outputs))
    raise FactoryError(
        f"{factory}: the model must give a tensor, or several by name or in order, but gave {type(outputs).__name__}"
    )


def _labelled(labels: Labels, main: Name) -> frozenset[Name]:
    if isinstance(labels, dict):
        return frozenset(labels)
    if isinstance(labels, (list, tuple)):
        return frozenset(range(len(labels)))
    return frozenset(range(labels.shape[1])) if labels.ndim == 2 and labels.shape[1] > 1 else frozenset({main})


def _column(value: object, what: str) -> Tensor:
    """Return an output as (rows,)."""
    if not isinstance(value, Tensor) or value.ndim not in (1, 2) or (value.ndim == 2 and value.shape[1] != 1):
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise FactoryError(f"{what} must give one score for each row, but gave {got}")
    return value.squeeze(1) if value.ndim == 2 else value
