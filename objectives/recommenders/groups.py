"""The groups of a model's anatomy, read from its module tree."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from spaces.anatomy import Cut, Group, Kind, Width

_NORM = ("weight", "bias", "running_mean", "running_var")


def names_of(model: nn.Module, within: str, kind: type[nn.Module]) -> tuple[str, ...]:
    """Dotted names of the modules of a kind inside the submodule `within`, in their order."""
    inside = model.get_submodule(within).named_modules(prefix=within)
    return tuple(name for name, module in inside if isinstance(module, kind))


def group_of(
    model: nn.Module,
    name: str,
    kind: Kind,
    modules: Sequence[str],
    widths: Sequence[Width] = (),
    reason: str | None = None,
) -> Group:
    """With the parameters of its modules counted; the reason stands where there are no widths."""
    parameters = sum(p.numel() for module in modules for p in model.get_submodule(module).parameters())
    return Group(name, kind, tuple(modules), parameters, tuple(widths), None if widths else reason)


def tower_widths(model: nn.Module, layers: Sequence[str], reader: Cut, norms: Sequence[str] = ()) -> tuple[Width, ...]:
    """The outputs of each Linear layer of a tower, with its batch normalisation, and the inputs of the next layer.

    Args:
        layers: dotted names, one after the other
        reader: of the last layer's outputs, where what follows the tower reads them
        norms: batch normalisation of each layer, where there is any
    """
    readers = (*(Cut(f"{layer}.weight", 1) for layer in layers[1:]), reader)
    widths = []
    for i, layer in enumerate(layers):
        made = (Cut(f"{layer}.weight", 0), Cut(f"{layer}.bias", 0))
        normed = tuple(Cut(f"{norms[i]}.{tensor}", 0) for tensor in _NORM) if norms else ()
        widths.append(Width(layer, model.get_parameter(f"{layer}.weight").shape[0], (*made, *normed, readers[i])))
    return tuple(widths)
