"""Loading and calling of the user's own factory, and the checks of its result before any budget is spent."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from objectives.arrays import Array, Arrays
from objectives.bags import padded
from objectives.errors import InputError, located
from objectives.recommenders.datasets.split import Part
from objectives.recommenders.user_model.padded_forward import bags_of, own_forward
from objectives.training_rows import Labels, leaves

T = TypeVar("T")
# Inputs by name, labels and groups of the same rows.
Checked = tuple[dict[str, Tensor], Labels, Array]
_END = object()


class FactoryError(InputError):
    """A factory, or a part of its result, is invalid; the message is one line."""


class Given(Protocol):
    """Result of a factory, the same at each call, since it is called in several processes.

    A metric that is a function returns a number above 0, higher being better. Optional attributes:

    build(shape): returns an untrained sibling of these sizes
    shapes: the sizes to try, by name, unless the study file has them
    optimizer(parameters): returns an optimizer for fine-tuning
    hidden: dotted name of the module, in the model and its siblings, whose outputs are features to distil
    output: for a model with several outputs, the name or number of the one that the metric evaluates
    slices(split): returns masks of the split's rows by name, on which the loss is reported too
    user_inputs: names of the inputs that are equal in all rows of every request; without it, they are inferred from the
        first thousand
    bags: the name of the offsets, by the name of each input of values that come flat, as for nn.EmbeddingBag; without
        it, those that the model gives to `F.embedding_bag` as they are
    """

    name: str
    model: nn.Module
    metric: str | Callable[[Array, Array, Array], float]

    def loss(self, outputs: object, labels: Labels) -> Tensor:
        """Return the mean loss over the rows, in any combination, since they are shuffled."""

    def batches(self, split: str) -> Iterable[tuple[Mapping[str, Tensor], object, object]]:
        """Iterate over (inputs by name, labels, groups), each of the same rows."""

    def requests(self, seed: int) -> Iterable[Mapping[str, object]]:
        """Iterate over requests, arrays by input's name."""


def load_factory(spec: str, folder: Path) -> Callable[[], Given]:
    """Import the factory, `package.module:factory`.

    Args:
        folder: appended to the import path, so that nothing in it hides installed packages

    Raises:
        FactoryError: there is no such module, or nothing callable of that name in it.
    """
    module, colon, name = spec.partition(":")
    if not colon or not module or not name:
        raise FactoryError(f"recommender: must be package.module:factory, but got {spec!r}")
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    try:
        found = importlib.import_module(module)
    except Exception as error:  # anything that the user's own module may raise
        reason = f"importing {module} failed: {located(error)}"
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            reason = f"there is no module {error.name!r} on the import path or in {folder}"
        raise FactoryError(f"recommender: {reason}") from error
    factory = getattr(found, name, None)
    if not callable(factory):
        known = [n for n, v in vars(found).items() if callable(v) and getattr(v, "__module__", None) == module]
        has = f"; it has {', '.join(known)}" if known else ""
        raise FactoryError(f"recommender: {module} must have a function {name!r}, but has none{has}")
    return factory  # type: ignore[no-any-return]


def given_by(factory: Callable[[], Given], spec: str) -> Given:
    """Call the factory and check its result's parts; the model is moved to the CPU.

    Raises:
        FactoryError: it fails, or a part is missing or of another kind.
    """
    given = called(f"{spec}: the factory", factory)
    for part, (what, is_valid) in {**_REQUIRED, **_OPTIONAL}.items():
        value, optional = getattr(given, part, None), part in _OPTIONAL
        if not (optional if value is None else is_valid(value)):
            got = "nothing" if value is None else type(value).__name__
            raise FactoryError(f"{spec}: {part} must be {what}{' or left out' if optional else ''}, but got {got}")
    try:
        given.model = given.model.to("cpu").float().eval()
    except Exception as error:  # a frozen record, or a model that cannot be moved
        raise FactoryError(
            f"{spec}: model must be one that can be set and brought to the CPU: {located(error)}"
        ) from error
    return given


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


# Parts of a factory's result: what each must be, in words and as a check.
_REQUIRED: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    "name": ("text", _is_text),
    "model": ("a torch.nn.Module", lambda value: isinstance(value, nn.Module)),
    "loss": ("a function of outputs and labels", callable),
    "metric": (
        "the name of a metric, or a function of scores, labels and groups",
        lambda value: callable(value) or isinstance(value, str),
    ),
    "batches": ("a function of the split", callable),
    "requests": ("a function of the seed", callable),
}
_OPTIONAL: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    "build": ("a function of the shape", callable),
    "shapes": ("a mapping", lambda value: isinstance(value, Mapping)),
    "optimizer": ("a function of the parameters", callable),
    "hidden": ("text", _is_text),
    "slices": ("a function of the split", callable),
    "user_inputs": (
        "names of inputs",
        lambda value: isinstance(value, (tuple, list, set, frozenset)) and all(isinstance(name, str) for name in value),
    ),
    "bags": (
        "names of offsets by input",
        lambda value: isinstance(value, Mapping) and all(isinstance(name, str) for of in value.items() for name in of),
    ),
}


