"""Identity of the user's code and settings, which determine outputs and training beside the weights and the data."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import sysconfig
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from enum import Enum
from pathlib import Path
from types import CodeType, FunctionType, ModuleType, SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from objectives.recommenders.user_model.factory import Given

# Functions of a factory's result that determine outputs or training. The settings of an optimizer are told elsewhere.
_FUNCTIONS = ("loss", "build", "metric")
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.Size, torch.device)
# What a module without settings has, and what training and hooks change.
_OF_MODULES = frozenset(vars(nn.Module())) | {"training"}
_INSTALLED = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))
# Most elements of an array and of a collection that are settings and no data, and the depth of collections.
_SETTING, _MOST, _DEEPEST = 1 << 16, 1000, 4


def identity_of(given: Given) -> str:
    """Describe a factory's result identically in each process: without weights, data and addresses of objects.

    The description holds the source of the model's classes, and of the functions and constants that they and the
    factory's functions use, as far as these lie outside of installed packages; the attributes of the modules that are
    settings, their forward hooks, and which parameters are frozen or tied; and those of the result that its functions
    read.
    """
    described = _Description(given)
    for name, module in given.model.named_modules():
        described.add(f"module {name} {_name(type(module))}")
        described.add_class(type(module))
        described.add_attributes(vars(module), _OF_MODULES, None)
        buffers = {each: module._buffers[each] for each in module._non_persistent_buffers_set}
        described.add_attributes(buffers, set(), None)
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            described.add(f"hook {described.of(hook)}")
    first: dict[int, str] = {}
    for name, parameter in given.model.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            described.add(f"frozen {name}")
        if (other := first.setdefault(id(parameter), name)) != name:
            described.add(f"tied {name} {other}")
    optimizer = getattr(given, "optimizer", None)
    described.add(
        f"optimizer {described.of(optimizer) if isinstance(optimizer, functools.partial) else _source(optimizer)}"
    )
    functions = {name: getattr(given, name, None) for name in _FUNCTIONS}
    for name, function in functions.items():
        described.add(f"{name} {'' if isinstance(function, str) else described.of(function)}")
    described.add(f"hidden {getattr(given, 'hidden', None)!r} output {getattr(given, 'output', None)!r}")
    settings = {**_of_class(type(given)), **getattr(given, "__dict__", {})}
    read = described.add_methods(type(given), functions.values())
    described.add_attributes({name: settings[name] for name in read & settings.keys()}, {*_FUNCTIONS, "model"})
    described.add_used()
    return "\n".join(described.lines)


class _Description:
    """Description that grows: each function, class and object is described once, where it is first used.

    Of the factory's result itself, `given`, only what is asked for is described.
    """

    def __init__(self, given: Given) -> None:
        self.lines: list[str] = []
        self._seen: dict[int, object] = {id(given): given}
        self._waiting: deque[FunctionType] = deque()

    def add(self, line: str) -> None:
        self.lines.append(line)

    def add_attributes(self, attributes: Mapping[str, object], skipped: Set[str], most: int | None = _SETTING) -> None:
        """Add attributes; `most` is the number of elements of an array whose values count, None for any."""
        for name in sorted(attributes.keys() - skipped):
            value = attributes[name]
            told = _contents(value, most) if isinstance(value, (Tensor, np.ndarray)) else self.of(value)
            if told:
                self.add(f"{name} {told}")

    def add_class(self, kind: type) -> None:
        """Add the source of a class and of its bases, without those of torch."""
        for each in kind.__mro__:
            if each.__module__.partition(".")[0] in ("torch", "builtins", "typing") or not self._is_new(each):
                continue
            self.add(_source(each))
            self._waiting.extend(filter(None, map(_function, vars(each).values())))

    def add_methods(self, kind: type, functions: Iterable[object]) -> set[str]:
        """Add the methods that some functions of a factory's result call of it; return all names that they read."""
        names: set[str] = set()
        asked = deque(filter(None, map(_function, functions)))
        while asked:
            function = asked.popleft()
            for name in sorted(_names(function.__code__) - names):
                names.add(name)
                method = _function(inspect.getattr_static(kind, name, None))
                if method is not None and self._is_new(method):
                    self.add(f"{name} {_source(method)}")
                    self._waiting.append(method)
                    asked.append(method)
        return names

    def add_used(self) -> None:
        """Add what the functions so far use of their modules and of the functions around them, and what these use."""
        done: set[FunctionType] = set()
        while self._waiting:
            function = self._waiting.popleft()
            if function in done:
                continue
            done.add(function)
            for name, value in _used(function):
                known = isinstance(value, (type, FunctionType)) and (_is_installed(value) or not self._is_new(value))
                if not known and (told := self.of(value)):
                    self.add(f"{name} {told}")

    def of(self, value: object, depth: int = 0) -> str:
        """Describe a value; what is neither a setting nor a function, such as data, is described by nothing."""
        if isinstance(value, Enum):
            return f"{_name(type(value))} {value.name}"
        if isinstance(value, _PLAIN):
            return repr(value)
        if isinstance(value, np.generic):
            return repr(value.item())
        if isinstance(value, (Tensor, np.ndarray)):
            return _contents(value, _SETTING)
        if isinstance(value, functools.partial):
            return f"{self.of(value.func)} {self.of(value.args)} {self.of(value.keywords)}"
        if isinstance(value, (Namespace, SimpleNamespace)):
            value = vars(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, (type, nn.Module)):
            value = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
        if isinstance(value, (list, tuple, set, frozenset, Mapping)):
            return "" if depth == _DEEPEST or len(value) > _MOST else self._of_collection(value, depth + 1)
        if isinstance(value, nn.Module):
            return self._of_module(value)
        if callable(value):
            return self._of_callable(value)
        return "" if _is_installed(type(value)) else self._of_object(value)

    def _of_collection(self, value: object, depth: int) -> str:
        if isinstance(value, Mapping):
            return str(sorted((self.of(key, depth), self.of(part, depth)) for key, part in value.items()))
        assert isinstance(value, (list, tuple, set, frozenset))
        parts = [self.of(part, depth) for part in value]
        return f"{type(value).__name__} {sorted(parts) if isinstance(value, Set) else parts}"

    def _of_module(self, module: nn.Module) -> str:
        """Describe a module that is no part of the model, such as a loss, with its weights."""
        if self._is_new(module):
            self.add_class(type(module))
            self.add_attributes(vars(module), _OF_MODULES, None)
            self.add_attributes(module.state_dict(), set(), None)
        return _name(type(module))

    def _of_callable(self, value: Callable[..., object]) -> str:
        function = _function(value)
        if function is not None:
            if not _is_installed(function):
                self._waiting.append(function)
            # Of two functions in one line the source is the same.
            return f"{_source(function)} {_constants(function.__code__)}"
        if isinstance(value, type):
            self.add_class(value)
        elif not _is_installed(type(value)):  # an object that can be called
            return self._of_object(value)
        return _name(value if hasattr(value, "__qualname__") else type(value))

    def _of_object(self, value: object) -> str:
        """Describe an object of a class of the user's own by its class and its attributes."""
        if self._is_new(value):
            self.add_class(type(value))
            self.add_attributes(getattr(value, "__dict__", {}), set())
        return _name(type(value))

    def _is_new(self, thing: object) -> bool:
        """Return whether a thing was not described yet; it is from now on."""
        if id(thing) in self._seen:
            return False
        self._seen[id(thing)] = thing  # kept, so that no other has its number
        return True


