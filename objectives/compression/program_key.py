"""Key of the program that a model runs, which models have in common that differ in sizes and values alone."""

from __future__ import annotations

from torch import nn

from objectives.compression.module_edit import tensors

# Attributes of torch's own modules that a traced graph takes from the shapes of its weights. The rows of a table are
# not: a forward may compute with their number, on which rare ids depend that no check of scores need meet.
_SIZES = frozenset(("in_features", "out_features", "embedding_dim", "normalized_shape", "num_features"))
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
# Attributes of which the text says all.
_PLAIN = (bool, int, float, str, type(None), tuple, list, dict, frozenset)

ProgramKey = tuple[object, ...]


def program_key(model: nn.Module) -> ProgramKey:
    """Describe a model by its modules, their settings and what is tied: by all but its tensors' sizes and values."""
    first: dict[int, str] = {}
    tied = tuple(
        (name, first.setdefault(id(tensor), name), tensor.ndim, tensor.dtype) for name, tensor in tensors(model).items()
    )
    modules = tuple((name, type(module), _settings(module)) for name, module in model.named_modules())
    return (*modules, tied)


def _settings(module: nn.Module) -> ProgramKey:
    sizes = _SIZES if type(module).__module__.startswith("torch.nn.") else frozenset()
    own = {name: value for name, value in vars(module).items() if name not in sizes | _OF_EVERY_MODULE}
    return tuple((name, repr(value) if isinstance(value, _PLAIN) else type(value)) for name, value in own.items())