def batches_of(given: Given, split: Part) -> Iterator[Checked]:
    """Iterate over the split's batches, checked: inputs of the forward, bags padded, as many labels and groups as rows.

    Raises:
        FactoryError: a batch is invalid; the message has the requirement.
    """
    where, lengths = f"{given.name}: batches({split!r})", dict[str, int]()

    def length(offsets: str, longest: int) -> int:
        """Return one of few lengths, since rows of different lengths do not share a batch of training."""
        lengths[offsets] = max(lengths.get(offsets, 0), 1 << (longest - 1).bit_length())
        return lengths[offsets]

    for inputs, labels, groups in flat_batches(given, split):
        bags = bags_of(given.model)
        flat = {name: inputs[name].numpy() for one in bags for name in one.names if name in inputs}
        even = called(f"{where}: padding", partial(padded, flat, bags, length))
        tensors = inputs | {name: torch.from_numpy(values) for name, values in even.items()}
        _check_rows(tensors, labels, groups, where)
        yield tensors, labels, groups


def flat_batches(given: Given, split: Part) -> Iterator[Checked]:
    """Iterate over the split's batches as tensors, with the factory's own inputs.

    Raises:
        FactoryError: there are none, or one is not what the forward takes.
    """
    where = f"{given.name}: batches({split!r})"
    source = called(where, lambda: iter(given.batches(split)))
    number = 0
    while (batch := called(where, lambda: next(source, _END))) is not _END:
        yield _tensors(given, batch, where)
        number += 1
    if number == 0:
        raise FactoryError(f"{where} must yield a batch or more, but yielded none")


def _tensors(given: Given, batch: object, where: str) -> Checked:
    if not isinstance(batch, (tuple, list)) or len(batch) != 3:
        got = f"{len(batch)} parts" if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise FactoryError(f"{where} must yield (inputs, labels, groups), but yielded {got}")
    inputs, labels, groups = batch
    if not isinstance(inputs, Mapping) or not inputs:
        raise FactoryError(f"{where}: inputs must be tensors by name, but got {type(inputs).__name__}")
    tensors = {name: _tensor(value, f"{where}: input {name}") for name, value in inputs.items()}
    taken, required = forward_takes(given.model)
    missing, stray = sorted(required - set(tensors)), sorted(set(tensors) - taken if taken else [])
    if missing or stray:
        has = f"lack {', '.join(missing)}" if missing else f"have {', '.join(stray)}, which it does not take"
        raise FactoryError(f"{where}: inputs must be what the model's forward takes, but they {has}")
    truth = called(f"{where}: labels as tensors", lambda: _on_cpu(labels))
    owners = np.asarray(groups.cpu() if isinstance(groups, Tensor) else groups)
    return tensors, truth, owners[:, 0] if owners.ndim == 2 and owners.shape[1] == 1 else owners


def _check_rows(inputs: Mapping[str, Tensor], labels: Labels, groups: Array, where: str) -> None:
    count = check_even(inputs, where)
    of_labels = [len(part) if part.ndim else 0 for part in leaves(labels)] or [0]
    for part, sizes in (("labels", of_labels), ("groups", [len(groups) if groups.ndim else 0])):
        if wrong := [size for size in sizes if size != count]:
            raise FactoryError(f"{where}: {part} must have {count} rows as the inputs have, but have {wrong[0]}")
    if groups.ndim != 1:
        raise FactoryError(f"{where}: groups must be one value a row, ({count},), but have shape {groups.shape}")


def check_even(inputs: Mapping[str, Tensor] | Arrays, where: str) -> int:
    """Return the rows of inputs, of which some may have one row only.

    Raises:
        FactoryError: they have other rows.
    """
    rows = {name: len(values) if values.ndim else 0 for name, values in inputs.items()}
    if not rows or min(rows.values()) == 0 or any(size not in (1, max(rows.values())) for size in rows.values()):
        rule = "inputs must have the same rows, or one, unless the factory declares them as `bags` with offsets"
        raise FactoryError(f"{where}: {rule}, but got {rows}")
    return max(rows.values())


def _tensor(value: object, what: str) -> Tensor:
    try:
        return torch.as_tensor(value).cpu()
    except Exception as error:  # objects that torch cannot hold: text, objects, arrays of unequal lengths
        raise FactoryError(f"{what} must be a tensor or an array of numbers, but got {located(error)}") from error


def forward_takes(model: nn.Module) -> tuple[set[str], set[str]]:
    """Return the names that a model's forward takes, empty where it takes any; and those that are required."""
    parameters = inspect.signature(own_forward(model)).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = {p.name for p in parameters if p.kind in kinds}
    required = {p.name for p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty}
    any_name = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    return (set() if any_name else named), required


def _on_cpu(labels: object) -> Labels:
    if isinstance(labels, Tensor):
        return labels.cpu()
    if isinstance(labels, Mapping):
        return {name: _on_cpu(value) for name, value in labels.items()}
    nested = (Tensor, np.ndarray, Mapping, list, tuple)
    if isinstance(labels, (list, tuple)) and labels and isinstance(labels[0], nested):
        return type(labels)(_on_cpu(value) for value in labels)
    return torch.as_tensor(labels)


def called(what: str, call: Callable[[], T]) -> T:
    """Call the user's own code, of which any exception becomes a FactoryError."""
    try:
        return call()
    except FactoryError:
        raise
    except Exception as error:
        raise FactoryError(f"{what} failed: {located(error)}") from error