def _function(thing: object) -> FunctionType | None:
    """Return the function of a method, a property or a wrapper; None for anything else."""
    plain = thing.fget if isinstance(thing, property) else getattr(thing, "__func__", thing)
    plain = inspect.unwrap(plain) if callable(plain) else plain
    return plain if isinstance(plain, FunctionType) else None


def _of_class(kind: type) -> dict[str, object]:
    """Return the attributes of a class and its bases that are settings."""
    every = {name: value for each in reversed(kind.__mro__) for name, value in vars(each).items()}
    return {name: value for name, value in every.items() if isinstance(value, _PLAIN) and not name.startswith("__")}


def _used(function: FunctionType) -> Iterator[tuple[str, object]]:
    """Yield the values that a function uses: of its closure, of its module and of modules there, and its defaults."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # a name that is not set yet
            continue
    names = {name for name in _names(function.__code__) if not name.startswith("__")}
    for name in sorted(names & function.__globals__.keys()):
        value = function.__globals__[name]
        if not isinstance(value, ModuleType):
            yield name, value
        elif not _is_installed(value):
            yield from ((f"{name}.{of}", vars(value)[of]) for of in sorted(names & vars(value).keys()))
    yield "defaults", (function.__defaults__, function.__kwdefaults__)


def _names(code: CodeType) -> set[str]:
    """Return the names of a function's code, and of the functions in it."""
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _constants(code: CodeType) -> list[str]:
    """Return the constants and names of a function's code, in their order."""
    plain = [repr(const) for const in code.co_consts if isinstance(const, _PLAIN)]
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    return [*plain, *code.co_names, *(told for each in inner for told in _constants(each))]


def _is_installed(thing: type | FunctionType | ModuleType) -> bool:
    try:
        file = Path(inspect.getfile(thing))
    except (OSError, TypeError):
        return True
    return any(file.is_relative_to(folder) for folder in _INSTALLED)


def _contents(values: Tensor | np.ndarray, most: int | None) -> str:
    """Describe an array by its type, shape and a hash of its values; one of more elements than `most` without it."""
    told = f"{values.dtype} {tuple(values.shape)}"
    if isinstance(values, Tensor):
        if values.is_meta or (most is not None and values.numel() > most):
            return told
        dense = values.detach().to_dense() if values.layout != torch.strided else values.detach()
        plain = (dense.float() if dense.dtype == torch.bfloat16 else dense).cpu().numpy()
    else:
        plain = values
    if plain.dtype.hasobject or (most is not None and plain.size > most):
        return told
    return f"{told} {hashlib.sha256(np.ascontiguousarray(plain).tobytes()).hexdigest()}"


def _source(thing: object) -> str:
    if thing is None:
        return ""
    try:
        return inspect.getsource(thing)  # type: ignore[arg-type]
    except (OSError, TypeError):
        return _name(thing)


def _name(thing: object) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"
