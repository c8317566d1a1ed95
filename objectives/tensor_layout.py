"""Layout of a model's tensors: which sizes the units along each axis belong to, of which a smaller model has fewer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

# Adjacent positions of an axis: the size whose units they are (empty for positions that every model has), their number.
Run = tuple[str, int]
Axis = tuple[Run, ...]


@dataclass(frozen=True)
class TensorLayout:
    """Runs of each axis of a tensor.

    role: tensors of one name are parts of each other only where their roles are equal: the last layer after two hidden
        layers reads other units than after three
    """

    axes: tuple[Axis, ...]
    role: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(sum(size for _, size in axis) for axis in self.axes)


# Layout of each tensor by its dotted name; a tensor without one is the same in all models.
Layout = Mapping[str, TensorLayout]


def leading(part: Axis, whole: Axis) -> tuple[int, ...]:
    """Return the positions along `whole` of the runs of `part`, each of which is the beginning of its run.

    Raises:
        ValueError: other runs, or longer ones.
    """
    if [name for name, _ in part] != [name for name, _ in whole] or any(
        size > there for (_, size), (_, there) in zip(part, whole, strict=True)
    ):
        raise ValueError(f"The runs of a part are the beginnings of {whole}, but got {part}.")
    starts = accumulate((size for _, size in whole), initial=0)
    return tuple(p for (_, size), start in zip(part, starts, strict=False) for p in range(start, start + size))


def common(one: TensorLayout, other: TensorLayout) -> TensorLayout:
    """Return what two tensors share: along each axis the first runs of the same names, as far as both have them."""
    axes = []
    for ours, theirs in zip(one.axes, other.axes, strict=True):
        shared: list[Run] = []
        for (name, size), (known, there) in zip(ours, theirs, strict=False):
            if name != known:
                break
            shared.append((name, min(size, there)))
        axes.append(tuple(shared))
    return TensorLayout(tuple(axes), one.role)
