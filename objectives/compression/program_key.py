"""Key of the program that a model runs, which models have in common that differ in sizes and values alone."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from objectives.compression.module_edit import tensors

# Attributes of torch's own modules that a traced graph takes from the shapes of its weights. The rows of a table are
# not: a forward may compute with their number, on which rare ids depend that no check of scores need meet.
_SIZES = frozenset(("in_features", "out_features", "embedding_dim", "normalized_shape", "num_features"))
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
# Those of them that a forward depends on.
_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
)
# Modules whose forward is known, and those among them whose tensors are for others to use.
_KNOWN = ("torch.nn.", "objectives.")
_HOLDERS = (nn.ParameterList, nn.ParameterDict)

ProgramKey = tuple[object, ...]


def program_key(model: nn.Module) -> ProgramKey | None:
    """Describe a model by its modules, their settings and what is tied, but not by its tensors' sizes and values.

    The sizes of tensors that a user's own module holds belong to it, since its forward may compute with them as with
    the rows of a table.

    Returns:
        The key, or None where a setting cannot be pickled, so that nothing is known of its contents.
    """
    modules, held = dict(model.named_modules(remove_duplicate=False)), tensors(model)
    first: dict[int, str] = {}
    described = tuple(
        (
            name,
            first.setdefault(id(tensor), name),
            tensor.ndim if _is_known(modules[name.rpartition(".")[0]]) else tuple(tensor.shape),
            tensor.dtype,
        )
        for name, tensor in held.items()
    )
    settings = _settings_of(modules, held)
    if settings is None:
        return None
    return (*((name, type(module)) for name, module in modules.items()), *described, settings)


def _is_known(module: nn.Module) -> bool:
    return type(module).__module__.startswith(_KNOWN) and not isinstance(module, _HOLDERS)


def _settings(module: nn.Module) -> tuple[object, ...]:
    """Return what an object like the module is made from, without what every module has, and its hooks."""
    state: Any = module.__reduce_ex__(2)[2]
    sizes = _SIZES if type(module).__module__.startswith("torch.nn.") else frozenset()
    own = {name: value for name, value in state.items() if name not in sizes | _OF_EVERY_MODULE}
    return own, *(list(getattr(module, name).values()) for name in _HOOKS)


class _Pickler(pickle.Pickler):
    """Pickler for which some objects are no more than their names."""

    def __init__(self, file: io.BytesIO, names: Mapping[int, str]) -> None:
        super().__init__(file)
        self._names = names

    def persistent_id(self, value: object) -> str | None:
        return self._names.get(id(value))


def _settings_of(modules: Mapping[str, nn.Module], held: Mapping[str, Tensor]) -> str | None:
    """Return a hash of the settings of all modules, None where one of them cannot be pickled."""
    file = io.BytesIO()
    names = {id(part): name for name, part in (*modules.items(), *held.items())}
    try:
        _Pickler(file, names).dump([_settings(module) for module in modules.values()])
    except Exception:  # anything that a user's own class may raise
        return None
    return hashlib.sha256(file.getvalue()).hexdigest()
